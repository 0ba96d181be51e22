//! GGUF v3: the container of a model. Bytes in, checked metadata and tensor infos out; and the writer.

mod types;

pub use types::GgmlType;
