//! What is left to do with tiles whose products are summed up: biases, sums for the next normalization, and the way to
//! their place.

use super::geometry::TILE;
use super::unit::Sums;
use crate::kernels::isa::{Isa, LANES};

/// Tiles that are stored, or will be: what is left to do waits until the next ones are being multiplied, as a tile of
/// AMX can be read only long after its last product began.
pub struct Results {
    /// where they are stored
    pub tiles: Sums,
    /// where they belong, and how many of their outputs there are, if elsewhere
    pub y: Option<(Sums, usize)>,
    /// that are in the picture: 1 or 2
    pub rows: usize,
    pub pixels: usize,
    /// positions of a tile, at least as many as pixels
    pub tile: usize,
    pub blocks: usize,
    pub bias: *const f32,
    /// whether biases are still to be added
    pub add: bool,
    /// of the outputs' sums and squares
    pub sums: [*mut f64; 2],
}

impl Results {
    /// Where sums start: from what is there, or from the biases: one line for all pixels.
    #[inline(always)]
    pub fn start(&self) -> Sums {
        if self.add { self.tiles } else { Sums { rows: [self.bias.cast_mut(); 2], pixel: 0 } }
    }

    /// Brings what is to be added to into the buffer; zeros where there is nothing.
    ///
    /// # Safety
    /// `y` is readable, the buffer writable.
    pub unsafe fn fetch(&self) {
        let Some((y, valid)) = self.y else { return };
        for (row, pixel) in (0..2).flat_map(|row| (0..self.tile).map(move |pixel| (row, pixel))) {
            let to = self.tiles.at(row, pixel);
            // SAFETY: the caller's promise
            unsafe {
                to.write_bytes(0, self.blocks * TILE);
                if row < self.rows && pixel < self.pixels {
                    to.copy_from_nonoverlapping(y.at(row, pixel), valid);
                }
            }
        }
    }

    /// Adds biases, takes the sums, and copies what lies in a buffer to its place.
    ///
    /// # Safety
    /// The tiles are stored, their places writable and used by nobody else meanwhile.
    #[inline(always)]
    pub unsafe fn finish<I: Isa>(&self, isa: I) {
        // SAFETY: the caller's promise
        unsafe {
            for block in 0..self.blocks {
                match self.add {
                    false => self.block::<I, false>(isa, block),
                    true => self.block::<I, true>(isa, block),
                }
            }
            let Some((y, valid)) = self.y else { return };
            for (row, pixel) in (0..self.rows).flat_map(|row| (0..self.pixels).map(move |pixel| (row, pixel))) {
                y.at(row, pixel).copy_from_nonoverlapping(self.tiles.at(row, pixel), valid);
            }
        }
    }

    /// # Safety
    /// As [`Results::finish`], for a block of outputs.
    #[inline(always)]
    unsafe fn block<I: Isa, const ADD: bool>(&self, isa: I, block: usize) {
        // SAFETY: the caller's promise
        unsafe {
            let bias = isa.load(&*self.bias.add(block * TILE).cast());
            let mut sums = [[isa.splat(0.0); 2]; 2];
            for pixel in 0..self.pixels {
                for (row, sums) in sums.iter_mut().enumerate().take(self.rows) {
                    let at = self.tiles.at(row, pixel).add(block * TILE).cast::<[f32; LANES]>();
                    let mut v = isa.load(&*at);
                    if ADD {
                        v = isa.add(v, bias);
                        isa.store(v, &mut *at);
                    }
                    *sums = [isa.add(sums[0], v), isa.mul_add(v, v, sums[1])];
                }
            }
            for (i, to) in self.sums.iter().enumerate() {
                let mut sum = [0.0; LANES];
                isa.store(isa.add(sums[0][i], sums[1][i]), &mut sum);
                let to = &mut *to.add(block * TILE).cast::<[f64; LANES]>();
                to.iter_mut().zip(sum).for_each(|(to, sum)| *to += f64::from(sum));
            }
        }
    }
}
