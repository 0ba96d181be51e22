//! GGUF v3: the container of a model. Bytes in, checked metadata and tensor infos out; and the writer.
//!
//! A file is a header (magic, version, counts, key-value metadata, tensor infos), padding, then the tensors' bytes,
//! each starting at a multiple of `general.alignment`. Everything is little-endian. The format is described in
//! ggml's `docs/gguf.md`; strings are a u64 length and UTF-8, arrays an element type, a u64 count and the elements.

#![forbid(unsafe_code)]

mod architecture;
mod header;
mod reader;
mod split;
mod types;
mod value;
mod writer;

#[cfg(test)]
mod malformed;

pub use architecture::Architecture;
pub use header::{Header, TensorInfo};
pub use split::{SplitWriter, is_split_key, parse_split_path, split_path};
pub use types::GgmlType;
pub use value::{ArrayRef, MetaArray, MetaValue, Value, ValueType};
pub use writer::{TensorSpec, Writer, part_path};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: usize = 4;

/// The format wants a multiple of 8 and ggml a power of two.
fn is_alignment(n: usize) -> bool {
    n >= 8 && n.is_power_of_two()
}
