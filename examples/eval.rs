//! Measures the demo model: every task of the evaluation in `tests/golden/eval`, 200 of each kind, on one or more
//! model files, as a table in markdown.
//!
//!     cargo run --release --example eval -- [--tasks N] [--drawings N [--only-drawings]] MODEL.gguf...
//!
//! `--tasks N` does the first N of each kind only.
//! With `--drawings N` every scene is drawn N times: what a drawing becomes hangs on its random numbers, and one of each
//! leaves the shares of right ones uncertain by 3.4 points. `--only-drawings` leaves all else out.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use mmada::Model;

use evaluation::judge::Judge;
use evaluation::score::{self, Failure, Score, Tasks};

#[path = "../tests/demo/mod.rs"]
mod evaluation;

fn main() -> ExitCode {
    let mut files: Vec<String> = std::env::args().skip(1).collect();
    let limit = option(&mut files, "--tasks", usize::MAX);
    let drawings = option(&mut files, "--drawings", 1);
    let only_drawings = files.first().is_some_and(|first| first == "--only-drawings");
    if only_drawings {
        files.remove(0);
    }
    if files.is_empty() || drawings == 0 || limit == 0 {
        eprintln!("usage: eval [--tasks N] [--drawings N [--only-drawings]] MODEL.gguf...");
        return ExitCode::from(2);
    }
    match measure(&files, limit, drawings, only_drawings) {
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

/// The number behind `name` if the arguments begin with it (0 if it is none), which are taken away.
fn option(arguments: &mut Vec<String>, name: &str, otherwise: usize) -> usize {
    if arguments.first().is_none_or(|first| first != name) {
        return otherwise;
    }
    let number = arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    arguments.drain(..2.min(arguments.len()));
    number
}

/// The table of all files, a column each, with the seconds that the tasks of a kind took together; then how far the
/// files differ from the first one.
fn measure(files: &[String], limit: usize, drawings: usize, only_drawings: bool) -> Result<String, Failure> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut tasks = Tasks::load(&golden.join("eval"))?;
    tasks.draw.truncate(limit);
    tasks.see.truncate(limit);
    tasks.pictures.truncate(limit);
    tasks.text.truncate(limit);
    tasks.reason.truncate(limit);
    let judge = Judge::new(&std::fs::read_to_string(golden.join("judge_templates.txt"))?)?;
    let mut columns = Vec::new();
    for file in files {
        eprintln!("{file}");
        let model = Model::open(file)?;
        let name = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let report = |score: &Score| eprintln!("  {}: {:.1}%", score.measure.name(), 100.0 * score.mean());
        columns.push((name, score::evaluate(&model, &tasks, &judge, drawings, only_drawings, report)?));
    }
    let mut out = score::table(&columns);
    let Some(((first, reference), others)) = columns.split_first() else { return Ok(out) };
    for (name, scores) in others {
        for (a, b) in scores.iter().zip(reference) {
            let (points, error) = (100.0 * (a.mean() - b.mean()), 100.0 * a.paired_error(b));
            out +=
                &format!("\n{name} less {first}, {}: {points:+.1} points, standard error {error:.1}", a.measure.name());
        }
    }
    Ok(out + "\n")
}
