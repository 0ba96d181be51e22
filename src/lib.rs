//! libmmada: a native runtime for MMaDA (arXiv 2505.15809), the unified multimodal diffusion language model. One
//! bidirectional network over text and image tokens writes, reasons, answers questions about pictures, and draws.
//!
//! A [`Model`] is an opened GGUF file, a [`Context`] has the threads and buffers to run it, and a [`Generation`] is one
//! request on its way, pulled step by step by the caller.
//!
//! ```
//! use mmada::{Context, ContextOptions, Message, Model, TextRequest};
//!
//! # fn main() -> mmada::Result<()> {
//! let model = Model::open("models/mmada-shapes.gguf")?;
//! let context = Context::new(&model, ContextOptions::default())?;
//! let mut generation = context.text(TextRequest {
//!     messages: vec![Message::user("What is 17 + 25?")],
//!     image: None,
//!     squash: false,
//!     thinking: true,
//!     options: model.text_options(true, false),
//! })?;
//! while !generation.step()?.done {}
//! let answer = generation.text()?;
//! assert_eq!(answer.answer, "42");
//! println!("{:?}, therefore {}", answer.thinking, answer.answer);
//! # Ok(())
//! # }
//! ```
//!
//! A picture, with a look at what every step does; another thread may stop it through a [`Canceller`]:
//!
//! ```
//! use mmada::{Context, ContextOptions, DrawRequest, Model};
//!
//! # fn main() -> mmada::Result<()> {
//! # let model = Model::open("models/mmada-shapes.gguf")?;
//! # let context = Context::new(&model, ContextOptions::default())?;
//! let (text, image) = model.draw_options(false);
//! let mut generation = context.draw(DrawRequest {
//!     prompt: "a red circle left of a blue square on a white background".into(),
//!     think: false,
//!     width: model.image_size(),
//!     height: model.image_size(),
//!     count: 1,
//!     text,
//!     image,
//! })?;
//! loop {
//!     let step = generation.step()?;
//!     println!("step {} of {}: {} codes are new", step.index, step.total, step.changed.len());
//!     if step.done {
//!         break;
//!     }
//! }
//! let picture = generation.image(0)?;
//! assert_eq!(picture.dimensions(), (64, 64));
//! # let folder = tempfile::tempdir().unwrap();
//! # std::env::set_current_dir(&folder).unwrap();
//! mmada::image::save(&picture, "shapes.png")?;
//! # Ok(())
//! # }
//! ```
//!
//! Threads: a [`Model`] is shared freely; a [`Context`] runs one call at a time and answers [`Error::Busy`] to a second
//! one. Results do not depend on the number of threads. Nothing is printed, and no panic is part of the interface. A
//! context belongs to the process that made it: in a forked one it answers [`Error::Forked`]. Memory that is sized by a
//! model or a request and cannot be had is [`Error::OutOfMemory`].
//!
//! # The tree, in the order that data takes
//!
//! | module | |
//! |---|---|
//! | [`error`] | one error type with stable codes |
//! | [`gguf`], [`mmap`] | the model file: checked metadata and tensor infos; the mapping; the writer |
//! | [`tensor`] | block types of GGUF: layouts, decoding, encoding |
//! | [`kernels`], [`parallel`] | products, attention and what lies between them, per instruction set; threads |
//! | [`memory`] | allocations that fail with an error, and count against a context's limit |
//! | [`tokenizer`], [`prompt`] | text to ids; the layouts of the tasks |
//! | [`model`] | the transformer's forward pass |
//! | [`vq`], [`image`] | the image tokenizer; picture files, resizing |
//! | [`sampler`] | which tokens are committed: schedules, confidence, noise |
//! | [`generate`] | requests and the loop over steps |
//! | [`context`] | the handles that callers hold |
//! | [`backend`] | what the library runs on, and was built as |
//! | `capi` | the C interface: one function per symbol of `include/mmada.h` |

pub mod backend;
#[cfg(feature = "capi")]
mod capi;
pub mod context;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod image;
pub mod kernels;
pub mod memory;
pub mod mmap;
pub mod model;
pub mod parallel;
pub mod prompt;
pub mod sampler;
pub mod tensor;
pub mod tokenizer;
pub mod vq;

pub use backend::{Backend, BuildInfo, Device, DeviceChoice, VERSION, backends, build_info};
pub use context::{Context, ContextOptions, Estimate, LogLevel, Logger, Model, OpenOptions, Progress};
pub use error::{Error, Result};
pub use generate::{
    Answer, Canceller, Change, DrawFromIds, DrawRequest, Generation, ImageOptions, Score, ScoreRequest, Slot, Step,
    TextOptions, TextRequest,
};
pub use image::RgbImage;
pub use model::{Compute, SequenceRequest};
pub use prompt::{Message, Role};
pub use sampler::{Confidence, Remasking, Schedule, Stage};
