//! Products of pairs in bfloat16 on AVX512-BF16.

use std::arch::x86_64::*;

use super::bf16;
use super::geometry::{Measures, Plan};
use super::pixels::Affine;
use super::registers::{self, Products};
use super::results::Results;
use super::unit::{Cells, Operands, Sums, Unit};
use crate::kernels::avx512::{Avx512, Avx512Bf16};
use crate::kernels::isa::{Isa, LANES, Op};

/// Pixels and weights rounded to bfloat16. There is no unit of two terms here: their three products take longer than one
/// in f32, at half the rate, which is more exact.
#[derive(Clone, Copy)]
pub struct InPairs(pub Avx512Bf16);

impl Products for InPairs {
    type Isa = Avx512;
    type Cells = __m512i;

    #[inline(always)]
    fn isa(self) -> Avx512 {
        self.0.base()
    }
    #[inline(always)]
    fn weights(self, cells: &[u32; LANES]) -> __m512i {
        // SAFETY: the token proves AVX-512; 64 bytes are readable
        unsafe { _mm512_loadu_si512(cells.as_ptr().cast()) }
    }
    #[inline(always)]
    fn pixel(self, cell: u32) -> __m512i {
        // SAFETY: the token proves AVX-512
        unsafe { _mm512_set1_epi32(cell as i32) }
    }
    #[inline(always)]
    fn add(self, sum: <Avx512 as Isa>::F32, pixel: __m512i, weights: __m512i) -> <Avx512 as Isa>::F32 {
        // SAFETY: the token proves AVX512-BF16; vectors of 64 bytes of any bits
        unsafe {
            let [pixel, weights] = [pixel, weights].map(|v| std::mem::transmute::<__m512i, __m512bh>(v));
            _mm512_dpbf16_ps(sum, weights, pixel)
        }
    }
}

impl Unit for InPairs {
    const MEASURES: Measures = Measures { cell: 2, terms: 1, tile: 12, ring: 384 << 10, group: 320 << 10 };
    type Isa = Avx512;
    type Tiles = ();

    #[inline(always)]
    fn isa(self) -> Avx512 {
        self.0.base()
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
        unsafe { bf16::convert::<false>(self.0, pixels, affine, plan, to) }
    }
    #[inline(always)]
    fn round(self, weights: &[f32; 2 * LANES], cells: &mut Cells) {
        bf16::round::<false>(self.0, weights, cells);
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
