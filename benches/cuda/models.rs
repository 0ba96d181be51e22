//! Whole models: the first step after a file was opened, steps of texts and pictures, a picture.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use mmada::{Context, ContextOptions, DeviceChoice, DrawFromIds, Model, SequenceRequest, TextOptions};
use mmada_quantize::{Recipe, SynthOptions, synth};

use crate::options::Options;
use crate::timing::{Failures, Outcome, line};

/// A sequence with a picture: the drawing task's prompt, 1024 codes and what frames them.
pub const IMAGE_TOKENS: usize = PROMPT + CODES + 2;
const CODES: usize = 1024;
const PROMPT: usize = 31;
/// Tokens of an answer.
const ANSWER: usize = 64;

/// The model's file, made if it is not there. Few of its rows differ: with others nothing would take another time.
pub fn file(o: &Options, recipe: &str) -> Outcome<PathBuf> {
    let (shape, name) = o.model();
    let file = o.folder.join(format!("{name}-{recipe}.gguf"));
    if !file.exists() {
        let start = Instant::now();
        let options = SynthOptions::new(shape, &file, Recipe::from_name(recipe)?);
        synth(&SynthOptions { distinct_rows: Some(256), ..options }, &mut |_| ())?;
        println!("made {} in {:.1} s", file.display(), start.elapsed().as_secs_f64());
    }
    Ok(file)
}

fn ids(model: &Model, n: usize) -> Vec<u32> {
    (0..n).map(|i| i as u32 * 7 % model.vocabulary().text).collect()
}

fn options(o: &Options) -> ContextOptions {
    ContextOptions { device: DeviceChoice::Cuda(o.device), ..Default::default() }
}

/// How many tokens a text has, of which the last are its answer.
fn lengths(o: &Options) -> (&'static [usize], usize) {
    if o.quick { (&[24], 8) } else { (&[128, 512, 1024], ANSWER) }
}

/// From opening a file in the page cache to the end of the first step: a driver that starts, weights that are copied and
/// unpacked, kernels that are translated where the driver has not kept them from an earlier process.
pub fn first_step(o: &Options, recipe: &str) -> Outcome<()> {
    let file = file(o, recipe)?;
    let (mut opened, mut piece) = (File::open(&file)?, vec![0; 1 << 20]);
    while opened.read(&mut piece)? > 0 {}
    let start = Instant::now();
    let model = Model::open(&file)?;
    let context = Context::new(&model, options(o))?;
    let ready = start.elapsed().as_secs_f64();
    let (lengths, answer) = lengths(o);
    let options = TextOptions { gen_length: answer, block_length: answer, steps: answer, ..Default::default() };
    let mut generation = context.text_from_ids(ids(&model, lengths[0] - answer), options)?;
    generation.step()?;
    let whole = start.elapsed().as_secs_f64();
    let is_anew = std::env::var_os("CUDA_CACHE_DISABLE").is_some_and(|set| set == "1");
    let kernels = if is_anew { "kernels translated anew" } else { "kernels translated before" };
    println!("{:.1} GB; {ready:.2} s until the weights were on the card", file.metadata()?.len() as f64 / 1e9);
    line(&format!("{recipe} first step after opening, {kernels}"), whole, "s");
    Ok(())
}

pub fn steps(o: &Options, recipe: &str, failures: &mut Failures) -> Outcome<()> {
    let model = Model::open(file(o, recipe)?)?;
    let start = Instant::now();
    let context = Context::new(&model, options(o))?;
    line(&format!("{recipe} weights on the card"), start.elapsed().as_secs_f64(), "s");
    if o.wants("steps") {
        for &n in lengths(o).0 {
            failures.note("a text", text(o, &context, recipe, n));
        }
    }
    if o.wants("pictures") {
        failures.note("pictures", pictures(o, &context, recipe));
    }
    Ok(())
}

fn text(o: &Options, context: &Context, recipe: &str, n: usize) -> Outcome<()> {
    /// While three quarters of the answer are masked, whose logits a step computes.
    const STEPS: usize = ANSWER / 4;
    let answer = lengths(o).1;
    let options = TextOptions { gen_length: answer, block_length: answer, steps: answer, ..Default::default() };
    let mut generation = context.text_from_ids(ids(context.model(), n - answer), options)?;
    let mut best = f64::INFINITY;
    for _ in 0..STEPS.min(answer) {
        let start = Instant::now();
        generation.step()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    line(&format!("{recipe} text step of {n} tokens"), 1e3 * best, "ms");
    Ok(())
}

fn pictures(o: &Options, context: &Context, recipe: &str) -> Outcome<()> {
    let (codes, prompt, steps, drawings) = if o.quick { (16, 5, 3, 1) } else { (CODES, PROMPT, 15, 3) };
    let model = context.model();
    let n = prompt + codes + 2;
    let ids = ids(model, n);
    let vocab = model.vocabulary().image_ids();
    let rows: Vec<usize> = (n - codes - 1..n - 1).collect();
    let one = SequenceRequest { ids: &ids, rows: &rows, vocab: vocab.start..vocab.start + 1 };
    let mut pass = f64::INFINITY;
    for _ in 0..if o.quick { 1 } else { 5 } {
        let start = Instant::now();
        context.logits(&[one.clone(), one.clone()])?;
        pass = pass.min(start.elapsed().as_secs_f64());
    }
    line(&format!("{recipe} pass over 2x{n} tokens"), 1e3 * pass, "ms");

    let (_, mut image) = model.draw_options(false);
    (image.steps, image.guidance) = (steps, 3.5);
    let side = codes.isqrt() * model.downsampling().unwrap_or(16);
    let prompt = ids[..prompt].to_vec();
    let request = DrawFromIds { unconditional: prompt.clone(), prompt, width: side, height: side, count: 1, image };
    let (mut step, mut whole) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..drawings {
        let start = Instant::now();
        let mut generation = context.draw_from_ids(request.clone())?;
        for done in 0.. {
            let start = Instant::now();
            let is_last = generation.step()?.done;
            // while nearly all codes are masked, of which each is sampled
            if done < 5 {
                step = step.min(start.elapsed().as_secs_f64());
            }
            if is_last {
                break;
            }
        }
        generation.image(0)?;
        whole = whole.min(start.elapsed().as_secs_f64());
    }
    line(&format!("{recipe} image step of 2x{n} tokens"), 1e3 * step, "ms");
    line(&format!("{recipe} picture of {side}x{side} in {steps} steps with guidance"), whole, "s");
    Ok(())
}
