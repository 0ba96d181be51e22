//! AVX2, FMA and F16C (x86-64-v3): a vector of 16 lanes is two registers. The levels differ in their integer products
//! only: see [`dot`].

mod dot;

use std::arch::x86_64::*;

use dot::Dot;

use super::int8;
use super::isa::{CELLS, Isa, LANES, Op, tables_in_memory};
use super::product::{F32Block, f32_columns};
use crate::tensor::block::Half;

/// Proof that the processor has AVX2 at level `D`.
#[derive(Clone, Copy, Debug)]
pub struct Avx2<D>(D);

pub type Plain = Avx2<dot::Plain>;
pub type Vnni = Avx2<dot::Vnni>;

impl<D: Dot> Avx2<D> {
    pub fn new() -> Option<Self> {
        D::new().map(Avx2)
    }
}

/// Twelve accumulators of 16 registers.
const F32_COLUMNS: usize = 6;

/// Lane-wise operations on both registers.
macro_rules! both {
    ($f:ident, $($a:ident),+) => {
        // SAFETY: `self` proves that the processor has the instruction
        unsafe { [$f($($a[0]),+), $f($($a[1]),+)] }
    };
}

impl<D: Dot> Isa for Avx2<D> {
    const NAME: &'static str = D::NAME;
    const PANEL: usize = 1;
    const INT8_ROWS: usize = D::INT8_ROWS;
    const INT8_VECTORS: usize = 1;
    const F32_COLUMNS: usize = F32_COLUMNS;
    const BIASED: bool = D::BIASED;
    type F32 = [__m256; 2];
    type I32 = [__m256i; 2];
    type X8 = [__m256i; 2];
    type W8 = D::Weights;

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        D::run(self, op)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        // SAFETY: `self` proves AVX2
        let v = unsafe { _mm256_set1_ps(v) };
        [v, v]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        // SAFETY: `self` proves AVX2; 16 floats are readable
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, v: Self::F32, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX2; 16 floats are writable
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_max_ps, a, b)
    }
    /// As integers: what stands for NaN is larger than what stands for infinity.
    #[inline(always)]
    fn peak(self, peak: Self::F32, v: Self::F32) -> Self::F32 {
        let v = self.abs(v);
        let (peak, v) = (both!(_mm256_castps_si256, peak), both!(_mm256_castps_si256, v));
        let larger = both!(_mm256_max_epi32, peak, v);
        both!(_mm256_castsi256_ps, larger)
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        let sign = self.splat(-0.0);
        both!(_mm256_andnot_ps, sign, a)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn fused(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        self.mul_add(a, b, c)
    }
    #[inline(always)]
    fn round(self, a: Self::F32) -> Self::F32 {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: `self` proves AVX2
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }
    #[inline(always)]
    fn exp2_int(self, a: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX2
        unsafe {
            let mut power = a;
            for (power, a) in power.iter_mut().zip(a) {
                let n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
                *power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n));
            }
            power
        }
    }
    #[inline(always)]
    fn zero_if_less(self, a: Self::F32, b: Self::F32, v: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX2
        unsafe {
            let less = [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])];
            [_mm256_andnot_ps(less[0], v[0]), _mm256_andnot_ps(less[1], v[1])]
        }
    }
    #[inline(always)]
    fn if_less(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX2
        unsafe {
            let less = [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])];
            [_mm256_blendv_ps(y[0], x[0], less[0]), _mm256_blendv_ps(y[1], x[1], less[1])]
        }
    }
    #[inline(always)]
    fn reduce_add(self, v: Self::F32) -> f32 {
        // SAFETY: `self` proves AVX2
        unsafe { fold_add(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[Half; LANES]) -> Self::F32 {
        // SAFETY: `self` proves F16C; 32 bytes are readable
        unsafe {
            let at = |i: usize| _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(i).cast()));
            [at(0), at(8)]
        }
    }
    #[inline(always)]
    fn store_i8(self, v: Self::F32, to: &mut [i8; LANES]) {
        // SAFETY: `self` proves AVX2; 16 bytes are writable
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn splat_i32(self, v: i32) -> Self::I32 {
        // SAFETY: `self` proves AVX2
        let v = unsafe { _mm256_set1_epi32(v) };
        [v, v]
    }
    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I32 {
        // SAFETY: `self` proves AVX2; 16 integers are readable
        unsafe { [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(8).cast())] }
    }
    #[inline(always)]
    fn to_f32(self, a: Self::I32) -> Self::F32 {
        both!(_mm256_cvtepi32_ps, a)
    }
    #[inline(always)]
    fn load_x8(self, from: &[u8; CELLS]) -> Self::X8 {
        // SAFETY: `self` proves AVX2; 64 bytes are readable
        unsafe { [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())] }
    }
    #[inline(always)]
    fn splat_w8(self, w: [i8; 4]) -> Self::W8 {
        // SAFETY: `self` proves AVX2
        self.0.weights(unsafe { _mm256_set1_epi32(i32::from_ne_bytes(w.map(|b| b as u8))) })
    }
    #[inline(always)]
    fn dot4(self, acc: Self::I32, x: Self::X8, w: Self::W8) -> Self::I32 {
        [self.0.dot(acc[0], x[0], w), self.0.dot(acc[1], x[1], w)]
    }
    tables_in_memory!();
    #[inline(always)]
    fn look_up(self, indices: &[u8; CELLS], tables: Self::Tables, out: &mut [i8; CELLS]) {
        // SAFETY: `self` proves AVX2; both halves of all arrays are 32 bytes
        unsafe {
            for half in 0..2 {
                let table = _mm256_loadu_si256(tables.as_ptr().add(2 * half).cast());
                let indices = _mm256_loadu_si256(indices.as_ptr().add(32 * half).cast());
                _mm256_storeu_si256(out.as_mut_ptr().add(32 * half).cast(), _mm256_shuffle_epi8(table, indices));
            }
        }
    }
    #[inline(always)]
    unsafe fn int8_tiles(self, p: &int8::Block<'_>) {
        // SAFETY: the caller's promise is the same
        unsafe { D::tiles(self, p) }
    }
    #[inline(always)]
    unsafe fn f32_columns(self, p: &F32Block) {
        // SAFETY: the caller's promise is the same
        unsafe { f32_columns::<Self, 1, F32_COLUMNS>(self, p) }
    }
}

/// Sum of 8 floats, halves folded onto each other.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn fold_add(v: __m256) -> f32 {
    // SAFETY: the caller's promise
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}
