//! Weights into tiles of 16 outputs and 32 channels.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::geometry::{BLOCK, Plan, STEP, TILE};
use super::pixels::rest;
use crate::error::Result;
use crate::kernels::amx::Amx;
use crate::kernels::isa::{Isa, LANES};
use crate::memory::Aligned;
use crate::tensor::{GgmlType, Matrix, dequantize};

thread_local! {
    /// Rows of 16 outputs in f32.
    static ROWS: RefCell<Aligned<f32>> = RefCell::default();
}

/// Writes the tiles of outputs `16 * block ..` to those of their pair, whose number is `block / 2`.
///
/// # Errors
/// `OutOfMemory`; what a type that cannot be decoded gives.
///
/// # Safety
/// `to` has the bytes of the whole weights, and nobody else uses this block's part of them meanwhile.
pub unsafe fn pack(amx: Amx, plan: &Plan, w: &Matrix, block: usize, to: *mut u8) -> Result<()> {
    let first = block * TILE;
    let n = TILE.min(w.rows() - first);
    ROWS.with_borrow_mut(|rows| {
        // a step beyond the last row, so that whole steps can be read
        let len = TILE * w.cols() + STEP;
        rows.try_grow_to(len, "a convolution's weights in f32")?;
        for (i, row) in rows.chunks_exact_mut(w.cols()).enumerate().take(n) {
            match w.dtype() {
                // SAFETY: the token proves the features
                GgmlType::F16 => unsafe { widen(w.row(first + i), row) },
                dtype => dequantize(dtype, w.row(first + i), row)?,
            }
        }
        rows[n * w.cols()..len].fill(0.0);
        // SAFETY: the token proves the features; the rows are there, the rest is the caller's promise
        unsafe { tiles(amx, plan, rows, w.cols(), block, to) };
        Ok(())
    })
}

/// Halves to floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn widen(bytes: &[u8], to: &mut [f32]) {
    for (bytes, to) in bytes.chunks(2 * LANES).zip(to.chunks_mut(LANES)) {
        let mask = u16::MAX >> (LANES - to.len());
        // SAFETY: masks leave out what is past the end
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(mask, bytes.as_ptr().cast());
            _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, _mm512_cvtph_ps(halves));
        }
    }
}

/// # Safety
/// The processor has the features; `rows` has 16 rows of `len` floats and a step more; `to` as for [`pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tiles(amx: Amx, plan: &Plan, rows: &[f32], len: usize, block: usize, to: *mut u8) {
    let (pair, half) = (block / 2, block % 2);
    let blocks = plan.blocks_of(pair);
    let (side, channels) = (plan.kernel, plan.channels);
    let mut at = plan.pair_at(pair) + half * BLOCK;
    let (mut cells, mut rests, mut turned) = ([[0u32; LANES]; TILE], [[0u32; LANES]; TILE], [[0u32; TILE]; LANES]);
    for phase in plan.phases() {
        for (step, (ty, tx)) in plan.window().enumerate() {
            let first = step / plan.positions() * STEP;
            let mask = u32::MAX >> (STEP - (channels - first).min(STEP));
            for (o, row) in rows.chunks_exact(len).enumerate().take(TILE) {
                let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                for ky in plan.kernel_rows(phase.row, ty) {
                    for kx in plan.kernel_rows(phase.column, tx) {
                        let from = row.as_ptr().wrapping_add((ky * side + kx) * channels + first);
                        // SAFETY: masks leave out what is past the channels of this position
                        unsafe {
                            low = _mm512_add_ps(low, _mm512_maskz_loadu_ps(mask as u16, from));
                            let from = from.wrapping_add(LANES);
                            high = _mm512_add_ps(high, _mm512_maskz_loadu_ps((mask >> LANES) as u16, from));
                        }
                    }
                }
                // SAFETY: 64 bytes each, of any bits
                unsafe {
                    let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_storeu_si512(cells[o].as_mut_ptr().cast(), rounded);
                    if plan.terms > 1 {
                        let (low, high) = rest(rounded, low, high);
                        let rest = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                        _mm512_storeu_si512(rests[o].as_mut_ptr().cast(), rest);
                    }
                }
            }
            // what rounding left comes first, see `tiles`
            let terms = [&rests, &cells];
            for cells in &terms[2 - plan.terms..] {
                amx.base.transpose(cells, &mut turned);
                // SAFETY: a tile of this block's part
                unsafe { to.add(at).cast::<[[u32; TILE]; LANES]>().write(turned) };
                at += blocks * BLOCK;
            }
        }
    }
}
