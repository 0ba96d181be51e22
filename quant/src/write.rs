//! What every command that writes a model does with a tensor.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use mmada::gguf::{SplitWriter, TensorSpec, Writer};
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
pub fn thread_pool(threads: usize) -> Result<ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("quantize-{i}"))
        .build()
        .map_err(|e| Error::Internal(format!("cannot start {threads} threads: {e}")))
}

/// The output must not replace what it is made from.
pub fn refuse_own_input<'a>(
    read: impl Iterator<Item = &'a Path>,
    mut written: impl Iterator<Item = &'a Path>,
) -> Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    let read: HashSet<PathBuf> = read.filter_map(real).collect();
    match written.find(|path| real(path).is_some_and(|path| read.contains(&path))) {
        Some(path) => {
            Err(Error::invalid(format!("the output would replace {}, which it is made from", path.display())))
        }
        None => Ok(()),
    }
}

/// Bytes of a tensor whose sizes were checked.
pub fn spec_bytes(spec: &TensorSpec) -> u64 {
    let cols = spec.dims.first().copied().unwrap_or(1);
    let rows: usize = spec.dims.iter().skip(1).product();
    rows as u64 * spec.dtype.row_bytes(cols).unwrap_or(0) as u64
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
