//! `mmada-quantize compare`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use mmada::{Compute, Result};
use mmada_quantize::states::StateOptions;
use mmada_quantize::{CompareOptions, compare, plot};

use super::{ShowArgs, say, watched};

#[derive(Args)]
pub struct CompareArgs {
    /// The model that the others are compared to, in F16 or more at best
    #[arg(value_name = "REF.gguf")]
    reference: PathBuf,
    /// Models made of it
    #[arg(value_name = "Q.gguf", required = true)]
    models: Vec<PathBuf>,
    /// JSON lines (`prompt`, `answer`, `image`, `task`) or plain text; may be repeated [default: what the reference
    /// writes and draws by itself]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// States of the sampler that every sample of the data gives, with mask ratios spread evenly
    #[arg(long, value_name = "N", default_value_t = StateOptions::default().per_sample)]
    states: usize,
    /// Pictures of the data to draw from beginning to end with every model; 0 for none
    #[arg(long, value_name = "N", default_value_t = 2)]
    drawings: usize,
    /// Of all random numbers: the same seed gives the same result
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How the models compute (the reference is always exact): fast shows what 8- and 16-bit products add
    #[arg(long, value_name = "exact|fast", default_value = "exact", value_parser = ["exact", "fast"])]
    compute: String,
    /// Print everything as JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Draw sizes against KL divergences
    #[arg(long, value_name = "OUT.png")]
    plot: Option<PathBuf>,
    /// Threads; 0 means one per core. The result does not depend on it
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// Show no progress bar
    #[arg(long)]
    no_progress: bool,
}

pub fn run(args: CompareArgs) -> Result<()> {
    let show = ShowArgs { no_progress: args.no_progress, quiet: true };
    let comparison = watched(&show, |cancel, progress| {
        let options = CompareOptions {
            data: args.data,
            per_sample: args.states,
            seed: args.seed,
            drawings: args.drawings,
            plot: args.plot.clone(),
            compute: if args.compute == "fast" { Compute::Fast } else { Compute::Exact },
            threads: args.threads,
            cancel: Some(cancel),
            ..CompareOptions::new(args.reference, args.models)
        };
        compare(&options, progress)
    })?;
    // A reader that went away is no failure.
    let mut stdout = std::io::stdout();
    let _ = match args.json {
        true => writeln!(stdout, "{:#}", comparison.to_json()),
        false => write!(stdout, "{comparison}"),
    };
    if let Some(path) = &args.plot {
        mmada::image::save(&plot(&comparison), path)?;
    }
    say(&format!("compared in {:.1} s", comparison.seconds.as_secs_f64()));
    Ok(())
}
