//! Numbers in bfloat16 and in two terms of it, with AVX512-BF16: pixels for the ring, and weights.

use std::arch::x86_64::*;

use super::geometry::{LINE, Plan};
use super::pixels::Affine;
use super::unit::Cells;
use crate::kernels::avx512::Avx512Bf16;
use crate::kernels::isa::LANES;

/// Channels of a step.
const STEP: usize = 2 * LANES;

/// Normalizes pixels [..][channels] into the ring; with SPLIT, what rounding left goes to the second term.
///
/// # Safety
/// As [`Unit::convert`](super::unit::Unit::convert).
pub unsafe fn convert<const SPLIT: bool>(_: Avx512Bf16, pixels: &[f32], affine: &Affine, plan: &Plan, to: *mut u8) {
    // SAFETY: the token proves the features; the rest is the caller's promise
    unsafe {
        match affine.swish {
            false => rows::<SPLIT, false>(pixels, affine, plan, to),
            true => rows::<SPLIT, true>(pixels, affine, plan, to),
        }
    }
}

/// Rounds a step's channels; with SPLIT, what that left goes to the second cells.
pub fn round<const SPLIT: bool>(_: Avx512Bf16, from: &[f32; STEP], to: &mut Cells) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn inner<const SPLIT: bool>(from: &[f32; STEP], [cells, rests]: &mut Cells) {
        // SAFETY: 32 floats are readable, 64 bytes each writable, of any bits
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(LANES)));
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(cells.as_mut_ptr().cast(), rounded);
            if SPLIT {
                let (low, high) = rest(rounded, low, high);
                let rest = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(rests.as_mut_ptr().cast(), rest);
            }
        }
    }
    // SAFETY: the token proves the features
    unsafe { inner::<SPLIT>(from, to) }
}

/// # Safety
/// The processor has the features; `to` has room for the pixels in every block of channels of every term; `affine` has
/// whole steps of channels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn rows<const SPLIT: bool, const SWISH: bool>(pixels: &[f32], affine: &Affine, plan: &Plan, to: *mut u8) {
    let (scale, shift) = affine.values();
    let channels = plan.channels;
    let last = channels - (plan.channel_blocks - 1) * STEP; // channels of the last block
    for (i, pixel) in pixels.chunks_exact(channels).enumerate() {
        for block in 0..plan.channel_blocks {
            let n = if block + 1 < plan.channel_blocks { STEP } else { last };
            let mask = u32::MAX >> (STEP - n);
            let at = block * STEP;
            // SAFETY: masks leave out what is past the pixel's channels; scales and shifts have whole steps
            let halves = unsafe {
                [(mask as u16, at), ((mask >> LANES) as u16, at + LANES)].map(|(mask, at)| {
                    (
                        _mm512_maskz_loadu_ps(mask, pixel.as_ptr().wrapping_add(at)),
                        _mm512_load_ps(scale.as_ptr().add(at)),
                        _mm512_load_ps(shift.as_ptr().add(at)),
                    )
                })
            };
            let [low, high] = halves.map(|(x, scale, shift)| {
                let x = _mm512_fmadd_ps(x, scale, shift);
                if !SWISH {
                    x
                } else if SPLIT {
                    swish_precise(x)
                } else {
                    swish_quick(x)
                }
            });
            // SAFETY: the caller's promise
            unsafe {
                let to = to.add(block * plan.block_bytes + i * LINE);
                let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_store_si512(to.cast(), rounded);
                if SPLIT {
                    let (low, high) = rest(rounded, low, high);
                    let rest = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_store_si512(to.add(plan.plane_bytes()).cast(), rest);
                }
            }
        }
    }
}

/// What rounding to bfloat16 left of 32 numbers; of those that are not finite, nothing, so that they stay what they are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn rest(rounded: __m512i, low: __m512, high: __m512) -> (__m512, __m512) {
    let widened = [_mm512_castsi512_si256(rounded), _mm512_extracti64x4_epi64::<1>(rounded)]
        .map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))));
    const NOT_FINITE: i32 = 0x99; // quiet and signalling NaN, both infinities
    let [low, high] = [(low, widened[0]), (high, widened[1])].map(|(v, rounded)| {
        let finite = !_mm512_fpclass_ps_mask::<NOT_FINITE>(rounded);
        _mm512_maskz_sub_ps(finite, v, rounded)
    });
    (low, high)
}

/// Coefficients of 2^x for x in 0..1, the constant term last: minimax fits of degree 3 and 6.
const QUICK: [f32; 4] = [0.078_024_52, 0.226_067_16, 0.695_833_5, 0.999_925_2];
#[allow(clippy::approx_constant, clippy::excessive_precision)] // coefficients of a fit
const PRECISE: [f32; 7] = [2.170_225_5e-4, 1.243_968_8e-3, 9.678_841e-3, 5.548_334_2e-2, 0.240_229_84, 0.693_147, 1.0];

/// e^-x for [`swish_quick`] and [`swish_precise`].
macro_rules! exp_of_minus {
    ($x:expr, $coefficients:expr) => {{
        let x = _mm512_mul_ps($x, _mm512_set1_ps(-std::f32::consts::LOG2_E));
        // what is above the next lower whole number, which the scaling then adds
        const DOWN: i32 = 1;
        let fraction = _mm512_reduce_ps::<DOWN>(x);
        let mut sum = _mm512_set1_ps($coefficients[0]);
        for c in &$coefficients[1..] {
            sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(*c));
        }
        _mm512_scalef_ps(sum, x)
    }};
}

/// x / (1 + e^-x) to some 2^-13 of itself: what is left of it in bfloat16 has 2^-9.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn swish_quick(x: __m512) -> __m512 {
    let e = exp_of_minus!(x, QUICK);
    _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(e, _mm512_set1_ps(1.0))))
}

/// The same to some units in the last place of f32 (of large negative numbers, whose result is close to 0, to 2^-18).
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn swish_precise(x: __m512) -> __m512 {
    let e = exp_of_minus!(x, PRECISE);
    _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx512f,avx512dq")]
    fn both(x: [f32; LANES]) -> [[f32; LANES]; 2] {
        // SAFETY: 16 floats are readable and writable
        unsafe {
            let x = _mm512_loadu_ps(x.as_ptr());
            let mut out = [[0.0; LANES]; 2];
            _mm512_storeu_ps(out[0].as_mut_ptr(), swish_quick(x));
            _mm512_storeu_ps(out[1].as_mut_ptr(), swish_precise(x));
            out
        }
    }

    #[test]
    fn swish_is_as_exact_as_it_says() {
        if Avx512Bf16::new().is_none() {
            return;
        }
        let mut x = -80.0f32;
        while x < 80.0 {
            let lanes = std::array::from_fn(|i| x + i as f32 * 0.0037);
            // SAFETY: the token proves the features
            let [quick, precise] = unsafe { both(lanes) };
            for i in 0..LANES {
                let v = f64::from(lanes[i]);
                let want = v / (1.0 + (-v).exp());
                let error = |got: f32| ((f64::from(got) - want) / want).abs();
                assert!(v == 0.0 || error(quick[i]) <= 1.6e-4, "{v}: {} is not {want}", quick[i]);
                let bound = if v > -10.0 { 1e-6 } else { 4e-6 };
                assert!(v == 0.0 || error(precise[i]) <= bound, "{v}: {} is not {want}", precise[i]);
            }
            x += 0.0601;
        }
        // SAFETY: as above
        let [quick, precise] =
            unsafe { both([f32::NAN, 300.0, -300.0, 0.0, 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.]) };
        for v in [quick, precise] {
            assert!(v[0].is_nan() && v[1] == 300.0 && v[2].abs() < 1e-30 && v[3] == 0.0, "{v:?}");
        }
    }
}
