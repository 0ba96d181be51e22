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

/// Nearest whole number for |v| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. Unlike `round` and casts it
/// is an instruction in every vector unit, and these functions spend their time with it.
fn nearest(v: f32) -> f32 {
    const SHIFT: f32 = 12582912.0;
    (v + SHIFT) - SHIFT
}

/// Nearest of the levels `0..=top` (as floats, for speed) for a value divided by its scale. NaN, which a value 0 on a
/// vanishing scale may give, becomes level 0.
fn level(v: f32, top: f32) -> f32 {
    nearest(v.max(0.0).min(top))
}

/// A sum in the order that vector units like.
fn sum(v: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    for chunk in 0..4 {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += v(chunk * 8 + lane);
        }
    }
    lanes.iter().sum()
}

/// A sub-block of 32 values that are to be `scale q - min`, q in `0..=top`.
struct Group<'a> {
    x: &'a [f32; 32],
    w: [f32; 32],
    top: f32,
    /// Sums of w and w x.
    sw: f32,
    sx: f32,
}

/// Neither is negative.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fit {
    scale: f32,
    min: f32,
}

impl<'a> Group<'a> {
    fn new(x: &'a [f32; 32], w: [f32; 32], top: f32) -> Self {
        Group { x, w, top, sw: sum(|i| w[i]), sx: sum(|i| w[i] * x[i]) }
    }

    fn quants(&self, fit: Fit) -> [f32; 32] {
        let inverse = if fit.scale > 0.0 { 1.0 / fit.scale } else { 0.0 };
        self.x.map(|x| level((x + fit.min) * inverse, self.top))
    }

    /// Weighted squared error of the fit with its best quants.
    fn error(&self, fit: Fit) -> f32 {
        let q = self.quants(fit);
        sum(|i| {
            let e = fit.scale * q[i] - fit.min - self.x[i];
            self.w[i] * e * e
        })
    }

    /// The best scale and min for the quants that `guess` gives; `None` if those are all zero.
    fn least_squares(&self, guess: Fit) -> Option<Fit> {
        let (q, w, x) = (self.quants(guess), &self.w, self.x);
        let (sq, sqq) = (sum(|i| w[i] * q[i]), sum(|i| w[i] * q[i] * q[i]));
        let sqx = sum(|i| w[i] * q[i] * x[i]);
        let det = self.sw * sqq - sq * sq;
        if det > 0.0 {
            let scale = (self.sw * sqx - sq * self.sx) / det;
            let min = (sq * sqx - sqq * self.sx) / det;
            if scale > 0.0 && min >= 0.0 {
                return Some(Fit { scale, min });
            }
        }
        // A negative min cannot be stored: the best scale without one.
        (sqq > 0.0 && sqx > 0.0).then(|| Fit { scale: sqx / sqq, min: 0.0 })
    }

    /// The best of several fits: the range divided into `top` steps, and into up to one step less and more.
    fn fit(&self) -> Fit {
        let (low, high) = self.x.iter().fold((0.0f32, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
        let range = high - low;
        if range <= 0.0 {
            return Fit { scale: 0.0, min: -low };
        }
        let mut best = Fit { scale: range / self.top, min: -low };
        let mut best_error = self.error(best);
        for i in -10..=10 {
            let guess = Fit { scale: range / (self.top + 0.1 * i as f32), min: -low };
            if let Some(fit) = self.least_squares(guess) {
                let error = self.error(fit);
                if error < best_error {
                    (best, best_error) = (fit, error);
                }
            }
        }
        best
    }

    /// The best 6-bit scale and min, in units of `d` and `dmin`, in the neighbourhood of a fit: better than rounding
    /// each alone.
    fn round(&self, fit: Fit, d: f32, dmin: f32) -> (u8, u8) {
        let around = |v: f32, unit: f32| {
            let at = if unit > 0.0 { level(v / unit, 63.0) as u8 } else { 0 };
            at.saturating_sub(1)..=(at + 1).min(63)
        };
        let mut best = (0, 0);
        let mut best_error = f32::INFINITY;
        for sc in around(fit.scale, d) {
            for m in around(fit.min, dmin) {
                let error = self.error(Fit { scale: d * f32::from(sc), min: dmin * f32::from(m) });
                if error < best_error {
                    (best, best_error) = ((sc, m), error);
                }
            }
        }
        best
    }
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
    let groups: [Group<'_>; 8] = std::array::from_fn(|s| Group::new(&x[s], weights(&x[s]), top.into()));
    let fits = groups.each_ref().map(Group::fit);
    let d = half(fits.iter().fold(0.0f32, |m, f| m.max(f.scale)) / 63.0)?;
    let dmin = half(fits.iter().fold(0.0f32, |m, f| m.max(f.min)) / 63.0)?;

    let (mut sc, mut m, mut q) = ([0; 8], [0; 8], [0; QK_K]);
    for (s, group) in groups.iter().enumerate() {
        (sc[s], m[s]) = group.round(fits[s], d.get(), dmin.get());
        let fit = Fit { scale: d.get() * f32::from(sc[s]), min: dmin.get() * f32::from(m[s]) };
        q.as_chunks_mut::<32>().0[s] = group.quants(fit).map(|q| q as u8);
    }
    Ok(SuperBlock { d, dmin, scales: pack_scale_min_k4(&sc, &m), q })
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

/// Nearest of the levels -32..32 for a value divided by its scale; NaN becomes some level.
fn signed_level(v: f32) -> f32 {
    level(v + 32.0, 63.0) - 32.0
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
        let q = x.map(|x| signed_level(x * inverse));
        let (mut sqx, mut sqq) = (0.0f32, 0.0f32);
        for i in 0..16 {
            sqx += w[i] * q[i] * x[i];
            sqq += w[i] * q[i] * q[i];
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
            let level = if scale == 0.0 { 0.0 } else { signed_level(x / scale) };
            *q = (level + 32.0) as u8;
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
