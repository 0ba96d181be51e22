//! How bytes are multiplied and summed up four by four: what the levels of AVX2 differ in.

use std::arch::x86_64::*;
use std::fmt::Debug;

use super::Avx2;
use crate::kernels::int8;
use crate::kernels::isa::{Isa, Op, run_with};

/// A level of AVX2. Its values prove that the processor has it.
pub trait Dot: Copy + Debug + Send + Sync + 'static {
    const NAME: &'static str;
    /// See [`Isa::BIASED`].
    const BIASED: bool;
    const INT8_ROWS: usize;
    /// Four weights in all lanes, as [`Dot::dot`] wants them.
    type Weights: Copy;

    fn new() -> Option<Self>;
    /// Runs `op` compiled for this level.
    fn run<O: Op>(isa: Avx2<Self>, op: O) -> O::Output
    where
        Avx2<Self>: Isa;
    fn weights(self, w: __m256i) -> Self::Weights;
    /// `acc[i] + sum of x[4 i + q] * w[q]` over q in 0..4.
    fn dot(self, acc: __m256i, x: __m256i, w: Self::Weights) -> __m256i;
    /// [`int8::tiles`] with [`Dot::INT8_ROWS`] rows.
    ///
    /// # Safety
    /// As that function.
    unsafe fn tiles(isa: Avx2<Self>, p: &int8::Block<'_>);
}

/// AVX2, FMA and F16C (x86-64-v3).
#[derive(Clone, Copy, Debug)]
pub struct Plain(());

impl Dot for Plain {
    const NAME: &'static str = "avx2";
    const BIASED: bool = false;
    const INT8_ROWS: usize = 4;
    /// the weights, and their magnitudes
    type Weights = [__m256i; 2];
    run_with!(Avx2<Self>, "avx2,fma,f16c");

    fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
            .then_some(Plain(()))
    }
    #[inline(always)]
    fn weights(self, w: __m256i) -> Self::Weights {
        // SAFETY: `self` proves AVX2
        [w, unsafe { _mm256_abs_epi8(w) }]
    }
    /// |w| is the unsigned operand and x takes w's sign: at most 128 * 127 * 2, so the 16-bit sums cannot saturate.
    /// (The other way round, -128 with its sign changed would wrap.)
    #[inline(always)]
    fn dot(self, acc: __m256i, x: __m256i, [w, magnitude]: Self::Weights) -> __m256i {
        // SAFETY: `self` proves AVX2
        unsafe {
            let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    unsafe fn tiles(isa: Avx2<Self>, p: &int8::Block<'_>) {
        // SAFETY: the caller's promise is the same
        unsafe { int8::tiles::<Avx2<Self>, { Self::INT8_ROWS }, 1>(isa, p) }
    }
}

/// With AVX-VNNI (Alder Lake and later, Zen 5; where AVX-512 is missing this is the fastest).
#[derive(Clone, Copy, Debug)]
pub struct Vnni(Plain);

impl Dot for Vnni {
    const NAME: &'static str = "avx2-vnni";
    const BIASED: bool = true;
    /// Twelve accumulators, two registers of activations and one of weights: 15 of 16.
    const INT8_ROWS: usize = 6;
    type Weights = __m256i;
    run_with!(Avx2<Self>, "avx2,fma,f16c,avxvnni");

    fn new() -> Option<Self> {
        Plain::new().filter(|_| is_x86_feature_detected!("avxvnni")).map(Vnni)
    }
    #[inline(always)]
    fn weights(self, w: __m256i) -> Self::Weights {
        w
    }
    #[inline(always)]
    fn dot(self, acc: __m256i, x: __m256i, w: Self::Weights) -> __m256i {
        // SAFETY: `self` proves AVX-VNNI
        unsafe { _mm256_dpbusd_avx_epi32(acc, x, w) }
    }
    #[inline(always)]
    unsafe fn tiles(isa: Avx2<Self>, p: &int8::Block<'_>) {
        // SAFETY: the caller's promise is the same
        unsafe { int8::tiles::<Avx2<Self>, { Self::INT8_ROWS }, 1>(isa, p) }
    }
}
