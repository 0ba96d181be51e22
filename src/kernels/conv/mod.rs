//! Convolutions of pictures as matrix products in tiles, without gathered windows: a tile's rows are 12 or 16
//! neighbouring pixels, read where they lie, and a step of the inner dimension is one position of the window and a cache
//! line of its channels, 16 in f32 or 32 in bfloat16.
//!
//! Pixels are [height, width, channels] in f32. A task goes down some rows of a vertical strip of the picture with a
//! ring of rows in what the instruction set multiplies, normalized on the way and with zeros around the picture:
//!
//! ```text
//! ring     [row][term][block of channels][pixel][channels of a step]   term: rounded; with two also what that left
//! weights  [pair of output blocks][phase][step][term][block of 16 outputs][16 cells][16 outputs]
//! ```
//!
//! so that every tile of pixels is cache lines behind one another, whatever the window's position, and the weights
//! are read in order: by the tiles of AMX (`amx`), or in registers (`registers`), by pairs in bfloat16 (`pairs`) or in f32
//! (`float`). What a convolution makes goes to memory once, and its sums for the next normalization are taken
//! while it is in the nearest cache.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod float;
mod geometry;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod pixels;
mod registers;
mod results;
mod task;
mod unit;

pub use geometry::Sampling;

use std::sync::Mutex;

use float::Float;
use geometry::Plan;
use unit::Unit;

use super::Epilogue;
use super::isa::{Isa, Op};
use super::portable::Portable;
use crate::error::Result;
use crate::memory::{Aligned, Charge};
use crate::parallel::Exec;
use crate::tensor::Matrix;

/// What the products of a convolution are computed in, at least; sums are always in f32. Products in f32 take the place
/// of others where they are not slower.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Precision {
    /// f32.
    #[default]
    Exact,
    /// Pixels and weights as the sum of two numbers in bfloat16 each, and three of the four products: what is left out
    /// is some 2^-17 of a product. Weights that were stored in 16 bits lose nothing where pixels are not repeated.
    Split,
    /// Pixels and weights rounded to bfloat16.
    Bf16,
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
    weights: Aligned<u32>,
    /// of the weights
    charge: Charge,
    /// those of threads that nobody has now
    memories: Mutex<Vec<task::Memory>>,
}

/// Bytes that convolutions need besides pixels and results, at most.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bytes {
    /// that all threads share: weights in tiles, and sums
    pub shared: [u64; 2],
    /// of each thread: a ring, the places in it, and rows of weights
    pub thread: [u64; 3],
}

impl Bytes {
    /// What a convolution of `height` x `width` pixels needs on any instruction set.
    pub fn of(
        sampling: Sampling,
        kernel: usize,
        (height, width): (u64, u64),
        (channels, outputs): (usize, usize),
    ) -> Bytes {
        /// More pixels a side than fit anywhere, and few enough to count with.
        const MOST: u64 = 1 << 24;
        let sides = [height, width].map(|side| side.clamp(2, MOST) as usize);
        let of = |measures: &geometry::Measures| {
            let plan = Plan::new(sampling, kernel, (sides[0], sides[1]), (channels, outputs), measures);
            let rows = pack::len(kernel * kernel * channels) * size_of::<f32>();
            let places = plan.phases().count() * plan.steps() * size_of::<[u32; 2]>();
            Bytes {
                shared: [plan.weight_bytes(), plan.shared_bytes()].map(|n| n as u64),
                thread: [plan.ring_bytes(), places, rows].map(|n| n as u64),
            }
        };
        let bytes = of(&Float::<Portable>::MEASURES);
        #[cfg(target_arch = "x86_64")]
        let bytes = bytes
            .max(of(&pairs::InPairs::MEASURES))
            .max(of(&amx::InTiles::<false>::MEASURES))
            .max(of(&amx::InTiles::<true>::MEASURES));
        bytes
    }

    /// What two convolutions need, one after the other.
    pub fn max(self, other: Bytes) -> Bytes {
        Bytes {
            shared: std::array::from_fn(|i| self.shared[i].max(other.shared[i])),
            thread: std::array::from_fn(|i| self.thread[i].max(other.thread[i])),
        }
    }
}

/// A convolution in f32 on any instruction set.
struct InFloat<'a> {
    conv: &'a Convolution<'a>,
    exec: &'a Exec<'a>,
    scratch: &'a mut Scratch,
    y: &'a mut [f32],
    epilogue: Epilogue,
}

impl Op for InFloat<'_> {
    type Output = Result<Vec<f64>>;
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) -> Self::Output {
        task::run(Float(isa), self.conv, self.exec, self.scratch, self.y, self.epilogue)
    }
}

impl Convolution<'_> {
    fn channels(&self) -> usize {
        self.weights.cols() / (self.kernel * self.kernel).max(1)
    }

    /// `y = conv(x) + bias`, or `y += conv(x) + bias`, for `y` [height, width, outputs] of the result. Returns the sums
    /// over all positions of every output in `y`, and behind them those of the squares; they and `y` do not depend on the
    /// number of threads.
    ///
    /// # Errors
    /// `OutOfMemory`; `Cancelled`, when `y` holds a part of the results.
    ///
    /// # Panics
    /// Where sizes do not fit: a defect of the caller.
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
        let product = |sides: [usize; 3]| sides.into_iter().try_fold(1usize, usize::checked_mul);
        let pixels = product([self.height, self.width, channels]);
        assert!(pixels == Some(self.x.len()), "the pixels of a convolution");
        assert!(self.bias.len() == self.weights.rows(), "the biases of a convolution");
        assert!(self.norm.is_none_or(|n| n.scale.len() == channels && n.shift.len() == channels), "a normalization");
        let [height, width] =
            [self.height, self.width].map(|side| self.sampling.output_side(side).unwrap_or(usize::MAX));
        assert!(product([height, width, self.bias.len()]) == Some(y.len()), "the results of a convolution");
        #[cfg(target_arch = "x86_64")]
        match (precision, exec.kernels.amx(), exec.kernels.bf16()) {
            (Precision::Bf16, Some(amx), _) => {
                return task::run(amx::InTiles::<false>(amx), self, exec, scratch, y, epilogue);
            }
            (Precision::Split, Some(amx), _) => {
                return task::run(amx::InTiles::<true>(amx), self, exec, scratch, y, epilogue);
            }
            (Precision::Bf16, None, Some(bf16)) if exec.kernels.prefers_bf16() => {
                return task::run(pairs::InPairs(bf16), self, exec, scratch, y, epilogue);
            }
            _ => {}
        }
        let _ = precision;
        exec.kernels.run(InFloat { conv: self, exec, scratch, y, epilogue })
    }
}
