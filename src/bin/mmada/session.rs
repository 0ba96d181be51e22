//! What every command that runs a model does: opens it, runs a generation step by step under the eyes of a
//! person, and reports seed and times.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mmada::tokenizer::Tokenizer;
use mmada::{Compute, Context, ContextOptions, Generation, LogLevel, Logger, Model, Progress, Slot, Stage, Step};
use serde_json::{Value as Json, json};

use crate::args::Common;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::{Bar, Canvas, SHADE};
use crate::trace::{Cell, CellState};
use crate::{instruction_set, interrupt, model_path};

/// An open model and a context to run it in.
pub struct Session {
    pub model: Model,
    pub context: Context,
    pub output: Output,
    pub file: String,
    pub opening: Duration,
}

impl Session {
    pub fn open(common: &Common, output: &Output) -> Result<Self, Failure> {
        let began = Instant::now();
        let path = model_path::find(common.model.as_deref())?;
        let model = Model::open(&path)?;
        let context = context(&model, common, output)?;
        Ok(Session { model, context, output: *output, file: path.display().to_string(), opening: began.elapsed() })
    }

    /// Runs `generation` to its end, showing what it does. After every step `each` is called.
    pub fn run(
        &self,
        generation: &mut Generation,
        mut each: impl FnMut(&mut Generation, &Step) -> Result<(), Failure>,
    ) -> Result<Times, Failure> {
        let mut view = View::new(self.output, self.model.tokenizer()?);
        let mut times = Times { opening: self.opening, ..Times::default() };
        while !generation.is_done() {
            interrupt::check()?;
            let began = Instant::now();
            let step = generation.step()?;
            *times.of(step.stage) += began.elapsed();
            view.show(generation, &step);
            each(generation, &step)?;
        }
        Ok(times)
    }

    /// The answer's positions as an animation shows them after `step`.
    pub fn cells(&self, generation: &Generation, step: &Step) -> Result<Vec<Cell>, Failure> {
        let tokenizer = self.model.tokenizer()?;
        let cell = |(position, slot): (usize, &Slot)| match *slot {
            Slot::Masked => Cell { text: String::new(), state: CellState::Masked },
            Slot::Token(id) => {
                let new = step.changed.iter().any(|change| change.position == position);
                let state = if new { CellState::New } else { CellState::Old };
                Cell { text: tokenizer.decode(&[id], true), state }
            }
        };
        Ok(generation.canvas().iter().enumerate().map(cell).collect())
    }

    /// Tells of what the library found odd about the request.
    pub fn warn_of(&self, generation: &Generation) {
        for warning in generation.warnings() {
            self.output.warn(warning);
        }
    }
}

/// The context that the arguments ask for. Shows how far copying weights to a graphics card has come, and warns where
/// `--device auto` finds none that can be used.
pub fn context(model: &Model, common: &Common, output: &Output) -> Result<Context, Failure> {
    let making = Arc::new(AtomicBool::new(true));
    let (told, output) = (making.clone(), *output);
    let logger = Logger::new(move |level, message| {
        // what the logger hears later is about generations, which have warnings of their own
        if level <= LogLevel::Warn && told.load(Ordering::Relaxed) {
            output.warn(message);
        }
    });
    let options = ContextOptions {
        threads: common.threads,
        compute: Compute::from(common.compute),
        instruction_set: instruction_set::forced()?,
        pack: common.pack,
        device: common.device,
        gpu_layers: common.gpu_layers,
        progress: output.shows_progress().then(|| uploading(output)),
        logger: Some(logger),
        ..Default::default()
    };
    let context = Context::new(model, options)?;
    making.store(false, Ordering::Relaxed);
    Ok(context)
}

/// A bar that appears with the first bytes and goes with the function.
fn uploading(output: Output) -> Progress {
    let bar: Mutex<Option<Bar>> = Mutex::new(None);
    Arc::new(move |done, total| {
        if let Ok(mut bar) = bar.lock() {
            bar.get_or_insert_with(|| Bar::of_bytes(&output, "copying to the graphics card", total)).set(done);
        }
        true
    })
}

/// Ctrl-C reaches `generation` until the guard is dropped.
pub fn cancel_on_interrupt(generation: &Generation) -> interrupt::Guard {
    let canceller = generation.canceller();
    interrupt::cancels(move || canceller.cancel())
}

/// The seed that was given, or one drawn from the operating system's randomness. Below 2^53, so that programs
/// that read JSON numbers as doubles can give it back.
pub fn seed(given: Option<u64>) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds its hash maps from the operating system's randomness.
    given.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) >> 11)
}

/// How long the parts of a command took.
#[derive(Default)]
pub struct Times {
    pub opening: Duration,
    pub text: Duration,
    pub image: Duration,
    pub decoding: Duration,
}

impl Times {
    fn of(&mut self, stage: Stage) -> &mut Duration {
        match stage {
            Stage::Text => &mut self.text,
            Stage::Image => &mut self.image,
        }
    }

    pub fn total(&self) -> Duration {
        self.opening + self.text + self.image + self.decoding
    }

    /// In seconds.
    pub fn json(&self) -> Json {
        json!({
            "open_s": self.opening.as_secs_f64(),
            "text_s": self.text.as_secs_f64(),
            "image_s": self.image.as_secs_f64(),
            "decode_s": self.decoding.as_secs_f64(),
            "total_s": self.total().as_secs_f64(),
        })
    }
}

/// The progress that is shown: the canvas of the text stage, then the bar of the image stage.
struct View<'a> {
    output: Output,
    tokenizer: &'a Tokenizer,
    canvas: Option<Canvas>,
    bar: Option<Bar>,
}

impl<'a> View<'a> {
    fn new(output: Output, tokenizer: &'a Tokenizer) -> Self {
        View { output, tokenizer, canvas: None, bar: None }
    }

    fn show(&mut self, generation: &Generation, step: &Step) {
        if !self.output.shows_progress() {
            return;
        }
        match step.stage {
            Stage::Text => {
                let output = &self.output;
                let canvas = self.canvas.get_or_insert_with(|| Canvas::new(output));
                if canvas.is_due() {
                    canvas.draw(&canvas_text(self.tokenizer, generation.canvas()), step.index, step.total);
                }
            }
            Stage::Image => {
                self.canvas = None;
                let output = &self.output;
                self.bar.get_or_insert_with(|| Bar::new(output, "drawing", step.total)).set(step.index as u64);
            }
        }
    }
}

/// The answer as it stands, a shade for every masked position. Neighbouring tokens are decoded together, because
/// a character may take several.
fn canvas_text(tokenizer: &Tokenizer, canvas: &[Slot]) -> String {
    let mut text = String::new();
    for run in canvas.chunk_by(|a, b| matches!((a, b), (Slot::Token(_), Slot::Token(_)))) {
        match run {
            [Slot::Masked] => text.push(SHADE),
            tokens => {
                let ids: Vec<u32> =
                    tokens.iter().filter_map(|s| if let Slot::Token(id) = s { Some(*id) } else { None }).collect();
                text.push_str(&tokenizer.decode(&ids, true));
            }
        }
    }
    text
}
