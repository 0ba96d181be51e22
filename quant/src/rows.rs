//! Rows of weights on their way to a file: read a chunk at a time, decoded to f32, checked, encoded in their new type
//! by all threads, measured, and handed on in order. While a chunk is encoded the next is read and the last written.
//! Where the type stays, a chunk is only looked at, and the buffer it was read into is what is written.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use mmada::gguf::GgmlType;
use mmada::kernels::Kernels;
use mmada::parallel::try_vec;
use mmada::{Error, Result};
use rayon::ThreadPool;
use rayon::prelude::*;

/// Elements of a chunk, but for rows longer than that.
const CHUNK: usize = 4 << 20;
/// Chunks that are in memory at a time, on either side of the encoder.
const BUFFERS: usize = 2;

/// Where the rows of a tensor come from.
pub trait Rows: Sync {
    /// Bytes of a stored row; 0 where rows are made rather than read.
    fn row_bytes(&self) -> usize;

    /// Fills `buffer` with the stored bytes of the rows from `first` on.
    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()>;

    /// The weights of row `row`, whose stored bytes are `bytes`.
    fn decode(&self, row: usize, bytes: &[u8], scratch: &mut Scratch, out: &mut [f32]) -> Result<()>;

    /// The type that the stored bytes are already encoded in, where no weight changes its place.
    fn stored_as(&self) -> Option<GgmlType>;

    /// A `Format` error about a row: names the file, the tensor and the row.
    fn fault(&self, row: usize, reason: &str) -> Error;
}

/// What becomes of the rows.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub dtype: GgmlType,
    pub rows: usize,
    pub cols: usize,
    /// How much an error counts in each column.
    pub importance: Option<&'a [f32]>,
    /// Keep NaN and infinity in float types, and put 0 in their place in others.
    pub allow_nonfinite: bool,
    /// Compare what was encoded with the weights.
    pub measure: bool,
}

/// What was seen on the way.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    /// Sum of the squares of the weights, and of what encoding changed.
    pub energy: f64,
    pub error: f64,
    /// Weights that were no finite numbers.
    pub nonfinite: u64,
}

impl Stats {
    /// Root of the mean squared error, in units of the weights' root mean square.
    pub fn relative_error(&self) -> f64 {
        if self.energy > 0.0 { (self.error / self.energy).sqrt() } else { 0.0 }
    }

    fn add(&mut self, other: &Stats) {
        self.energy += other.energy;
        self.error += other.error;
        self.nonfinite += other.nonfinite;
    }
}

/// Buffers of a thread.
#[derive(Default)]
pub struct Scratch {
    pub permuted: Vec<f32>,
    row: Vec<f32>,
    back: Vec<f32>,
}

/// Encodes a tensor on the threads of `pool`. Its bytes go to `sink` in order, from another thread; `tick` is told,
/// on this one, how many bytes were encoded.
///
/// # Errors
/// `Format` for a weight that is no finite number (unless allowed) or does not fit the type; what reading, `sink` and
/// `tick` return.
pub fn encode(
    pool: &ThreadPool,
    source: &dyn Rows,
    job: &Job,
    sink: &mut (dyn FnMut(&[u8]) -> Result<()> + Send),
    tick: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Stats> {
    let row_out = job.dtype.row_bytes(job.cols).filter(|&n| n > 0 && job.rows > 0);
    let row_out = row_out.ok_or_else(|| Error::Internal("the sizes of a tensor were not checked".into()))?;
    let per_chunk = (CHUNK / job.cols).clamp(1, job.rows);
    let buffers = |row: usize| -> Result<Vec<Vec<u8>>> {
        let bytes = per_chunk.checked_mul(row).ok_or_else(|| source.fault(0, "rows are too long"))?;
        let count = if per_chunk == job.rows { 1 } else { BUFFERS };
        (0..count).map(|_| try_vec(bytes, "rows of weights")).collect()
    };
    let (inputs, outputs) = (buffers(source.row_bytes())?, buffers(row_out)?);
    if per_chunk == job.rows {
        return whole(pool, source, job, inputs, outputs, sink, tick);
    }
    std::thread::scope(|threads| {
        let (empty_in, to_read) = filled(inputs);
        let (read, to_encode) = sync_channel(BUFFERS);
        let (empty_out, to_fill) = filled(outputs);
        let (encoded, to_write) = sync_channel::<(Vec<u8>, usize)>(BUFFERS);
        threads.spawn(move || reader(source, job, per_chunk, to_read, read));
        let writer = threads.spawn(move || -> Result<()> {
            for (bytes, len) in to_write {
                sink(&bytes[..len])?;
                // The encoder may have stopped.
                let _ = empty_out.send(bytes);
            }
            Ok(())
        });
        let mut stats = Stats::default();
        let mut work = || -> Result<()> {
            for first in (0..job.rows).step_by(per_chunk) {
                // A closed channel is a thread that stopped with an error of its own.
                let Ok(input) = to_encode.recv() else { return Ok(()) };
                let mut input: Vec<u8> = input?;
                let Ok(mut output) = to_fill.recv() else { return Ok(()) };
                let n = per_chunk.min(job.rows - first);
                let len = n * row_out;
                stats.add(&chunk(pool, source, job, first..first + n, &mut input, &mut output)?);
                if encoded.send((output, len)).is_err() {
                    return Ok(());
                }
                let _ = empty_in.send(input);
                tick(len)?;
            }
            Ok(())
        };
        let worked = work();
        drop((encoded, to_encode, empty_in));
        let written = writer.join().unwrap_or_else(|_| Err(Error::Internal("the writing thread panicked".into())));
        worked.and(written).map(|()| stats)
    })
}

/// A tensor that is one chunk needs no other threads.
fn whole(
    pool: &ThreadPool,
    source: &dyn Rows,
    job: &Job,
    mut inputs: Vec<Vec<u8>>,
    mut outputs: Vec<Vec<u8>>,
    sink: &mut (dyn FnMut(&[u8]) -> Result<()> + Send),
    tick: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Stats> {
    let (Some(input), Some(output)) = (inputs.first_mut(), outputs.first_mut()) else {
        return Err(Error::Internal("no buffers".into()));
    };
    source.read(0, input)?;
    let stats = chunk(pool, source, job, 0..job.rows, input, output)?;
    sink(output)?;
    tick(output.len())?;
    Ok(stats)
}

/// A channel that already holds `buffers`.
fn filled(buffers: Vec<Vec<u8>>) -> (Sender<Vec<u8>>, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    for buffer in buffers {
        let _ = sender.send(buffer);
    }
    (sender, receiver)
}

fn reader(
    source: &dyn Rows,
    job: &Job,
    per_chunk: usize,
    empty: Receiver<Vec<u8>>,
    filled: SyncSender<Result<Vec<u8>>>,
) {
    for first in (0..job.rows).step_by(per_chunk) {
        let Ok(mut buffer) = empty.recv() else { return };
        let bytes = per_chunk.min(job.rows - first) * source.row_bytes();
        let read = source.read(first, &mut buffer[..bytes]).map(|()| buffer);
        let failed = read.is_err();
        if filled.send(read).is_err() || failed {
            return;
        }
    }
}

/// Encodes the rows `rows`: `input` has their stored bytes, `output` is given the new ones. Of several faults the first
/// row's is reported.
fn chunk(
    pool: &ThreadPool,
    source: &dyn Rows,
    job: &Job,
    rows: Range<usize>,
    input: &mut Vec<u8>,
    output: &mut Vec<u8>,
) -> Result<Stats> {
    let (first, row_in) = (rows.start, source.row_bytes());
    let copied = source.stored_as() == Some(job.dtype);
    let results: Vec<Result<Stats>> = if copied {
        let bytes = &input[..rows.len() * row_in];
        let look = |scratch: &mut Scratch, (i, bytes)| copied_row(source, job, first + i, bytes, scratch);
        pool.install(|| bytes.par_chunks(row_in.max(1)).enumerate().map_init(Scratch::default, look).collect())
    } else {
        let row_out = job.dtype.row_bytes(job.cols).unwrap_or(output.len()).max(1);
        let encode = |scratch: &mut Scratch, (i, out): (usize, &mut [u8])| {
            row(source, job, first + i, &input[i * row_in..][..row_in], scratch, out)
        };
        let out = &mut output[..rows.len() * row_out];
        pool.install(|| out.par_chunks_mut(row_out).enumerate().map_init(Scratch::default, encode).collect())
    };
    if copied {
        std::mem::swap(input, output);
    }
    // In the order of the rows, so that the sums do not depend on the threads.
    results.into_iter().try_fold(Stats::default(), |mut sum, stats| {
        sum.add(&stats?);
        Ok(sum)
    })
}

/// A row that stays as it is. Where its exponents do not tell that it is sound it is decoded.
fn copied_row(source: &dyn Rows, job: &Job, at: usize, bytes: &[u8], scratch: &mut Scratch) -> Result<Stats> {
    let mut stats = Stats::default();
    if is_finite(job.dtype, bytes) != Some(true) {
        let mut weights = std::mem::take(&mut scratch.row);
        weights.resize(job.cols, 0.0);
        source.decode(at, bytes, scratch, &mut weights)?;
        check(source, job, at, &mut weights, true, &mut stats)?;
        scratch.row = weights;
    }
    Ok(stats)
}

/// Whether all numbers of a float type are finite; `None` for other types. Without branches, so that it is done with
/// vectors.
fn is_finite(dtype: GgmlType, bytes: &[u8]) -> Option<bool> {
    const F32: u32 = 0x7f80_0000;
    let halves = |exponent: u16| {
        let numbers = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
        numbers.fold(true, |sound, b| sound & (b & exponent != exponent))
    };
    match dtype {
        GgmlType::F32 => {
            let numbers = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b));
            Some(numbers.fold(true, |sound, b| sound & (b & F32 != F32)))
        }
        GgmlType::F16 => Some(halves(0x7c00)),
        GgmlType::BF16 => Some(halves(0x7f80)),
        _ => None,
    }
}

fn row(source: &dyn Rows, job: &Job, at: usize, bytes: &[u8], scratch: &mut Scratch, out: &mut [u8]) -> Result<Stats> {
    let mut weights = std::mem::take(&mut scratch.row);
    weights.resize(job.cols, 0.0);
    let mut stats = Stats::default();
    let decoded = source.decode(at, bytes, scratch, &mut weights);
    let checked = decoded.and_then(|()| check(source, job, at, &mut weights, false, &mut stats));
    let done = checked.and_then(|()| {
        let kernels = Kernels::best();
        let encoded = kernels.quantize(job.dtype, &weights, job.importance, out);
        encoded.map_err(|e| source.fault(at, &e.to_string()))?;
        if job.measure {
            scratch.back.resize(job.cols, 0.0);
            kernels.dequantize(job.dtype, out, &mut scratch.back)?;
            let (energy, error) = kernels.squares(&weights, &scratch.back);
            // What is not finite was counted already.
            if energy.is_finite() && error.is_finite() {
                (stats.energy, stats.error) = (energy, error);
            }
        }
        Ok(())
    });
    scratch.row = weights;
    done.map(|()| stats)
}

/// NaN and infinity, and what is too large for the type.
fn check(source: &dyn Rows, job: &Job, at: usize, weights: &mut [f32], copied: bool, stats: &mut Stats) -> Result<()> {
    let limit = limit(job.dtype);
    // Without branches, as nearly every row is sound.
    if weights.iter().fold(true, |sound, x| sound & (x.abs() < limit)) {
        return Ok(());
    }
    for (column, x) in weights.iter_mut().enumerate() {
        if x.is_finite() {
            if x.abs() >= limit {
                return Err(source.fault(at, &format!("element {column} is {x}, which does not fit {}", job.dtype)));
            }
            continue;
        }
        if !job.allow_nonfinite {
            return Err(source.fault(at, &format!("element {column} is {x}, which is no weight")));
        }
        stats.nonfinite += 1;
        if !copied && !job.dtype.is_float() {
            *x = 0.0;
        }
    }
    Ok(())
}

/// Magnitudes from here on become infinite: half a step above the largest number of the type. The block types' scales
/// are their encoders' to judge.
fn limit(dtype: GgmlType) -> f32 {
    match dtype {
        GgmlType::F16 => 65520.0,
        GgmlType::BF16 => f32::from_bits(0x7f7f_8000),
        _ => f32::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use mmada::tensor::dequantize;

    use super::*;

    #[test]
    fn the_limits_are_where_rounding_becomes_infinite() {
        for (dtype, rounds_to_infinity) in [
            (GgmlType::F16, (|x| half::f16::from_f32(x).is_infinite()) as fn(f32) -> bool),
            (GgmlType::BF16, |x| half::bf16::from_f32(x).is_infinite()),
            (GgmlType::F32, f32::is_infinite),
        ] {
            let limit = limit(dtype);
            assert!(rounds_to_infinity(limit) && !rounds_to_infinity(limit.next_down()), "{dtype}");
        }
    }

    #[test]
    fn a_row_is_sound_by_its_exponents_where_its_decoded_numbers_are_finite() {
        for dtype in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
            let width = dtype.block_bytes();
            for pattern in 0..=u16::MAX {
                let bytes: Vec<u8> = (0..19 * width).map(|i| (i * 37 % 101) as u8).collect();
                // The highest bits have the exponent; 13 is in a vector, 18 behind the last.
                for at in [13, 18] {
                    let mut row = bytes.clone();
                    row[(at + 1) * width - 2..][..2].copy_from_slice(&pattern.to_le_bytes());
                    let mut values = [0.0; 19];
                    dequantize(dtype, &row, &mut values).unwrap();
                    assert_eq!(
                        is_finite(dtype, &row),
                        Some(values.iter().all(|v| v.is_finite())),
                        "{dtype} {pattern:x}"
                    );
                }
            }
        }
        assert_eq!(is_finite(GgmlType::Q8_0, &[0; 34]), None);
    }

    #[test]
    fn what_is_copied_is_looked_at_too() {
        let pool = pool(2);
        let (rows, cols) = (9, 1_000_003);
        let source = Counting { cols, fails_at: None, infinite_at: Some((7, 11)) };
        let mut bytes = Vec::new();
        let mut sink = |b: &[u8]| {
            bytes.extend_from_slice(b);
            Ok(())
        };
        let mut job = job(GgmlType::F32, rows, cols);
        let error = encode(&pool, &source, &job, &mut |_| Ok(()), &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("row 7: element 11 is inf"), "{error}");
        job.allow_nonfinite = true;
        let stats = encode(&pool, &source, &job, &mut sink, &mut |_| Ok(())).unwrap();
        assert_eq!((stats.nonfinite, stats.error), (1, 0.0));
        let mut values = vec![0.0; rows * cols];
        dequantize(GgmlType::F32, &bytes, &mut values).unwrap();
        let expected = |i: usize| if i == 7 * cols + 11 { f32::INFINITY } else { (i % 2039) as f32 * 0.5 };
        assert!(values.iter().enumerate().all(|(i, &v)| v == expected(i)));
    }

    /// Rows whose element c is `row * cols + c` halves, so many that they take several chunks.
    struct Counting {
        cols: usize,
        fails_at: Option<usize>,
        /// A row and a column.
        infinite_at: Option<(usize, usize)>,
    }

    impl Rows for Counting {
        fn row_bytes(&self) -> usize {
            4 * self.cols
        }
        fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
            let rows = buffer.len() / self.row_bytes();
            if self.fails_at.is_some_and(|r| (first..first + rows).contains(&r)) {
                return Err(self.fault(first, "cannot be read"));
            }
            for (i, b) in buffer.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let at = first * self.cols + i;
                let infinite = self.infinite_at.is_some_and(|(row, column)| row * self.cols + column == at);
                *b = if infinite { f32::INFINITY } else { (at % 2039) as f32 * 0.5 }.to_le_bytes();
            }
            Ok(())
        }
        fn decode(&self, _: usize, bytes: &[u8], _: &mut Scratch, out: &mut [f32]) -> Result<()> {
            dequantize(GgmlType::F32, bytes, out)
        }
        fn stored_as(&self) -> Option<GgmlType> {
            Some(GgmlType::F32)
        }
        fn fault(&self, row: usize, reason: &str) -> Error {
            Error::format("counting", format!("row {row}: {reason}"))
        }
    }

    fn pool(threads: usize) -> ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    fn job(dtype: GgmlType, rows: usize, cols: usize) -> Job<'static> {
        Job { dtype, rows, cols, importance: None, allow_nonfinite: false, measure: true }
    }

    #[test]
    fn chunks_arrive_in_order_and_whole() {
        let (rows, cols) = (11, 1_000_003);
        let source = Counting { cols, fails_at: None, infinite_at: None };
        for dtype in [GgmlType::F32, GgmlType::F16] {
            let (mut bytes, mut told) = (Vec::new(), 0);
            let mut sink = |b: &[u8]| {
                bytes.extend_from_slice(b);
                Ok(())
            };
            let mut tick = |n| {
                told += n;
                Ok(())
            };
            let stats = encode(&pool(3), &source, &job(dtype, rows, cols), &mut sink, &mut tick).unwrap();
            assert_eq!((stats.error, told), (0.0, bytes.len()));
            let mut values = vec![0.0; rows * cols];
            dequantize(dtype, &bytes, &mut values).unwrap();
            assert!(values.iter().enumerate().all(|(i, &v)| v == (i % 2039) as f32 * 0.5), "{dtype}");
        }
    }

    #[test]
    fn a_failure_of_either_side_ends_the_work_with_its_own_error() {
        let (rows, cols) = (40, 1_000_003);
        let source = Counting { cols, fails_at: Some(17), infinite_at: None };
        let said = |source: &Counting, fail_after: usize, stop_after: usize| {
            let (mut written, mut ticks) = (0, 0);
            let mut sink = |_: &[u8]| {
                written += 1;
                if written > fail_after { Err(Error::invalid("the disk is full")) } else { Ok(()) }
            };
            let mut tick = |_| {
                ticks += 1;
                if ticks > stop_after { Err(Error::Cancelled) } else { Ok(()) }
            };
            let job = job(GgmlType::F16, rows, cols);
            encode(&pool(2), source, &job, &mut sink, &mut tick).unwrap_err().to_string()
        };
        assert!(said(&source, 99, 99).contains("row 16: cannot be read"));
        let sound = Counting { cols, fails_at: None, infinite_at: None };
        for n in 0..4 {
            assert_eq!(said(&sound, n, 99), "the disk is full");
            assert_eq!(said(&sound, 99, n), "cancelled");
        }
    }
}
