//! Sizes of the image tokenizer, as the model file's metadata states them.

use crate::error::{Error, Result};
use crate::gguf::Header;

const CHANNELS: &str = "mmada.vq.channels";
const Z_CHANNELS: &str = "mmada.vq.z_channels";
const ENCODER_MULT: &str = "mmada.vq.encoder.channel_mult";
const ENCODER_BLOCKS: &str = "mmada.vq.encoder.res_blocks";
const DECODER_MULT: &str = "mmada.vq.decoder.channel_mult";
const DECODER_BLOCKS: &str = "mmada.vq.decoder.res_blocks";
const GROUPS: &str = "mmada.vq.norm_groups";
const EPSILON: &str = "mmada.vq.norm_epsilon";
const CODEBOOK_SIZE: &str = "mmada.image.codebook_size";
const KEYS: [&str; 8] =
    [CHANNELS, Z_CHANNELS, ENCODER_MULT, ENCODER_BLOCKS, DECODER_MULT, DECODER_BLOCKS, GROUPS, EPSILON];

/// Bounds that no sensible model meets; they keep products of sizes far from overflow.
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LEVELS: usize = 8;
const MAX_BLOCKS: usize = 64;
const MAX_Z_CHANNELS: usize = 24;

/// The resolutions of one half of the network; level 0 is the finest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Levels {
    /// Channels at each level.
    pub channels: Vec<usize>,
    /// Residual blocks at each level.
    pub blocks: Vec<usize>,
}

impl Levels {
    fn from_header(header: &Header, bytes: &[u8], base: usize, mult_key: &str, blocks_key: &str) -> Result<Levels> {
        let (mult, blocks) = (header.usizes(bytes, mult_key)?, header.usizes(bytes, blocks_key)?);
        if mult.len() != blocks.len() || mult.is_empty() || mult.len() > MAX_LEVELS {
            let reason = format!(
                "{mult_key} has {} entries and {blocks_key} has {}; both need the same, 1 to {MAX_LEVELS}",
                mult.len(),
                blocks.len()
            );
            return Err(Error::format(header.file(), reason));
        }
        if let Some(bad) = blocks.iter().find(|b| !(1..=MAX_BLOCKS).contains(*b)) {
            return Err(Error::format(header.file(), format!("{blocks_key} holds {bad}, not 1 to {MAX_BLOCKS}")));
        }
        let channels = mult.iter().map(|m| m.checked_mul(base).filter(|c| (1..=MAX_CHANNELS).contains(c)));
        let channels: Option<Vec<_>> = channels.collect();
        let channels = channels.ok_or_else(|| {
            let reason = format!("{mult_key} {mult:?} times {CHANNELS} {base} is not within 1 to {MAX_CHANNELS}");
            Error::format(header.file(), reason)
        })?;
        Ok(Levels { channels, blocks })
    }

    /// Number of resolutions, at least 1.
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// Never true; here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Channels of the coarsest level.
    pub fn deepest(&self) -> usize {
        self.channels.last().copied().unwrap_or_default()
    }
}

/// Sizes of the image tokenizer (a MAGVIT-v2 with look-up-free quantization, arXiv 2310.05737, in the layout of
/// VQGAN, arXiv 2012.09841).
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Channels at the finest resolution, before the multipliers.
    pub channels: usize,
    /// Bits of a code, the channels of a latent.
    pub z_channels: usize,
    pub encoder: Levels,
    pub decoder: Levels,
    /// Groups of every group normalization.
    pub groups: usize,
    /// Added to the variance in every group normalization.
    pub epsilon: f32,
}

impl Config {
    /// `bytes` is the file that `header` was read from. None when the metadata has no image tokenizer.
    ///
    /// # Errors
    /// `Error::Format` when a key is missing, has the wrong type or a value that no network can have.
    pub fn from_header(header: &Header, bytes: &[u8]) -> Result<Option<Config>> {
        if KEYS.iter().all(|key| header.get(key).is_none()) {
            return Ok(None);
        }
        let bad = |reason: String| Error::format(header.file(), reason);
        let channels = header.usize(CHANNELS)?;
        let z_channels = header.usize(Z_CHANNELS)?;
        if !(1..=MAX_Z_CHANNELS).contains(&z_channels) {
            return Err(bad(format!("{Z_CHANNELS} is {z_channels}, not 1 to {MAX_Z_CHANNELS}")));
        }
        let config = Config {
            channels,
            z_channels,
            encoder: Levels::from_header(header, bytes, channels, ENCODER_MULT, ENCODER_BLOCKS)?,
            decoder: Levels::from_header(header, bytes, channels, DECODER_MULT, DECODER_BLOCKS)?,
            groups: header.usize(GROUPS)?,
            epsilon: header.f32(EPSILON)?,
        };
        if config.encoder.len() != config.decoder.len() {
            let (encoder, decoder) = (config.encoder.len(), config.decoder.len());
            return Err(bad(format!("the image encoder has {encoder} levels, the decoder has {decoder}")));
        }
        // The first convolution gives `channels`, all others a level's.
        let all = [&[channels], &config.encoder.channels[..], &config.decoder.channels[..]].concat();
        if let Some(c) = all.iter().find(|c| config.groups == 0 || **c == 0 || *c % config.groups != 0) {
            return Err(bad(format!("{c} channels of the image tokenizer do not split in {} groups", config.groups)));
        }
        if !(config.epsilon.is_finite() && config.epsilon > 0.0) {
            return Err(bad(format!("{EPSILON} is {}, not a positive number", config.epsilon)));
        }
        if let Some(size) = header.opt_usize(CODEBOOK_SIZE)?
            && size != config.codebook_size()
        {
            let needed = config.codebook_size();
            return Err(bad(format!("{CODEBOOK_SIZE} is {size} but {z_channels} latent channels make {needed} codes")));
        }
        Ok(Some(config))
    }

    /// Number of codes: two to the power of `z_channels`.
    pub fn codebook_size(&self) -> usize {
        1 << self.z_channels
    }

    /// Pixels per code along a side.
    pub fn downsampling(&self) -> usize {
        1 << (self.encoder.len() - 1)
    }
}
