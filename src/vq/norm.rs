//! Group normalization (arXiv 1803.08494) with the swish that follows it. The statistics take one pass over a
//! feature map; what comes of them is a scale and a shift per channel, which the reader of the map applies.

use rayon::prelude::*;

use super::features::Features;
use crate::error::Result;
use crate::parallel::{Exec, try_vec};

/// Positions whose sums are made by one thread in one go. Fixed, so that sums do not depend on the threads.
const BLOCK: usize = 1024;

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
