//! `mmada`: the command line.

#![forbid(unsafe_code)]

mod args;
mod failure;
mod interrupt;
mod model_path;
mod output;
mod progress;

fn main() {}
