//! The kernels against the ceiling of the machine: `cargo bench --bench kernels`.
//!
//! First what the machine can do (`measure/peak.rs`), then every matrix product and attention as GOP/s (two operations
//! per multiply-add) and as a share of the rate of the instruction that the kernel multiplies with. Times are the best
//! of many runs: processor time with one thread, wall time with more. Each product is checked, before it is timed,
//! against one of decoded weights in double precision.
//!
//! ```text
//! cargo bench --bench kernels -- [--all] [--types Q4_K,Q8_0] [--variants avx512] [--paths wide] [--shapes 4096x4096]
//!     [--n 32,512] [--threads 1,0] [--seconds 0.3] [--attention 128x1057] [--quantize] [--pack] [--tsv]
//! ```
//!
//! Without options: the best variant, 4096 x 4096, n = 32, 128 and 512, one thread and all (0). `--all` takes
//! everything. Where products or attention are chosen by their options, only those run. `--quantize` counts the time
//! for quantizing the activations too. `--pack` shows every product with packed weights as well (type and +). `--tsv`
//! prints one line per result for programs, and no peaks. Paths are `blocks` (int8 with the scales of the blocks),
//! `mixed` (the same, activations with one for 256 elements), `wide` (both with one for 256), `bf16` and `f32`; `fast`
//! and `exact` stand for what the library takes by itself.

mod measure;

use std::process::ExitCode;

use measure::best;
use measure::peak::{Machine, Operands, Rate};
use mmada::kernels::attention::{Attention, Precision, Scratch};
use mmada::kernels::{
    Activations, Arithmetic, Bf16Rows, Epilogue, Int8Rows, Kernels, Operand, Packed, Scales, has_int8, matmul,
};
use mmada::parallel::{Exec, Threads};
use mmada::tensor::{GgmlType, Matrix, dequantize, quantize};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const TYPES: &str = "Q8_0,Q4_0,Q4_1,Q5_0,Q5_1,Q4_K,Q5_K,Q6_K,Q3_K,Q2_K,IQ4_NL,IQ4_XS,MXFP4,F32,F16,BF16";
/// Rows x columns. The last is a part of the output matrix: 134656 rows in the model.
const SHAPES: &str = "4096x4096,12288x4096,4096x12288,8192x4096";
/// Head size x positions.
const ATTENTION: &str = "64x1057,128x1057,64x4096,128x4096";
/// The error that is accepted there, relative to the root mean square of the results.
const ATTENTION_BOUND: f64 = 0.01;
/// Rows of weights that differ; further rows repeat them, because quantizing takes long.
const DISTINCT: usize = 512;

struct Options {
    types: Vec<GgmlType>,
    variants: Vec<&'static Kernels>,
    /// none: all
    paths: Vec<String>,
    shapes: Vec<(usize, usize)>,
    n: Vec<usize>,
    threads: Vec<usize>,
    attention: Vec<(usize, usize)>,
    seconds: f64,
    quantize: bool,
    pack: bool,
    tsv: bool,
}

fn pair(text: &str) -> Outcome<(usize, usize)> {
    let (a, b) = text.split_once('x').ok_or_else(|| format!("{text} is not like 4096x4096"))?;
    Ok((a.parse()?, b.parse()?))
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
        let mut flag = |name: &str| {
            let before = args.len();
            args.retain(|a| a != name);
            args.len() < before
        };
        let (all, quantize, tsv) = (flag("--all"), flag("--quantize"), flag("--tsv"));
        let pack = flag("--pack") || all;
        let mut given = std::collections::HashMap::new();
        for option in args.chunks(2) {
            let [name, value] = option else { return Err(format!("{option:?} needs a value").into()) };
            if !KNOWN.contains(&&name[..]) {
                return Err(
                    format!("what is {name}? {KNOWN:?}, each with a value, --all, --quantize, --pack, --tsv").into()
                );
            }
            given.insert(name.clone(), value.clone());
        }
        let paths: Vec<String> = given.get("--paths").map_or(vec![], |v| v.split(',').map(str::to_owned).collect());
        if let Some(unknown) = paths.iter().find(|name| !PATHS.contains(&&name[..])) {
            return Err(format!("no path {unknown} of {PATHS:?}").into());
        }
        let products = ["--types", "--shapes", "--n", "--paths"].iter().any(|o| given.contains_key(*o));
        let attention = given.contains_key("--attention");
        let value = |name: &str, quick: &str, everything: &str| -> Vec<String> {
            let text = given.get(name).map_or(if all { everything } else { quick }, |v| v);
            text.split(',').filter(|v| !v.is_empty()).map(str::to_owned).collect()
        };
        let numbers = |name: &str, quick: &str, everything: &str| -> Outcome<Vec<usize>> {
            value(name, quick, everything).iter().map(|v| Ok(v.parse()?)).collect()
        };
        let available: Vec<&str> = Kernels::available().iter().map(Kernels::name).collect();
        let variants = value("--variants", Kernels::best().name(), &available.join(","));
        let kernels =
            |name: &String| Kernels::by_name(name).ok_or_else(|| format!("no variant {name} of {available:?}").into());
        let dtype = |name: &String| GgmlType::from_name(name).ok_or_else(|| format!("no type {name}").into());
        let (some, heads) = match (products, attention) {
            (true, false) => ("4096x4096", ""),
            (false, true) => ("", ATTENTION),
            _ => ("4096x4096", "64x1057,128x1057"),
        };
        Ok(Options {
            types: value("--types", TYPES, TYPES).iter().map(dtype).collect::<Outcome<_>>()?,
            variants: variants.iter().map(kernels).collect::<Outcome<_>>()?,
            paths,
            shapes: value("--shapes", some, if some.is_empty() { "" } else { SHAPES })
                .iter()
                .map(|s| pair(s))
                .collect::<Outcome<_>>()?,
            n: numbers("--n", "32,128,512", "1,8,32,64,128,512,1057")?,
            threads: numbers("--threads", "1,0", "1,0")?,
            attention: value("--attention", heads, if heads.is_empty() { "" } else { ATTENTION })
                .iter()
                .map(|s| pair(s))
                .collect::<Outcome<_>>()?,
            seconds: given.get("--seconds").map_or(Ok(0.3), |s| s.parse())?,
            quantize,
            pack,
            tsv,
        })
    }
}

const KNOWN: [&str; 8] =
    ["--types", "--variants", "--paths", "--shapes", "--n", "--threads", "--seconds", "--attention"];

const PATHS: [&str; 7] = ["blocks", "mixed", "wide", "bf16", "f32", "fast", "exact"];

/// Random numbers (SplitMix64), normal enough: sums of uniform ones.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0..4).map(|_| self.uniform()).sum::<f32>() * 1.732).collect()
    }
}

/// Blocks of [rows, columns] weights.
fn weights(dtype: GgmlType, rows: usize, columns: usize) -> Outcome<Vec<u8>> {
    let row_bytes = dtype.row_bytes(columns).ok_or_else(|| format!("{dtype} has no rows of {columns} elements"))?;
    let mut x = Random(1).normals(rows.min(DISTINCT) * columns);
    x.iter_mut().for_each(|v| *v *= 0.02);
    let mut blocks = vec![0; rows.min(DISTINCT) * row_bytes];
    quantize(dtype, &x, &mut blocks)?;
    Ok(blocks.iter().copied().cycle().take(rows * row_bytes).collect())
}

/// How a product is computed.
#[derive(Clone, Copy)]
struct Path {
    name: &'static str,
    arithmetic: Arithmetic,
    /// The error that is accepted, relative to the root mean square of the results.
    bound: f64,
}

const F32: Path = Path { name: "f32", arithmetic: Arithmetic::F32, bound: 1e-5 };
const BF16: Path = Path { name: "bf16", arithmetic: Arithmetic::Bf16, bound: 0.005 };
const BLOCKS: Path = Path { name: "blocks", arithmetic: Arithmetic::Int8(Scales::Blocks), bound: 0.01 };
/// Activations with one for 256 elements, which is as much as int8 gives them; weights lose nothing.
const MIXED: Path = Path { name: "mixed", arithmetic: Arithmetic::Int8(Scales::Mixed), bound: 0.01 };
/// One scale for 256 elements: a little more than 1/127 of their peak over the square root of 12, in both operands.
const WIDE: Path = Path { name: "wide", arithmetic: Arithmetic::Int8(Scales::Wide), bound: 0.02 };

impl Path {
    fn operands(&self) -> Operands {
        match self.arithmetic {
            Arithmetic::F32 => Operands::F32,
            Arithmetic::Bf16 => Operands::Bf16,
            Arithmetic::Int8(_) => Operands::Int8,
        }
    }

    /// The variant whose instruction does the multiplying: blocks are too short for tiles.
    fn multiplies(&self, variant: &'static str) -> &'static str {
        match (variant, self.arithmetic) {
            ("amx", Arithmetic::F32 | Arithmetic::Int8(Scales::Blocks | Scales::Mixed)) => "avx512",
            _ => variant,
        }
    }
}

/// The ways that a type goes on an instruction set.
fn paths(dtype: GgmlType, kernels: &Kernels) -> Vec<Path> {
    let mut all = if has_int8(dtype) { vec![BLOCKS, MIXED, WIDE] } else { vec![F32] };
    if kernels.has_bf16() {
        all.push(BF16);
    }
    all
}

/// A matrix product with its operands in every form.
struct Product<'a> {
    exec: Exec<'a>,
    w: Matrix<'a>,
    packed: Option<&'a Packed>,
    path: Path,
    x: &'a [f32],
    int8: Int8Rows,
    bf16: Bf16Rows,
    y: Vec<f32>,
}

impl Product<'_> {
    /// Brings the activations into the path's form.
    fn quantize(&mut self) -> mmada::Result<()> {
        match self.path.arithmetic {
            Arithmetic::F32 => Ok(()),
            Arithmetic::Bf16 => self.bf16.round(&self.exec, self.x, self.w.cols()),
            Arithmetic::Int8(scales) => self.int8.quantize(&self.exec, self.x, self.w.cols(), scales),
        }
    }

    fn multiply(&mut self) -> mmada::Result<()> {
        let x = match self.path.arithmetic {
            Arithmetic::F32 => Activations::F32 { x: self.x, k: self.w.cols() },
            Arithmetic::Bf16 => Activations::Bf16(&self.bf16),
            Arithmetic::Int8(_) => Activations::Int8(&self.int8),
        };
        let w = self.packed.map_or_else(|| Operand::from(&self.w), |packed| Operand::with_packed(self.w, packed));
        matmul(&self.exec, w, x, &mut self.y, self.w.rows(), Epilogue::Store)
    }

    /// The error of some results (rows and columns spread over all, the last ones included), relative to the root mean
    /// square of the right ones.
    fn error(&self) -> Outcome<f64> {
        let (rows, k) = (self.w.rows(), self.w.cols());
        let n = self.y.len() / rows;
        let (mut wrong, mut all) = (0.0, 0.0);
        let mut row = vec![0.0; k];
        for i in (0..rows).rev().step_by(rows.div_ceil(24)) {
            dequantize(self.w.dtype(), self.w.row(i), &mut row)?;
            for j in (0..n).rev().step_by(n.div_ceil(9)) {
                let x = &self.x[j * k..][..k];
                let right: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                wrong += (f64::from(self.y[j * rows + i]) - right).powi(2);
                all += right.powi(2);
            }
        }
        Ok((wrong / all).sqrt())
    }
}

/// One line of results.
struct Line {
    what: String,
    variant: &'static str,
    path: &'static str,
    shape: String,
    n: usize,
    threads: usize,
    /// in GOP/s
    speed: f64,
    /// the rate that it is a share of
    ceiling: Option<Rate>,
    /// GB/s of weights, where there are few columns, and the share of what the memory gives
    read: Option<(f64, f64)>,
    error: f64,
}

impl Line {
    fn print(&self, tsv: bool) {
        let Line { what, variant, path, shape, n, threads, speed, error, .. } = self;
        if tsv {
            return println!("{what}\t{variant}\t{path}\t{shape}\t{n}\t{threads}\t{speed:.1}\t{error:.6}");
        }
        let share = self.ceiling.map_or(String::new(), |rate| rate.share(*speed));
        let read = self.read.map_or(String::new(), |(rate, all)| {
            format!("   weights {rate:.1} GB/s, {:.0}% of reading", 100.0 * rate / all)
        });
        println!("{what:7} {variant:8} {path:6} {shape:>11} {n:5} {threads:2}  {speed:8.1} GOP/s  {share}{read}");
    }
}

/// What is the same for all cases of one number of threads.
struct Bench<'a> {
    options: &'a Options,
    pool: &'a Threads,
    machine: Machine,
}

impl Bench<'_> {
    /// All variants, paths and numbers of columns for one matrix.
    fn products(&self, dtype: GgmlType, (rows, k): (usize, usize)) -> Outcome<()> {
        let o = self.options;
        let blocks = weights(dtype, rows, k)?;
        let w = Matrix::new(dtype, rows, k, &blocks).ok_or("blocks do not fill the matrix")?;
        let x = Random(2).normals(o.n.iter().max().unwrap_or(&0) * k);
        for kernels in &o.variants {
            let is = |p: &Path, fast| kernels.arithmetic(dtype, fast) == p.arithmetic;
            let named = |p: &Path, name: &str| match name {
                "fast" => is(p, true),
                "exact" => is(p, false),
                _ => name == p.name,
            };
            let wanted = |p: &Path| o.paths.is_empty() || o.paths.iter().any(|name| named(p, name));
            for path in paths(dtype, kernels).into_iter().filter(wanted) {
                let exec = Exec::new(self.pool, kernels, None);
                let panels = if o.pack { Packed::new(&exec, &w, path.arithmetic)? } else { None };
                let ways = [Some(None), panels.as_ref().map(Some)];
                for (&n, packed) in o.n.iter().flat_map(|n| ways.into_iter().flatten().map(move |way| (n, way))) {
                    let (int8, bf16) = (Int8Rows::default(), Bf16Rows::default());
                    let (x, y) = (&x[..n * k], vec![f32::NAN; n * rows]);
                    let product = Product { exec, w, packed, path, x, int8, bf16, y };
                    self.product(product).map_err(|e| format!("{dtype} {}, n = {n}: {e}", kernels.name()))?;
                }
            }
        }
        Ok(())
    }

    /// Checks, times and prints one product.
    fn product(&self, mut product: Product) -> Outcome<()> {
        let (w, path, variant) = (product.w, product.path, product.exec.kernels.name());
        let n = product.y.len() / w.rows();
        product.quantize()?;
        product.multiply()?;
        let error = accepted(product.error()?, path.bound)?;
        let mut done = Ok(());
        let seconds = best(self.pool.count(), self.options.seconds, || {
            let quantized = if self.options.quantize { product.quantize() } else { Ok(()) };
            done = quantized.and_then(|()| product.multiply());
        });
        done?;
        let line = Line {
            what: format!("{}{}", w.dtype(), if product.packed.is_some() { "+" } else { "" }),
            variant,
            path: path.name,
            shape: format!("{}x{}", w.rows(), w.cols()),
            n,
            threads: self.pool.count(),
            speed: 2e-9 * (w.rows() * w.cols() * n) as f64 / seconds,
            ceiling: self.machine.ceiling(path.multiplies(variant), path.operands()),
            read: (n <= 8).then(|| (1e-9 * w.data().len() as f64 / seconds, self.machine.bandwidth)),
            error,
        };
        line.print(self.options.tsv);
        Ok(())
    }

    /// All variants for heads of `dim` and sequences of `n`.
    fn attention(&self, (dim, n): (usize, usize)) -> Outcome<()> {
        let heads = 4096 / dim; // rows as long as the model's
        let mut random = Random(3);
        let [q, k, v] = [(); 3].map(|()| random.normals(n * heads * dim));
        let mut out = vec![f32::NAN; n * heads * dim];
        for kernels in &self.options.variants {
            let (exec, variant) = (Exec::new(self.pool, kernels, None), kernels.name());
            let all = 0..n;
            let sequences = std::slice::from_ref(&all);
            let shape = Attention { heads, kv_heads: heads, head_dim: dim, sequences, mask: None };
            let precision = if kernels.prefers_bf16() { Precision::Bf16 } else { Precision::F32 };
            let mut scratch = Scratch::default();
            shape.run(&exec, precision, &mut scratch, &q, &k, &v, &mut out)?;
            let error = accepted(attention_error(heads, dim, n, [&q, &k, &v, &out]), ATTENTION_BOUND)
                .map_err(|e| format!("attention of {variant}, heads of {dim}, {n} positions: {e}"))?;
            let mut done = Ok(());
            let seconds = best(self.pool.count(), self.options.seconds, || {
                done = shape.run(&exec, precision, &mut scratch, &q, &k, &v, &mut out);
            });
            done?;
            let line = Line {
                what: "attn".into(),
                variant,
                path: "",
                shape: format!("{heads} x {dim}"),
                n,
                threads: self.pool.count(),
                // n^2 products of rows for the scores, and as many for the sums of values
                speed: 4e-9 * (n * n * heads * dim) as f64 / seconds,
                ceiling: self.machine.float_ceiling(variant),
                read: None,
                error,
            };
            line.print(self.options.tsv);
        }
        Ok(())
    }
}

/// An error that is below its bound.
fn accepted(error: f64, bound: f64) -> Outcome<f64> {
    match error <= bound {
        true => Ok(error),
        false => Err(format!("the result's error is {error:.2e}, above {bound:.1e}").into()), // or NaN
    }
}

/// The error of some outputs of one head, relative to the root mean square of the right ones.
fn attention_error(heads: usize, dim: usize, n: usize, [q, k, v, out]: [&[f32]; 4]) -> f64 {
    let (mut wrong, mut all) = (0.0, 0.0);
    for (query, head) in [(0, heads - 1), (n / 2, 0), (n - 1, heads / 2)] {
        let at = |row: usize| (row * heads + head) * dim..(row * heads + head + 1) * dim;
        let score = |key: usize| -> f64 {
            q[at(query)].iter().zip(&k[at(key)]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                / (dim as f64).sqrt()
        };
        let scores: Vec<f64> = (0..n).map(|key| score(key).exp()).collect();
        let total: f64 = scores.iter().sum();
        for c in 0..dim {
            let right = scores.iter().enumerate().map(|(key, s)| s * f64::from(v[at(key)][c])).sum::<f64>() / total;
            wrong += (f64::from(out[at(query)][c]) - right).powi(2);
            all += right.powi(2);
        }
    }
    (wrong / all).sqrt()
}

fn run() -> Outcome<()> {
    let mut o = Options::parse()?;
    if !std::env::args().any(|a| a == "--bench") {
        // `cargo test --benches`: everything is checked once on small shapes, and no time is taken
        o.variants = Kernels::available().iter().collect();
        (o.shapes, o.n, o.attention) = (vec![(80, 512)], vec![1, 19], vec![(64, 33), (128, 33)]);
        (o.seconds, o.tsv) = (0.0, true);
    }
    for &count in &o.threads {
        let pool = Threads::new(count)?;
        let machine = if o.tsv { Machine::default() } else { Machine::measure(pool.count()) };
        let bench = Bench { options: &o, pool: &pool, machine };
        for &shape in &o.shapes {
            o.types.iter().try_for_each(|&dtype| bench.products(dtype, shape))?;
        }
        o.attention.iter().try_for_each(|&shape| bench.attention(shape))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernels: {error}");
            ExitCode::FAILURE
        }
    }
}
