//! Importance matrices of the sampler's own states: which columns of a matrix its inputs are large in, so that
//! quantizing can spend its error where little is multiplied with it.
//!
//! The error that a rounded matrix adds to a product is, to first order and for columns that vary independently, the sum
//! over the columns of squared rounding error times mean squared input. That mean is what is measured, for every matrix
//! of the backbone, over the rows (positions) of the states that [`crate::states`] makes.
//!
//! Rows are not equally important. At the positions whose logits the sampler looks at, an error reaches the choice of a
//! token directly; what goes wrong at others (the prompt, known tokens, masks whose turn has not come) reaches it through
//! attention only. So the former count `masked_weight` times. In the last layer nothing but keys and values of the others
//! is used at all: for all other matrices of that layer they count nothing, as for the output head, which they never
//! meet.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mmada::gguf::{GgmlType, MetaArray, MetaValue, TensorSpec, Writer};
use mmada::model::{Compute, MatrixInput};
use mmada::parallel::try_vec;
use mmada::{Context, ContextOptions, Error, Model, Result};
use rayon::prelude::*;

use crate::disk::keep_inputs;
use crate::imatrix::{COUNTS, OWN_KEY_PREFIX, SUMS};
use crate::input::Input;
use crate::report::Progress;
use crate::states::{Sample, State, StateOptions, Task, cancelled_by, own_samples, read_samples, sample_states};

/// Of the keys and what they mean.
const VERSION: u32 = 1;

/// What to measure, and on what.
#[derive(Clone, Debug)]
pub struct ImatrixOptions {
    /// A model file, or any part of a split one.
    pub model: PathBuf,
    /// Data files ([`read_samples`]); with none, the model's own answers and pictures.
    pub data: Vec<PathBuf>,
    /// The file to write.
    pub output: PathBuf,
    /// States of every sample.
    pub states: usize,
    /// How much the positions count whose logits the sampler looks at, where all others count 1.
    pub masked_weight: f32,
    /// The same seed gives the same file.
    pub seed: u64,
    /// 0 means one per core. The result does not depend on it.
    pub threads: usize,
    /// Set it to stop; nothing is written then.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl ImatrixOptions {
    pub const DEFAULT_STATES: usize = 4;
    /// Measured on the demo model: between 1 and 4 nothing changes beyond chance (benches/NOTES.md).
    pub const DEFAULT_MASKED_WEIGHT: f32 = 2.0;

    /// Everything else at its default.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        ImatrixOptions {
            model: model.into(),
            data: Vec::new(),
            output: output.into(),
            states: Self::DEFAULT_STATES,
            masked_weight: Self::DEFAULT_MASKED_WEIGHT,
            seed: 0,
            threads: 0,
            cancel: None,
        }
    }
}

/// What was measured. Displayed as a line.
#[derive(Clone, Debug)]
pub struct ImatrixReport {
    pub file: PathBuf,
    /// Matrices that something is known of.
    pub matrices: usize,
    /// States by task.
    pub states: BTreeMap<Task, u32>,
    /// Positions of all sequences that the network was run on for them.
    pub tokens: u64,
    /// As many of them count `masked_weight`.
    pub masked: u64,
    pub seconds: Duration,
}

impl fmt::Display for ImatrixReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: u32 = self.states.values().sum();
        let tasks: Vec<String> = self.states.iter().map(|(task, n)| format!("{n} {}", task.name())).collect();
        let (file, matrices, tokens, masked) = (self.file.display(), self.matrices, self.tokens, self.masked);
        let (tasks, seconds) = (tasks.join(", "), self.seconds.as_secs_f64());
        write!(f, "{file}: {matrices} matrices, {states} states ({tasks}), ")?;
        write!(f, "{tokens} positions of which {masked} masked, {seconds:.1} s")
    }
}

/// Measures the importance of the columns of a model's matrices and writes it as a GGUF file of llama.cpp's layout
/// (its `tools/imatrix`): for every matrix NAME the weighted sums of squared inputs, `NAME.in_sum2`, and the sum of the
/// weights, `NAME.counts`.
///
/// # Errors
/// One sentence that names the file, line or option at fault; nothing is left behind then. `Cancelled` after
/// `options.cancel` was set.
pub fn imatrix(options: &ImatrixOptions, progress: &mut dyn FnMut(Progress)) -> Result<ImatrixReport> {
    let started = Instant::now();
    let weight = options.masked_weight;
    if !(weight > 0.0 && weight.is_finite()) {
        return Err(Error::invalid(format!("the weight of masked positions is {weight}, it must be above 0")));
    }
    let input = Input::open(&options.model)?;
    let model = Model::open(&options.model)?;
    let samples = if options.data.is_empty() { own_samples(&model) } else { read_samples(&options.data)? };
    let pictures = samples.iter().filter_map(Sample::picture_file);
    keep_inputs(&options.output, input.paths().chain(options.data.iter().map(PathBuf::as_path)).chain(pictures))?;
    // Whether it can be written at all should be known before the work.
    drop(Writer::create(&options.output, &[], &[])?);
    note_quantized(&input, progress);

    let context_options =
        ContextOptions { threads: options.threads, compute: Compute::Exact, ..ContextOptions::default() };
    let context = cancelled_by(Context::new(&model, context_options)?, &options.cancel);
    let of_states = StateOptions { per_sample: options.states, seed: options.seed, cancel: options.cancel.clone() };
    let mut sums = Collector::new(model.config().layers, weight);
    let mut states = BTreeMap::new();
    let step = |done| Progress::Steps { what: "samples", done, total: samples.len() };
    for (index, sample) in samples.iter().enumerate() {
        progress(step(index));
        for state in sample_states(&context, sample, index, &of_states)? {
            of_states.check()?;
            sums.add(&context, &state)?;
            *states.entry(state.task).or_insert(0u32) += 1;
        }
    }
    progress(step(samples.len()));
    sums.check(&options.model)?;
    let metadata = metadata(options, &states, &sums);
    let matrices =
        sums.write(&options.output, &metadata, input.header.tensors.iter().map(|info| info.name.as_str()))?;
    let (tokens, masked) = (sums.tokens, sums.masked);
    Ok(ImatrixReport { file: options.output.clone(), matrices, states, tokens, masked, seconds: started.elapsed() })
}

fn note_quantized(input: &Input, progress: &mut dyn FnMut(Progress)) {
    let block = |(name, dtype): &(&str, GgmlType)| name.starts_with("blk.") && !dtype.is_float();
    if let Some((name, dtype)) = input.header.tensors.iter().map(|info| (info.name.as_str(), info.dtype)).find(block) {
        let file = input.header.file();
        progress(Progress::Note(&format!(
            "{file} is quantized already ({name} is {dtype}): what its matrices are multiplied with differs a little from \
             the original"
        )));
    }
}

fn metadata(options: &ImatrixOptions, states: &BTreeMap<Task, u32>, sums: &Collector) -> Vec<(String, MetaValue)> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let datasets: Vec<String> = match options.data.as_slice() {
        [] => vec!["the model's own answers and pictures".to_owned()],
        files => files.iter().map(|file| name(file)).collect(),
    };
    let count: u32 = states.values().sum();
    let positions = u32::try_from(sums.tokens.div_ceil(u64::from(count.max(1)))).unwrap_or(u32::MAX);
    let tasks = states.keys().map(|task| task.name().to_owned()).collect();
    let own = |key: &str, value: MetaValue| (format!("{OWN_KEY_PREFIX}{key}"), value);
    vec![
        ("general.type".to_owned(), "imatrix".into()),
        ("imatrix.datasets".to_owned(), MetaValue::Array(MetaArray::String(datasets))),
        // A chunk is a state, its size that of the average one.
        ("imatrix.chunk_count".to_owned(), count.into()),
        ("imatrix.chunk_size".to_owned(), positions.into()),
        own("version", VERSION.into()),
        own("model", MetaValue::String(name(&options.model))),
        own("masked_weight", options.masked_weight.into()),
        own("seed", options.seed.into()),
        own("tasks", MetaValue::Array(MetaArray::String(tasks))),
        own("task_states", states.values().copied().collect::<Vec<u32>>().into()),
    ]
}

/// Sums of squares by matrix and column.
struct Collector {
    layers: usize,
    masked_weight: f32,
    sums: BTreeMap<String, Sums>,
    tokens: u64,
    masked: u64,
}

#[derive(Default)]
struct Sums {
    squares: Vec<f64>,
    /// Sum of the rows' weights.
    count: f64,
}

/// Weights of a batch's rows.
struct Rows {
    /// Of all of them.
    all: Vec<f32>,
    /// The same where those count nothing whose logits are not looked at.
    wanted: Vec<f32>,
    /// Of the rows that meet the output head.
    output: Vec<f32>,
}

impl Collector {
    fn new(layers: usize, masked_weight: f32) -> Self {
        Collector { layers, masked_weight, sums: BTreeMap::new(), tokens: 0, masked: 0 }
    }

    fn add(&mut self, context: &Context, state: &State) -> Result<()> {
        let batch = state.requests();
        let tokens = batch.iter().map(|s| s.ids.len()).sum();
        let masked: usize = batch.iter().map(|s| s.rows.len()).sum();
        let mut rows =
            Rows { all: vec![1.0; tokens], wanted: vec![0.0; tokens], output: vec![self.masked_weight; masked] };
        let mut start = 0;
        for sequence in &batch {
            for row in sequence.rows {
                rows.all[start + row] = self.masked_weight;
                rows.wanted[start + row] = self.masked_weight;
            }
            start += sequence.ids.len();
        }
        self.tokens += tokens as u64;
        self.masked += masked as u64;
        let mut failed = Ok(());
        context.observe_inputs(&batch, &mut |input| {
            if failed.is_ok() {
                failed = self.observe(input, &rows);
            }
        })?;
        failed
    }

    fn observe(&mut self, input: &MatrixInput, rows: &Rows) -> Result<()> {
        for matrix in input.matrices {
            let weights = match input.layer {
                None => &rows.output,
                Some(layer) if layer + 1 == self.layers && !matches!(*matrix, "attn_k" | "attn_v") => &rows.wanted,
                Some(_) => &rows.all,
            };
            let tensor = input.tensor(matrix);
            let sums = self.sums.entry(tensor).or_default();
            if sums.squares.is_empty() {
                sums.squares = try_vec(input.width, "sums of squares")?;
            }
            sums.add(input.x, input.width, weights);
        }
        Ok(())
    }

    /// An error for activations that are no numbers.
    fn check(&self, model: &Path) -> Result<()> {
        let bad = |sums: &Sums| sums.squares.iter().position(|x| !x.is_finite());
        match self.sums.iter().find_map(|(name, sums)| Some((name, bad(sums)?))) {
            Some((name, column)) => {
                let reason = format!("{name} is multiplied with numbers that are not finite, in column {column}");
                Err(Error::format(model.display(), reason))
            }
            None => Ok(()),
        }
    }

    /// Writes the sums in the order of the model's tensors; returns how many matrices they are of.
    fn write<'a>(
        &self,
        output: &Path,
        metadata: &[(String, MetaValue)],
        order: impl Iterator<Item = &'a str>,
    ) -> Result<usize> {
        let known: Vec<(&str, &Sums)> = order.filter_map(|name| Some((name, self.sums.get(name)?))).collect();
        let spec = |name: &str, suffix, n| TensorSpec {
            name: format!("{name}{suffix}"),
            dtype: GgmlType::F32,
            dims: vec![n, 1],
        };
        let both = |(name, sums): &(&str, &Sums)| [spec(name, SUMS, sums.squares.len()), spec(name, COUNTS, 1)];
        let specs: Vec<TensorSpec> = known.iter().flat_map(both).collect();
        let mut writer = Writer::create(output, metadata, &specs)?;
        for (_, sums) in &known {
            let squares: Vec<u8> = sums.squares.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
            writer.write(&squares)?;
            writer.write(&(sums.count as f32).to_le_bytes())?;
        }
        writer.finish()?;
        Ok(known.len())
    }
}

impl Sums {
    /// Adds the squares of `x`, [weights, width]. Every column is added up in the order of rows, whatever the threads.
    fn add(&mut self, x: &[f32], width: usize, weights: &[f32]) {
        const COLUMNS: usize = 128;
        self.squares.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
            for (row, &weight) in x.chunks_exact(width).zip(weights) {
                if weight > 0.0 {
                    let columns = &row[chunk * COLUMNS..][..sums.len()];
                    let weight = f64::from(weight);
                    sums.iter_mut().zip(columns).for_each(|(sum, &x)| *sum += weight * f64::from(x) * f64::from(x));
                }
            }
        });
        self.count += weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    }
}
