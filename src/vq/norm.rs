//! Group normalization (arXiv 1803.08494) with the swish that follows it. The convolution that made a feature map has taken the
//! sums; what comes of them is a scale and a shift per channel, which the reader of the map applies.

use super::features::Features;
use crate::error::{Error, Result};
use crate::memory::try_vec;
use crate::parallel::Exec;

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
    let sums = x.sums.as_ref().ok_or_else(|| Error::Internal("a feature map without sums is normalized".to_owned()))?;
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
