//! Products in bfloat16 (AVX512-BF16): pairs of 16-bit products summed in f32.

use std::arch::x86_64::*;

use super::Avx512;
use crate::kernels::isa::{LANES, Op};
use crate::kernels::product::Bf16Block;

/// Proof that the processor has AVX512-BF16 besides what [`Avx512`] proves.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16(Avx512);

/// Vectors of rows and columns of a tile.
const MR: usize = 2;
const NR: usize = 12;

impl Avx512Bf16 {
    pub fn new() -> Option<Self> {
        let base = Avx512::new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Avx512Bf16(base))
    }

    /// Whether these products are faster than f32 ones here. Processors with AMX run this instruction at half the
    /// rate of two fused multiply-adds (0.6 to 0.7 of the f32 product was measured): their bfloat16 unit is AMX.
    pub fn pays(self) -> bool {
        // SAFETY: every x86-64 processor has CPUID, and one with AVX-512 has leaf 7
        #[allow(unused_unsafe)] // a safe function since Rust 1.94
        let features = unsafe { __cpuid_count(7, 0) };
        const AMX_BF16: u32 = 1 << 22;
        features.edx & AMX_BF16 == 0
    }

    /// Runs `op`, which unpacks a panel and calls [`Avx512Bf16::columns`], compiled for AVX-512.
    pub fn run<O: Op>(self, op: O) -> O::Output {
        crate::kernels::isa::Isa::run(self.0, op)
    }

    /// All columns of a block.
    ///
    /// # Safety
    /// `panel` holds `pairs * MR * 16` pairs, `x` has `pairs` pairs in each of `cols`, and `y` is writable at every
    /// (column, row) and not accessed by others meanwhile.
    pub unsafe fn columns(self, p: &Bf16Block) {
        // SAFETY: `self` proves the features, the rest is the caller's promise
        unsafe { columns(p) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn columns(p: &Bf16Block) {
    let mut j = p.cols.start;
    // SAFETY: every tile lies inside `cols`, the rest is the caller's promise
    unsafe {
        while j + NR <= p.cols.end {
            tile::<NR>(p, j);
            j += NR;
        }
        while j + 4 <= p.cols.end {
            tile::<4>(p, j);
            j += 4;
        }
        while j < p.cols.end {
            tile::<1>(p, j);
            j += 1;
        }
    }
}

/// # Safety
/// As [`Avx512Bf16::columns`], for `N` columns from `j0`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<const N: usize>(p: &Bf16Block, j0: usize) {
    let mut acc = [[_mm512_setzero_ps(); MR]; N];
    // SAFETY: the caller's promise about panel, x and y
    unsafe {
        let x = p.x.add(j0 * p.x_col);
        for k in 0..p.pairs {
            let w: [__m512i; MR] =
                std::array::from_fn(|m| _mm512_loadu_si512(p.panel.add((k * MR + m) * LANES).cast()));
            for (j, acc) in acc.iter_mut().enumerate() {
                let v = _mm512_set1_epi32(*x.add(j * p.x_col + k) as i32);
                for (acc, w) in acc.iter_mut().zip(w) {
                    // SAFETY of the transmutes: 64 bytes each, every bit pattern is valid
                    *acc = _mm512_dpbf16_ps(
                        *acc,
                        std::mem::transmute::<__m512i, __m512bh>(w),
                        std::mem::transmute::<__m512i, __m512bh>(v),
                    );
                }
            }
        }
        for (j, acc) in acc.into_iter().enumerate() {
            for (m, v) in acc.into_iter().enumerate() {
                let rows = p.rows.saturating_sub(m * LANES).min(LANES);
                let mask = ((1u32 << rows) - 1) as u16;
                let at = p.y.add((j0 + j) * p.y_stride + m * LANES);
                let v = if p.add { _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, at)) } else { v };
                _mm512_mask_storeu_ps(at, mask, v);
            }
        }
    }
}
