//! Runs the evaluation's tasks on a model through the public API, and counts what is right.
//!
//! Every task has its own seed, made of its place in the list, so that its result depends on nothing but the model:
//! two files can be compared task by task. A drawing depends on its random numbers; drawing each scene several times
//! makes its share of right ones more certain.

use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use image::RgbImage;
use mmada::{Context, ContextOptions, DrawRequest, Generation, Message, Model, Role, TextRequest};
use serde::Deserialize;

use super::judge::Judge;
use super::world::{SIDE, Scene, tile};

/// Why an evaluation could not be run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The evaluation: 200 tasks of each kind.
#[derive(Deserialize)]
pub struct Tasks {
    pub draw: Vec<DrawTask>,
    pub see: Vec<SeeTask>,
    pub text: Vec<TextTask>,
    pub reason: Vec<ReasonTask>,
    #[serde(skip)]
    pub pictures: Vec<RgbImage>,
}

/// Draw the scene that the prompt describes in full.
#[derive(Deserialize)]
pub struct DrawTask {
    pub prompt: String,
    pub scene: Scene,
}

/// Answer a question about a picture.
#[derive(Deserialize)]
pub struct SeeTask {
    pub tile: usize,
    pub question: String,
    pub answer: String,
}

/// Answer a question.
#[derive(Deserialize)]
pub struct TextTask {
    pub question: String,
    pub answer: String,
}

/// Describe in full what a loose request asks for, then draw it.
#[derive(Deserialize)]
pub struct ReasonTask {
    pub request: String,
}

impl Tasks {
    /// Reads `eval.json` and cuts up `eval_images.png`.
    pub fn load(folder: &Path) -> Result<Tasks, Failure> {
        let mut tasks: Tasks = serde_json::from_str(&std::fs::read_to_string(folder.join("eval.json"))?)?;
        let sheet = image::open(folder.join("eval_images.png"))?.to_rgb8();
        tasks.pictures =
            tasks.see.iter().map(|task| tile(&sheet, task.tile)).collect::<Option<_>>().ok_or("a tile is missing")?;
        Ok(tasks)
    }
}

/// What is measured. One run of the model can serve two measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    Drawing,
    DrawingAttributes,
    ReasonedDrawing,
    Description,
    ImageQuestion { thinking: bool },
    Text { thinking: bool },
}

impl Measure {
    pub fn name(self) -> &'static str {
        match self {
            Measure::Drawing => "drawing, all right",
            Measure::DrawingAttributes => "drawing, share of attributes right",
            Measure::ReasonedDrawing => "reasoned drawing",
            Measure::Description => "its description alone",
            Measure::ImageQuestion { thinking: false } => "image question",
            Measure::ImageQuestion { thinking: true } => "image question, thinking",
            Measure::Text { thinking: false } => "text",
            Measure::Text { thinking: true } => "text, thinking",
        }
    }

    /// What the published implementation reaches in f32 on the demo model's unquantized weights.
    pub fn reference(self) -> f64 {
        match self {
            Measure::Drawing => 0.685,
            Measure::DrawingAttributes => 0.919,
            Measure::ReasonedDrawing => 0.650,
            Measure::Description => 0.900,
            Measure::ImageQuestion { thinking: false } => 0.450,
            Measure::ImageQuestion { thinking: true } => 0.485,
            Measure::Text { thinking: false } => 0.730,
            Measure::Text { thinking: true } => 0.615,
        }
    }
}

/// What one measure found.
pub struct Score {
    pub measure: Measure,
    /// How the model was asked, in words.
    pub settings: String,
    /// Per task: 1 right, 0 wrong, or the share that is right.
    pub tasks: Vec<f64>,
    /// How long the run took; nothing for a measure that shares the run of the one before it.
    pub wall: Option<Duration>,
}

impl Score {
    /// The share of tasks done right.
    pub fn mean(&self) -> f64 {
        self.tasks.iter().sum::<f64>() / self.tasks.len() as f64
    }

    /// Standard error of the difference of this mean and another's on the same tasks.
    pub fn paired_error(&self, other: &Score) -> f64 {
        let n = self.tasks.len() as f64;
        let mean = self.mean() - other.mean();
        let squares: f64 = self.tasks.iter().zip(&other.tasks).map(|(a, b)| (a - b - mean).powi(2)).sum();
        (squares / n / n).sqrt()
    }
}

/// Runs every task on the model (only those that draw, if `only_drawings`), with the settings that its file names; each
/// scene is drawn `drawings` times. `report` is told every score as it comes.
pub fn evaluate(
    model: &Model,
    tasks: &Tasks,
    judge: &Judge,
    drawings: usize,
    only_drawings: bool,
    mut report: impl FnMut(&Score),
) -> Result<Vec<Score>, Failure> {
    let runs: [&dyn Fn() -> Result<Vec<Score>, Failure>; 6] = [
        &|| draw(model, tasks, judge, drawings),
        &|| reason(model, tasks, judge, drawings),
        &|| see(model, tasks, false),
        &|| see(model, tasks, true),
        &|| text(model, tasks, false),
        &|| text(model, tasks, true),
    ];
    let mut scores = Vec::new();
    let runs = if only_drawings { &runs[..2] } else { &runs[..] };
    for run in runs {
        let found = run()?;
        found.iter().for_each(&mut report);
        scores.extend(found);
    }
    Ok(scores)
}

fn draw(model: &Model, tasks: &Tasks, judge: &Judge, drawings: usize) -> Result<Vec<Score>, Failure> {
    let (_, image) = model.draw_options(false);
    let settings = format!("{} steps, guidance {}, temperature {}", image.steps, image.guidance, image.temperature);
    let (verdicts, wall) = in_parallel(model, &tasks.draw, |context, seed, task| {
        let generation = finish(context.draw(draw_request(model, &task.prompt, false, seed, drawings))?)?;
        judged(&generation, judge, &task.scene)
    })?;
    let (right, shares) = verdicts.into_iter().unzip();
    Ok(vec![
        Score { measure: Measure::Drawing, settings, tasks: right, wall: Some(wall) },
        Score { measure: Measure::DrawingAttributes, settings: String::new(), tasks: shares, wall: None },
    ])
}

fn reason(model: &Model, tasks: &Tasks, judge: &Judge, drawings: usize) -> Result<Vec<Score>, Failure> {
    let (text, _) = model.draw_options(true);
    let settings = format!("description {} tokens in {} steps, then as drawing", text.gen_length, text.steps);
    let (found, wall) = in_parallel(model, &tasks.reason, |context, seed, task| {
        let generation = finish(context.draw(draw_request(model, &task.request, true, seed, drawings))?)?;
        let scene = generation.description()?.as_deref().and_then(Scene::parse).filter(|s| s.fits(&task.request));
        let drawn = match &scene {
            Some(scene) => judged(&generation, judge, scene)?.0,
            None => 0.0,
        };
        Ok((drawn, f64::from(scene.is_some())))
    })?;
    let (drawn, described) = found.into_iter().unzip();
    Ok(vec![
        Score { measure: Measure::ReasonedDrawing, settings, tasks: drawn, wall: Some(wall) },
        Score { measure: Measure::Description, settings: String::new(), tasks: described, wall: None },
    ])
}

fn see(model: &Model, tasks: &Tasks, thinking: bool) -> Result<Vec<Score>, Failure> {
    let pairs: Vec<_> = tasks.see.iter().zip(&tasks.pictures).collect();
    let (right, wall) = in_parallel(model, &pairs, |context, seed, (task, picture)| {
        answers(model, context, seed, &task.question, Some(picture), thinking, &task.answer)
    })?;
    let settings = text_settings(model, thinking, true);
    Ok(vec![Score { measure: Measure::ImageQuestion { thinking }, settings, tasks: right, wall: Some(wall) }])
}

fn text(model: &Model, tasks: &Tasks, thinking: bool) -> Result<Vec<Score>, Failure> {
    let (right, wall) = in_parallel(model, &tasks.text, |context, seed, task| {
        answers(model, context, seed, &task.question, None, thinking, &task.answer)
    })?;
    let settings = text_settings(model, thinking, false);
    Ok(vec![Score { measure: Measure::Text { thinking }, settings, tasks: right, wall: Some(wall) }])
}

/// 1 when the model's answer, without its thoughts and the white space around it, is the expected one.
fn answers(
    model: &Model,
    context: &Context,
    seed: u64,
    question: &str,
    picture: Option<&RgbImage>,
    thinking: bool,
    expected: &str,
) -> Result<f64, Failure> {
    let mut options = model.text_options(thinking, picture.is_some());
    options.seed = seed;
    let messages = vec![Message { role: Role::User, content: question.to_owned() }];
    let request = TextRequest { messages, image: picture.cloned(), squash: false, thinking, options };
    let raw = finish(context.text(request)?)?.text()?.raw;
    let answer = raw.rsplit("</think>").next().unwrap_or_default().trim();
    Ok(f64::from(answer == expected))
}

fn draw_request(model: &Model, prompt: &str, think: bool, seed: u64, count: usize) -> DrawRequest {
    let (mut text, mut image) = model.draw_options(think);
    text.seed = seed;
    image.seed = seed * count as u64; // picture i has this seed plus i
    DrawRequest { prompt: prompt.to_owned(), think, width: SIDE, height: SIDE, count, text, image }
}

/// Over all pictures of a generation: the share that is all right, and the share of attributes that are.
fn judged(generation: &Generation, judge: &Judge, scene: &Scene) -> Result<(f64, f64), Failure> {
    let (mut right, mut share) = (0.0, 0.0);
    let count = generation.pictures();
    for index in 0..count {
        let verdict = judge.score(&generation.image(index)?, scene);
        right += f64::from(verdict.all_right);
        share += verdict.share;
    }
    Ok((right / count as f64, share / count as f64))
}

fn text_settings(model: &Model, thinking: bool, image: bool) -> String {
    let options = model.text_options(thinking, image);
    let blocks = match options.gen_length / options.block_length {
        1 => "one block".to_owned(),
        blocks => format!("{blocks} blocks"),
    };
    let (length, steps, temperature) = (options.gen_length, options.steps, options.temperature);
    format!("{length} tokens, {steps} steps, {blocks}, temperature {temperature}")
}

/// Steps a generation to its end.
fn finish(mut generation: Generation) -> Result<Generation, Failure> {
    while !generation.is_done() {
        generation.step()?;
    }
    Ok(generation)
}

/// Runs `work` on every task and returns the results in the order of the tasks, and how long it took. The model is
/// too small for several threads to share a forward: each processor has a context of one thread and takes the
/// next task when it is done with one.
fn in_parallel<T: Sync, R: Send>(
    model: &Model,
    tasks: &[T],
    work: impl Fn(&Context, u64, &T) -> Result<R, Failure> + Sync,
) -> Result<(Vec<R>, Duration), Failure> {
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<(usize, R)>, Failure> {
        let context = Context::new(model, ContextOptions { threads: 1, ..Default::default() })?;
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = tasks.get(index) else { return Ok(done) };
            done.push((index, work(&context, index as u64, task)?));
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get()).min(tasks.len());
    let mut results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(worker)).collect();
        let mut results = Vec::with_capacity(tasks.len());
        for worker in workers {
            results.extend(worker.join().map_err(|_| "a worker panicked")??);
        }
        Ok::<_, Failure>(results)
    })?;
    results.sort_by_key(|&(index, _)| index);
    Ok((results.into_iter().map(|(_, result)| result).collect(), start.elapsed()))
}

/// The scores of one or more files in markdown, a column each; all have the same measures.
pub fn table(columns: &[(String, Vec<Score>)]) -> String {
    let mut table = String::from("| task | settings | reference |");
    for (name, _) in columns {
        let _ = write!(table, " {name} |");
    }
    let _ = writeln!(table, "\n|---|---|---|{}", "---|".repeat(columns.len()));
    let rows = columns.first().map_or(&[][..], |(_, scores)| scores);
    for (row, score) in rows.iter().enumerate() {
        let _ = write!(
            table,
            "| {} | {} | {:.1}% |",
            score.measure.name(),
            score.settings,
            100.0 * score.measure.reference()
        );
        for (_, scores) in columns {
            let seconds = scores[row].wall.map_or(String::new(), |wall| format!(" ({:.1} s)", wall.as_secs_f64()));
            let _ = write!(table, " {:.1}%{seconds} |", 100.0 * scores[row].mean());
        }
        table.push('\n');
    }
    table
}
