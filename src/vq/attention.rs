//! The attention in the middle of encoder and decoder: one head over all positions.

use std::ops::Range;

use rayon::prelude::*;

use super::conv::Sampling;
use super::cost::Tally;
use super::features::{Features, set_len};
use super::norm::exp;
use super::run::Run;
use super::weights::{ConvWeights, NormWeights};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::kernels::{Epilogue, matmul_f32};
use crate::tensor::Matrix;

/// Numbers in the scores of a tile of queries (8 MiB).
const SCORES_LEN: usize = 2 << 20;

/// norm, q k v, softmax(q k^T / sqrt(channels)) v, output projection; added to its input.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    norm: NormWeights,
    q: ConvWeights,
    k: ConvWeights,
    v: ConvWeights,
    proj_out: ConvWeights,
}

impl Attention {
    pub fn find(header: &Header, name: &str, channels: usize) -> Result<Attention> {
        let conv = |part: &str| ConvWeights::find(header, &format!("{name}.{part}"), 1, channels, channels);
        Ok(Attention {
            norm: NormWeights::find(header, &format!("{name}.norm"), channels)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
        })
    }

    pub fn tally(&self, tally: &mut Tally, height: u64, width: u64) {
        [&self.q, &self.k, &self.v, &self.proj_out].iter().for_each(|conv| tally.conv(conv, height, width));
        let n = height.saturating_mul(width);
        tally.add(n.saturating_mul(n).saturating_mul(2 * self.q.outputs as u64));
    }

    pub fn run(&self, run: &mut Run, mut x: Features) -> Result<Features> {
        let (n, c) = (x.positions(), x.channels);
        let mut h = run.scratch.features(x.height, x.width, c)?; // normalized; later what was attended to
        run.norm(&self.norm, &x, false)?.apply(run.exec, &x.data, &mut h.data);
        let mut q = run.conv(&self.q, &h, None, Sampling::Same)?;
        let k = run.conv(&self.k, &h, None, Sampling::Same)?;
        let scale = 1.0 / (c as f32).sqrt();
        q.data.iter_mut().for_each(|v| *v *= scale);

        // Values as [c, n], the rows of the second product: the roles of weights and input are swapped. Their bias
        // is left out, as the weights of an average sum to one: it is added to the average.
        let mut v = run.scratch.features(1, c, n)?;
        let input = matrix(n, c, &h.data)?;
        matmul_f32(run.exec, &input, &self.v.dense(run.bytes)?, &mut v.data, n, Epilogue::Store)?;
        let bias = self.v.bias(run.bytes)?;

        let (keys, values) = (matrix(n, c, &k.data)?, matrix(c, n, &v.data)?);
        let tile = (SCORES_LEN / n).clamp(1, n);
        let (mut scores, mut charge) = (Vec::new(), run.exec.take(0, "the scores of an attention")?);
        for start in (0..n).step_by(tile) {
            run.exec.check()?;
            let tile = start..n.min(start + tile);
            set_len(&mut charge, &mut scores, tile.len() * n, "the scores of an attention")?;
            let part = |rows: &Range<usize>| rows.start * c..rows.end * c;
            matmul_f32(run.exec, &keys, &q.data[part(&tile)], &mut scores, n, Epilogue::Store)?;
            run.exec.run(|| scores.par_chunks_exact_mut(n).for_each(softmax));
            let out = &mut h.data[part(&tile)];
            out.chunks_exact_mut(c).for_each(|position| position.copy_from_slice(&bias));
            matmul_f32(run.exec, &values, &scores, out, c, Epilogue::Add)?;
        }
        run.conv_add(&self.proj_out, &h, None, &mut x)?;
        for done in [h, q, k, v] {
            run.scratch.recycle(done);
        }
        Ok(x)
    }
}

fn matrix(rows: usize, cols: usize, data: &[f32]) -> Result<Matrix<'_>> {
    Matrix::from_f32(rows, cols, data)
        .ok_or_else(|| Error::Internal(format!("{} numbers are no matrix of {rows}x{cols}", data.len())))
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for v in row.iter_mut() {
        *v = exp(*v - max);
        sum += f64::from(*v);
    }
    let scale = (1.0 / sum) as f32;
    row.iter_mut().for_each(|v| *v *= scale);
}
