//! The image tokenizer of the 8B's shape: `cargo bench --bench vq`.
//!
//! Random weights (`mmada-quantize synth`, made once in the target folder), a picture of noise of 512 x 512 pixels.
//! Seconds of decoding and encoding, as GFLOP/s of the network's products and as a share of what the float instruction
//! reaches in the same run (`measure/peak.rs`); the most memory meanwhile; and what the fast products change: how many
//! codes differ from those of exact ones, how far the pictures lie apart.
//!
//! ```text
//! cargo bench --bench vq -- [--type F16] [--threads 1,0] [--seconds 4] [--variant amx] [--side 512] [--exact]
//! ```

mod measure;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use measure::peak::Machine;
use measure::{best, peak_memory};
use mmada::kernels::Kernels;
use mmada::parallel::{Exec, Threads};
use mmada::{Model, vq::ImageTokenizer};
use mmada_quantize::{Recipe, Shape, SynthOptions, synth};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Options {
    recipe: String,
    threads: Vec<usize>,
    seconds: f64,
    variant: Option<String>,
    side: usize,
    exact: bool,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let (recipe, threads) = ("F16".into(), vec![1, 0]);
        let mut o = Options { recipe, threads, seconds: 4.0, variant: None, side: 512, exact: false };
        let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(name) = args.next() {
            if name == "--exact" {
                o.exact = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            match &name[..] {
                "--type" => o.recipe = value,
                "--threads" => o.threads = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--seconds" => o.seconds = value.parse()?,
                "--variant" => o.variant = Some(value),
                "--side" => o.side = value.parse()?,
                _ => return Err(format!("what is {name}?").into()),
            }
        }
        Ok(o)
    }
}

/// The file to run: the 8B's image tokenizer beside next to no text model.
fn file(recipe: &str) -> Outcome<PathBuf> {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("8b-vq-{recipe}.gguf"));
    if !file.exists() {
        eprintln!("making {}", file.display());
        let (text, large) = (Shape::tiny(), Shape::mmada_8b());
        let vocab = text.vocab + large.codes;
        let shape = Shape { vocab, codes: large.codes, tokens: large.tokens, vq: large.vq, ..text };
        synth(&SynthOptions::new(shape, &file, Recipe::from_name(recipe)?), &mut |_| ())?;
    }
    Ok(file)
}

/// Smooth shapes with some noise, [side, side, 3] in [-1, 1].
fn picture(side: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    let wave = |v: usize, n: f32| (v as f32 / side as f32 * n).sin();
    let at = |i: usize| (i / 3 / side, i / 3 % side, i % 3);
    (0..side * side * 3)
        .map(at)
        .map(|(y, x, c)| 0.7 * wave(y, 9.0 + c as f32) * wave(x, 14.0 - c as f32) + 0.3 * noise())
        .collect()
}

struct Run<'a> {
    images: &'a ImageTokenizer,
    bytes: &'a [u8],
    exec: Exec<'a>,
    o: &'a Options,
    machine: &'a Machine,
}

impl Run<'_> {
    fn report(&self, what: &str, multiply_adds: u64, fast: bool, mut work: impl FnMut()) {
        peak_memory();
        let threads = self.exec.threads.count();
        let seconds = best(threads, self.o.seconds, &mut work);
        let speed = 2e-9 * multiply_adds as f64 / seconds;
        let rate = self.machine.float_ceiling(self.exec.kernels.name());
        let share = rate.map_or(String::new(), |rate| rate.share(speed));
        let memory = peak_memory().map_or(String::new(), |gib| format!(", {:.0} MB", gib * 1_073.741_824));
        let kind = if fast { "fast" } else { "exact" };
        println!("{what} {kind:5} {threads:2} threads  {seconds:7.3} s  {speed:7.1} GFLOP/s {share}{memory}");
    }

    fn run(&self) -> Outcome<()> {
        let Run { images, bytes, ref exec, o, .. } = *self;
        let pixels = picture(o.side);
        let side = o.side / images.config().downsampling();
        let (decode, encode) = (images.decode_cost(side, side), images.encode_cost(side, side));
        let encoded = |fast| images.encode_latent(exec, bytes, &pixels, o.side, o.side, fast);
        let exact = if o.exact { Some(encoded(false)?) } else { None };
        let codes = encoded(true)?;
        let decoded = |fast| images.decode_float(exec, bytes, &codes.codes, side, side, fast);
        for fast in if o.exact { &[true, false][..] } else { &[true] } {
            self.report("decode", decode.multiply_adds, *fast, || drop(decoded(*fast)));
            self.report("encode", encode.multiply_adds, *fast, || drop(encoded(*fast)));
        }
        if let Some(exact) = exact {
            let differ = exact.codes.iter().zip(&codes.codes).filter(|(a, b)| a != b).count();
            let (a, b) = (decoded(true)?, decoded(false)?);
            let square: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / a.len() as f64;
            let size: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>() / b.len() as f64;
            println!(
                "codes that differ: {differ} of {}; pictures differ by {:.2e} of their size",
                exact.codes.len(),
                (square / size).sqrt()
            );
        }
        let megabytes = |cost: mmada::vq::Cost| cost.scratch_bytes(exec.threads.count()) as f64 / 1e6;
        println!("estimated memory: decode {:.0} MB, encode {:.0} MB", megabytes(decode), megabytes(encode));
        Ok(())
    }
}

fn main() -> ExitCode {
    let all = || -> Outcome<()> {
        let mut o = Options::parse()?;
        let mut path = PathBuf::from("models/mmada-shapes.gguf");
        if std::env::args().any(|a| a == "--bench") {
            path = file(&o.recipe)?;
        } else {
            // `cargo test --benches`: that it runs
            (o.threads, o.seconds, o.side) = (vec![2], 0.0, 64);
        }
        let model = Model::open(&path)?;
        let images = model.images().ok_or("the model has no image tokenizer")?;
        let kernels = o.variant.as_deref().map_or(Ok(Kernels::best()), Kernels::named)?;
        for &threads in &o.threads {
            let threads = Threads::new(threads)?;
            let machine = Machine::measure(threads.count());
            let exec = Exec::new(&threads, kernels, None);
            Run { images, bytes: model.bytes(), exec, o: &o, machine: &machine }.run()?;
        }
        Ok(())
    };
    match all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vq: {error}");
            ExitCode::FAILURE
        }
    }
}
