//! What a pass through the network takes, from sizes alone: the layers name their convolutions, nothing is run.

use super::weights::ConvWeights;
use crate::kernels::attention;
use crate::kernels::conv::{Bytes, Sampling};

/// Work and memory of encoding or decoding one picture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Multiplications, each with an addition.
    pub multiply_adds: u64,
    /// Bytes of feature maps and other working memory at their peak, at most, besides those of threads.
    pub shared_bytes: u64,
    /// Bytes that each thread needs, at most.
    pub thread_bytes: u64,
}

impl Cost {
    /// Bytes of working memory with that many threads.
    pub fn scratch_bytes(&self, threads: usize) -> u64 {
        self.shared_bytes.saturating_add(self.thread_bytes.saturating_mul(threads as u64))
    }
}

/// Collects the convolutions of a pass. Saturates, as sizes come from a request.
#[derive(Default)]
pub(super) struct Tally {
    multiply_adds: u64,
    /// Numbers of the largest feature map.
    map: u64,
    /// Of the convolutions.
    bytes: Bytes,
}

impl Tally {
    /// A convolution whose result has `height` x `width` positions.
    pub fn conv(&mut self, weights: &ConvWeights, sampling: Sampling, height: u64, width: u64) {
        let positions = height.saturating_mul(width);
        let window = (weights.kernel * weights.kernel * weights.inputs) as u64;
        self.add(positions.saturating_mul(window).saturating_mul(weights.outputs as u64));
        let channels = weights.inputs.max(weights.outputs) as u64;
        self.map = self.map.max(positions.saturating_mul(channels));
        let input = |side: u64| match sampling {
            Sampling::Same => side,
            Sampling::Down => side.saturating_mul(2),
            Sampling::Up => side / 2,
        };
        let sides = (input(height), input(width));
        self.bytes = self.bytes.max(Bytes::of(sampling, weights.kernel, sides, (weights.inputs, weights.outputs)));
    }

    pub fn add(&mut self, multiply_adds: u64) {
        self.multiply_adds = self.multiply_adds.saturating_add(multiply_adds);
    }

    /// `positions` and `channels` of a feature map of the middle, where the attention holds three more, and packs two of them.
    pub fn finish(self, positions: u64, channels: u64) -> Cost {
        // A block holds its input, what is between its convolutions, and its output where it cannot share the input's
        // memory; next to them stands what a convolution needs.
        let coarsest = positions.saturating_mul(channels);
        let maps = self.map.saturating_mul(3).saturating_add(coarsest.saturating_mul(3));
        let sum = |bytes: &[u64]| bytes.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
        let [rows, dim] = [positions, channels].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let packed = attention::Scratch::bytes(rows, 1, dim) as u64;
        Cost {
            multiply_adds: self.multiply_adds,
            shared_bytes: maps
                .saturating_mul(size_of::<f32>() as u64)
                .saturating_add(sum(&self.bytes.shared))
                .saturating_add(packed),
            thread_bytes: sum(&self.bytes.thread),
        }
    }
}
