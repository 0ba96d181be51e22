//! The image tokenizer's architecture, read off the names and shapes of its tensors (its published config does not
//! say it), and the full list of tensors that this architecture has. MAGVIT-v2, arXiv 2310.05737; VQGAN layout.

use mmada::{Error, Result};

use crate::checkpoint::Checkpoint;

/// Groups of every GroupNorm.
pub const NORM_GROUPS: usize = 32;
pub const NORM_EPSILON: f32 = 1e-6;

/// Limits of the runtime.
const MAX_LEVELS: usize = 8;
const MAX_BLOCKS: usize = 64;

/// One of the two halves: level by level from the full resolution down, for the decoder too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Half {
    /// Channels of a level, in units of `Layout::channels`.
    pub channel_mult: Vec<usize>,
    pub res_blocks: Vec<usize>,
}

/// The sizes of an image tokenizer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    pub channels: usize,
    pub z_channels: usize,
    pub encoder: Half,
    pub decoder: Half,
}

/// A tensor of the image tokenizer: its name in the checkpoint and its shape there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VqTensor {
    pub name: String,
    pub shape: Vec<usize>,
}

impl Layout {
    /// Derives the sizes. Every tensor is checked against them later, by `tensors`.
    ///
    /// # Errors
    /// `Format` where the checkpoint is no such image tokenizer, `Unsupported` where it is one that the runtime
    /// cannot compute.
    pub fn derive(checkpoint: &Checkpoint) -> Result<Self> {
        let channels = outputs(checkpoint, "encoder.conv_in.weight")?;
        let layout = Layout {
            channels,
            z_channels: outputs(checkpoint, "encoder.quant_conv.weight")?,
            encoder: half(checkpoint, "encoder.down", channels)?,
            decoder: half(checkpoint, "decoder.up", channels)?,
        };
        let refuse = |reason: String| Err(Error::unsupported(checkpoint.origin(), reason));
        if !channels.is_multiple_of(NORM_GROUPS) {
            return refuse(format!("the image tokenizer has {channels} channels, not a multiple of {NORM_GROUPS}"));
        }
        if !(1..=24).contains(&layout.z_channels) {
            return refuse(format!("image codes of {} bits are not supported (1 to 24 are)", layout.z_channels));
        }
        let (down, up) = (layout.encoder.channel_mult.len(), layout.decoder.channel_mult.len());
        if down != up || down > MAX_LEVELS {
            let reason = format!("the image encoder has {down} levels and the decoder {up}");
            return refuse(format!("{reason}; both need the same number, up to {MAX_LEVELS}"));
        }
        if let Some(n) = layout.encoder.res_blocks.iter().chain(&layout.decoder.res_blocks).find(|n| **n > MAX_BLOCKS) {
            return refuse(format!("a level of the image tokenizer has {n} residual blocks, more than {MAX_BLOCKS}"));
        }
        Ok(layout)
    }

    /// Number of image codes: every bit pattern of the latent's signs.
    pub fn codebook_size(&self) -> u32 {
        1 << self.z_channels
    }

    /// Every tensor of this architecture, sorted by name.
    pub fn tensors(&self) -> Vec<VqTensor> {
        let mut list = List::default();
        self.encoder_tensors(&mut list);
        self.decoder_tensors(&mut list);
        list.0.sort_by(|a, b| a.name.cmp(&b.name));
        list.0
    }

    fn encoder_tensors(&self, list: &mut List) {
        let half = &self.encoder;
        let mut width = self.channels;
        list.conv("encoder.conv_in", width, 3, 3);
        for (level, (&mult, &blocks)) in half.channel_mult.iter().zip(&half.res_blocks).enumerate() {
            for block in 0..blocks {
                list.res_block(&format!("encoder.down.{level}.block.{block}"), width, mult * self.channels);
                width = mult * self.channels;
            }
            if level + 1 < half.channel_mult.len() {
                list.conv(&format!("encoder.down.{level}.downsample.conv"), width, width, 3);
            }
        }
        list.middle("encoder.mid", width);
        list.norm("encoder.norm_out", width);
        list.conv("encoder.conv_out", self.z_channels, width, 3);
        list.conv("encoder.quant_conv", self.z_channels, self.z_channels, 1);
    }

    fn decoder_tensors(&self, list: &mut List) {
        let half = &self.decoder;
        let mut width = half.channel_mult.last().map_or(self.channels, |mult| mult * self.channels);
        list.conv("decoder.post_quant_conv", self.z_channels, self.z_channels, 1);
        list.conv("decoder.conv_in", width, self.z_channels, 3);
        list.middle("decoder.mid", width);
        for (level, (&mult, &blocks)) in half.channel_mult.iter().zip(&half.res_blocks).enumerate().rev() {
            for block in 0..blocks {
                list.res_block(&format!("decoder.up.{level}.block.{block}"), width, mult * self.channels);
                width = mult * self.channels;
            }
            if level > 0 {
                list.conv(&format!("decoder.up.{level}.upsample.conv"), width, width, 3);
            }
        }
        list.norm("decoder.norm_out", width);
        list.conv("decoder.conv_out", 3, width, 3);
    }
}

#[derive(Default)]
struct List(Vec<VqTensor>);

impl List {
    fn conv(&mut self, name: &str, outputs: usize, inputs: usize, side: usize) {
        self.0.push(VqTensor { name: format!("{name}.weight"), shape: vec![outputs, inputs, side, side] });
        self.0.push(VqTensor { name: format!("{name}.bias"), shape: vec![outputs] });
    }

    fn norm(&mut self, name: &str, width: usize) {
        for part in ["weight", "bias"] {
            self.0.push(VqTensor { name: format!("{name}.{part}"), shape: vec![width] });
        }
    }

    fn res_block(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.norm(&format!("{name}.norm1"), inputs);
        self.conv(&format!("{name}.conv1"), outputs, inputs, 3);
        self.norm(&format!("{name}.norm2"), outputs);
        self.conv(&format!("{name}.conv2"), outputs, outputs, 3);
        if inputs != outputs {
            self.conv(&format!("{name}.nin_shortcut"), outputs, inputs, 1);
        }
    }

    fn middle(&mut self, name: &str, width: usize) {
        self.res_block(&format!("{name}.block_1"), width, width);
        self.norm(&format!("{name}.attn_1.norm"), width);
        for part in ["q", "k", "v", "proj_out"] {
            self.conv(&format!("{name}.attn_1.{part}"), width, width, 1);
        }
        self.res_block(&format!("{name}.block_2"), width, width);
    }
}

/// Output channels of a convolution.
fn outputs(checkpoint: &Checkpoint, name: &str) -> Result<usize> {
    let entry = checkpoint.get(name).ok_or_else(|| {
        Error::format(checkpoint.origin(), format!("not an image tokenizer of MMaDA's: tensor {name} is missing"))
    })?;
    match entry.shape.as_slice() {
        &[outputs, _, _, _] if outputs > 0 => Ok(outputs),
        shape => Err(Error::format(
            checkpoint.file_of(entry).display(),
            format!("tensor {name} has shape {shape:?}, expected a convolution's four dimensions"),
        )),
    }
}

/// The levels under `prefix`: counted by their first blocks, as wide as those put out.
fn half(checkpoint: &Checkpoint, prefix: &str, channels: usize) -> Result<Half> {
    let mut half = Half { channel_mult: vec![], res_blocks: vec![] };
    let conv = |level: usize, block: usize| format!("{prefix}.{level}.block.{block}.conv1.weight");
    loop {
        let level = half.channel_mult.len();
        if level > 0 && checkpoint.get(&conv(level, 0)).is_none() {
            return Ok(half);
        }
        let width = outputs(checkpoint, &conv(level, 0))?;
        if !width.is_multiple_of(channels) {
            return Err(Error::format(
                checkpoint.origin(),
                format!("{} puts out {width} channels, not a multiple of {channels}", conv(level, 0)),
            ));
        }
        half.channel_mult.push(width / channels);
        half.res_blocks.push((0..).take_while(|&block| checkpoint.get(&conv(level, block)).is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_image_tokenizer_has_its_published_size() {
        let layout = Layout {
            channels: 128,
            z_channels: 13,
            encoder: Half { channel_mult: vec![1, 2, 2, 4, 4], res_blocks: vec![4, 3, 4, 3, 4] },
            decoder: Half { channel_mult: vec![1, 1, 2, 2, 4], res_blocks: vec![4, 4, 3, 4, 3] },
        };
        let weights: usize = layout.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
        assert_eq!((weights as f64 / 1e5).round() / 10.0, 95.4, "million weights");
        assert_eq!(layout.codebook_size(), 8192);
    }
}
