//! A GGUF file to another one of other types.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use mmada::gguf::{GgmlType, MetaValue, SplitWriter, TensorInfo, TensorSpec, parse_split_path};
use mmada::tensor::can_dequantize;
use mmada::{Error, Result};

use crate::choice::{Fallbacks, TypeOptions};
use crate::disk;
use crate::imatrix::Imatrix;
use crate::input::Input;
use crate::naming;
use crate::overrides::Override;
use crate::recipe::{Place, Recipe, place};
use crate::report::{Progress, Report, TensorLine};
use crate::rows::Job;
use crate::write::{by_size, encode_tensor, name_parts, spec_bytes, thread_pool};

/// What to quantize, and how.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// A GGUF file, or any part of a split one.
    pub input: PathBuf,
    /// The file to write; `None`: named by the GGUF naming convention, beside the input. In a split output the numbers
    /// of the parts are added to it.
    pub output: Option<PathBuf>,
    /// What tensors are stored as; `None` copies all of them (to split or to join files).
    pub types: Option<TypeOptions>,
    pub imatrix: Option<PathBuf>,
    /// Encode anew what was encoded in blocks already.
    pub allow_requantize: bool,
    /// Weights that are no finite numbers do not stop the run: float types keep them, others store 0.
    pub allow_nonfinite: bool,
    pub overrides: Vec<Override>,
    /// Split as the input is.
    pub keep_split: bool,
    /// Split so that no part has more bytes of tensors, but for tensors larger than that.
    pub split_max_size: Option<u64>,
    /// Tell what would be written, and write nothing.
    pub dry_run: bool,
    /// Threads that quantize; 0 means one per core.
    pub threads: usize,
    /// Set it to stop; the partial output is removed.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl QuantizeOptions {
    /// Everything else at its default.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>, types: impl Into<TypeOptions>) -> Self {
        QuantizeOptions {
            input: input.into(),
            output: Some(output.into()),
            types: Some(types.into()),
            imatrix: None,
            allow_requantize: false,
            allow_nonfinite: false,
            overrides: vec![],
            keep_split: false,
            split_max_size: None,
            dry_run: false,
            threads: 0,
            cancel: None,
        }
    }
}

/// Quantizes a model file. Weights are streamed: memory does not grow with the file.
///
/// # Errors
/// One sentence that names the file, tensor or option at fault; no output is left behind then.
/// `Cancelled` after `options.cancel` was set.
pub fn quantize(options: &QuantizeOptions, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let started = Instant::now();
    let input = Input::open(&options.input)?;
    let mut notes = Vec::new();
    let specs = plan(options, &input, &mut notes)?;
    let imatrix = importance(options, &input, &mut notes)?;
    let metadata = metadata(options, &input, imatrix.as_ref())?;
    let parts = parts(options, &input, &metadata, specs)?;
    guard_inputs(options, &input, &parts)?;
    let file_bytes = SplitWriter::sizes(&metadata, &parts)?.iter().sum();
    let total: u64 = parts.iter().flat_map(|(_, specs)| specs).map(spec_bytes).sum();
    let mut lines = parts.iter().flat_map(|(_, specs)| specs).zip(&input.header.tensors).enumerate();
    let count = input.header.tensors.len();
    let line = |index, spec, info: &TensorInfo| TensorLine {
        index,
        count,
        spec,
        from: Some(info.dtype),
        bytes: spec_bytes(spec),
        stats: None,
    };
    let tell = |progress: &mut dyn FnMut(Progress)| notes.iter().for_each(|note| progress(Progress::Note(note)));
    if options.dry_run {
        tell(progress);
        lines.for_each(|(index, (spec, info))| progress(Progress::Tensor(&line(index, spec, info))));
    } else {
        let pool = thread_pool(options.threads)?;
        parts.first().map_or(Ok(()), |(path, _)| disk::require(path, file_bytes))?;
        let mut writer = SplitWriter::create(&metadata, &parts)?;
        // Only now: whoever asked for what cannot be should read one sentence.
        tell(progress);
        let mut done = 0;
        lines.try_for_each(|(index, (spec, info))| {
            let job = Job {
                dtype: spec.dtype,
                rows: info.rows(),
                cols: info.cols(),
                importance: imatrix.as_ref().and_then(|m| m.get(&info.name)),
                allow_nonfinite: options.allow_nonfinite,
                measure: true,
            };
            let (rows, line) = (input.rows(info)?, line(index, spec, info));
            let cancel = options.cancel.as_deref();
            encode_tensor(&pool, &rows, &job, line, &mut writer, cancel, (&mut done, total), progress)
        })?;
        writer.finish()?;
    }
    Ok(Report {
        tensors: count,
        weights: input.header.tensors.iter().map(elements).sum(),
        weight_bytes: total,
        file_bytes,
        files: parts.into_iter().map(|(path, _)| path).collect(),
        seconds: started.elapsed(),
        has_images: input.header.get("mmada.vq.channels").is_some(),
    })
}

fn elements(info: &TensorInfo) -> u64 {
    info.cols() as u64 * info.rows() as u64
}

/// The tensors of the output, in the order of the input's.
fn plan(options: &QuantizeOptions, input: &Input, notes: &mut Vec<String>) -> Result<Vec<TensorSpec>> {
    let header = &input.header;
    if header.opt_str("general.type")?.is_some_and(|kind| kind != "model") {
        return Err(Error::format(header.file(), "is no model, by its general.type"));
    }
    let layers = header.tensors.iter().filter_map(|info| match place(&info.name) {
        Place::Layer(n, _) => Some(n + 1),
        _ => None,
    });
    let layers = layers.max().unwrap_or(0);
    let (mut specs, mut fallbacks) = (Vec::new(), Fallbacks::default());
    for info in &header.tensors {
        let dtype = target(options, info, layers, &mut fallbacks)?;
        check_source(options, header.file(), info, dtype)?;
        specs.push(TensorSpec { name: info.name.clone(), dtype, dims: info.dims.clone() });
    }
    notes.extend(fallbacks.notes());
    notes.extend(options.types.iter().flat_map(|types| types.idle(&specs)));
    Ok(specs)
}

/// What `info` becomes.
fn target(options: &QuantizeOptions, info: &TensorInfo, layers: usize, fallbacks: &mut Fallbacks) -> Result<GgmlType> {
    let Some(types) = &options.types else { return Ok(info.dtype) };
    let number = matches!(info.dtype, GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64);
    match info.dims.len() {
        _ if number => Ok(info.dtype),
        // Norms and biases: a few thousand numbers.
        0 | 1 => Ok(GgmlType::F32),
        _ => types.choose(&info.name, layers, info.cols(), Some(info.dtype), fallbacks),
    }
}

fn check_source(options: &QuantizeOptions, file: &str, info: &TensorInfo, dtype: GgmlType) -> Result<()> {
    if info.dtype == dtype {
        return Ok(());
    }
    let (name, from) = (&info.name, info.dtype);
    if !can_dequantize(from) {
        return Err(Error::unsupported(file, format!("tensor {name} is {from}, which this version cannot decode")));
    }
    if !from.is_float() && !options.allow_requantize {
        let reason = format!("tensor {name} is {from} already, and quantizing twice loses more than once");
        return Err(Error::invalid(format!("{file}: {reason}; quantize the original, or use --allow-requantize")));
    }
    Ok(())
}

fn importance(options: &QuantizeOptions, input: &Input, notes: &mut Vec<String>) -> Result<Option<Imatrix>> {
    let Some(file) = &options.imatrix else { return Ok(None) };
    if options.types.is_none() {
        return Err(Error::invalid(format!("{}: copying needs no importance matrix", file.display())));
    }
    let imatrix = Imatrix::read(file)?;
    let matrices = input.header.tensors.iter().filter(|info| info.dims.len() > 1);
    imatrix.check(matrices.map(|info| (info.name.as_str(), info.cols())), notes)?;
    Ok(Some(imatrix))
}

fn metadata(options: &QuantizeOptions, input: &Input, imatrix: Option<&Imatrix>) -> Result<Vec<(String, MetaValue)>> {
    let mut metadata = input.metadata().to_vec();
    let mut put = |key: &str, value: MetaValue| match metadata.iter_mut().find(|(k, _)| k == key) {
        Some((_, old)) => *old = value,
        None => metadata.push((key.to_owned(), value)),
    };
    if let Some(types) = &options.types {
        put("general.file_type", types.recipe.file_type().into());
        put("general.quantization_version", 2u32.into());
        // What an earlier run was told of importance says nothing of this one.
        metadata.retain(|(key, _)| !key.starts_with("quantize.imatrix."));
    }
    metadata.extend(imatrix.map(Imatrix::metadata).unwrap_or_default());
    options.overrides.iter().try_for_each(|change| change.apply(&mut metadata))?;
    Ok(metadata)
}

/// The files of the output and what stands in each.
fn parts(
    options: &QuantizeOptions,
    input: &Input,
    metadata: &[(String, MetaValue)],
    specs: Vec<TensorSpec>,
) -> Result<Vec<(PathBuf, Vec<TensorSpec>)>> {
    if options.keep_split && options.split_max_size.is_some() {
        return Err(Error::invalid("--keep-split and --split-max-size contradict each other"));
    }
    let groups = if options.keep_split {
        let mut groups = vec![vec![]; input.part_count()];
        for (spec, info) in specs.into_iter().zip(&input.header.tensors) {
            groups[input.part_of(info)].push(spec);
        }
        groups
    } else {
        by_size(specs, options.split_max_size.unwrap_or(u64::MAX))
    };
    Ok(name_parts(output(options, input, metadata), groups))
}

fn output(options: &QuantizeOptions, input: &Input, metadata: &[(String, MetaValue)]) -> PathBuf {
    if let Some(output) = &options.output {
        return output.clone();
    }
    let weights = input.header.tensors.iter().map(elements).sum();
    let encoding = match &options.types {
        Some(types) => types.recipe.name(),
        None => {
            let number = input.header.opt_u32("general.file_type").ok().flatten();
            number.and_then(|n| Recipe::parse(&n.to_string())).map_or("copy", |recipe| recipe.name())
        }
    };
    let stem = match parse_split_path(&options.input) {
        Some((prefix, ..)) => prefix,
        None => options.input.with_extension(""),
    };
    let stem = stem.file_name().unwrap_or_default().to_string_lossy().into_owned();
    options.input.with_file_name(naming::file_name(metadata, &stem, weights, encoding))
}

/// The output must not replace what it is made from.
fn guard_inputs(options: &QuantizeOptions, input: &Input, parts: &[(PathBuf, Vec<TensorSpec>)]) -> Result<()> {
    let read: Vec<&Path> = input.paths().chain(options.imatrix.as_deref()).collect();
    parts.iter().try_for_each(|(path, _)| disk::keep_inputs(path, read.iter().copied()))
}
