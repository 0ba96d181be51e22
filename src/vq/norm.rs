//! Group normalization (arXiv 1803.08494) with the swish that follows it. The statistics take one pass over a
//! feature map; what comes of them is a scale and a shift per channel, which the reader of the map applies.

use rayon::prelude::*;

use super::features::Features;
use crate::error::Result;
use crate::parallel::{Exec, try_vec};

/// Positions whose sums are made by one thread in one go. Fixed, so that sums do not depend on the threads.
const BLOCK: usize = 1024;
/// Numbers that one thread normalizes in one go.
const GRAIN: usize = 1 << 14;

/// Normalization as it is applied: `x * scale[c] + shift[c]`, then swish where asked for.
#[derive(Debug)]
pub(super) struct Norm {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub swish: bool,
}

/// Mean and variance of every group of channels over all positions of `x`, merged with the weights [channels] and
/// biases [channels] of the normalization. The channels split evenly in `groups`.
pub(super) fn group_norm(
    exec: &Exec,
    x: &Features,
    (weight, bias): (&[f32], &[f32]),
    groups: usize,
    epsilon: f32,
    swish: bool,
) -> Result<Norm> {
    exec.check()?;
    let taken;
    let sums = match &x.sums {
        Some(sums) => sums,
        None => {
            taken = statistics(exec, x)?;
            &taken
        }
    };
    let (sum, square) = sums.split_at(x.channels);
    let size = x.channels / groups;
    let count = (size * x.positions()) as f64;
    let mut norm = Norm {
        scale: try_vec(x.channels, "a group normalization")?,
        shift: try_vec(x.channels, "a group normalization")?,
        swish,
    };
    for group in 0..groups {
        let members = group * size..(group + 1) * size;
        let mean = sum[members.clone()].iter().sum::<f64>() / count;
        let variance = square[members.clone()].iter().sum::<f64>() / count - mean * mean;
        let inverse = 1.0 / (variance.max(0.0) + f64::from(epsilon)).sqrt();
        for c in members {
            let scale = f64::from(weight[c]) * inverse;
            norm.scale[c] = scale as f32;
            norm.shift[c] = (f64::from(bias[c]) - mean * scale) as f32;
        }
    }
    Ok(norm)
}

/// [2, channels]: sums and sums of squares, in f64 so that their difference keeps enough digits.
fn statistics(exec: &Exec, x: &Features) -> Result<Vec<f64>> {
    let c = x.channels;
    let blocks = x.positions().div_ceil(BLOCK);
    let mut partial = try_vec::<f64>(blocks * 2 * c, "sums of a group normalization")?;
    exec.run(|| {
        let blocks = x.data.par_chunks(BLOCK * c);
        partial.par_chunks_mut(2 * c).zip(blocks).for_each(|(sums, block)| {
            let (sum, square) = sums.split_at_mut(c);
            for position in block.chunks_exact(c) {
                for ((s, q), &v) in sum.iter_mut().zip(square.iter_mut()).zip(position) {
                    let v = f64::from(v);
                    *s += v;
                    *q += v * v;
                }
            }
        });
    });
    let mut total = try_vec(2 * c, "sums of a group normalization")?;
    for block in partial.chunks_exact(2 * c) {
        for (t, v) in total.iter_mut().zip(block) {
            *t += v;
        }
    }
    Ok(total)
}

impl Norm {
    /// `out = norm(x)`; both hold whole positions.
    pub fn apply(&self, exec: &Exec, x: &[f32], out: &mut [f32]) {
        let c = self.scale.len();
        let grain = c * (GRAIN / c).max(1);
        exec.run(|| {
            out.par_chunks_mut(grain).zip(x.par_chunks(grain)).for_each(|(out, x)| {
                for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    self.position(x, out);
                }
            });
        });
    }

    fn position(&self, x: &[f32], out: &mut [f32]) {
        let affine = out.iter_mut().zip(x).zip(self.scale.iter().zip(&self.shift));
        if self.swish {
            affine.for_each(|((o, x), (scale, shift))| *o = swish(x * scale + shift));
        } else {
            affine.for_each(|((o, x), (scale, shift))| *o = x * scale + shift);
        }
    }
}

/// x times the logistic function of x.
fn swish(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// e^x to 2e-7 of itself, in operations that the compiler turns into vectors; beyond ±87 the value at ±87.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its series up to r^7 (the rest is below 6e-9), 2^n by its bits.
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which the low bits of the sum then hold.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 355.0 / 512.0; // few bits: n * LN_2_HIGH is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let e_r = series.iter().fold(1.0 / 5040.0, |sum, term| sum * r + term);
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    e_r * f32::from_bits(exponent << 23)
}
