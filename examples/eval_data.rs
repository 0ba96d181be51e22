//! Writes the tasks of `tests/golden/eval` as data files for `mmada-quantize imatrix` and `compare`: every second task in
//! `calibration.jsonl`, the others in `evaluation.jsonl`, with their pictures beside them.
//!
//!     cargo run --example eval_data -- FOLDER [N]
//!
//! Up to N tasks of each kind are written (default: 40). What the model thinks about has no answer in the file: it gives
//! its own. A picture whose description is the answer is also one to be drawn from that description.

#![forbid(unsafe_code)]
#![allow(dead_code)] // a part of the evaluation is used

use std::path::Path;
use std::process::ExitCode;

use evaluation::score::{Failure, Tasks};
use evaluation::world::Scene;
use serde_json::{Value, json};

#[path = "../tests/demo/mod.rs"]
mod evaluation;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (folder, count) = match args.as_slice() {
        [folder] => (folder, Some(40)),
        [folder, n] => (folder, n.parse().ok()),
        _ => (&String::new(), None),
    };
    let Some(count) = count else {
        eprintln!("usage: eval_data FOLDER [N]");
        return ExitCode::from(2);
    };
    match write(Path::new(folder), count) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("eval_data: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, count: usize) -> Result<(), Failure> {
    let tasks = Tasks::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval"))?;
    std::fs::create_dir_all(folder)?;
    for (half, name) in ["calibration", "evaluation"].into_iter().enumerate() {
        let mut lines: Vec<Value> = Vec::new();
        for task in tasks.text.iter().skip(half).step_by(2).take(count) {
            lines.push(json!({"task": "chat", "prompt": task.question, "answer": task.answer}));
            lines.push(json!({"task": "think", "prompt": task.question}));
        }
        let seen = tasks.see.iter().zip(&tasks.pictures).enumerate().skip(half).step_by(2);
        for (n, (task, picture)) in seen.clone().take(count) {
            let image = format!("{n}.png");
            mmada::image::save(picture, folder.join(&image))?;
            lines.push(json!({"task": "question", "prompt": task.question, "answer": task.answer, "image": image}));
            lines.push(json!({"task": "think-question", "prompt": task.question, "image": image}));
        }
        let described = seen.filter(|(_, (task, _))| Scene::parse(&task.answer).is_some());
        for (n, (task, picture)) in described.take(count) {
            let image = format!("{n}.png");
            mmada::image::save(picture, folder.join(&image))?;
            lines.push(json!({"task": "draw", "prompt": task.answer, "image": image}));
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(folder.join(format!("{name}.jsonl")), text)?;
    }
    Ok(())
}
