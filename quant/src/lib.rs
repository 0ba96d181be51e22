//! Makes GGUF files for libmmada out of MMaDA checkpoints.
//!
//! `convert` reads the published layout (config.json, safetensors or PyTorch shards, tokenizer.json, the image
//! tokenizer's folder) and writes one file with everything the runtime needs.
//!
//! ```no_run
//! use mmada::gguf::GgmlType;
//! use mmada_quantize::{ConvertOptions, convert};
//!
//! let options = ConvertOptions::new("MMaDA-8B-MixCoT", "mmada-8b.gguf", GgmlType::Q8_0);
//! let report = convert(&options, &mut |_| {})?;
//! println!("{} tensors, {:.2} bits per weight", report.tensors, report.bits_per_weight());
//! # Ok::<(), mmada::Error>(())
//! ```
#![forbid(unsafe_code)]

mod checkpoint;
mod choice;
mod config;
mod convert;
mod disk;
mod imatrix;
mod input;
mod json;
mod metadata;
mod naming;
mod overrides;
mod pickle;
mod plan;
mod quantize;
pub mod recipe;
mod report;
mod rows;
mod sampling;
mod synth;
mod tokenizer;
mod tokens;
mod torch;
mod vq;
mod weights;
mod write;

pub use choice::{TensorRule, TypeOptions, parse_type};
pub use convert::{ConvertOptions, convert};
pub use overrides::Override;
pub use quantize::{QuantizeOptions, quantize};
pub use recipe::Recipe;
pub use report::{Progress, Report, TensorLine};
pub use synth::{Shape, SynthOptions, VqShape, synth};
