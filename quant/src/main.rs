//! `mmada-quantize`: the command line over the library. Everything it says goes to stderr.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mmada::gguf::GgmlType;
use mmada::{Error, Result};
use mmada_quantize::{ConvertOptions, Progress, Report, convert};

/// Makes GGUF files for libmmada out of MMaDA checkpoints.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Convert a checkpoint folder to one GGUF file
    Convert(ConvertArgs),
}

#[derive(Args)]
struct ConvertArgs {
    /// Folder with config.json, the weights and tokenizer.json
    #[arg(value_name = "CHECKPOINT_DIR")]
    checkpoint: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Type of the backbone's matrices; norms stay f32, the image tokenizer is f16
    #[arg(long = "type", value_name = "TYPE", value_parser = type_parser())]
    dtype: GgmlType,
    /// Folder of the image tokenizer [default: the folder vq of the checkpoint, if there is one]
    #[arg(long, value_name = "DIR")]
    vq: Option<PathBuf>,
    /// A Jinja file to use as chat template [default: MMaDA's]
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Id of the first image code [default: the number of tokens of the tokenizer]
    #[arg(long, value_name = "N")]
    image_code_offset: Option<u32>,
    /// Name of the model, kept in the file [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// Threads; 0 means one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// Show no progress bar
    #[arg(long)]
    no_progress: bool,
}

fn type_parser() -> impl TypedValueParser<Value = GgmlType> {
    PossibleValuesParser::new(["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"])
        .try_map(|name| GgmlType::from_name(&name).ok_or("no such type"))
}

fn main() -> ExitCode {
    let Command::Convert(args) = Cli::parse().command;
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// A line on stderr. Nobody is left to tell if that fails.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// 2 for input that cannot be, 1 for a machine that cannot, 130 for Ctrl-C.
fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Cancelled => 130,
        Error::OutOfMemory { .. } | Error::Internal(_) => 1,
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::InvalidFilename => 2,
            _ => 1,
        },
        _ => 2,
    }
}

fn run(args: ConvertArgs) -> Result<()> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = cancel.clone();
    // Without a handler Ctrl-C still stops the process; only the partial file would stay.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
    let options = ConvertOptions {
        vq: args.vq,
        chat_template: args.chat_template,
        image_code_offset: args.image_code_offset,
        name: args.name,
        threads: args.threads,
        cancel: Some(cancel),
        ..ConvertOptions::new(args.checkpoint, args.output, args.dtype)
    };
    let bar = progress_bar(args.no_progress);
    let result = convert(&options, &mut |progress| match progress {
        Progress::Note(note) => bar.suspend(|| say(&format!("note: {note}"))),
        Progress::Bytes { tensor, done, total } => {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(tensor.to_owned());
        }
    });
    bar.finish_and_clear();
    say(&summary(&options, &result?));
    Ok(())
}

/// Hidden where stderr is no terminal.
fn progress_bar(hidden: bool) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if hidden || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left  {msg}";
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn summary(options: &ConvertOptions, report: &Report) -> String {
    format!(
        "{}: {} tensors, {:.2} M weights at {:.2} bits, {:.1} MB{}, {:.1} s",
        options.output.display(),
        report.tensors,
        report.weights as f64 / 1e6,
        report.bits_per_weight(),
        report.file_bytes as f64 / 1e6,
        if report.has_images { "" } else { ", no image tokenizer" },
        report.seconds.as_secs_f64()
    )
}
