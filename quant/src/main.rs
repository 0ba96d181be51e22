//! `mmada-quantize`: the command line over the library. What it says goes to stderr, but for the tables of
//! `--dry-run` and `compare`.
#![forbid(unsafe_code)]

mod cli;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mmada::{Error, Result};

use cli::compare::CompareArgs;
use cli::convert::ConvertArgs;
use cli::export::ExportArgs;
use cli::imatrix::ImatrixArgs;
use cli::quantize::QuantizeArgs;
use cli::say;
use cli::synth::SynthArgs;

/// Makes GGUF files for libmmada: quantizes them, converts MMaDA checkpoints, exports their text part to llama.cpp,
/// makes random models for tests.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(override_usage = "mmada-quantize [OPTIONS] IN.gguf [OUT.gguf] TYPE [THREADS]
       mmada-quantize COMMAND [OPTIONS]")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    quantize: QuantizeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Convert a checkpoint folder to one GGUF file of any type
    Convert(ConvertArgs),
    /// Measure which columns of the matrices matter, on real states of the sampler
    Imatrix(ImatrixArgs),
    /// Write the text part of a model file as another program reads it
    Export(ExportArgs),
    /// Tell how far quantized models are from the model that they were made of
    Compare(CompareArgs),
    /// Write a random-weight model of any shape, for benches and tests
    Synth(SynthArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Convert(args)) => cli::convert::run(args),
        Some(Command::Imatrix(args)) => cli::imatrix::run(args),
        Some(Command::Export(args)) => cli::export::run(args),
        Some(Command::Compare(args)) => cli::compare::run(args),
        Some(Command::Synth(args)) => cli::synth::run(args),
        None => cli::quantize::run(cli.quantize),
    };
    exit(done)
}

fn exit(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(exit_code(&error))
        }
    }
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
