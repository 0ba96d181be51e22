//! The commands: arguments to options, progress to the terminal.

pub mod compare;
pub mod convert;
pub mod export;
pub mod imatrix;
pub mod quantize;
pub mod synth;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mmada::Result;
use mmada::gguf::GgmlType;
use mmada_quantize::{Progress, Recipe, Report, TensorRule, TypeOptions, parse_type};

/// What `--help` ends with where types are given.
pub const TYPES_HELP: &str = "Types: Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q4_0 IQ4_NL IQ4_XS Q3_K_M Q2_K, of which each \
                              stores some tensors in more bits than its name says; F32 F16 BF16 Q4_1 Q5_0 Q5_1 MXFP4";

/// Options for the types of single tensors, named as llama-quantize names them.
#[derive(Args)]
pub struct TypeArgs {
    /// Importance of the columns of matrices: a GGUF file of `imatrix` or of llama.cpp
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Store all matrices of the backbone in one type
    #[arg(long)]
    pure: bool,
    /// A type for the tensors in whose names REGEX is found; may be repeated, the first that matches counts
    #[arg(long = "tensor-type", value_name = "REGEX=TYPE", value_parser = TensorRule::parse)]
    tensor_types: Vec<TensorRule>,
    /// Type of the token embedding
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    token_embedding_type: Option<GgmlType>,
    /// Type of the output matrix
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    output_tensor_type: Option<GgmlType>,
    /// Keep the output matrix as it is
    #[arg(long, conflicts_with = "output_tensor_type")]
    leave_output_tensor: bool,
    /// Go on where weights are NaN or infinite: float types keep them, others store 0
    #[arg(long)]
    pub allow_nonfinite: bool,
}

impl TypeArgs {
    /// Whether any type was chosen.
    pub fn given(&self) -> bool {
        let of_place = self.token_embedding_type.or(self.output_tensor_type).is_some();
        self.pure || self.leave_output_tensor || of_place || !self.tensor_types.is_empty()
    }

    pub fn options(&self, recipe: Recipe) -> TypeOptions {
        TypeOptions {
            pure: self.pure,
            tensor_types: self.tensor_types.clone(),
            token_embedding: self.token_embedding_type,
            output: self.output_tensor_type,
            leave_output: self.leave_output_tensor,
            ..recipe.into()
        }
    }
}

/// What is told while a command runs.
#[derive(Args)]
pub struct ShowArgs {
    /// Show no progress bar
    #[arg(long)]
    no_progress: bool,
    /// Do not tell of every tensor
    #[arg(short, long)]
    quiet: bool,
}

/// A line on stderr. Nobody is left to tell if that fails.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs `work` as `watched` does and tells the totals. With `dry_run` the tensors and the totals are what was asked
/// for rather than word of the work, and go to stdout.
pub fn told(
    show: &ShowArgs,
    dry_run: bool,
    work: impl FnOnce(Arc<AtomicBool>, &mut dyn FnMut(Progress)) -> Result<Report>,
) -> Result<()> {
    // A reader that went away is no failure.
    let table = |line: &str| drop(writeln!(std::io::stdout(), "{line}"));
    let report = watched(show, |cancel, progress| {
        work(cancel, &mut |event| match event {
            Progress::Tensor(line) if dry_run => table(&format!("{line}  {} bytes", line.bytes)),
            event => progress(event),
        })
    })?;
    match dry_run {
        true => table(&format!("{} (nothing was written)", summary(&report))),
        false => say(&summary(&report)),
    }
    Ok(())
}

/// Runs `work` with a flag that Ctrl-C sets and with progress going to the terminal.
pub fn watched<T>(
    show: &ShowArgs,
    work: impl FnOnce(Arc<AtomicBool>, &mut dyn FnMut(Progress)) -> Result<T>,
) -> Result<T> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = cancel.clone();
    // Without a handler Ctrl-C still stops the process; only the partial file would stay.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
    let bar = progress_bar(show.no_progress);
    let result = work(cancel, &mut |progress| match progress {
        Progress::Note(note) => bar.suspend(|| say(&format!("note: {note}"))),
        Progress::Tensor(line) if !show.quiet => bar.suspend(|| say(&line.to_string())),
        Progress::Tensor(_) => {}
        Progress::Bytes { tensor, done, total } => {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(tensor.to_owned());
        }
        Progress::Steps { what, done, total } => {
            if bar.message() != what {
                // The time left is that of this kind of work.
                bar.reset();
                bar.set_style(style("{bar:30} {pos}/{len} {eta} left  {msg}"));
                bar.set_message(what.to_owned());
            }
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
    });
    bar.finish_and_clear();
    result
}

/// Hidden where stderr is no terminal.
fn progress_bar(hidden: bool) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if hidden || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.with_style(style("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left  {msg}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The totals.
fn summary(report: &Report) -> String {
    let file = match report.files.as_slice() {
        [] => String::new(),
        [file] => file.display().to_string(),
        [first, .., last] => format!("{} to {}", first.display(), last.display()),
    };
    format!(
        "{file}: {} tensors, {:.2} M weights at {:.2} bits, {:.1} MB{}, {:.1} s",
        report.tensors,
        report.weights as f64 / 1e6,
        report.bits_per_weight(),
        report.file_bytes as f64 / 1e6,
        if report.has_images { "" } else { ", no image tokenizer" },
        report.seconds.as_secs_f64()
    )
}

/// Bytes: a number with M or G, in powers of ten as gguf-split has them.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1_000_000_000),
        None => (text.strip_suffix(['M', 'm']).ok_or("expected a number and M or G")?, 1_000_000),
    };
    let bytes = number.parse::<u64>().ok().filter(|&n| n > 0).and_then(|n| n.checked_mul(unit));
    bytes.ok_or_else(|| format!("{number} is no usable number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!((parse_size("500M"), parse_size("4g")), (Ok(500_000_000), Ok(4_000_000_000)));
        for text in ["", "5", "M", "-1M", "0G", "99999999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
