//! Pixels to latents.

use super::Config;
use super::blocks::{Head, Middle, ResBlock, find_blocks};
use super::cost::{Cost, Tally};
use super::run::Backend;
use super::weights::ConvWeights;
use crate::error::Result;
use crate::gguf::Header;
use crate::kernels::conv::Sampling;

/// conv_in; for each level from the finest its blocks and a halving of the sides; middle; head; quant_conv.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    conv_in: ConvWeights,
    /// The last level is not halved.
    levels: Vec<(Vec<ResBlock>, Option<ConvWeights>)>,
    middle: Middle,
    head: Head,
    quant_conv: ConvWeights,
}

impl Encoder {
    pub fn find(header: &Header, config: &Config) -> Result<Encoder> {
        let (sizes, z) = (&config.encoder, config.z_channels);
        let mut levels = Vec::new();
        let mut inputs = config.channels;
        for (level, (&outputs, &count)) in sizes.channels.iter().zip(&sizes.blocks).enumerate() {
            let name = format!("encoder.down.{level}");
            let blocks = find_blocks(header, &name, count, inputs, outputs)?;
            let down = || ConvWeights::find(header, &format!("{name}.downsample.conv"), 3, outputs, outputs);
            levels.push((blocks, if level + 1 < sizes.len() { Some(down()?) } else { None }));
            inputs = outputs;
        }
        Ok(Encoder {
            conv_in: ConvWeights::find(header, "encoder.conv_in", 3, 3, config.channels)?,
            levels,
            middle: Middle::find(header, "encoder.mid", inputs)?,
            head: Head::find(header, "encoder", inputs, z)?,
            quant_conv: ConvWeights::find(header, "encoder.quant_conv", 1, z, z)?,
        })
    }

    /// Of a picture of `height` x `width` codes.
    pub fn cost(&self, height: u64, width: u64) -> Cost {
        let mut tally = Tally::default();
        let scale = 1 << (self.levels.len() - 1);
        let (mut h, mut w) = (height.saturating_mul(scale), width.saturating_mul(scale));
        tally.conv(&self.conv_in, Sampling::Same, h, w);
        for (blocks, downsample) in &self.levels {
            blocks.iter().for_each(|block| block.tally(&mut tally, h, w));
            if let Some(conv) = downsample {
                (h, w) = (h / 2, w / 2);
                tally.conv(conv, Sampling::Down, h, w);
            }
        }
        self.middle.tally(&mut tally, h, w);
        self.head.tally(&mut tally, h, w);
        tally.conv(&self.quant_conv, Sampling::Same, h, w);
        tally.finish(h.saturating_mul(w), self.middle.channels())
    }

    /// Pixels [height, width, 3] in [-1, 1] to latents [height / downsampling, width / downsampling, z_channels].
    pub fn run<B: Backend>(&self, run: &mut B, pixels: B::Map) -> Result<B::Map> {
        let mut x = run.replace(&self.conv_in, pixels, None, Sampling::Same)?;
        for (blocks, downsample) in &self.levels {
            for block in blocks {
                x = block.run(run, x)?;
            }
            if let Some(conv) = downsample {
                x = run.replace(conv, x, None, Sampling::Down)?;
            }
        }
        let x = self.middle.run(run, x)?;
        let x = self.head.run(run, x)?;
        run.replace(&self.quant_conv, x, None, Sampling::Same)
    }
}
