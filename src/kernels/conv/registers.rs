//! Tiles of pixels in registers: a step's weights are vectors of 16 outputs, and every cell of a pixel is spread to all
//! lanes.

use super::geometry::{BLOCK, LINE, TILE};
use super::results::Results;
use super::unit::{Operands, Sums};
use crate::kernels::isa::{Isa, LANES, unroll};

/// Products of cells.
pub trait Products: Copy {
    type Isa: Isa;
    /// Cells of 16 outputs, or one of a pixel in every lane.
    type Cells: Copy;

    fn isa(self) -> Self::Isa;
    fn weights(self, cells: &[u32; LANES]) -> Self::Cells;
    fn pixel(self, cell: u32) -> Self::Cells;
    /// `sum` and the products of these cells.
    fn add(self, sum: <Self::Isa as Isa>::F32, pixel: Self::Cells, weights: Self::Cells) -> <Self::Isa as Isa>::F32;
}

/// [`Unit::multiply`](super::unit::Unit::multiply) for one term.
///
/// # Safety
/// As that function. Where not all results of a tile are wanted, several pixels at a time are written.
#[inline(always)]
pub unsafe fn multiply<P: Products, const BLOCKS: usize>(
    products: P,
    p: Operands,
    from: Sums,
    results: &Results,
    before: Option<&Results>,
) {
    // SAFETY: the caller's promise
    unsafe {
        if let Some(before) = before {
            before.finish(products.isa());
        }
        // the tiles of products of matrices: as many sums as there are registers
        match (P::Isa::PANEL.min(BLOCKS), P::Isa::F32_COLUMNS) {
            (2, _) => tiles::<P, BLOCKS, 2, 12>(products, &p, from, results),
            (_, 12..) => tiles::<P, BLOCKS, 1, 12>(products, &p, from, results),
            (_, 6..) => tiles::<P, BLOCKS, 1, 6>(products, &p, from, results),
            _ => tiles::<P, BLOCKS, 1, 4>(products, &p, from, results),
        }
    }
}

/// All tiles, of MR vectors of outputs x NR pixels; what is left over is in tiles of fewer pixels.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn tiles<P: Products, const BLOCKS: usize, const MR: usize, const NR: usize>(
    products: P,
    p: &Operands,
    from: Sums,
    results: &Results,
) {
    for row in 0..results.rows {
        for block in (0..BLOCKS).step_by(MR) {
            let mut pixel = 0;
            while pixel < results.pixels {
                let at = Place { row, pixel, block, step: BLOCKS * BLOCK };
                // SAFETY: tiles lie inside the pixels, or in a buffer; the rest is the caller's promise
                pixel += unsafe {
                    match results.pixels - pixel {
                        left if left >= NR => tile::<P, MR, NR>(products, p, at, from, results.tiles),
                        left if NR > 8 && left > 4 => tile::<P, MR, 8>(products, p, at, from, results.tiles),
                        left if NR <= 8 && left > 4 => tile::<P, MR, NR>(products, p, at, from, results.tiles),
                        _ => tile::<P, MR, 4>(products, p, at, from, results.tiles),
                    }
                };
            }
        }
    }
}

/// Where a tile in registers lies in those of an operand.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    pixel: usize,
    block: usize,
    /// bytes from step to step of the weights
    step: usize,
}

/// Returns the number of pixels.
///
/// # Safety
/// As [`multiply`], for the pixels and blocks of the tile.
#[inline(always)]
unsafe fn tile<P: Products, const MR: usize, const NR: usize>(
    products: P,
    p: &Operands,
    at: Place,
    from: Sums,
    to: Sums,
) -> usize {
    const { assert!(MR <= 2 && NR <= 14) };
    let isa = products.isa();
    let mut sums = [[isa.splat(0.0); MR]; NR];
    // SAFETY: the caller's promise
    unsafe {
        unroll!(j < NR, {
            let from = from.at(at.row, at.pixel + j).add(at.block * TILE);
            unroll!(m < MR, of 2 { sums[j][m] = isa.load(&*from.add(m * TILE).cast()) });
        });
        let ring = p.ring.add(at.pixel * p.pixel);
        for step in 0..p.steps {
            let x = ring.add((*p.places.add(step))[at.row] as usize);
            let weights = p.weights.add(step * at.step + at.block * BLOCK);
            for cell in 0..p.cells {
                let mut w = [products.pixel(0); MR];
                unroll!(m < MR, of 2 { w[m] = products.weights(&*weights.add(m * BLOCK + cell * LINE).cast()) });
                unroll!(j < NR, {
                    let x = products.pixel(x.add(j * p.pixel).cast::<u32>().add(cell).read());
                    unroll!(m < MR, of 2 { sums[j][m] = products.add(sums[j][m], x, w[m]) });
                });
            }
        }
        unroll!(j < NR, {
            let to = to.at(at.row, at.pixel + j).add(at.block * TILE);
            unroll!(m < MR, of 2 { isa.store(sums[j][m], &mut *to.add(m * TILE).cast()) });
        });
    }
    NR
}
