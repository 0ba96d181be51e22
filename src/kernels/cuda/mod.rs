//! Kernels for NVIDIA's graphics cards, and what runs them there: nothing but a driver is needed.
//!
//! The kernels are `*.cu`, compiled ahead of time to the PTX of `ptx/` (`scripts/cuda-build`), which is part of the library
//! and translated for the card by its driver. The tests run them on the processor, against the kernels of `portable`
//! (`tests/cuda`), and the rest over a stand-in for the driver.

mod arena;
mod device;
mod driver;
mod image_check;
pub mod images;
mod memory;
mod modules;
pub mod operations;
mod queue;
pub mod sampling;
mod self_check;
mod tensor_map;
mod unpacked;

pub use arena::Arena;
pub use device::Gpu;
pub use driver::{Card, allow_hopper, cards};
pub use image_check::image_check;
pub use memory::{Indices, Memory, Part, Pinned, Staged};
pub use modules::ptx_of;
pub use queue::{Graph, Queue};
pub use self_check::{open_checked, self_check};
pub use unpacked::Unpacked;
