//! Whole models on a graphics card: on one that is there (`MMADA_CUDA_CARD=1`), or over a stand-in for its driver that runs
//! the kernels on the processor (`tests/cuda/README.md`).

#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]

mod alike;
#[allow(dead_code)] // the golden tests call and read more, of this and of four below
#[path = "../golden_support/api.rs"]
mod api;
mod beside;
#[cfg(feature = "capi")]
#[allow(dead_code)] // the tests of the C interface need more
#[path = "../capi/support.rs"]
mod c_programs;
#[allow(dead_code)]
#[path = "../golden_support/cases.rs"]
mod cases;
#[cfg(feature = "capi")]
mod embedding;
mod failures;
#[allow(dead_code)]
#[path = "../golden_support/fixture.rs"]
mod fixture;
mod generations;
mod golden;
mod hopper;
#[path = "../cuda/library.rs"]
mod library;
mod lost;
mod memory;
#[path = "../golden_support/noise.rs"]
mod noise;
mod pictures;
mod program;
mod quantized;
mod support;
#[allow(dead_code)]
#[path = "../golden_support/tensors.rs"]
mod tensors;
mod together;
mod traces;
