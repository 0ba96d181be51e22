//! Convolutions of pictures as matrix products in tiles, without gathered windows: a tile's rows are 16 neighbouring
//! pixels, read where they lie, and a step of the inner dimension is one position of the window and 32 of its channels.
//!
//! Pixels are [height, width, channels] in f32. A task goes down some rows of a vertical strip of the picture with a
//! ring of rows in bfloat16, normalized on the way and with zeros around the picture:
//!
//! ```text
//! ring     [row][term][block of 32 channels][pixel][32 channels]   term: rounded; with `Split` also what that left
//! weights  [pair of output blocks][phase][step][term][block of 16 outputs][16 cells][16 outputs]
//! ```
//!
//! so that every tile of pixels is 16 cache lines behind one another, whatever the window's position, and the weights
//! are read in order. What a convolution makes goes to memory once, and its sums for the next normalization are taken
//! while it is in the nearest cache.

mod geometry;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod pixels;
#[cfg(target_arch = "x86_64")]
mod task;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use geometry::Sampling;

use super::Epilogue;
use crate::error::Result;
use crate::memory::{Aligned, Charge};
use crate::parallel::Exec;
use crate::tensor::Matrix;

/// What the products of a convolution are computed in; sums are always in f32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// Pixels and weights rounded to bfloat16.
    Bf16,
    /// Pixels and weights as the sum of two numbers in bfloat16 each, and three of the four products: what is left out
    /// is some 2^-17 of a product. Weights that were stored in 16 bits lose nothing.
    Split,
}

/// What is done to pixels as they are read: `x * scale[c] + shift[c]`, then swish where asked for.
#[derive(Clone, Copy)]
pub struct Normalization<'a> {
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    pub swish: bool,
}

/// A convolution with zeros around the picture.
pub struct Convolution<'a> {
    /// [outputs, kernel * kernel * channels], channels fastest
    pub weights: &'a Matrix<'a>,
    pub bias: &'a [f32],
    /// 1 or 3: the side of the window
    pub kernel: usize,
    /// [height, width, channels]
    pub x: &'a [f32],
    pub height: usize,
    pub width: usize,
    pub norm: Option<Normalization<'a>>,
    /// `Same` where the kernel is 1x1
    pub sampling: Sampling,
}

/// Memory that convolutions share, kept from one to the next.
#[derive(Default)]
pub struct Scratch {
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    weights: Aligned<u16>,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    charge: Charge,
}

impl Convolution<'_> {
    fn channels(&self) -> usize {
        self.weights.cols() / (self.kernel * self.kernel)
    }

    /// `y = conv(x) + bias`, or `y += conv(x) + bias`, for `y` [height, width, outputs] of the result, where
    /// [`Kernels::has_convolutions`](super::Kernels::has_convolutions). Returns the sums over all positions of every
    /// output in `y`, and behind them those of the squares; they and `y` do not depend on the number of threads.
    ///
    /// # Errors
    /// `OutOfMemory`; `Cancelled`, when `y` holds a part of the results.
    ///
    /// # Panics
    /// Where sizes do not fit, or these kernels have no convolutions: defects of the caller.
    pub fn run(
        &self,
        exec: &Exec,
        precision: Precision,
        scratch: &mut Scratch,
        y: &mut [f32],
        epilogue: Epilogue,
    ) -> Result<Vec<f64>> {
        let channels = self.channels();
        assert!(
            matches!(self.kernel, 1 | 3) && self.weights.cols() == self.kernel * self.kernel * channels,
            "a window"
        );
        assert!(self.kernel == 3 || self.sampling == Sampling::Same, "a 1x1 window moves by 1");
        assert!(self.x.len() == self.height * self.width * channels, "the pixels of a convolution");
        assert!(self.bias.len() == self.weights.rows(), "the biases of a convolution");
        assert!(self.norm.is_none_or(|n| n.scale.len() == channels && n.shift.len() == channels), "a normalization");
        let sides = [self.height, self.width].map(|side| self.sampling.output_side(side).unwrap_or(usize::MAX));
        assert!(y.len() == sides[0] * sides[1] * self.bias.len(), "the results of a convolution");
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = exec.kernels.amx() {
            return task::run(self, exec, amx, precision, scratch, y, epilogue);
        }
        let _ = (precision, scratch, y, epilogue);
        unreachable!("no convolutions on {}", exec.kernels.name());
    }
}
