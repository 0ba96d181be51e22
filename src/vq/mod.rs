//! The image tokenizer: pictures to codes and back (MAGVIT-v2, arXiv 2310.05737). A convolutional encoder gives a
//! latent vector per 2^levels-sided patch; the signs of its channels are the code (look-up-free quantization); a
//! decoder paints the picture from the signs.
//!
//! Layer by layer: `encoder` and `decoder` walk through `blocks` (residual blocks, `attention`), which stand on
//! `norm` (group normalization) and `conv` (convolutions as matrix products). Feature maps are [height, width,
//! channels] in f32. Weights are read where they lie in the model file.
#![forbid(unsafe_code)]

mod attention;
mod blocks;
mod config;
mod conv;
mod cost;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod encoder;
mod features;
mod norm;
mod run;
mod weights;

#[cfg(test)]
mod tests;

pub use config::{Config, Levels};
pub use cost::Cost;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{CudaConvs, CudaImages};

use decoder::Decoder;
use encoder::Encoder;
use features::Scratch;
use run::Run;

use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::image::{self, RgbImage};
use crate::kernels::conv::Precision;
use crate::memory::try_collect;
#[cfg(feature = "cuda")]
use crate::memory::try_vec;
use crate::parallel::Exec;

/// What the encoder makes of a picture; positions row by row.
#[derive(Clone, PartialEq, Debug)]
pub struct Encoded {
    /// In codes.
    pub height: usize,
    /// In codes.
    pub width: usize,
    /// [height, width, z_channels]
    pub latent: Vec<f32>,
    /// [height, width]: bit by bit whether a latent's channel is above 0, channel 0 being the most significant.
    pub codes: Vec<u32>,
}

/// The image tokenizer of a model file: its sizes, and where its weights lie. The file's bytes are given to every
/// call, as they belong to the model.
#[derive(Clone, Debug)]
pub struct ImageTokenizer {
    config: Config,
    encoder: Encoder,
    decoder: Decoder,
}

impl ImageTokenizer {
    /// Finds the image tokenizer in a model file; `bytes` is the file that `header` was read from. None when the
    /// file has none. Only the header is touched.
    ///
    /// # Errors
    /// `Error::Format` for metadata or a tensor that is missing or of another shape than the sizes ask for;
    /// `Error::Unsupported` for weights that are not floats.
    pub fn from_header(header: &Header, bytes: &[u8]) -> Result<Option<ImageTokenizer>> {
        let Some(config) = Config::from_header(header, bytes)? else { return Ok(None) };
        let encoder = Encoder::find(header, &config)?;
        let decoder = Decoder::find(header, &config)?;
        Ok(Some(ImageTokenizer { config, encoder, decoder }))
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Encodes `pixels` [height, width, 3] in [-1, 1]. Both sides are multiples of the downsampling. With `fast`,
    /// convolutions may multiply in pairs of bfloat16, which keep 16 bits of a number: codes are signs.
    ///
    /// # Errors
    /// `Error::InvalidArgument` for other sizes; `Error::Cancelled`; `Error::OutOfMemory`.
    pub fn encode_latent(
        &self,
        exec: &Exec,
        bytes: &[u8],
        pixels: &[f32],
        height: usize,
        width: usize,
        fast: bool,
    ) -> Result<Encoded> {
        self.check_pixels(pixels, height, width)?;
        let mut run = self.run(exec, bytes)?;
        run.scratch.precision = if fast { Precision::Split } else { Precision::Exact };
        let mut input = run.scratch.features(height, width, 3)?;
        input.data.copy_from_slice(pixels);
        let latent = self.encoder.run(&mut run, input)?;
        let (height, width) = (latent.height, latent.width);
        self.encoded(height, width, run.scratch.finish(latent)?)
    }

    /// [`ImageTokenizer::encode_latent`] on a graphics card.
    #[cfg(feature = "cuda")]
    pub(crate) fn encode_on(
        &self,
        card: &mut CudaImages,
        exec: &Exec,
        bytes: &[u8],
        pixels: &[f32],
        (height, width): (usize, usize),
    ) -> Result<Encoded> {
        self.check_pixels(pixels, height, width)?;
        let mut run = card.run(exec, bytes, &self.config, true)?;
        let input = run.upload(pixels, height, width)?;
        let latent = self.encoder.run(&mut run, input)?;
        let (height, width) = latent.sides();
        self.encoded(height, width, run.download(latent)?)
    }

    fn check_pixels(&self, pixels: &[f32], height: usize, width: usize) -> Result<()> {
        let factor = self.config.downsampling();
        if height == 0 || width == 0 || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            let reason = format!("a picture of {width}x{height} pixels: both sides must be multiples of {factor}");
            return Err(Error::invalid(reason));
        }
        if height.checked_mul(width).and_then(|n| n.checked_mul(3)) != Some(pixels.len()) {
            let reason = format!("{} values are no picture of {width}x{height} pixels", pixels.len());
            return Err(Error::invalid(reason));
        }
        Ok(())
    }

    fn encoded(&self, height: usize, width: usize, latent: Vec<f32>) -> Result<Encoded> {
        let codes = try_collect(latent.chunks_exact(self.config.z_channels).map(code), "the codes of a picture")?;
        Ok(Encoded { height, width, latent, codes })
    }

    /// The picture of `codes` [height, width] as the network leaves it: [height * downsampling, width *
    /// downsampling, 3], in about [-1, 1]. With `fast`, convolutions may multiply in bfloat16.
    ///
    /// # Errors
    /// `Error::InvalidArgument` for a code outside the codebook or a number of codes other than height * width;
    /// `Error::Cancelled`; `Error::OutOfMemory`.
    pub fn decode_float(
        &self,
        exec: &Exec,
        bytes: &[u8],
        codes: &[u32],
        height: usize,
        width: usize,
        fast: bool,
    ) -> Result<Vec<f32>> {
        self.check_codes(codes, height, width)?;
        let mut run = self.run(exec, bytes)?;
        run.scratch.precision = if fast { Precision::Bf16 } else { Precision::Exact };
        let mut bits = run.scratch.features(height, width, self.config.z_channels)?;
        self.spread_bits(codes, &mut bits.data);
        let pixels = self.decoder.run(&mut run, bits)?;
        run.scratch.finish(pixels)
    }

    /// [`ImageTokenizer::decode_float`] on a graphics card.
    #[cfg(feature = "cuda")]
    pub(crate) fn decode_on(
        &self,
        card: &mut CudaImages,
        exec: &Exec,
        bytes: &[u8],
        codes: &[u32],
        (height, width): (usize, usize),
    ) -> Result<Vec<f32>> {
        self.check_codes(codes, height, width)?;
        let mut bits = try_vec(codes.len().saturating_mul(self.config.z_channels), "the bits of a picture's codes")?;
        self.spread_bits(codes, &mut bits);
        let mut run = card.run(exec, bytes, &self.config, false)?;
        let input = run.upload(&bits, height, width)?;
        let pixels = self.decoder.run(&mut run, input)?;
        run.download(pixels)
    }

    fn check_codes(&self, codes: &[u32], height: usize, width: usize) -> Result<()> {
        if codes.is_empty() || height.checked_mul(width) != Some(codes.len()) {
            return Err(Error::invalid(format!("{} codes are no picture of {width}x{height} codes", codes.len())));
        }
        let size = self.config.codebook_size();
        match codes.iter().enumerate().find(|(_, code)| **code as usize >= size) {
            None => Ok(()),
            Some((i, code)) => {
                Err(Error::invalid(format!("code {code} at position {i} is not below the codebook's {size}")))
            }
        }
    }

    /// The bits of codes as -1 and 1, the most significant first.
    fn spread_bits(&self, codes: &[u32], to: &mut [f32]) {
        let z = self.config.z_channels;
        for (&code, position) in codes.iter().zip(to.chunks_exact_mut(z)) {
            for (c, v) in position.iter_mut().enumerate() {
                *v = if code >> (z - 1 - c) & 1 == 1 { 1.0 } else { -1.0 };
            }
        }
    }

    /// The picture of `codes` [height, width].
    ///
    /// # Errors
    /// As [`ImageTokenizer::decode_float`].
    pub fn decode(
        &self,
        exec: &Exec,
        bytes: &[u8],
        codes: &[u32],
        height: usize,
        width: usize,
        fast: bool,
    ) -> Result<RgbImage> {
        self.picture(&self.decode_float(exec, bytes, codes, height, width, fast)?, height, width)
    }

    /// What [`ImageTokenizer::decode_float`] has made of `height` x `width` codes, as a picture.
    pub fn picture(&self, pixels: &[f32], height: usize, width: usize) -> Result<RgbImage> {
        let factor = self.config.downsampling();
        image::from_unit(pixels, width * factor, height * factor)
    }

    /// What encoding a picture of `height` x `width` codes takes.
    pub fn encode_cost(&self, height: usize, width: usize) -> Cost {
        self.encoder.cost(height as u64, width as u64)
    }

    /// What decoding a picture of `height` x `width` codes takes.
    pub fn decode_cost(&self, height: usize, width: usize) -> Cost {
        self.decoder.cost(height as u64, width as u64)
    }

    fn run<'a>(&'a self, exec: &'a Exec<'a>, bytes: &'a [u8]) -> Result<Run<'a>> {
        let mut scratch = Scratch::default();
        scratch.charge = exec.take(0, "the image tokenizer")?;
        Ok(Run { exec, bytes, config: &self.config, scratch })
    }
}

/// The signs of a latent as a number.
fn code(latent: &[f32]) -> u32 {
    latent.iter().fold(0, |code, &v| code << 1 | u32::from(v > 0.0))
}
