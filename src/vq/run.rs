//! What the layers need while a picture walks through them: on the processor ([`Run`]) or on a graphics card (`cuda`).

use super::Config;
use super::conv::Convolution;
use super::features::{Features, Scratch};
use super::norm::{Norm, group_norm};
use super::weights::{ConvWeights, NormWeights};
use crate::error::Result;
use crate::kernels::attention::{self, Attention, Precision};
use crate::kernels::conv::{self, Sampling};
use crate::parallel::Exec;

/// Computes the layers of encoder and decoder.
pub(super) trait Backend {
    /// Activations of a picture: [height, width, channels].
    type Map;
    /// A normalization, as it is applied.
    type Norm;

    /// The convolution of `x`, normalized by `norm` first if given.
    fn conv(
        &mut self,
        weights: &ConvWeights,
        x: &Self::Map,
        norm: Option<&Self::Norm>,
        sampling: Sampling,
    ) -> Result<Self::Map>;
    /// Adds the convolution of `x`, normalized by `norm` first if given, to `y`.
    fn conv_add(
        &mut self,
        weights: &ConvWeights,
        x: &Self::Map,
        norm: Option<&Self::Norm>,
        y: &mut Self::Map,
    ) -> Result<()>;
    /// The normalization that brings `x` to mean 0 and variance 1 in each group, and its weights.
    fn norm(&mut self, weights: &NormWeights, x: &Self::Map, swish: bool) -> Result<Self::Norm>;
    /// One head of attention over all positions of `x`, normalized by `norm`, whose queries, keys and values are its 1x1
    /// convolutions.
    fn attention(&mut self, qkv: [&ConvWeights; 3], x: &Self::Map, norm: &Self::Norm) -> Result<Self::Map>;
    /// Takes back the memory of a map that is done with.
    fn recycle(&mut self, map: Self::Map);

    /// As `conv`, when `x` is not needed afterwards.
    fn replace(
        &mut self,
        weights: &ConvWeights,
        x: Self::Map,
        norm: Option<&Self::Norm>,
        sampling: Sampling,
    ) -> Result<Self::Map> {
        let y = self.conv(weights, &x, norm, sampling)?;
        self.recycle(x);
        Ok(y)
    }
}

/// One pass through the encoder or the decoder on the processor.
pub(super) struct Run<'a> {
    pub exec: &'a Exec<'a>,
    /// The model file.
    pub bytes: &'a [u8],
    pub config: &'a Config,
    pub scratch: Scratch,
}

impl Backend for Run<'_> {
    type Map = Features;
    type Norm = Norm;

    fn conv(
        &mut self,
        weights: &ConvWeights,
        x: &Features,
        norm: Option<&Norm>,
        sampling: Sampling,
    ) -> Result<Features> {
        Convolution { exec: self.exec, weights, x, norm, sampling }.store(self.bytes, &mut self.scratch)
    }

    fn conv_add(&mut self, weights: &ConvWeights, x: &Features, norm: Option<&Norm>, y: &mut Features) -> Result<()> {
        let convolution = Convolution { exec: self.exec, weights, x, norm, sampling: Sampling::Same };
        convolution.add_to(y, self.bytes, &mut self.scratch)
    }

    fn norm(&mut self, weights: &NormWeights, x: &Features, swish: bool) -> Result<Norm> {
        let (weight, bias) = weights.read(self.bytes)?;
        group_norm(self.exec, x, (&weight, &bias), self.config.groups, self.config.epsilon, swish)
    }

    fn attention(&mut self, qkv: [&ConvWeights; 3], x: &Features, norm: &Norm) -> Result<Features> {
        let [q, k, v] = qkv;
        let q = self.conv(q, x, Some(norm), Sampling::Same)?;
        let k = self.conv(k, x, Some(norm), Sampling::Same)?;
        let v = self.conv(v, x, Some(norm), Sampling::Same)?;
        let mut h = self.scratch.features(x.height, x.width, x.channels)?;
        let fast = self.scratch.precision == conv::Precision::Bf16 && self.exec.kernels.prefers_bf16();
        let precision = if fast { Precision::Bf16 } else { Precision::F32 };
        let sequence = 0..x.positions();
        let attention = Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: x.channels,
            sequences: std::slice::from_ref(&sequence),
            mask: None,
        };
        self.exec.check()?;
        let mut packed = attention::Scratch::default();
        attention.run(self.exec, precision, &mut packed, &q.data, &k.data, &v.data, &mut h.data)?;
        for done in [q, k, v] {
            self.recycle(done);
        }
        Ok(h)
    }

    fn recycle(&mut self, map: Features) {
        self.scratch.recycle(map);
    }
}
