//! What multiplies: the part of a convolution that every instruction set has for itself.

use super::geometry::{Measures, Plan, TILE};
use super::pixels::Affine;
use super::results::Results;
use crate::kernels::isa::{Isa, LANES, Op};

/// What a product reads: two tiles of pixels, in two rows, and one or two blocks of outputs.
#[derive(Clone, Copy)]
pub struct Operands {
    /// The ring, from the tile's first pixel on.
    pub ring: *const u8,
    /// What each step adds to it, for the two rows.
    pub places: *const [u32; 2],
    /// bytes from pixel to pixel
    pub pixel: usize,
    /// bytes from a pixel to what rounding it left
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // AMX alone has two terms
    pub plane: usize,
    /// [step][term][block] tiles
    pub weights: *const u8,
    /// at least 1
    pub steps: usize,
    /// of a step that are not zeros: 1 to 16
    pub cells: usize,
}

/// Where sums come from or go: for both rows, [pixels of a tile][16 * blocks outputs] floats.
#[derive(Clone, Copy)]
pub struct Sums {
    pub rows: [*mut f32; 2],
    /// bytes from pixel to pixel
    pub pixel: usize,
}

impl Sums {
    /// A pixel of a row.
    #[inline(always)]
    pub fn at(&self, row: usize, pixel: usize) -> *mut f32 {
        self.rows[row].wrapping_byte_add(pixel * self.pixel)
    }
}

/// The 16 cells of one output's channels of a step: the numbers, or those rounded and what that left.
pub type Cells = [[u32; LANES]; 2];

/// An instruction set, and what pixels and weights are kept in for it.
pub trait Unit: Copy + Send + Sync {
    const MEASURES: Measures;
    type Isa: Isa;
    /// What a thread holds while it multiplies.
    type Tiles;

    fn isa(self) -> Self::Isa;
    /// Runs `op` compiled for the instruction set.
    fn run<O: Op>(self, op: O) -> O::Output;
    fn tiles(self) -> Self::Tiles;

    /// Normalizes pixels [..][channels] into places of the ring that follow one another from `to` on.
    ///
    /// # Safety
    /// There is room for them in every block of channels of every term, which nobody else uses meanwhile; `affine` has
    /// whole steps of channels.
    unsafe fn convert(self, pixels: &[f32], affine: &Affine, plan: &Plan, to: *mut u8);

    /// The weights of a step's channels, of which there are [`Measures::step`], for one output.
    fn round(self, weights: &[f32; 2 * LANES], cells: &mut Cells);

    /// The sums of all products, from those in `from` on, to where `results` are stored. Meanwhile, what is left to do
    /// with the results `before`.
    ///
    /// # Safety
    /// All steps' pixels and weights are readable, in BLOCKS blocks of outputs (1 or 2); `from` is readable, and `results`
    /// writable and used by nobody else meanwhile, for the rows and pixels of `results`, and up to a whole tile if it
    /// waits in a buffer. As [`Results::finish`] for those before.
    unsafe fn multiply<const BLOCKS: usize>(
        self,
        tiles: &Self::Tiles,
        p: Operands,
        from: Sums,
        results: &Results,
        before: Option<&Results>,
    );
}

const _: () = assert!(TILE == LANES, "an output of a block is a lane");
