//! A feature map and the buffers that a run of the network reuses.

use crate::error::{Error, Result};
use crate::kernels::conv::{self, Precision};
use crate::memory::{Charge, try_copy, try_push, try_reserve};

/// Activations of a picture: [height, width, channels], channels fastest.
#[derive(Debug)]
pub(super) struct Features {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub data: Vec<f32>,
    /// The sums of every channel over all positions, and behind them those of the squares, where what made the map took
    /// them: [2, channels].
    pub sums: Option<Vec<f64>>,
}

impl Features {
    pub fn positions(&self) -> usize {
        self.height * self.width
    }
}

/// Buffers for reuse: feature maps that are done with, and the working memory of the convolutions.
#[derive(Default)]
pub(super) struct Scratch {
    free: Vec<Vec<f32>>,
    /// What convolutions are computed in.
    pub precision: Precision,
    /// Their memory, which they count themselves.
    pub tiles: conv::Scratch,
    /// The feature maps that are done with and those in use, as the context counts them.
    pub charge: Charge,
}

impl Scratch {
    /// A feature map with unspecified contents.
    pub fn features(&mut self, height: usize, width: usize, channels: usize) -> Result<Features> {
        let len = height.checked_mul(width).and_then(|n| n.checked_mul(channels));
        let len = len.filter(|n| n.checked_mul(size_of::<f32>()).is_some());
        let len = len.ok_or_else(|| {
            Error::invalid(format!("a feature map of {height}x{width}x{channels} numbers is too large"))
        })?;
        // The smallest buffer that is large enough; else the largest there is, which is given up for a new one.
        let fits = (0..self.free.len()).filter(|&i| self.free[i].capacity() >= len);
        let choice = fits.min_by_key(|&i| self.free[i].capacity());
        let choice = choice.or_else(|| (0..self.free.len()).max_by_key(|&i| self.free[i].capacity()));
        let mut data = choice.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        set_len(&mut self.charge, &mut data, len, "a feature map of the image tokenizer")?;
        Ok(Features { height, width, channels, data, sums: None })
    }

    /// Keeps the memory of a feature map that is done with.
    pub fn recycle(&mut self, features: Features) {
        // where there is no memory for the list, the map's is given back
        let _ = try_push(&mut self.free, features.data, "a list of feature maps");
    }

    /// The numbers of the last map, in memory of their own where the map's was made for a larger one.
    pub fn finish(&mut self, features: Features) -> Result<Vec<f32>> {
        if features.data.capacity() / 2 <= features.data.len() {
            return Ok(features.data);
        }
        try_copy(&features.data, "what comes of an image tokenizer")
    }
}

/// Makes `v` exactly `len` long, and counts what it grows by. Old contents are not kept; what they are is unspecified.
pub(super) fn set_len(charge: &mut Charge, v: &mut Vec<f32>, len: usize, what: &str) -> Result<()> {
    if v.capacity() < len {
        charge.grow((len - v.capacity()).saturating_mul(size_of::<f32>()), what)?;
        *v = Vec::new(); // frees the old memory before asking for more
        try_reserve(v, len, what)?;
    }
    v.resize(len, 0.0);
    Ok(())
}
