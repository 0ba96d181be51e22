//! What a pass through the network takes, from sizes alone: the layers name their convolutions, nothing is run.

use super::conv::PATCH_LEN;
use super::weights::ConvWeights;

/// Work and memory of encoding or decoding one picture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Multiplications, each with an addition.
    pub multiply_adds: u64,
    /// Bytes of feature maps and other working memory at their peak, at most.
    pub scratch_bytes: u64,
}

/// Collects the convolutions of a pass. Saturates, as sizes come from a request.
#[derive(Default)]
pub(super) struct Tally {
    multiply_adds: u64,
    /// Numbers of the largest feature map.
    map: u64,
    /// Numbers of the longest row of one.
    row: u64,
    /// Numbers of the largest convolution's weights, in whole tiles.
    weights: u64,
}

impl Tally {
    /// A convolution whose result has `height` x `width` positions.
    pub fn conv(&mut self, weights: &ConvWeights, height: u64, width: u64) {
        let positions = height.saturating_mul(width);
        let window = (weights.kernel * weights.kernel * weights.inputs) as u64;
        self.add(positions.saturating_mul(window).saturating_mul(weights.outputs as u64));
        let channels = weights.inputs.max(weights.outputs) as u64;
        self.map = self.map.max(positions.saturating_mul(channels));
        self.row = self.row.max(width.saturating_mul(channels));
        let tiles = (weights.kernel * weights.kernel * weights.inputs.next_multiple_of(32)) as u64;
        self.weights = self.weights.max(tiles.saturating_mul(weights.outputs.next_multiple_of(16) as u64));
    }

    pub fn add(&mut self, multiply_adds: u64) {
        self.multiply_adds = self.multiply_adds.saturating_add(multiply_adds);
    }

    /// `coarsest`: numbers in a feature map of the middle, where the attention holds three more.
    pub fn finish(self, coarsest: u64) -> Cost {
        // A block holds its input, what is between its convolutions, and its output where it cannot share the input's
        // memory; next to them stand the windows of a chunk and its normalized rows, with those around it, or the weights in
        // tiles (of two terms, or four ninths for each of four phases) and threads' rings, which are less than windows.
        let maps = self.map.saturating_mul(3).saturating_add(coarsest.saturating_mul(3));
        let chunk = self.row.saturating_mul(3).saturating_add(2 * PATCH_LEN as u64);
        let chunk = chunk.max(self.weights.saturating_add(PATCH_LEN as u64));
        Cost { multiply_adds: self.multiply_adds, scratch_bytes: maps.saturating_add(chunk).saturating_mul(4) }
    }
}
