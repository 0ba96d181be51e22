//! A convolution between feature maps.

use super::features::{Features, Scratch};
use super::norm::Norm;
use super::weights::ConvWeights;
use crate::error::{Error, Result};
use crate::kernels::Epilogue;
use crate::kernels::conv::{self, Normalization, Sampling};
use crate::parallel::Exec;

/// A convolution of `x`, which is normalized by `norm` first, if there is one.
pub(super) struct Convolution<'a> {
    pub exec: &'a Exec<'a>,
    pub weights: &'a ConvWeights,
    pub x: &'a Features,
    pub norm: Option<&'a Norm>,
    /// `Same` where the kernel is 1x1.
    pub sampling: Sampling,
}

impl Convolution<'_> {
    /// The result as a new feature map.
    pub fn store(&self, bytes: &[u8], scratch: &mut Scratch) -> Result<Features> {
        let (height, width) = (self.x.height, self.x.width);
        let (Some(h), Some(w)) = (self.sampling.output_side(height), self.sampling.output_side(width)) else {
            return Err(Error::invalid(format!("a feature map of {height}x{width} positions cannot be doubled")));
        };
        let mut y = scratch.features(h, w, self.weights.outputs)?;
        self.run(bytes, scratch, &mut y, Epilogue::Store)?;
        Ok(y)
    }

    /// Adds the result to `y`, which has the height and width of `x`.
    pub fn add_to(&self, y: &mut Features, bytes: &[u8], scratch: &mut Scratch) -> Result<()> {
        self.run(bytes, scratch, y, Epilogue::Add)
    }

    fn run(&self, bytes: &[u8], scratch: &mut Scratch, y: &mut Features, mode: Epilogue) -> Result<()> {
        let (matrix, bias) = (self.weights.matrix(bytes)?, self.weights.bias(bytes)?);
        let (inputs, outputs) = (self.x.channels, y.channels);
        if (inputs, outputs) != (self.weights.inputs, self.weights.outputs) {
            return Err(Error::Internal(format!(
                "a convolution got {inputs} to {outputs} channels: {:?}",
                self.weights
            )));
        }
        let norm = self.norm.map(|n| Normalization { scale: &n.scale, shift: &n.shift, swish: n.swish });
        let (kernel, sampling) = (self.weights.kernel, self.sampling);
        let (x, height, width) = (&self.x.data, self.x.height, self.x.width);
        let tiles = conv::Convolution { weights: &matrix, bias: &bias, kernel, x, height, width, norm, sampling };
        y.sums = None;
        y.sums = Some(tiles.run(self.exec, scratch.precision, &mut scratch.tiles, &mut y.data, mode)?);
        Ok(())
    }
}
