//! Whole steps of a model of the 8B's shape in Q4_K_M: `cargo bench --bench step`.
//!
//! The model is random (`mmada-quantize synth`), has few of its layers but the whole vocabulary and image tokenizer,
//! and is made once in the target folder. Each step is given per layer and for 32 layers, as GOP/s and as a share of
//! what the dot instruction reaches, measured in the same run (`measure/peak.rs`), and so are the parts of a layer, each
//! alone. Times are the best of several runs: processor time with one thread, wall time with more.
//!
//! ```text
//! cargo bench --bench step -- [--model FILE] [--layers 4] [--type Q4_K_M] [--n 128,512,1024] [--threads 1,0]
//!     [--seconds 2] [--variant avx512] [--prompt]
//! ```
//!
//! `--prompt` prints nothing but, for programs, the seconds of a step that gives the logits of all n tokens, and the
//! variant.

mod measure;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use measure::peak::{Machine, Operands};
use measure::{best, peak_memory};
use mmada::kernels::attention::{Attention, Precision, Scratch};
use mmada::kernels::elementwise::{Rope, Rows};
use mmada::kernels::{Activations, Arithmetic, Bf16Rows, Epilogue, Int8Rows, Kernels, matmul};
use mmada::model::{TensorRef, Transformer};
use mmada::parallel::{Exec, Threads};
use mmada::{Canceller, Context, ContextOptions, ImageOptions, Model, SequenceRequest, TextOptions};
use mmada_quantize::{Recipe, Shape, SynthOptions, synth};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Layers of the released models.
const LAYERS: usize = 32;
/// Positions of a sequence with a picture: the prompt of the drawing task, 1024 codes.
const IMAGE_TOKENS: usize = 1057;
const CODES: usize = 1024;

struct Options {
    model: Option<PathBuf>,
    layers: usize,
    recipe: String,
    n: Vec<usize>,
    threads: Vec<usize>,
    seconds: f64,
    variant: Option<String>,
    prompt: bool,
}

fn numbers(text: &str) -> Outcome<Vec<usize>> {
    text.split(',').map(|v| Ok(v.parse()?)).collect()
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut o = Options {
            model: None,
            layers: 4,
            recipe: "Q4_K_M".into(),
            n: vec![128, 512, 1024],
            threads: vec![1, 0],
            seconds: 2.0,
            variant: None,
            prompt: false,
        };
        let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(name) = args.next() {
            if name == "--prompt" {
                o.prompt = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            match &name[..] {
                "--model" => o.model = Some(value.into()),
                "--layers" => o.layers = value.parse()?,
                "--type" => o.recipe = value,
                "--n" => o.n = numbers(&value)?,
                "--threads" => o.threads = numbers(&value)?,
                "--seconds" => o.seconds = value.parse()?,
                "--variant" => o.variant = Some(value),
                _ => return Err(format!("what is {name}?").into()),
            }
        }
        Ok(o)
    }

    /// The file to run, made where it is not there yet.
    fn file(&self) -> Outcome<PathBuf> {
        if let Some(file) = &self.model {
            return Ok(file.clone());
        }
        let name = format!("8b-{}-layers-{}.gguf", self.layers, self.recipe);
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if !file.exists() {
            eprintln!("making {}", file.display());
            let shape = Shape { layers: self.layers, ..Shape::mmada_8b() };
            synth(&SynthOptions::new(shape, &file, Recipe::from_name(&self.recipe)?), &mut |_| ())?;
        }
        Ok(file)
    }
}

/// Ids of the whole text vocabulary in turn, masks in the second half.
fn ids(model: &Model, n: usize) -> Vec<u32> {
    let v = model.vocabulary();
    (0..n).map(|i| if i < n / 2 { (i as u32 * 7) % v.text } else { v.mask }).collect()
}

/// Seconds of a step, whose logits are looked at.
fn step(context: &Context, batch: &[SequenceRequest], seconds: f64) -> Outcome<f64> {
    let (never, mut done) = (Canceller::default(), Ok(()));
    let mut logits = vec![f32::NAN; batch.iter().map(SequenceRequest::logits).sum()];
    let time = best(context.threads(), seconds, || done = context.logits_into(batch, &mut logits, &never));
    done?;
    match logits.iter().all(|v| v.is_finite()) {
        true => Ok(time),
        false => Err("a logit is not finite".into()),
    }
}

/// A step with all its logits, one with hardly any (the difference is the output matrix), and one with hardly any in
/// every row: those are the layers, the last one whole.
fn report(what: &str, o: &Options, machine: &Machine, context: &Context, batch: &[SequenceRequest]) -> Outcome<()> {
    let every: Vec<Vec<usize>> = batch.iter().map(|s| (0..s.ids.len()).collect()).collect();
    let one = |s: &SequenceRequest| s.vocab.start..s.vocab.start + 1;
    let whole: Vec<SequenceRequest> =
        batch.iter().zip(&every).map(|(s, rows)| SequenceRequest { rows, vocab: one(s), ..*s }).collect();
    let few: Vec<SequenceRequest> = batch.iter().map(|s| SequenceRequest { vocab: one(s), ..*s }).collect();
    let (layers, few) = (step(context, &whole, o.seconds)?, step(context, &few, o.seconds)?);
    let all = step(context, batch, o.seconds)?;
    let config = context.model().config();
    let work: u64 = batch.iter().map(|s| s.ids.len() as u64 * config.multiply_adds_per_token(s.ids.len())).sum();
    let speed = 2e-9 * work as f64 / layers;
    let share = machine.ceiling(context.instruction_set(), Operands::Int8).map_or(String::new(), |r| r.share(speed));
    let layer = layers / config.layers as f64;
    println!(
        "{what:26} {:2} threads  step {:7.1} ms  layer {:8.2} ms  {speed:7.1} GOP/s {share}  output {:7.1} ms  \
         {LAYERS} layers {:7.2} s",
        context.threads(),
        1e3 * all,
        1e3 * layer,
        1e3 * (all - few),
        LAYERS as f64 * layer + all - layers,
    );
    Ok(())
}

/// A step of an answer of 32 tokens, from the sequence to what is committed.
fn sampled(o: &Options, context: &Context, ids: &[u32]) -> Outcome<()> {
    let length = 32.min(ids.len() - 1);
    let options = TextOptions { gen_length: length, block_length: length, steps: length, ..Default::default() };
    let mut done = Ok(0);
    let seconds = best(context.threads(), o.seconds, || {
        let prompt = ids[..ids.len() - length].to_vec();
        let begun = context.text_from_ids(prompt, options.clone());
        done = begun.and_then(|mut answer| Ok(answer.step()?.changed.len()));
    });
    match done? {
        1 => println!("  with the choice of {length} tokens: {:.1} ms", 1e3 * seconds),
        n => return Err(format!("a step committed {n} tokens").into()),
    }
    Ok(())
}

/// The parts of a layer on `n` tokens, each alone, and what they come to: the mean over the layers of the file.
fn parts(o: &Options, machine: &Machine, context: &Context, n: usize) -> Outcome<()> {
    let (model, threads) = (context.model(), Threads::new(context.threads())?);
    let (c, file) = (model.config(), model.bytes());
    let exec = Exec::new(&threads, Kernels::named(context.instruction_set())?, None);
    let layers = Transformer::from_header(model.header())?.weights.layers;
    let floats = |len: usize| -> Vec<f32> { (0..len).map(|i| (i * 7919 % 1009) as f32 / 504.0 - 1.0).collect() };
    let (x, up, mut y) = (floats(n * c.d_ff), floats(n * c.d_ff), vec![0.0; n * c.d_ff]);
    let norm = vec![1.0; c.d_model];
    let (mut int8, mut bf16) = (Int8Rows::default(), Bf16Rows::default());
    let (mut total, mut times) = (0.0, Vec::new());
    let mut add = |name: &'static str, seconds: f64, work: usize| {
        total += seconds;
        times.push((name, seconds, work));
    };

    let (mut products, mut inputs, mut weights) = (0.0, 0.0, 0);
    for layer in &layers {
        let (plain, weight, eps) = (&x[..n * c.d_model], &norm[..], c.rms_eps);
        let normed = Rows::Normed { x: plain, weight, eps };
        let groups: [(&[&TensorRef], Rows); 4] = [
            (&[&layer.q, &layer.k, &layer.v], normed),
            (&[&layer.attn_output], Rows::Plain(plain)),
            (&[&layer.gate, &layer.up], normed),
            (&[&layer.down], Rows::Gated { gate: &x, up: &up }),
        ];
        for (group, rows) in groups {
            let mut made = Vec::new();
            for w in group.iter().map(|w| w.view(file)) {
                let x = &x[..n * w.cols()];
                let arithmetic = exec.kernels.arithmetic(w.dtype(), true);
                let mut make = || match arithmetic {
                    Arithmetic::Int8(scales) => int8.quantize_rows(&exec, rows, w.cols(), scales),
                    Arithmetic::Bf16 => bf16.round_rows(&exec, rows, w.cols()),
                    Arithmetic::F32 => Ok(()),
                };
                make()?;
                if !made.contains(&arithmetic) {
                    made.push(arithmetic);
                    inputs += best(context.threads(), 0.1 * o.seconds, || make().unwrap_or(()));
                }
                let activations = match arithmetic {
                    Arithmetic::Int8(_) => Activations::Int8(&int8),
                    Arithmetic::Bf16 => Activations::Bf16(&bf16),
                    Arithmetic::F32 => Activations::F32 { x, k: w.cols() },
                };
                let mut done = Ok(());
                products += best(context.threads(), 0.1 * o.seconds, || {
                    done = matmul(&exec, &w, activations, &mut y[..n * w.rows()], w.rows(), Epilogue::Store);
                });
                done?;
                weights += w.rows() * w.cols();
            }
        }
    }
    add("products", products / layers.len() as f64, n * weights / layers.len());
    add("norms, SiLU, quantization", inputs / layers.len() as f64, 0);

    let (d, kv) = (n * c.d_model, n * c.kv_dim());
    let rope = Rope::new(n, c.head_dim, c.rope_theta, c.rope_pairs)?;
    let positions: Vec<u32> = (0..n as u32).collect();
    let (mut q, mut k, mut h) = (floats(d), floats(kv), floats(d));
    let rotated = best(context.threads(), o.seconds, || {
        rope.apply(&exec, &mut q, &positions);
        rope.apply(&exec, &mut k, &positions);
    });
    add("rope", rotated, 0);
    let (heads, kv_heads, head_dim) = (c.heads, c.kv_heads, c.head_dim);
    let all = 0..n;
    let shape = Attention { heads, kv_heads, head_dim, sequences: std::slice::from_ref(&all), mask: None };
    let precision = if exec.kernels.prefers_bf16() { Precision::Bf16 } else { Precision::F32 };
    let (mut scratch, mut done) = (Scratch::default(), Ok(()));
    let attended = best(context.threads(), o.seconds, || {
        done = shape.run(&exec, precision, &mut scratch, &q, &k, &x[..kv], &mut h);
    });
    done?;
    add("attention", attended, 2 * n * d);

    println!("the parts of a layer, {n} tokens, {} threads, together {:.2} ms:", context.threads(), 1e3 * total);
    for (name, seconds, work) in times {
        let speed = 2e-9 * work as f64 / seconds;
        let rate = machine.ceiling(context.instruction_set(), Operands::Int8).filter(|_| work > 0);
        let share = rate.map_or(String::new(), |rate| rate.share(speed));
        println!("  {name:26} {:8.2} ms  {:5.1}%  {share}", 1e3 * seconds, 100.0 * seconds / total);
    }
    Ok(())
}

fn run(o: &Options, file: &Path, threads: usize) -> Outcome<()> {
    let start = Instant::now();
    let model = Model::open(file)?;
    let options = ContextOptions { threads, instruction_set: o.variant.clone(), ..Default::default() };
    let context = Context::new(&model, options)?;
    let loaded = start.elapsed();
    let (text, codes) = (model.vocabulary().text, model.vocabulary().image_ids());
    if o.prompt {
        for &n in &o.n {
            let (ids, rows) = (ids(&model, n), (0..n).collect::<Vec<_>>());
            let batch = [SequenceRequest { ids: &ids, rows: &rows, vocab: 0..text }];
            println!("{:.6} {}", step(&context, &batch, o.seconds)?, context.instruction_set());
        }
        return Ok(());
    }

    let machine = Machine::measure(context.threads());
    println!("opening, threads and buffers: {:.1} ms; {}", 1e3 * loaded.as_secs_f64(), context.instruction_set());
    for &n in &o.n {
        let (ids, rows) = (ids(&model, n), (n / 2..n.min(n / 2 + 32)).collect::<Vec<_>>());
        let batch = [SequenceRequest { ids: &ids, rows: &rows, vocab: 0..text }];
        report(&format!("text step, {n} tokens"), o, &machine, &context, &batch)?;
        sampled(o, &context, &ids)?;
        parts(o, &machine, &context, n)?;
    }
    if !model.has_images() {
        return Ok(());
    }
    peak_memory();
    let ids = ids(&model, IMAGE_TOKENS);
    let rows: Vec<usize> = (IMAGE_TOKENS - CODES..IMAGE_TOKENS).collect();
    let sequence = SequenceRequest { ids: &ids, rows: &rows, vocab: codes.clone() };
    let batch = [sequence.clone(), sequence];
    report(&format!("image step, 2 x {IMAGE_TOKENS} tokens"), o, &machine, &context, &batch)?;
    if let Some(peak) = peak_memory() {
        let estimate = model.estimate_draw(IMAGE_TOKENS - CODES - 2, (512, 512), 1, &ImageOptions::default());
        let estimated = estimate.scratch_bytes as f64 / (1u64 << 30) as f64;
        println!("memory of an image step: the file and {peak:.2} GiB (estimated {estimated:.2} GiB)");
    }
    let side = CODES.isqrt();
    let picture: Vec<u32> = (0..CODES as u32).map(|i| (i * 31) % codes.len() as u32).collect();
    let mut decoded = None;
    let seconds = best(context.threads(), o.seconds, || decoded = Some(context.decode_image(&picture, side, side)));
    decoded.transpose()?;
    let work = model.images().map_or(0, |images| images.decode_cost(side, side).multiply_adds);
    let speed = 2e-9 * work as f64 / seconds;
    let share = machine.float_ceiling(context.instruction_set()).map_or(String::new(), |rate| rate.share(speed));
    println!("decoding a picture of {CODES} codes: {seconds:.2} s, {speed:.1} GFLOP/s {share}");
    if let Some(peak) = peak_memory() {
        println!("memory of decoding: the file and {peak:.2} GiB, the buffers of the steps included");
    }
    Ok(())
}

fn main() -> ExitCode {
    let all = || -> Outcome<()> {
        let mut o = Options::parse()?;
        if !std::env::args().any(|a| a == "--bench") {
            // `cargo test --benches`: that it runs
            (o.model, o.prompt, o.n, o.seconds) = (Some("models/mmada-shapes.gguf".into()), true, vec![16], 0.0);
        }
        let file = o.file()?;
        o.threads.iter().try_for_each(|&threads| run(&o, &file, threads))
    };
    match all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("step: {error}");
            ExitCode::FAILURE
        }
    }
}
