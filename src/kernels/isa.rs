//! Instruction sets as tokens.
//!
//! A value of a type that implements [`Isa`] exists only where the processor has the instructions, so that safe
//! code can use them. Algorithms are written once, generic over `Isa`; [`Isa::run`] compiles them with the
//! instruction set switched on (all generic code is `inline(always)`, so it lands inside that function).
//!
//! Every instruction set shows vectors of 16 lanes, whatever its registers are: sums then have one fixed order,
//! and results do not depend on which set ran (up to fused multiply-adds, see [`Isa::mul_add`]).

use crate::tensor::{self, fold};

/// Lanes of every vector here, and of the encoders', which are written for them.
pub const LANES: usize = tensor::LANES;

/// Work that is generic over the instruction set.
pub trait Op {
    type Output;
    /// Mark the implementation `#[inline(always)]`.
    fn call<I: Isa>(self, isa: I) -> Self::Output;
}

/// One instruction set. Methods are lane-wise unless they say otherwise.
pub trait Isa: Copy + Send + Sync + 'static {
    const NAME: &'static str;
    /// Vectors of rows in a panel of weights: a panel has `PANEL * LANES` rows.
    const PANEL: usize;
    /// 16 floats.
    type F32: Copy;
    /// 16 integers.
    type I32: Copy;
    /// 16 x 4 signed bytes: four consecutive elements of 16 rows of weights.
    type I8: Copy;

    /// Runs `op` compiled for this instruction set.
    fn run<O: Op>(self, op: O) -> O::Output;

    fn splat(self, v: f32) -> Self::F32;
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    fn store(self, v: Self::F32, to: &mut [f32; LANES]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b`, so NaN in `a` gives `b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a < b ? a : b`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// `a * b + c`, fused where the set has the instruction (all but `portable`).
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a * b + c` with one rounding on every instruction set.
    fn fused(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F32) -> Self::F32;
    /// 2^a for whole numbers a in -126..=127.
    fn exp2_int(self, a: Self::F32) -> Self::F32;
    /// `a < b ? 0 : v`
    fn zero_if_less(self, a: Self::F32, b: Self::F32, v: Self::F32) -> Self::F32;
    /// `a < b ? x : y`
    fn if_less(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32;
    /// Whole numbers in -128..=127 as bytes with 128 added.
    fn store_biased(self, v: Self::F32, to: &mut [u8; LANES]);

    fn load_i32(self, from: &[i32; LANES]) -> Self::I32;
    fn to_f32(self, a: Self::I32) -> Self::F32;
    fn load_i8(self, from: &[i8; LANES * 4]) -> Self::I8;
    /// Per lane: `acc + sum_4 w * x - 128 * sum_4 w`-style dot product of four weights with four activation bytes
    /// given with 128 added. Sets whose instruction takes an unsigned operand leave the `-128 * sum w` to the
    /// caller: see [`Isa::BIASED`].
    fn dot4(self, acc: Self::I32, w: Self::I8, x: [u8; 4]) -> Self::I32;
    /// Whether `dot4` multiplies with the biased bytes as they are (the caller starts from `-128 * sum w`);
    /// otherwise it takes the bias off itself (the caller starts from 0).
    const BIASED: bool;

    /// Sum over lanes in one fixed order: halves folded onto each other.
    #[inline(always)]
    fn reduce_add(self, v: Self::F32) -> f32 {
        let mut a = [0.0; LANES];
        self.store(v, &mut a);
        fold(a, |x, y| x + y)
    }
    #[inline(always)]
    fn reduce_max(self, v: Self::F32) -> f32 {
        let mut a = [0.0; LANES];
        self.store(v, &mut a);
        fold(a, f32::max)
    }

    /// Columns of a tile of the integer product, and of the float product.
    const INT8_COLUMNS: usize;
    const F32_COLUMNS: usize;
    /// [`super::product::int8_columns`] with this set's tile.
    ///
    /// # Safety
    /// As that function.
    unsafe fn int8_columns(self, p: &super::product::Int8Block<'_>);
    /// [`super::product::f32_columns`] with this set's tile.
    ///
    /// # Safety
    /// As that function.
    unsafe fn f32_columns(self, p: &super::product::F32Block);
}

/// exp(x) by range reduction to |r| <= ln2/2 and a degree-7 polynomial; below -87 the result is 0, above 88 it
/// stays at exp(88). Error at most 2 ULP (checked in the tests).
#[inline(always)]
pub fn exp<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    const C: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let lo = isa.splat(-87.0);
    let clamped = isa.sub(isa.splat(0.0), isa.max(isa.sub(isa.splat(0.0), x), isa.splat(-88.0)));
    let clamped = isa.max(clamped, lo);
    let n = isa.round(isa.mul(clamped, isa.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that n * ln2 is exact to more than f32
    let r = isa.mul_add(n, isa.splat(-0.693_359_4), clamped);
    let r = isa.mul_add(n, isa.splat(2.121_944_4e-4), r);
    let mut p = isa.splat(C[0]);
    for c in &C[1..] {
        p = isa.mul_add(p, r, isa.splat(*c));
    }
    let p = isa.mul_add(isa.mul(p, r), r, r);
    let p = isa.add(p, isa.splat(1.0));
    isa.zero_if_less(x, lo, isa.mul(p, isa.exp2_int(n)))
}
