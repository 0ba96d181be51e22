//! NEON (64-bit ARM): a vector of 16 lanes is four registers. The levels differ in their integer products only: see
//! [`dot`].

mod dot;

use std::arch::aarch64::*;

use dot::Dot;

use super::isa::{Isa, LANES, Op};
use super::product::{F32Block, Int8Block, f32_columns, int8_columns};

/// Proof that the processor has NEON at level `D`.
#[derive(Clone, Copy, Debug)]
pub struct Neon<D>(D);

pub type Plain = Neon<dot::Plain>;
pub type DotProd = Neon<dot::DotProd>;
pub type I8mm = Neon<dot::I8mm>;

impl<D: Dot> Neon<D> {
    pub fn new() -> Option<Self> {
        D::new().map(Neon)
    }
}

/// Lane-wise operations on all four registers. No closure: that would be compiled without the instruction set.
macro_rules! four {
    ($f:ident $(::<$c:literal>)?, $($a:ident),+) => {
        // SAFETY: `self` proves that the processor has the instruction
        unsafe {
            [
                $f$(::<$c>)?($($a[0]),+),
                $f$(::<$c>)?($($a[1]),+),
                $f$(::<$c>)?($($a[2]),+),
                $f$(::<$c>)?($($a[3]),+),
            ]
        }
    };
}

impl<D: Dot> Isa for Neon<D> {
    const NAME: &'static str = D::NAME;
    const PANEL: usize = 1;
    const INT8_COLUMNS: usize = 4;
    const F32_COLUMNS: usize = 6;
    const BIASED: bool = false;
    type F32 = [float32x4_t; 4];
    type I32 = [int32x4_t; 4];
    type I8 = [int8x16_t; 4];

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        D::run(self, op)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        // SAFETY: `self` proves NEON
        [unsafe { vdupq_n_f32(v) }; 4]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        let at = from.as_ptr();
        // SAFETY: `self` proves NEON; 16 floats are readable
        unsafe { [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))] }
    }
    #[inline(always)]
    fn store(self, v: Self::F32, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        // SAFETY: `self` proves NEON; 16 floats are writable
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1q_f32(at.add(4 * i), v);
            }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        four!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        four!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        four!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        four!(vdivq_f32, a, b)
    }
    /// By comparison: FMAX would give NaN for NaN.
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        let greater = four!(vcgtq_f32, a, b);
        four!(vbslq_f32, greater, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.if_less(a, b, a, b)
    }
    #[inline(always)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        four!(vabsq_f32, a)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        four!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn fused(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        self.mul_add(a, b, c)
    }
    #[inline(always)]
    fn round(self, a: Self::F32) -> Self::F32 {
        four!(vrndnq_f32, a)
    }
    #[inline(always)]
    fn exp2_int(self, a: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves NEON
        let bias = [unsafe { vdupq_n_s32(127) }; 4];
        let n = four!(vcvtq_s32_f32, a);
        let n = four!(vaddq_s32, n, bias);
        let bits = four!(vshlq_n_s32::<23>, n);
        four!(vreinterpretq_f32_s32, bits)
    }
    #[inline(always)]
    fn zero_if_less(self, a: Self::F32, b: Self::F32, v: Self::F32) -> Self::F32 {
        self.if_less(a, b, self.splat(0.0), v)
    }
    #[inline(always)]
    fn if_less(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32 {
        let less = four!(vcltq_f32, a, b);
        four!(vbslq_f32, less, x, y)
    }
    #[inline(always)]
    fn reduce_add(self, v: Self::F32) -> f32 {
        // SAFETY: `self` proves NEON
        unsafe {
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }
    #[inline(always)]
    fn store_biased(self, v: Self::F32, to: &mut [u8; LANES]) {
        let n = four!(vcvtq_s32_f32, v);
        // SAFETY: `self` proves NEON; 16 bytes are writable
        unsafe {
            let low = vcombine_s16(vqmovn_s32(n[0]), vqmovn_s32(n[1]));
            let high = vcombine_s16(vqmovn_s32(n[2]), vqmovn_s32(n[3]));
            let bytes = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
            vst1q_u8(to.as_mut_ptr(), veorq_u8(vreinterpretq_u8_s8(bytes), vdupq_n_u8(0x80)));
        }
    }
    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I32 {
        let at = from.as_ptr();
        // SAFETY: `self` proves NEON; 16 integers are readable
        unsafe { [vld1q_s32(at), vld1q_s32(at.add(4)), vld1q_s32(at.add(8)), vld1q_s32(at.add(12))] }
    }
    #[inline(always)]
    fn to_f32(self, a: Self::I32) -> Self::F32 {
        four!(vcvtq_f32_s32, a)
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES * 4]) -> Self::I8 {
        let at = from.as_ptr();
        // SAFETY: `self` proves NEON; 64 bytes are readable
        unsafe { [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))] }
    }
    #[inline(always)]
    fn dot4(self, acc: Self::I32, w: Self::I8, x: [u8; 4]) -> Self::I32 {
        // SAFETY: `self` proves NEON
        let x = unsafe { vreinterpretq_s8_u32(vdupq_n_u32(u32::from_le_bytes(x) ^ 0x8080_8080)) };
        let mut sum = acc;
        for (sum, w) in sum.iter_mut().zip(w) {
            *sum = self.0.dot(*sum, w, x);
        }
        sum
    }
    #[inline(always)]
    unsafe fn int8_columns(self, p: &Int8Block<'_>) {
        // SAFETY: the caller's promise is the same
        unsafe { int8_columns::<Self, 1, 4>(self, p) }
    }
    #[inline(always)]
    unsafe fn f32_columns(self, p: &F32Block) {
        // SAFETY: the caller's promise is the same
        unsafe { f32_columns::<Self, 1, 6>(self, p) }
    }
}
