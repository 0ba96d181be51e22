//! `mmada-quantize export`.

use std::path::PathBuf;

use clap::Args;
use mmada::Result;
use mmada_quantize::{ExportOptions, export};

use super::{ShowArgs, told};

#[derive(Args)]
#[command(
    after_help = "Tensors keep their types: quantize before or after. What is drawn with and the image codes are left \
                        out. llama-diffusion-cli runs the file with --diffusion-block-length."
)]
pub struct ExportArgs {
    /// What to write: llada (llama.cpp's architecture of LLaDA)
    #[arg(long, value_name = "ARCH", value_parser = ["llada"])]
    arch: String,
    /// An mmada file, or any part of a split one
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,
    /// llama.cpp's name for how the tokenizer splits texts, where that is not recognised
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// Go on where weights are NaN or infinite
    #[arg(long)]
    allow_nonfinite: bool,
    /// Threads; 0 means one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    show: ShowArgs,
}

pub fn run(args: ExportArgs) -> Result<()> {
    told(&args.show, false, |cancel, progress| {
        let options = ExportOptions {
            pre: args.pre,
            allow_nonfinite: args.allow_nonfinite,
            threads: args.threads,
            cancel: Some(cancel),
            ..ExportOptions::new(args.input, args.output)
        };
        export(&options, progress)
    })
}
