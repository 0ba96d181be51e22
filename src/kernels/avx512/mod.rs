//! AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later).

mod bf16;

use std::arch::x86_64::*;

pub use bf16::Avx512Bf16;

use super::isa::{Isa, LANES, Op};
use super::product::{F32Block, Int8Block, f32_columns, int8_columns};

/// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    pub fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Avx512(()))
    }
}

impl Isa for Avx512 {
    const NAME: &'static str = "avx512";
    const PANEL: usize = 2;
    const INT8_COLUMNS: usize = 6;
    const F32_COLUMNS: usize = 12;
    const BIASED: bool = true;
    type F32 = __m512;
    type I32 = __m512i;
    type I8 = __m512i;

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn inner<O: Op>(isa: Avx512, op: O) -> O::Output {
            op.call(isa)
        }
        // SAFETY: `self` proves that the processor has these features
        unsafe { inner(self, op) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        // SAFETY: `self` proves AVX-512; 16 floats are readable
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: Self::F32, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX-512; 16 floats are writable
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fused(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        self.mul_add(a, b, c)
    }
    #[inline(always)]
    fn round(self, a: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn exp2_int(self, a: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }
    }
    #[inline(always)]
    fn zero_if_less(self, a: Self::F32, b: Self::F32, v: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), v) }
    }
    #[inline(always)]
    fn if_less(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), x) }
    }
    #[inline(always)]
    fn reduce_add(self, v: Self::F32) -> f32 {
        // SAFETY: `self` proves AVX-512 (DQ) and AVX2
        unsafe { super::avx2::fold_add(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    fn store_biased(self, v: Self::F32, to: &mut [u8; LANES]) {
        // SAFETY: `self` proves AVX-512; 16 bytes are writable
        unsafe {
            let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN)));
        }
    }
    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I32 {
        // SAFETY: `self` proves AVX-512; 16 integers are readable
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn to_f32(self, a: Self::I32) -> Self::F32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES * 4]) -> Self::I8 {
        // SAFETY: `self` proves AVX-512; 64 bytes are readable
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn dot4(self, acc: Self::I32, w: Self::I8, x: [u8; 4]) -> Self::I32 {
        // SAFETY: `self` proves VNNI
        unsafe { _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(i32::from_le_bytes(x)), w) }
    }
    #[inline(always)]
    unsafe fn int8_columns(self, p: &Int8Block<'_>) {
        // SAFETY: the caller's promise is the same
        unsafe { int8_columns::<Self, 2, { Self::INT8_COLUMNS }>(self, p) }
    }
    #[inline(always)]
    unsafe fn f32_columns(self, p: &F32Block) {
        // SAFETY: the caller's promise is the same
        unsafe { f32_columns::<Self, 2, { Self::F32_COLUMNS }>(self, p) }
    }
}
