//! What is fast. One folder per instruction set; `portable` is the specification. Kernels know tensors and threads,
//! never the model.

#[cfg(target_arch = "x86_64")]
#[allow(dead_code)]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
pub mod elementwise;
mod encode;
pub(crate) mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod processor;
mod product;
mod quantize;
mod unpack;

#[cfg(test)]
mod tests;

pub use dispatch::Kernels;
pub use processor::processor_name;
pub use product::{Activations, Epilogue, matmul, matmul_f32};
pub use quantize::{Bf16Rows, Int8Rows};
pub use unpack::has_int8;
