//! `mmada`: the command line. The result goes to standard output and all else to standard error.

#![forbid(unsafe_code)]

mod args;
mod ask;
mod chat;
mod draw;
mod estimate;
mod failure;
mod font;
mod info;
mod instruction_set;
mod interrupt;
mod model_path;
mod output;
mod progress;
mod session;
mod trace;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::{BAD_INPUT, Failure};
use output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return BAD_INPUT.into();
        }
        // --help and --version are results.
        Err(help) => return finish(output::print(&help.render().to_string())),
    };
    finish(run(&cli))
}

fn run(cli: &Cli) -> Result<(), Failure> {
    interrupt::install()?;
    let output = Output::new(&cli.common);
    match &cli.command {
        Command::Draw(args) => draw::run(&cli.common, args, &output),
        Command::Ask(args) => ask::run(&cli.common, args, &output),
        Command::Chat(args) => chat::run(&cli.common, args, &output),
        Command::Info(args) => info::run(&cli.common, args, &output),
    }
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::say(&format!("mmada: {failure}"));
            failure.exit_code().into()
        }
    }
}
