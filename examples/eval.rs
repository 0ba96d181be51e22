//! Measures the demo model: every task of the evaluation in `tests/golden/eval`, 200 of each kind, on one or more
//! model files, as a table in markdown.
//!
//!     cargo run --release --example eval -- MODEL.gguf...

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use mmada::Model;

use evaluation::judge::Judge;
use evaluation::score::{self, Failure, Score, Tasks};

#[path = "../tests/demo/mod.rs"]
mod evaluation;

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        eprintln!("usage: eval MODEL.gguf...");
        return ExitCode::from(2);
    }
    match measure(&files) {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("eval: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The table of all files, a column each, with the seconds that the tasks of a kind took together.
fn measure(files: &[String]) -> Result<String, Failure> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let tasks = Tasks::load(&golden.join("eval"))?;
    let judge = Judge::new(&std::fs::read_to_string(golden.join("judge_templates.txt"))?)?;
    let mut columns = Vec::new();
    for file in files {
        eprintln!("{file}");
        let model = Model::open(file)?;
        let name = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let report = |score: &Score| eprintln!("  {}: {:.1}%", score.measure.name(), 100.0 * score.mean());
        columns.push((name, score::evaluate(&model, &tasks, &judge, report)?));
    }
    Ok(score::table(&columns))
}
