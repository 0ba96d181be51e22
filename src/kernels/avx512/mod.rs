//! AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later).

mod bf16;

use std::arch::x86_64::*;

pub use bf16::Avx512Bf16;

use super::int8::{self, results, tiles_with};
use super::isa::{CELLS, Isa, LANES, Op};
use super::product::{F32Block, f32_columns};
use crate::tensor::block::Half;

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
    const INT8_ROWS: usize = 14;
    const INT8_VECTORS: usize = 2;
    const F32_COLUMNS: usize = 12;
    const BIASED: bool = true;
    type F32 = __m512;
    type I32 = __m512i;
    type X8 = __m512i;
    type W8 = __m512i;

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
    /// As integers: what stands for NaN is larger than what stands for infinity.
    #[inline(always)]
    fn peak(self, peak: Self::F32, v: Self::F32) -> Self::F32 {
        let v = self.abs(v);
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(peak), _mm512_castps_si512(v))) }
    }
    #[inline(always)]
    fn reduce_peak(self, peak: Self::F32) -> f32 {
        // SAFETY: `self` proves AVX-512
        f32::from_bits(unsafe { _mm512_reduce_max_epi32(_mm512_castps_si512(peak)) } as u32)
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32 {
        // SAFETY: `self` proves AVX-512; 16 bytes are readable
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[Half; LANES]) -> Self::F32 {
        // SAFETY: `self` proves AVX-512; 32 bytes are readable
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store_i8(self, v: Self::F32, to: &mut [i8; LANES]) {
        // SAFETY: `self` proves AVX-512; 16 bytes are writable
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    fn splat_i32(self, v: i32) -> Self::I32 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_set1_epi32(v) }
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
    fn load_x8(self, from: &[u8; CELLS]) -> Self::X8 {
        // SAFETY: `self` proves AVX-512; 64 bytes are readable
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_w8(self, w: [i8; 4]) -> Self::W8 {
        // SAFETY: `self` proves AVX-512
        unsafe { _mm512_set1_epi32(i32::from_ne_bytes([w[0] as u8, w[1] as u8, w[2] as u8, w[3] as u8])) }
    }
    #[inline(always)]
    fn dot4(self, acc: Self::I32, x: Self::X8, w: Self::W8) -> Self::I32 {
        // SAFETY: `self` proves VNNI
        unsafe { _mm512_dpbusd_epi32(acc, x, w) }
    }
    #[inline(always)]
    fn group_starts(self, q: &[i8; 16 * LANES], group: usize, starts: &mut [i32; LANES]) {
        // SAFETY: `self` proves VNNI; 256 bytes are readable and 64 writable
        unsafe {
            let all_128 = _mm512_set1_epi8(-128); // as unsigned bytes
            let at = |step: usize| _mm512_loadu_si512(q.as_ptr().add(step * CELLS).cast());
            let fours = |step: usize| _mm512_dpbusd_epi32(_mm512_setzero_si512(), all_128, at(step));
            // quarter q of a step has four sums of four, which come together as number `step` of quarter q
            let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (a, b) = (pair(fours(0), fours(1)), pair(fours(2), fours(3)));
            let all = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let mut all = _mm512_permutexvar_epi32(order, all);
            if group == 32 {
                let [even, odd] = [0, 1].map(|first| {
                    let at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
                    _mm512_permutexvar_epi32(_mm512_add_epi32(at, _mm512_set1_epi32(first)), all)
                });
                all = _mm512_add_epi32(even, odd);
            }
            _mm512_storeu_si512(starts.as_mut_ptr().cast(), _mm512_sub_epi32(_mm512_setzero_si512(), all));
        }
    }
    #[inline(always)]
    fn partial_sums(self, q: &[i8; 16 * LANES], sums: &mut [i32; LANES]) {
        // SAFETY: `self` proves VNNI; 256 bytes are readable and 64 writable
        unsafe {
            let at = |step: usize| _mm512_loadu_si512(q.as_ptr().add(step * CELLS).cast());
            let sum = |sum, step| _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), at(step));
            let zero = _mm512_setzero_si512();
            let all = _mm512_add_epi32(sum(sum(zero, 0), 1), sum(sum(zero, 2), 3));
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), all);
        }
    }
    /// A table in each quarter.
    type Tables = __m512i;
    #[inline(always)]
    fn tables(self, values: [Self::F32; 4]) -> Self::Tables {
        // SAFETY: `self` proves AVX-512 BW
        unsafe {
            let [a, b, c, d] = [
                _mm512_cvtps_epi32(values[0]),
                _mm512_cvtps_epi32(values[1]),
                _mm512_cvtps_epi32(values[2]),
                _mm512_cvtps_epi32(values[3]),
            ];
            // packing works inside quarters: quarter q holds numbers 4q .. 4q + 4 of each table
            let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes)
        }
    }
    #[inline(always)]
    fn look_up_nibbles(self, bytes: &[u8; 32], tables: Self::Tables, out: &mut [i8; CELLS]) {
        // SAFETY: `self` proves AVX-512 BW; 32 bytes are readable
        unsafe {
            let twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(bytes.as_ptr().cast()));
            shuffle(_mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4)), tables, out);
        }
    }
    #[inline(always)]
    fn look_up_two(self, bytes: [&[u8; 16]; 2], tables: Self::Tables, out: &mut [i8; CELLS]) {
        // SAFETY: `self` proves AVX-512 BW; 16 bytes are readable in each
        unsafe {
            let [a, b] = [_mm_loadu_si128(bytes[0].as_ptr().cast()), _mm_loadu_si128(bytes[1].as_ptr().cast())];
            let pair = _mm512_inserti32x4::<2>(_mm512_castsi128_si512(a), b);
            let twice = _mm512_shuffle_i32x4::<0b10_10_00_00>(pair, pair);
            shuffle(_mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), tables, out);
        }
    }
    #[inline(always)]
    fn look_up(self, indices: &[u8; CELLS], tables: Self::Tables, out: &mut [i8; CELLS]) {
        // SAFETY: `self` proves AVX-512 BW; 64 bytes are readable
        unsafe { shuffle(_mm512_loadu_si512(indices.as_ptr().cast()), tables, out) }
    }
    #[inline(always)]
    fn transpose(self, m: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        // SAFETY: `self` proves AVX-512
        unsafe { transpose(m, out) }
    }
    #[inline(always)]
    unsafe fn int8_tiles(self, p: &int8::Block<'_>) {
        const ROWS: usize = Avx512::INT8_ROWS;
        const HALF: usize = ROWS / 2;
        const VECTORS: usize = Avx512::INT8_VECTORS;
        // SAFETY: the caller's promise is the same
        unsafe {
            // half the rows where something is kept: it takes as many registers as the sums
            match (p.shape.group, p.shape.mixed()) {
                (16, true) => tiles_with::<Self, HALF, VECTORS, { results::MIXED }>(self, p, 16),
                (32, true) => tiles_with::<Self, HALF, VECTORS, { results::MIXED }>(self, p, 32),
                (16, false) => tiles_with::<Self, HALF, VECTORS, { results::REGISTERS }>(self, p, 16),
                (32, false) => tiles_with::<Self, HALF, VECTORS, { results::REGISTERS }>(self, p, 32),
                (group, _) => tiles_with::<Self, ROWS, VECTORS, { results::MEMORY }>(self, p, group),
            }
        }
    }
    #[inline(always)]
    unsafe fn f32_columns(self, p: &F32Block) {
        // SAFETY: the caller's promise is the same
        unsafe { f32_columns::<Self, 2, { Self::F32_COLUMNS }>(self, p) }
    }
}

/// Looks the low nibbles of `indices` up.
///
/// # Safety
/// The processor has AVX-512 BW.
#[inline(always)]
unsafe fn shuffle(indices: __m512i, tables: __m512i, out: &mut [i8; CELLS]) {
    // SAFETY: the caller's promise; 64 bytes are writable
    unsafe {
        let indices = _mm512_and_si512(indices, _mm512_set1_epi8(15));
        _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_shuffle_epi8(tables, indices));
    }
}

/// 16 x 16 numbers in four rounds: pairs of rows are interleaved by numbers, by pairs of numbers, then by quarters of
/// registers twice.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn transpose(m: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
    // SAFETY: the caller's promise; all loads and stores are of whole rows
    unsafe {
        let mut a = [_mm512_setzero_si512(); LANES];
        let mut b = a;
        for i in 0..LANES {
            a[i] = _mm512_loadu_si512(m[i].as_ptr().cast());
        }
        // b[i + 0..2] = rows i, i + 1 interleaved; quarter q holds columns 4q .. 4q + 4
        for i in (0..LANES).step_by(2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
        // a[i + c], quarter q: column 4q + c of rows i .. i + 4
        for i in (0..LANES).step_by(4) {
            a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
            a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
            a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
            a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
        }
        for c in 0..4 {
            // rows 0..8 and 8..16 of the columns c + 0, 8 (lo) and c + 4, 12 (hi)
            let lo = [_mm512_shuffle_i32x4::<0x88>(a[c], a[c + 4]), _mm512_shuffle_i32x4::<0x88>(a[c + 8], a[c + 12])];
            let hi = [_mm512_shuffle_i32x4::<0xdd>(a[c], a[c + 4]), _mm512_shuffle_i32x4::<0xdd>(a[c + 8], a[c + 12])];
            let columns = [
                _mm512_shuffle_i32x4::<0x88>(lo[0], lo[1]),
                _mm512_shuffle_i32x4::<0x88>(hi[0], hi[1]),
                _mm512_shuffle_i32x4::<0xdd>(lo[0], lo[1]),
                _mm512_shuffle_i32x4::<0xdd>(hi[0], hi[1]),
            ];
            for q in 0..4 {
                _mm512_storeu_si512(out[4 * q + c].as_mut_ptr().cast(), columns[q]);
            }
        }
    }
}
