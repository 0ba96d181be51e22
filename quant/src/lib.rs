//! Makes GGUF files for libmmada.
//!
//! - [`convert`] reads the published layout of MMaDA checkpoints (config.json, safetensors or PyTorch shards,
//!   tokenizer.json, the image tokenizer's folder) and writes one file with everything the runtime needs;
//! - [`quantize`] makes a GGUF file of other types out of one, split or whole;
//! - [`imatrix`](fn@imatrix) measures which columns of its matrices matter;
//! - [`export`] writes the text part of one as llama.cpp reads it;
//! - [`synth`] writes models of any shape with random weights;
//! - [`compare`] tells how far quantized models are from the one that they were made of.
//!
//! What a tensor is stored as is a [`Recipe`]'s to say, and the user's ([`TypeOptions`]).
//!
//! ```no_run
//! use mmada_quantize::{ConvertOptions, QuantizeOptions, Recipe, convert, quantize};
//!
//! let options = ConvertOptions::new("MMaDA-8B-MixCoT", "mmada-8b-bf16.gguf", Recipe::from_name("BF16")?);
//! convert(&options, &mut |_| {})?;
//! let options = QuantizeOptions::new("mmada-8b-bf16.gguf", "mmada-8b.gguf", Recipe::from_name("Q4_K_M")?);
//! let report = quantize(&options, &mut |_| {})?;
//! println!("{} tensors, {:.2} bits per weight", report.tensors, report.bits_per_weight());
//! # Ok::<(), mmada::Error>(())
//! ```
#![forbid(unsafe_code)]

mod checkpoint;
mod choice;
mod collect;
mod compare;
mod config;
mod convert;
mod disk;
mod export;
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
pub mod states;
mod synth;
mod tokenizer;
mod tokens;
mod torch;
mod vq;
mod weights;
mod write;

pub use choice::{TensorRule, TypeOptions, parse_type};
pub use collect::{ImatrixOptions, ImatrixReport, imatrix};
pub use compare::{
    CompareOptions, Compared, Comparison, Drawings, ModelFile, RatioSummary, Summary, TaskSummary, View, compare, plot,
};
pub use convert::{ConvertOptions, convert};
pub use export::{ExportOptions, export};
pub use overrides::Override;
pub use quantize::{QuantizeOptions, quantize};
pub use recipe::Recipe;
pub use report::{Progress, Report, TensorLine};
pub use synth::{Shape, SynthOptions, VqShape, synth};
