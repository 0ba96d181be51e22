//! How four bytes are multiplied with four bytes and summed up: what the levels of NEON differ in.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::fmt::Debug;

use super::Neon;
use crate::kernels::activations::STEP;
use crate::kernels::int8::{Cells, dot_cells};
use crate::kernels::isa::{CELLS, Isa, Op, run_with, unroll};

/// A level of NEON. Its values prove that the processor has it.
pub trait Dot: Copy + Debug + Send + Sync + 'static {
    const NAME: &'static str;

    fn new() -> Option<Self>;
    /// Runs `op` compiled for this level.
    fn run<O: Op>(isa: Neon<Self>, op: O) -> O::Output
    where
        Neon<Self>: Isa;
    /// `acc[i] + sum of a[4 i + q] * b[4 i + q]` over q in 0..4, as long as no two neighbouring products sum up to more
    /// than 32767.
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t;
    /// [`dot_cells`], or something better.
    ///
    /// # Safety
    /// As that function.
    #[inline(always)]
    unsafe fn cells<const MR: usize, const NV: usize>(isa: Neon<Self>, sum: Sums<MR, NV>, p: &Cells) -> Sums<MR, NV> {
        // SAFETY: the caller's promise is the same
        unsafe { dot_cells(isa, sum, p) }
    }
}

/// Of MR rows of weights and NV vectors of 16 rows of activations.
type Sums<const MR: usize, const NV: usize> = [[[int32x4_t; 4]; NV]; MR];

/// What every 64-bit ARM has (Cortex-A72 and the like).
#[derive(Clone, Copy, Debug)]
pub struct Plain(());

impl Dot for Plain {
    const NAME: &'static str = "neon";
    run_with!(Neon<Self>, "neon");

    fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Plain(()))
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: `self` proves NEON
        unsafe {
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            let high = vmull_high_s8(a, b);
            vpadalq_s16(acc, vpaddq_s16(low, high))
        }
    }
}

/// With FEAT_DotProd (ARMv8.2: Cortex-A76, Neoverse N1, Apple A11 and later).
#[derive(Clone, Copy, Debug)]
pub struct DotProd(());

impl Dot for DotProd {
    const NAME: &'static str = "neon-dotprod";
    run_with!(Neon<Self>, "neon,dotprod");

    fn new() -> Option<Self> {
        is_aarch64_feature_detected!("dotprod").then_some(DotProd(()))
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let mut sum = acc;
        // SAFETY: `self` proves the instruction (`vdotq_s32` is not stable yet), which touches registers only
        unsafe {
            asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

/// With FEAT_DotProd and FEAT_I8MM (ARMv8.6: Neoverse V1 and N2, Cortex-A510, Apple M2 and later).
#[derive(Clone, Copy, Debug)]
pub struct I8mm(DotProd);

impl Dot for I8mm {
    const NAME: &'static str = "neon-i8mm";
    run_with!(Neon<Self>, "neon,dotprod,i8mm");

    fn new() -> Option<Self> {
        DotProd::new().filter(|_| is_aarch64_feature_detected!("i8mm")).map(I8mm)
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        self.0.dot(acc, a, b)
    }
    /// SMMLA multiplies 8 elements of two rows with those of two others at once, twice as much as SDOT: two cells of
    /// activations are zipped so that a register has both of two rows.
    #[inline(always)]
    unsafe fn cells<const MR: usize, const NV: usize>(
        isa: Neon<Self>,
        mut sum: Sums<MR, NV>,
        p: &Cells,
    ) -> Sums<MR, NV> {
        const { assert!(MR.is_multiple_of(2)) };
        let zero = isa.splat_i32(0);
        unroll!(v < NV, of 2 {
            // of rows m and m + 1 against activation rows 2 i and 2 i + 1: two sums of m, then two of m + 1
            let mut square = [[zero; 2]; MR];
            // SAFETY: the caller's promise; the number of cells is even
            unsafe {
                for c in (0..p.n).step_by(2) {
                    let at = p.x.add(v * p.x_block + c * CELLS);
                    let (a, b) = (isa.load_x8(&*at.cast()), isa.load_x8(&*at.add(CELLS).cast()));
                    let x = [
                        [zip_low(a[0], b[0]), zip_high(a[0], b[0]), zip_low(a[1], b[1]), zip_high(a[1], b[1])],
                        [zip_low(a[2], b[2]), zip_high(a[2], b[2]), zip_low(a[3], b[3]), zip_high(a[3], b[3])],
                    ];
                    unroll!(m < MR, {
                        if m % 2 == 0 {
                            let w = p.w.add(m * STEP + c * 4);
                            let w = vcombine_s8(vld1_s8(w), vld1_s8(w.add(STEP)));
                            for (square, x) in square[m].iter_mut().zip(x) {
                                for (square, x) in square.iter_mut().zip(x) {
                                    *square = isa.0.smmla(*square, w, x);
                                }
                            }
                        }
                    });
                }
                unroll!(m < MR, {
                    if m % 2 == 0 {
                        let square = square[m].as_flattened();
                        unroll!(i < 4, {
                            let (a, b) = (vreinterpretq_s64_s32(square[2 * i]), vreinterpretq_s64_s32(square[2 * i + 1]));
                            let (first, second) = (vzip1q_s64(a, b), vzip2q_s64(a, b));
                            sum[m][v][i] = vaddq_s32(sum[m][v][i], vreinterpretq_s32_s64(first));
                            sum[m + 1][v][i] = vaddq_s32(sum[m + 1][v][i], vreinterpretq_s32_s64(second));
                        });
                    }
                });
            }
        });
        sum
    }
}

impl I8mm {
    /// `acc += a b^T`: of two rows of 8 elements each, 2 x 2 sums.
    #[inline(always)]
    fn smmla(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let mut sum = acc;
        // SAFETY: `self` proves the instruction (`vmmlaq_s32` is not stable yet), which touches registers only
        unsafe {
            asm!("smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

/// The first two rows of two cells, 8 bytes each.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn zip_low(a: int8x16_t, b: int8x16_t) -> int8x16_t {
    // SAFETY: the caller's promise
    unsafe { vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b))) }
}
/// The last two.
///
/// # Safety
/// As [`zip_low`].
#[inline(always)]
unsafe fn zip_high(a: int8x16_t, b: int8x16_t) -> int8x16_t {
    // SAFETY: the caller's promise
    unsafe { vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b))) }
}
