//! libmmada: a native runtime for MMaDA, the unified multimodal diffusion language model.

pub mod error;
pub mod gguf;
pub mod kernels;
pub mod mmap;
pub mod parallel;
pub mod sampler;
pub mod tensor;

pub use error::{Error, Result};
