//! Codes' bits to pixels.

use super::Config;
use super::blocks::{Head, Middle, ResBlock, find_blocks};
use super::cost::{Cost, Tally};
use super::run::Backend;
use super::weights::ConvWeights;
use crate::error::Result;
use crate::gguf::Header;
use crate::kernels::conv::Sampling;

/// post_quant_conv; conv_in; middle; for each level from the coarsest its blocks and a doubling of the sides; head.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    post_quant_conv: ConvWeights,
    conv_in: ConvWeights,
    middle: Middle,
    /// From the coarsest; the last is not doubled.
    levels: Vec<(Vec<ResBlock>, Option<ConvWeights>)>,
    head: Head,
}

impl Decoder {
    pub fn find(header: &Header, config: &Config) -> Result<Decoder> {
        let (sizes, z) = (&config.decoder, config.z_channels);
        let deepest = sizes.deepest();
        let mut levels = Vec::new();
        let mut inputs = deepest;
        for (level, (&outputs, &count)) in sizes.channels.iter().zip(&sizes.blocks).enumerate().rev() {
            let name = format!("decoder.up.{level}");
            let blocks = find_blocks(header, &name, count, inputs, outputs)?;
            let up = || ConvWeights::find(header, &format!("{name}.upsample.conv"), 3, outputs, outputs);
            levels.push((blocks, if level > 0 { Some(up()?) } else { None }));
            inputs = outputs;
        }
        Ok(Decoder {
            post_quant_conv: ConvWeights::find(header, "decoder.post_quant_conv", 1, z, z)?,
            conv_in: ConvWeights::find(header, "decoder.conv_in", 3, z, deepest)?,
            middle: Middle::find(header, "decoder.mid", deepest)?,
            levels,
            head: Head::find(header, "decoder", inputs, 3)?,
        })
    }

    /// Of a picture of `height` x `width` codes.
    pub fn cost(&self, height: u64, width: u64) -> Cost {
        let mut tally = Tally::default();
        let (mut h, mut w) = (height, width);
        tally.conv(&self.post_quant_conv, Sampling::Same, h, w);
        tally.conv(&self.conv_in, Sampling::Same, h, w);
        self.middle.tally(&mut tally, h, w);
        for (blocks, upsample) in &self.levels {
            blocks.iter().for_each(|block| block.tally(&mut tally, h, w));
            if let Some(conv) = upsample {
                (h, w) = (h.saturating_mul(2), w.saturating_mul(2));
                tally.conv(conv, Sampling::Up, h, w);
            }
        }
        self.head.tally(&mut tally, h, w);
        tally.finish(height.saturating_mul(width), self.middle.channels())
    }

    /// Bits as -1 and 1 [height, width, z_channels] to pixels [height * downsampling, width * downsampling, 3],
    /// in about [-1, 1].
    pub fn run<B: Backend>(&self, run: &mut B, bits: B::Map) -> Result<B::Map> {
        let x = run.replace(&self.post_quant_conv, bits, None, Sampling::Same)?;
        let x = run.replace(&self.conv_in, x, None, Sampling::Same)?;
        let mut x = self.middle.run(run, x)?;
        for (blocks, upsample) in &self.levels {
            for block in blocks {
                x = block.run(run, x)?;
            }
            if let Some(conv) = upsample {
                x = run.replace(conv, x, None, Sampling::Up)?;
            }
        }
        self.head.run(run, x)
    }
}
