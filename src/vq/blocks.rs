//! The pieces that encoder and decoder share: the residual block, and the middle at the coarsest resolution.

use super::attention::Attention;
use super::cost::Tally;
use super::run::Backend;
use super::weights::{ConvWeights, NormWeights};
use crate::error::Result;
use crate::gguf::Header;
use crate::kernels::conv::Sampling;
use crate::memory::try_with_capacity;

/// norm, swish, 3x3 convolution, twice; plus the input, through a 1x1 convolution where the channels change.
#[derive(Clone, Debug)]
pub(super) struct ResBlock {
    norm1: NormWeights,
    conv1: ConvWeights,
    norm2: NormWeights,
    conv2: ConvWeights,
    nin_shortcut: Option<ConvWeights>,
}

impl ResBlock {
    pub fn find(header: &Header, name: &str, inputs: usize, outputs: usize) -> Result<ResBlock> {
        let shortcut = || ConvWeights::find(header, &format!("{name}.nin_shortcut"), 1, inputs, outputs);
        Ok(ResBlock {
            norm1: NormWeights::find(header, &format!("{name}.norm1"), inputs)?,
            conv1: ConvWeights::find(header, &format!("{name}.conv1"), 3, inputs, outputs)?,
            norm2: NormWeights::find(header, &format!("{name}.norm2"), outputs)?,
            conv2: ConvWeights::find(header, &format!("{name}.conv2"), 3, outputs, outputs)?,
            nin_shortcut: if inputs == outputs { None } else { Some(shortcut()?) },
        })
    }

    pub fn tally(&self, tally: &mut Tally, height: u64, width: u64) {
        let convs = [&self.conv1, &self.conv2].into_iter().chain(&self.nin_shortcut);
        convs.for_each(|conv| tally.conv(conv, Sampling::Same, height, width));
    }

    pub fn run<B: Backend>(&self, run: &mut B, x: B::Map) -> Result<B::Map> {
        let norm = run.norm(&self.norm1, &x, true)?;
        let h = run.conv(&self.conv1, &x, Some(&norm), Sampling::Same)?;
        let norm = run.norm(&self.norm2, &h, true)?;
        let mut y = match &self.nin_shortcut {
            None => x,
            Some(shortcut) => {
                let y = run.conv(shortcut, &x, None, Sampling::Same)?;
                run.recycle(x);
                y
            }
        };
        run.conv_add(&self.conv2, &h, Some(&norm), &mut y)?;
        run.recycle(h);
        Ok(y)
    }
}

/// The blocks of one resolution; the first takes `inputs` channels.
pub(super) fn find_blocks(
    header: &Header,
    name: &str,
    count: usize,
    inputs: usize,
    outputs: usize,
) -> Result<Vec<ResBlock>> {
    let mut blocks = try_with_capacity(count, "the list of an image tokenizer's blocks")?;
    for i in 0..count {
        let inputs = if i == 0 { inputs } else { outputs };
        blocks.push(ResBlock::find(header, &format!("{name}.block.{i}"), inputs, outputs)?);
    }
    Ok(blocks)
}

/// Residual block, attention, residual block.
#[derive(Clone, Debug)]
pub(super) struct Middle {
    block_1: ResBlock,
    attn_1: Attention,
    block_2: ResBlock,
}

impl Middle {
    pub fn find(header: &Header, name: &str, channels: usize) -> Result<Middle> {
        Ok(Middle {
            block_1: ResBlock::find(header, &format!("{name}.block_1"), channels, channels)?,
            attn_1: Attention::find(header, &format!("{name}.attn_1"), channels)?,
            block_2: ResBlock::find(header, &format!("{name}.block_2"), channels, channels)?,
        })
    }

    pub fn tally(&self, tally: &mut Tally, height: u64, width: u64) {
        self.block_1.tally(tally, height, width);
        self.attn_1.tally(tally, height, width);
        self.block_2.tally(tally, height, width);
    }

    /// Of its feature map.
    pub fn channels(&self) -> u64 {
        self.block_1.conv2.outputs as u64
    }

    pub fn run<B: Backend>(&self, run: &mut B, x: B::Map) -> Result<B::Map> {
        let x = self.block_1.run(run, x)?;
        let x = self.attn_1.run(run, x)?;
        self.block_2.run(run, x)
    }
}

/// norm, swish, 3x3 convolution: the end of encoder and decoder.
#[derive(Clone, Debug)]
pub(super) struct Head {
    norm_out: NormWeights,
    conv_out: ConvWeights,
}

impl Head {
    pub fn find(header: &Header, name: &str, inputs: usize, outputs: usize) -> Result<Head> {
        Ok(Head {
            norm_out: NormWeights::find(header, &format!("{name}.norm_out"), inputs)?,
            conv_out: ConvWeights::find(header, &format!("{name}.conv_out"), 3, inputs, outputs)?,
        })
    }

    pub fn tally(&self, tally: &mut Tally, height: u64, width: u64) {
        tally.conv(&self.conv_out, Sampling::Same, height, width);
    }

    pub fn run<B: Backend>(&self, run: &mut B, x: B::Map) -> Result<B::Map> {
        let norm = run.norm(&self.norm_out, &x, true)?;
        run.replace(&self.conv_out, x, Some(&norm), Sampling::Same)
    }
}
