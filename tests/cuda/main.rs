//! The CUDA kernels of src/kernels/cuda on the processor, against the library's own kernels. README.md says how.

// fibers are switched in assembly, see standin/runtime.cpp
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod attention;
mod card;
mod device;
mod driver;
mod elementwise;
mod floats;
mod hopper;
mod images;
mod library;
mod products;
mod sampling;
mod standin;
mod support;
mod tensor_maps;
