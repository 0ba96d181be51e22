//! The attention in the middle of encoder and decoder: one head over all positions.

use super::cost::Tally;
use super::features::Features;
use super::run::Run;
use super::weights::{ConvWeights, NormWeights};
use crate::error::Result;
use crate::gguf::Header;
use crate::kernels::attention::{self, Precision};
use crate::kernels::conv;
use crate::kernels::conv::Sampling;

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
        let norm = run.norm(&self.norm, &x, false)?;
        let q = run.conv(&self.q, &x, Some(&norm), Sampling::Same)?;
        let k = run.conv(&self.k, &x, Some(&norm), Sampling::Same)?;
        let v = run.conv(&self.v, &x, Some(&norm), Sampling::Same)?;
        let mut h = run.scratch.features(x.height, x.width, c)?;
        let fast = run.scratch.precision == Some(conv::Precision::Bf16) && run.exec.kernels.has_bf16_attention();
        let precision = if fast { Precision::Bf16 } else { Precision::F32 };
        let sequence = 0..n;
        let attention = attention::Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: c,
            sequences: std::slice::from_ref(&sequence),
            mask: None,
        };
        run.exec.check()?;
        let mut packed = attention::Scratch::default();
        attention.run(run.exec, precision, &mut packed, &q.data, &k.data, &v.data, &mut h.data)?;
        run.conv_add(&self.proj_out, &h, None, &mut x)?;
        for done in [h, q, k, v] {
            run.scratch.recycle(done);
        }
        Ok(x)
    }
}
