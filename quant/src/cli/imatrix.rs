//! `mmada-quantize imatrix`.

use std::path::PathBuf;

use clap::Args;
use mmada::Result;
use mmada_quantize::{ImatrixOptions, imatrix};

use super::{ShowArgs, say, watched};

#[derive(Args)]
pub struct ImatrixArgs {
    /// The model that is going to be quantized, in F16 or more at best
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// JSON lines (`prompt`, `answer`, `image`, `task`) or plain text; may be repeated [default: what the model writes
    /// and draws by itself]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// States of the sampler that every sample of the data gives, with mask ratios spread evenly
    #[arg(long, value_name = "N", default_value_t = ImatrixOptions::DEFAULT_STATES)]
    states: usize,
    /// How much the positions count whose logits the sampler looks at, where all others count 1
    #[arg(long, value_name = "WEIGHT", default_value_t = ImatrixOptions::DEFAULT_MASKED_WEIGHT)]
    masked_weight: f32,
    /// Of all random numbers: the same seed gives the same file
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; 0 means one per core. The result does not depend on it
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// Show no progress bar
    #[arg(long)]
    no_progress: bool,
}

pub fn run(args: ImatrixArgs) -> Result<()> {
    let show = ShowArgs { no_progress: args.no_progress, quiet: true };
    let report = watched(&show, |cancel, progress| {
        let options = ImatrixOptions {
            data: args.data,
            states: args.states,
            masked_weight: args.masked_weight,
            seed: args.seed,
            threads: args.threads,
            cancel: Some(cancel),
            ..ImatrixOptions::new(args.model, args.output)
        };
        imatrix(&options, progress)
    })?;
    say(&report.to_string());
    Ok(())
}
