//! libmmada: a native runtime for MMaDA, the unified multimodal diffusion language model.

pub mod error;
pub mod generate;
pub mod gguf;
pub mod image;
pub mod kernels;
pub mod mmap;
pub mod model;
pub mod parallel;
pub mod prompt;
pub mod sampler;
pub mod tensor;
pub mod tokenizer;
pub mod vq;

pub use error::{Error, Result};
