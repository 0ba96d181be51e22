//! Whole models on a graphics card: on one that is there (`MMADA_CUDA_CARD=1`), or over a stand-in for its driver that runs
//! the kernels on the processor (`tests/cuda/README.md`).

#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]

mod failures;
mod generations;
mod golden;
#[path = "../cuda/library.rs"]
mod library;
mod pictures;
mod support;
#[allow(dead_code)] // the golden tests read more
#[path = "../golden_support/tensors.rs"]
mod tensors;
