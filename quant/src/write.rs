//! What every command that writes a model does with a tensor.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use mmada::gguf::{SplitWriter, TensorSpec, Writer, parse_split_path, split_path};
use mmada::parallel::thread_count;
use mmada::{Error, Result};
use rayon::ThreadPool;

use crate::report::{Progress, TensorLine};
use crate::rows::{self, Job, Rows};

/// Where bytes of tensors go, in order.
pub trait Sink: Send {
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
}

impl Sink for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Writer::write(self, bytes)
    }
}

impl Sink for SplitWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        SplitWriter::write(self, bytes)
    }
}

/// A pool of its own; 0 threads are one per core.
///
/// # Errors
/// `InvalidArgument` for too many threads; `Internal` if they cannot be started.
pub fn thread_pool(threads: usize) -> Result<ThreadPool> {
    let threads = thread_count(threads)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("quantize-{i}"))
        .build()
        .map_err(|e| Error::Internal(format!("cannot start {threads} threads: {e}")))
}

/// Bytes of a tensor whose sizes were checked.
pub fn spec_bytes(spec: &TensorSpec) -> u64 {
    let cols = spec.dims.first().copied().unwrap_or(1);
    let rows: usize = spec.dims.iter().skip(1).product();
    rows as u64 * spec.dtype.row_bytes(cols).unwrap_or(0) as u64
}

/// As many in a group, in order, as take no more than `limit` bytes, and one at least.
pub fn by_size(specs: Vec<TensorSpec>, limit: u64) -> Vec<Vec<TensorSpec>> {
    let (mut groups, mut group, mut used) = (Vec::new(), Vec::new(), 0u64);
    for spec in specs {
        let bytes = spec_bytes(&spec);
        if !group.is_empty() && used.saturating_add(bytes) > limit {
            groups.push(std::mem::take(&mut group));
            used = 0;
        }
        used = used.saturating_add(bytes);
        group.push(spec);
    }
    groups.push(group);
    groups
}

/// The files of an output with some tensors in each: the output itself if it is one, else numbered parts.
pub fn name_parts(output: PathBuf, groups: Vec<Vec<TensorSpec>>) -> Vec<(PathBuf, Vec<TensorSpec>)> {
    if groups.len() == 1 {
        return groups.into_iter().map(|specs| (output.clone(), specs)).collect();
    }
    let prefix = match parse_split_path(&output) {
        Some((prefix, ..)) => prefix,
        None if output.extension().is_some_and(|e| e == "gguf") => output.with_extension(""),
        None => output,
    };
    let count = groups.len();
    groups.into_iter().enumerate().map(|(i, specs)| (split_path(&prefix, i + 1, count), specs)).collect()
}

/// Encodes one tensor into `out` and tells of it. `done` counts the bytes written, of a total.
#[allow(clippy::too_many_arguments)]
pub fn encode_tensor(
    pool: &ThreadPool,
    source: &dyn Rows,
    job: &Job,
    mut line: TensorLine,
    out: &mut dyn Sink,
    cancel: Option<&AtomicBool>,
    (done, total): (&mut u64, u64),
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let tensor = line.spec.name.as_str();
    let stop = || cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
    progress(Progress::Bytes { tensor, done: *done, total });
    let mut sink = |bytes: &[u8]| if stop() { Err(Error::Cancelled) } else { out.write(bytes) };
    let mut tick = |bytes: usize| {
        *done += bytes as u64;
        progress(Progress::Bytes { tensor, done: *done, total });
        if stop() { Err(Error::Cancelled) } else { Ok(()) }
    };
    let stats = rows::encode(pool, source, job, &mut sink, &mut tick)?;
    if stats.nonfinite > 0 {
        let n = stats.nonfinite;
        let kept = job.dtype.is_float() || line.from == Some(job.dtype);
        let became = if kept { "are kept" } else { "became 0" };
        progress(Progress::Note(&format!("{tensor}: {n} weights that are no finite numbers {became}")));
    }
    line.stats = job.measure.then_some(stats);
    progress(Progress::Tensor(&line));
    Ok(())
}
