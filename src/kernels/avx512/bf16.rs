//! Products in bfloat16 (AVX512-BF16): pairs of 16-bit products summed in f32.

use std::arch::x86_64::*;

use super::Avx512;
use crate::kernels::activations::{BF16_STEP, STEP_BYTES};
use crate::kernels::isa::{CELLS, Isa, LANES, Op, unroll};
use crate::kernels::product::{Bf16Block, Bf16Tiles};

/// Proof that the processor has AVX512-BF16 besides what [`Avx512`] proves.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16(Avx512);

/// Rows of weights and vectors of activations of a tile.
const MR: usize = 12;
const NV: usize = 2;

impl Avx512Bf16 {
    pub fn new() -> Option<Self> {
        let base = Avx512::new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Avx512Bf16(base))
    }

    /// The token of what comes with it.
    pub fn base(self) -> Avx512 {
        self.0
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

    /// Runs `op` compiled for AVX-512 with BF16.
    #[inline(always)]
    pub fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
        fn inner<O: Op>(isa: Avx512, op: O) -> O::Output {
            op.call(isa)
        }
        // SAFETY: `self` proves that the processor has these features
        unsafe { inner(self.0, op) }
    }
}

impl Bf16Tiles for Avx512Bf16 {
    const ROWS: usize = MR;

    #[inline(always)]
    fn round(self, from: &[f32; BF16_STEP], to: &mut [u16; BF16_STEP]) {
        // SAFETY: `self` proves the features; 32 floats are readable, 64 bytes writable
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(LANES)));
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn tiles(self, p: &Bf16Block) {
        let mut block = 0;
        // SAFETY: every tile lies inside the rows and blocks, the rest is the caller's promise
        unsafe {
            while block + NV <= p.blocks {
                for row in (0..p.rows).step_by(MR) {
                    tile::<NV>(self.0, p, row, block);
                }
                block += NV;
            }
            while block < p.blocks {
                for row in (0..p.rows).step_by(MR) {
                    tile::<1>(self.0, p, row, block);
                }
                block += 1;
            }
        }
    }
}

/// # Safety
/// The processor has AVX512-BF16; as [`Bf16Tiles::tiles`], for MR rows from `row` on and N blocks from `block` on.
#[inline(always)]
unsafe fn tile<const N: usize>(isa: Avx512, p: &Bf16Block, row: usize, block: usize) {
    // SAFETY: the caller's promise
    unsafe {
        let acc = p.acc.add(row * p.acc_row + block * LANES);
        let x = p.x.add(block * p.x_block);
        let mut sum = [[isa.splat(0.0); N]; MR];
        unroll!(m < MR, {
            unroll!(v < N, of 2 { sum[m][v] = isa.load(&*acc.add(m * p.acc_row + v * LANES).cast()) });
        });
        for step in 0..p.steps {
            let w = p.panel.add((step * p.panel_rows + row) * BF16_STEP);
            let x = x.add(step * STEP_BYTES);
            for cell in 0..LANES {
                let mut columns = [_mm512_setzero_si512(); N];
                unroll!(v < N, of 2 { columns[v] = _mm512_loadu_si512(x.add(v * p.x_block + cell * CELLS).cast()) });
                unroll!(m < MR, {
                    let w = w.add(m * BF16_STEP + 2 * cell).cast::<i32>().read_unaligned();
                    let w = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(w));
                    unroll!(v < N, of 2 {
                        sum[m][v] =
                            _mm512_dpbf16_ps(sum[m][v], std::mem::transmute::<__m512i, __m512bh>(columns[v]), w);
                    });
                });
            }
        }
        unroll!(m < MR, {
            unroll!(v < N, of 2 { isa.store(sum[m][v], &mut *acc.add(m * p.acc_row + v * LANES).cast()) });
        });
    }
}
