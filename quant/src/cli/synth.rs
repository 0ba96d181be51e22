//! `mmada-quantize synth`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mmada::Result;
use mmada_quantize::{Recipe, Shape, SynthOptions, VqShape, synth};

use super::{ShowArgs, told};

#[derive(Args)]
pub struct SynthArgs {
    /// The shape that the options below change
    #[arg(long, value_enum, default_value = "tiny")]
    preset: Preset,
    /// Layers
    #[arg(long, value_name = "L")]
    layers: Option<usize>,
    /// Width of the hidden state
    #[arg(long, value_name = "D")]
    d_model: Option<usize>,
    /// Attention heads
    #[arg(long, value_name = "H")]
    heads: Option<usize>,
    /// Heads of keys and values [default: as many as heads, where heads are given]
    #[arg(long, value_name = "K")]
    kv_heads: Option<usize>,
    /// Width of the MLP
    #[arg(long, value_name = "F")]
    d_ff: Option<usize>,
    /// Rows of the embedding: text tokens, then image codes
    #[arg(long, value_name = "V")]
    vocab: Option<usize>,
    /// Image codes; 0 for a model of text only
    #[arg(long, value_name = "C")]
    codes: Option<usize>,
    /// Image tokens of a picture
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Longest sequence
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Channels of the image tokenizer at full resolution
    #[arg(long, value_name = "C")]
    vq_channels: Option<usize>,
    /// Channels of its levels in multiples of that, from the full resolution down
    #[arg(long, value_name = "M,M,...", value_delimiter = ',')]
    vq_mult: Option<Vec<usize>>,
    /// Residual blocks of every level
    #[arg(long, value_name = "N")]
    vq_blocks: Option<usize>,
    /// No image tokenizer
    #[arg(long, conflicts_with_all = ["vq_channels", "vq_mult", "vq_blocks"])]
    no_vq: bool,
    /// What the tensors are stored as
    #[arg(long = "type", value_name = "TYPE", default_value = "F16", value_parser = Recipe::from_name)]
    recipe: Recipe,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The same seed gives the same file
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads; 0 means one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    Tiny,
    /// The shape of MMaDA-8B
    #[value(name = "8b")]
    EightB,
}

impl SynthArgs {
    fn shape(&self) -> Shape {
        let mut shape = match self.preset {
            Preset::Tiny => Shape::tiny(),
            Preset::EightB => Shape::mmada_8b(),
        };
        if let Some(heads) = self.heads {
            shape.kv_heads = heads;
        }
        for (to, given) in [
            (&mut shape.layers, self.layers),
            (&mut shape.d_model, self.d_model),
            (&mut shape.heads, self.heads),
            (&mut shape.kv_heads, self.kv_heads),
            (&mut shape.d_ff, self.d_ff),
            (&mut shape.vocab, self.vocab),
            (&mut shape.codes, self.codes),
            (&mut shape.tokens, self.tokens),
            (&mut shape.context, self.context),
        ] {
            *to = given.unwrap_or(*to);
        }
        if self.no_vq || shape.codes == 0 {
            shape.vq = None;
        }
        shape.vq = shape.vq.map(|vq| self.vq(vq));
        shape
    }

    fn vq(&self, mut vq: VqShape) -> VqShape {
        vq.channels = self.vq_channels.unwrap_or(vq.channels);
        if let Some(mult) = &self.vq_mult {
            vq.encoder_blocks.resize(mult.len(), 1);
            vq.decoder_blocks.resize(mult.len(), 1);
            vq.encoder_mult = mult.clone();
            vq.decoder_mult = mult.clone();
        }
        if let Some(blocks) = self.vq_blocks {
            vq.encoder_blocks.fill(blocks);
            vq.decoder_blocks.fill(blocks);
        }
        vq
    }
}

pub fn run(args: SynthArgs) -> Result<()> {
    let shape = args.shape();
    told(&args.show, args.dry_run, |cancel, progress| {
        let options = SynthOptions {
            seed: args.seed,
            dry_run: args.dry_run,
            threads: args.threads,
            cancel: Some(cancel),
            ..SynthOptions::new(shape, args.output, args.recipe)
        };
        synth(&options, progress)
    })
}
