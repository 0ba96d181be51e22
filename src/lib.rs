//! libmmada: a native runtime for MMaDA, the unified multimodal diffusion language model.

pub mod context;
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

pub use context::{Context, ContextOptions, Estimate, Model, OpenOptions};
pub use error::{Error, Result};
pub use generate::{
    Answer, Canceller, Change, DrawFromIds, DrawRequest, Generation, ImageOptions, Slot, Step, TextOptions, TextRequest,
};
pub use image::RgbImage;
pub use model::{Compute, SequenceRequest};
pub use prompt::{Message, Role};
pub use sampler::{Confidence, Remasking, Schedule, Stage};
