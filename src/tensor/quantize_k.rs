//! The K types: for every sub-block the scale (and min) with the least weighted squared error, then the scales
//! themselves in 6 bits (8 for Q6_K) under the super-block's f16 scale, then the quants again under those.
//!
//! Which scale is best is found by trying several: a scale decides the quants by rounding, and for given quants
//! weighted least squares gives the best scale in closed form. Every function takes the weights of its elements, so
//! that measured importances can be multiplied into what `weights` makes of the values alone.

use super::block::*;
use super::quantize::{TooLarge, half};

type Fallible<T> = std::result::Result<T, TooLarge>;

/// No K type reaches this (`65504 * 128 * 32` is the most); below it no square overflows.
const LIMIT: f32 = 1e9;

/// How much an error in each element counts: large weights act more on what the model computes, so their errors do
/// too; the root mean square keeps the small ones from being forgotten.
fn weights<const N: usize>(x: &[f32; N]) -> [f32; N] {
    let rms = (x.iter().map(|v| v * v).sum::<f32>() / N as f32).sqrt();
    x.map(|v| rms + v.abs())
}

/// Nearest level of `0..=top` for a value divided by its scale.
fn level(v: f32, top: u8) -> u8 {
    ((v + 0.5) as u8).min(top) // the cast truncates, and saturates below 0
}

/// `x ~ scale q - min` with both not negative.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fit {
    scale: f32,
    min: f32,
}

/// Weighted squared error when the quants are chosen best for this fit.
fn error_of(x: &[f32; 32], w: &[f32; 32], top: u8, fit: Fit) -> f32 {
    let inverse = if fit.scale > 0.0 { 1.0 / fit.scale } else { 0.0 };
    let term = |(&x, &w): (&f32, &f32)| {
        let e = fit.scale * f32::from(level((x + fit.min) * inverse, top)) - fit.min - x;
        w * e * e
    };
    x.iter().zip(w).map(term).sum()
}

/// The best scale and min for the quants that `scale` and `min` give; `None` if all quants are equal.
fn least_squares(x: &[f32; 32], w: &[f32; 32], top: u8, guess: Fit) -> Option<Fit> {
    let inverse = 1.0 / guess.scale;
    let (mut sw, mut sq, mut sqq, mut sx, mut sqx) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
    for (&x, &w) in x.iter().zip(w) {
        let q = f32::from(level((x + guess.min) * inverse, top));
        sw += w;
        sq += w * q;
        sqq += w * q * q;
        sx += w * x;
        sqx += w * q * x;
    }
    let det = sw * sqq - sq * sq;
    if det > 0.0 {
        let fit = Fit { scale: (sw * sqx - sq * sx) / det, min: (sq * sqx - sqq * sx) / det };
        if fit.scale > 0.0 && fit.min >= 0.0 {
            return Some(fit);
        }
    }
    // A negative min cannot be stored: the best scale without one.
    (sqq > 0.0 && sqx > 0.0).then(|| Fit { scale: sqx / sqq, min: 0.0 })
}

/// The best of several fits: the range divided into `top` steps, and into up to one step less and more.
fn fit_scale_min(x: &[f32; 32], w: &[f32; 32], top: u8) -> Fit {
    let (low, high) = x.iter().fold((0.0f32, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    let range = high - low;
    let mut best = Fit { scale: range / f32::from(top), min: -low };
    if range <= 0.0 {
        return Fit { scale: 0.0, min: -low };
    }
    let mut best_error = error_of(x, w, top, best);
    for i in -10..=10 {
        let guess = Fit { scale: range / (f32::from(top) + 0.1 * i as f32), min: -low };
        if let Some(fit) = least_squares(x, w, top, guess) {
            let error = error_of(x, w, top, fit);
            if error < best_error {
                (best, best_error) = (fit, error);
            }
        }
    }
    best
}

/// Scales, mins and quants of a super-block of Q4_K (`top` 15) or Q5_K (31).
struct SuperBlock {
    d: Half,
    dmin: Half,
    scales: [u8; 12],
    q: [u8; QK_K],
}

fn super_block(x: &[f32; QK_K], top: u8) -> Fallible<SuperBlock> {
    if x.iter().any(|v| v.abs() > LIMIT) {
        return Err(TooLarge);
    }
    let x = x.as_chunks::<32>().0;
    let w: [[f32; 32]; 8] = std::array::from_fn(|s| weights(&x[s]));
    let fits: [Fit; 8] = std::array::from_fn(|s| fit_scale_min(&x[s], &w[s], top));
    let d = half(fits.iter().fold(0.0f32, |m, f| m.max(f.scale)) / 63.0)?;
    let dmin = half(fits.iter().fold(0.0f32, |m, f| m.max(f.min)) / 63.0)?;

    let (mut sc, mut m, mut q) = ([0; 8], [0; 8], [0; QK_K]);
    for s in 0..8 {
        (sc[s], m[s]) = round_fit(&x[s], &w[s], top, fits[s], d.get(), dmin.get());
        let (scale, min) = (d.get() * f32::from(sc[s]), dmin.get() * f32::from(m[s]));
        if scale > 0.0 {
            for (q, x) in q[s * 32..][..32].iter_mut().zip(&x[s]) {
                *q = level((x + min) / scale, top);
            }
        }
    }
    Ok(SuperBlock { d, dmin, scales: pack_scale_min_k4(&sc, &m), q })
}

/// The best 6-bit scale and min in the neighbourhood of a fit. Rounding each alone loses up to a tenth more.
fn round_fit(x: &[f32; 32], w: &[f32; 32], top: u8, fit: Fit, d: f32, dmin: f32) -> (u8, u8) {
    let around = |v: f32, unit: f32| {
        let at = if unit > 0.0 { level(v / unit, 63) } else { 0 };
        at.saturating_sub(1)..=at.saturating_add(1).min(63)
    };
    let mut best = (0, 0);
    let mut best_error = f32::INFINITY;
    for sc in around(fit.scale, d) {
        for m in around(fit.min, dmin) {
            let error = error_of(x, w, top, Fit { scale: d * f32::from(sc), min: dmin * f32::from(m) });
            if error < best_error {
                (best, best_error) = ((sc, m), error);
            }
        }
    }
    best
}

/// Two quants of four bits per byte, 32 elements apart, in groups of 64.
fn pack_nibbles(q: &[u8; QK_K]) -> [u8; 128] {
    std::array::from_fn(|l| {
        let at = l / 32 * 64 + l % 32;
        q[at] & 15 | q[at + 32] << 4
    })
}

pub(super) fn q4_k(x: &[f32; QK_K]) -> Fallible<BlockQ4_K> {
    let SuperBlock { d, dmin, scales, q } = super_block(x, 15)?;
    Ok(BlockQ4_K { d, dmin, scales, qs: pack_nibbles(&q) })
}

pub(super) fn q5_k(x: &[f32; QK_K]) -> Fallible<BlockQ5_K> {
    let SuperBlock { d, dmin, scales, q } = super_block(x, 31)?;
    let qh = std::array::from_fn(|l| (0..8).fold(0, |bits, s| bits | (q[s * 32 + l] >> 4) << s));
    Ok(BlockQ5_K { d, dmin, scales, qh, qs: pack_nibbles(&q) })
}

/// Nearest level of -32..32 for a value divided by its scale.
fn signed_level(v: f32) -> i8 {
    (v.round() as i8).clamp(-32, 31)
}

/// The best scale of `x ~ scale q`, q in -32..32; of either sign, because there is one level more below zero.
fn fit_scale(x: &[f32; 16], w: &[f32; 16]) -> f32 {
    let largest = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let (mut best, mut best_gain) = (0.0, 0.0);
    if largest == 0.0 {
        return best;
    }
    for i in -9..=9 {
        let inverse = -(32.0 + 0.1 * i as f32) / largest;
        let (mut sqx, mut sqq) = (0.0f32, 0.0f32);
        for (&x, &w) in x.iter().zip(w) {
            let q = f32::from(signed_level(x * inverse));
            sqx += w * q * x;
            sqq += w * q * q;
        }
        // With the best scale sqx / sqq the error is less than without quants by this much.
        let gain = sqx * sqx / sqq;
        if gain > best_gain {
            (best, best_gain) = (sqx / sqq, gain);
        }
    }
    best
}

pub(super) fn q6_k(x: &[f32; QK_K]) -> Fallible<BlockQ6_K> {
    if x.iter().any(|v| v.abs() > LIMIT) {
        return Err(TooLarge);
    }
    let x = x.as_chunks::<16>().0;
    let fits: [f32; 16] = std::array::from_fn(|s| fit_scale(&x[s], &x[s].map(|v| v * v)));
    let largest = fits.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let d = half(largest / -128.0)?;

    let (mut scales, mut q) = ([0; 16], [0u8; QK_K]);
    for s in 0..16 {
        scales[s] = if d.get() == 0.0 { 0 } else { (fits[s] / d.get()).round() as i8 };
        let scale = d.get() * f32::from(scales[s]);
        for (q, x) in q[s * 16..][..16].iter_mut().zip(&x[s]) {
            let level = if scale == 0.0 { 0 } else { signed_level(x / scale) };
            *q = (level + 32) as u8;
        }
    }
    let ql = std::array::from_fn(|i| {
        let at = i / 64 * 128 + i % 64;
        q[at] & 15 | q[at + 64] << 4
    });
    let qh = std::array::from_fn(|i| {
        let at = i / 32 * 128 + i % 32;
        (0..4).fold(0, |bits, j| bits | (q[at + 32 * j] >> 4) << (2 * j))
    });
    Ok(BlockQ6_K { ql, qh, scales, d })
}
