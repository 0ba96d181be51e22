//! NEON (64-bit ARM): a vector of 16 lanes is four registers. The levels differ in their integer products only: see
//! [`dot`].

mod dot;

use std::arch::aarch64::*;

use dot::Dot;

use super::int8::{self, Cells};
use super::isa::{CELLS, Isa, LANES, Op};
use super::product::{F32Block, f32_columns};

/// Proof that the processor has NEON at level `D`.
#[derive(Clone, Copy, Debug)]
pub struct Neon<D>(D);

pub type Plain = Neon<dot::Plain>;
pub type DotProd = Neon<dot::DotProd>;
pub type I8mm = Neon<dot::I8mm>;

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

impl<D: Dot> Neon<D> {
    pub fn new() -> Option<Self> {
        D::new().map(Neon)
    }

    /// To the nearest integers, ties to even, of at most a byte.
    #[inline(always)]
    fn narrow(self, v: [float32x4_t; 4]) -> int8x16_t {
        let n = four!(vcvtnq_s32_f32, v);
        // SAFETY: `self` proves NEON
        unsafe {
            let low = vcombine_s16(vqmovn_s32(n[0]), vqmovn_s32(n[1]));
            let high = vcombine_s16(vqmovn_s32(n[2]), vqmovn_s32(n[3]));
            vcombine_s8(vqmovn_s16(low), vqmovn_s16(high))
        }
    }

    /// The low and the high nibbles of bytes.
    #[inline(always)]
    fn nibbles(self, bytes: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
        // SAFETY: `self` proves NEON
        unsafe { (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)) }
    }

    #[inline(always)]
    fn look(self, indices: [uint8x16_t; 4], tables: [int8x16_t; 4], out: &mut [i8; CELLS]) {
        let found = four!(vqtbl1q_s8, tables, indices);
        // SAFETY: `self` proves NEON; 64 bytes are writable
        unsafe {
            for (i, v) in found.into_iter().enumerate() {
                vst1q_s8(out.as_mut_ptr().add(16 * i), v);
            }
        }
    }
}

impl<D: Dot> Isa for Neon<D> {
    const NAME: &'static str = D::NAME;
    const PANEL: usize = 1;
    const INT8_ROWS: usize = 4;
    const INT8_VECTORS: usize = 1;
    const F32_COLUMNS: usize = 6;
    const BIASED: bool = false;
    type F32 = [float32x4_t; 4];
    type I32 = [int32x4_t; 4];
    type X8 = [int8x16_t; 4];
    type W8 = int8x16_t;

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
    /// As integers: what stands for NaN is larger than what stands for infinity.
    #[inline(always)]
    fn peak(self, peak: Self::F32, v: Self::F32) -> Self::F32 {
        let v = self.abs(v);
        let (peak, v) = (four!(vreinterpretq_s32_f32, peak), four!(vreinterpretq_s32_f32, v));
        let larger = four!(vmaxq_s32, peak, v);
        four!(vreinterpretq_f32_s32, larger)
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
    fn store_i8(self, v: Self::F32, to: &mut [i8; LANES]) {
        // SAFETY: `self` proves NEON; 16 bytes are writable
        unsafe { vst1q_s8(to.as_mut_ptr(), self.narrow(v)) };
    }
    #[inline(always)]
    fn splat_i32(self, v: i32) -> Self::I32 {
        // SAFETY: `self` proves NEON
        [unsafe { vdupq_n_s32(v) }; 4]
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
    fn load_x8(self, from: &[u8; CELLS]) -> Self::X8 {
        let at = from.as_ptr().cast();
        // SAFETY: `self` proves NEON; 64 bytes are readable
        unsafe { [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))] }
    }
    #[inline(always)]
    fn splat_w8(self, w: [i8; 4]) -> Self::W8 {
        // SAFETY: `self` proves NEON
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(w.map(|b| b as u8)))) }
    }
    #[inline(always)]
    fn dot4(self, acc: Self::I32, x: Self::X8, w: Self::W8) -> Self::I32 {
        let dot = self.0;
        [dot.dot(acc[0], x[0], w), dot.dot(acc[1], x[1], w), dot.dot(acc[2], x[2], w), dot.dot(acc[3], x[3], w)]
    }
    type Tables = [int8x16_t; 4];
    #[inline(always)]
    fn tables(self, values: [Self::F32; 4]) -> Self::Tables {
        let [a, b, c, d] = values;
        [self.narrow(a), self.narrow(b), self.narrow(c), self.narrow(d)]
    }
    #[inline(always)]
    fn look_up_nibbles(self, bytes: &[u8; 32], tables: Self::Tables, out: &mut [i8; CELLS]) {
        // SAFETY: `self` proves NEON; 32 bytes are readable
        let (a, b) = unsafe { (vld1q_u8(bytes.as_ptr()), vld1q_u8(bytes.as_ptr().add(16))) };
        let [(a_low, a_high), (b_low, b_high)] = [self.nibbles(a), self.nibbles(b)];
        self.look([a_low, b_low, a_high, b_high], tables, out);
    }
    #[inline(always)]
    fn look_up_two(self, bytes: [&[u8; 16]; 2], tables: Self::Tables, out: &mut [i8; CELLS]) {
        // SAFETY: `self` proves NEON; 16 bytes each are readable
        let (a, b) = unsafe { (vld1q_u8(bytes[0].as_ptr()), vld1q_u8(bytes[1].as_ptr())) };
        let [(a_low, a_high), (b_low, b_high)] = [self.nibbles(a), self.nibbles(b)];
        self.look([a_low, a_high, b_low, b_high], tables, out);
    }
    #[inline(always)]
    fn look_up(self, indices: &[u8; CELLS], tables: Self::Tables, out: &mut [i8; CELLS]) {
        let at = indices.as_ptr();
        // SAFETY: `self` proves NEON; 64 bytes are readable
        let indices = unsafe { [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))] };
        self.look(indices, tables, out);
    }
    /// In blocks of 4 x 4.
    #[inline(always)]
    fn transpose(self, m: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        for i in (0..LANES).step_by(4) {
            for j in (0..LANES).step_by(4) {
                // SAFETY: `self` proves NEON; 4 numbers from j on, and from i on, are inside of rows of 16
                unsafe {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|r| vld1q_u32(m[i + r].as_ptr().add(j)));
                    let pairs = [vtrn1q_u32(a, b), vtrn2q_u32(a, b), vtrn1q_u32(c, d), vtrn2q_u32(c, d)];
                    let [even, odd, even_below, odd_below] = pairs.map(|v| vreinterpretq_u64_u32(v));
                    let columns = [
                        vzip1q_u64(even, even_below),
                        vzip1q_u64(odd, odd_below),
                        vzip2q_u64(even, even_below),
                        vzip2q_u64(odd, odd_below),
                    ];
                    for (to, v) in out[j..j + 4].iter_mut().zip(columns) {
                        vst1q_u32(to.as_mut_ptr().add(i), vreinterpretq_u32_u64(v));
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn int8_cells<const MR: usize, const NV: usize>(
        self,
        sum: [[Self::I32; NV]; MR],
        p: &Cells,
    ) -> [[Self::I32; NV]; MR] {
        // SAFETY: the caller's promise is the same
        unsafe { D::cells(self, sum, p) }
    }
    #[inline(always)]
    unsafe fn int8_tiles(self, p: &int8::Block<'_>) {
        // SAFETY: the caller's promise is the same
        unsafe { int8::tiles::<Self, 4, 1>(self, p) }
    }
    #[inline(always)]
    unsafe fn f32_columns(self, p: &F32Block) {
        // SAFETY: the caller's promise is the same
        unsafe { f32_columns::<Self, 1, 6>(self, p) }
    }
}
