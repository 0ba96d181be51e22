//! What the layers need while a picture walks through them.

use super::Config;
use super::conv::Convolution;
use super::features::{Features, Scratch};
use super::norm::{Norm, group_norm};
use super::weights::{ConvWeights, NormWeights};
use crate::error::Result;
use crate::kernels::conv::Sampling;
use crate::parallel::Exec;

/// One pass through the encoder or the decoder.
pub(super) struct Run<'a> {
    pub exec: &'a Exec<'a>,
    /// The model file.
    pub bytes: &'a [u8],
    pub config: &'a Config,
    pub scratch: Scratch,
}

impl Run<'_> {
    /// The convolution of `x`, normalized by `norm` first if given.
    pub fn conv(
        &mut self,
        weights: &ConvWeights,
        x: &Features,
        norm: Option<&Norm>,
        sampling: Sampling,
    ) -> Result<Features> {
        Convolution { exec: self.exec, weights, x, norm, sampling }.store(self.bytes, &mut self.scratch)
    }

    /// As `conv`, when `x` is not needed afterwards.
    pub fn replace(
        &mut self,
        weights: &ConvWeights,
        x: Features,
        norm: Option<&Norm>,
        sampling: Sampling,
    ) -> Result<Features> {
        let y = self.conv(weights, &x, norm, sampling)?;
        self.scratch.recycle(x);
        Ok(y)
    }

    /// Adds the convolution of `x`, normalized by `norm` first if given, to `y`.
    pub fn conv_add(
        &mut self,
        weights: &ConvWeights,
        x: &Features,
        norm: Option<&Norm>,
        y: &mut Features,
    ) -> Result<()> {
        let convolution = Convolution { exec: self.exec, weights, x, norm, sampling: Sampling::Same };
        convolution.add_to(y, self.bytes, &mut self.scratch)
    }

    /// The normalization that brings `x` to mean 0 and variance 1 in each group, and its weights.
    pub fn norm(&self, weights: &NormWeights, x: &Features, swish: bool) -> Result<Norm> {
        let (weight, bias) = weights.read(self.bytes)?;
        group_norm(self.exec, x, (&weight, &bias), self.config.groups, self.config.epsilon, swish)
    }
}
