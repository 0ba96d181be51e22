//! Weights into tiles of 16 outputs and a step's channels.

use super::geometry::{BLOCK, Plan, TILE};
use super::unit::{Cells, Unit};
use crate::error::Result;
use crate::kernels::isa::{Isa, LANES, Op};
use crate::tensor::{Matrix, dequantize};

/// Floats that [`pack`] works in, for weights of `cols` columns.
pub fn len(cols: usize) -> usize {
    TILE * cols
}

/// Writes the tiles of outputs `16 * block ..` to those of their pair, whose number is `block / 2`. `rows` has [`len`]
/// floats.
///
/// # Errors
/// What a type that cannot be decoded gives.
///
/// # Safety
/// `to` has the bytes of the whole weights, and nobody else uses this block's part of them meanwhile.
pub unsafe fn pack<U: Unit>(
    unit: U,
    plan: &Plan,
    w: &Matrix,
    block: usize,
    rows: &mut [f32],
    to: *mut u8,
) -> Result<()> {
    let first = block * TILE;
    let n = TILE.min(w.rows() - first);
    let rows = &mut rows[..len(w.cols())];
    for (i, row) in rows.chunks_exact_mut(w.cols()).enumerate().take(n) {
        dequantize(w.dtype(), w.row(first + i), row)?;
    }
    rows[n * w.cols()..].fill(0.0);
    unit.run(Packing { unit, plan, rows, len: w.cols(), block, to });
    Ok(())
}

struct Packing<'a, U> {
    unit: U,
    plan: &'a Plan,
    /// 16 rows of `len` floats
    rows: &'a [f32],
    len: usize,
    block: usize,
    /// room for all blocks, of which nobody else uses this one, as [`pack`] was promised
    to: *mut u8,
}

impl<U: Unit> Op for Packing<'_, U> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let Packing { unit, plan, block, to, .. } = self;
        let (pair, half) = (block / 2, block % 2);
        let blocks = plan.blocks_of(pair);
        let mut at = plan.pair_at(pair) + half * BLOCK;
        let (mut all, mut cells) = ([[[0u32; LANES]; TILE]; 2], Cells::default());
        let mut turned = [[0u32; TILE]; LANES];
        for phase in plan.phases() {
            for (step, (ty, tx)) in plan.window().enumerate() {
                let channels = step / plan.positions() * plan.step..plan.channels;
                let taps = (plan.kernel_rows(phase.row, ty), plan.kernel_rows(phase.column, tx));
                for (o, row) in self.rows.chunks_exact(self.len).enumerate().take(TILE) {
                    let from = |ky: usize, kx: usize| (ky * plan.kernel + kx) * plan.channels;
                    let mut sums = [0.0f32; 2 * LANES];
                    let n = channels.len().min(plan.step);
                    for ky in taps.0.clone() {
                        for kx in taps.1.clone() {
                            let weights = &row[from(ky, kx) + channels.start..][..n];
                            sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += w);
                        }
                    }
                    unit.round(&sums, &mut cells);
                    all.iter_mut().zip(cells).for_each(|(all, cells)| all[o] = cells);
                }
                // what rounding left comes first, as AMX's products are ordered
                for cells in all[..plan.terms].iter().rev() {
                    isa.transpose(cells, &mut turned);
                    // SAFETY: a tile of this block's part
                    unsafe { to.add(at).cast::<[[u32; TILE]; LANES]>().write(turned) };
                    at += blocks * BLOCK;
                }
            }
        }
    }
}
