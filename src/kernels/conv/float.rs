//! Products in f32, on every instruction set.

use super::geometry::{LINE, Measures, Plan};
use super::pixels::Affine;
use super::registers::{self, Products};
use super::results::Results;
use super::unit::{Cells, Operands, Sums, Unit};
use crate::kernels::isa::{Isa, LANES, Op, exp};

/// Pixels and weights as they are.
#[derive(Clone, Copy)]
pub struct Float<I>(pub I);

impl<I: Isa> Products for Float<I> {
    type Isa = I;
    type Cells = I::F32;

    #[inline(always)]
    fn isa(self) -> I {
        self.0
    }
    #[inline(always)]
    fn weights(self, cells: &[u32; LANES]) -> I::F32 {
        self.0.load(bytemuck::cast_ref(cells))
    }
    #[inline(always)]
    fn pixel(self, cell: u32) -> I::F32 {
        self.0.splat(f32::from_bits(cell))
    }
    #[inline(always)]
    fn add(self, sum: I::F32, pixel: I::F32, weights: I::F32) -> I::F32 {
        self.0.mul_add(weights, pixel, sum)
    }
}

impl<I: Isa> Unit for Float<I> {
    const MEASURES: Measures = Measures { cell: 1, terms: 1, tile: 12, ring: 384 << 10, group: 320 << 10 };
    type Isa = I;
    type Tiles = ();

    #[inline(always)]
    fn isa(self) -> I {
        self.0
    }
    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        self.0.run(op)
    }
    #[inline(always)]
    fn tiles(self) {}

    #[inline(always)]
    unsafe fn convert(self, pixels: &[f32], affine: &Affine, plan: &Plan, to: *mut u8) {
        // SAFETY: the caller's promise
        unsafe {
            match affine.swish {
                false => convert::<I, false>(self.0, pixels, affine, plan, to),
                true => convert::<I, true>(self.0, pixels, affine, plan, to),
            }
        }
    }

    #[inline(always)]
    fn round(self, weights: &[f32; 2 * LANES], cells: &mut Cells) {
        cells[0] = std::array::from_fn(|i| weights[i].to_bits());
    }

    #[inline(always)]
    unsafe fn multiply<const BLOCKS: usize>(
        self,
        (): &(),
        p: Operands,
        from: Sums,
        results: &Results,
        before: Option<&Results>,
    ) {
        // SAFETY: the caller's promise
        unsafe { registers::multiply::<Self, BLOCKS>(self, p, from, results, before) }
    }
}

/// # Safety
/// As [`Unit::convert`].
#[inline(always)]
unsafe fn convert<I: Isa, const SWISH: bool>(isa: I, pixels: &[f32], affine: &Affine, plan: &Plan, to: *mut u8) {
    let (scale, shift) = affine.values();
    let (scale, shift) = (scale.as_chunks::<LANES>().0, shift.as_chunks::<LANES>().0);
    for (i, pixel) in pixels.chunks_exact(plan.channels).enumerate() {
        for (block, (scale, shift)) in scale.iter().zip(shift).enumerate().take(plan.channel_blocks) {
            let channels = &pixel[block * LANES..];
            let x = channels.first_chunk().map_or_else(|| isa.load(&padded(channels)), |channels| isa.load(channels));
            let mut x = isa.mul_add(x, isa.load(scale), isa.load(shift));
            if SWISH {
                let e = exp(isa, isa.sub(isa.splat(0.0), x));
                x = isa.div(x, isa.add(isa.splat(1.0), e));
            }
            // SAFETY: the caller's promise
            isa.store(x, unsafe { &mut *to.add(block * plan.block_bytes + i * LINE).cast() });
        }
    }
}

/// Fewer channels than lanes.
fn padded(channels: &[f32]) -> [f32; LANES] {
    std::array::from_fn(|i| channels.get(i).copied().unwrap_or_default())
}
