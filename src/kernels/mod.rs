//! What is fast. One folder per instruction set; `portable` is the specification. Kernels know tensors and threads,
//! never the model.
//!
//! `cuda` is for graphics cards: its kernels are CUDA sources, compiled ahead of time, and work on memory of their own.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod conv;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dispatch;
pub mod elementwise;
mod encode;
mod int8;
pub(crate) mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod portable;
mod processor;
mod product;
mod unpack;

#[cfg(test)]
mod tests;

pub use activations::{Bf16Rows, Int8Rows, Scales};
pub use dispatch::Kernels;
pub use packed::Packed;
pub use processor::processor_name;
pub use product::{Activations, Epilogue, Operand, matmul, matmul_f32};

pub use unpack::{Arithmetic, has_int8};
