//! The attention in the middle of encoder and decoder: one head over all positions.

use super::cost::Tally;
use super::run::Backend;
use super::weights::{ConvWeights, NormWeights};
use crate::error::Result;
use crate::gguf::Header;
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
        let convs = [&self.q, &self.k, &self.v, &self.proj_out];
        convs.iter().for_each(|conv| tally.conv(conv, Sampling::Same, height, width));
        let n = height.saturating_mul(width);
        tally.add(n.saturating_mul(n).saturating_mul(2 * self.q.outputs as u64));
    }

    pub fn run<B: Backend>(&self, run: &mut B, mut x: B::Map) -> Result<B::Map> {
        let norm = run.norm(&self.norm, &x, false)?;
        let h = run.attention([&self.q, &self.k, &self.v], &x, &norm)?;
        run.conv_add(&self.proj_out, &h, None, &mut x)?;
        run.recycle(h);
        Ok(x)
    }
}
