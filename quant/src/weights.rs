//! Weights on their way from a shard to the output: a chunk of rows is read, each row widened to f32, checked,
//! reordered where it is a convolution's, and stored in its new type.

use half::slice::HalfFloatSliceExt;
use mmada::gguf::GgmlType;
use mmada::parallel::try_vec;
use mmada::tensor::quantize;
use mmada::{Error, Result};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, SourceType};
use crate::plan::{Conv, Planned};

/// Elements that are in memory at a time, but for rows longer than that.
const CHUNK: usize = 4 << 20;

/// Converts one tensor on the threads of `pool`, handing its bytes to `sink` in order.
///
/// # Errors
/// `Format` for a weight that is no finite number or does not fit the type; what reading and `sink` return.
pub fn convert(
    pool: &ThreadPool,
    checkpoint: &Checkpoint,
    tensor: &Planned,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let Planned { rows, cols, ref entry, ref spec, .. } = *tensor;
    let internal = || Error::Internal(format!("the sizes of {} were not checked", spec.name));
    let element = entry.dtype.size().ok_or_else(internal)?;
    let row_in = cols.checked_mul(element).filter(|&n| n > 0).ok_or_else(internal)?;
    let row_out = spec.dtype.row_bytes(cols).filter(|&n| n > 0).ok_or_else(internal)?;
    let per_chunk = (CHUNK / cols).clamp(1, rows);
    let mut input: Vec<u8> = try_vec(per_chunk * row_in, &spec.name)?;
    let mut output: Vec<u8> = try_vec(per_chunk * row_out, &spec.name)?;
    for first in (0..rows).step_by(per_chunk) {
        let n = per_chunk.min(rows - first);
        let (input, output) = (&mut input[..n * row_in], &mut output[..n * row_out]);
        checkpoint.read(entry, first as u64 * row_in as u64, input)?;
        let failed = pool.install(|| {
            let rows = output.par_chunks_mut(row_out).zip(input.par_chunks(row_in)).enumerate();
            rows.map_init(Scratch::default, |scratch, (i, (out, row))| {
                Some((i, scratch.convert(tensor, row, out).err()?))
            })
            .flatten()
            .min_by_key(|&(i, _)| i)
        });
        if let Some((i, failure)) = failed {
            return Err(failure.at(checkpoint, tensor, first + i));
        }
        sink(output)?;
    }
    Ok(())
}

/// What can be wrong with a row.
enum Failure {
    /// Column in the checkpoint, and its value.
    Weight(usize, f32),
    Encoder(Error),
}

impl Failure {
    fn at(self, checkpoint: &Checkpoint, tensor: &Planned, row: usize) -> Error {
        let reason = match self {
            Failure::Encoder(error) => error.to_string(),
            Failure::Weight(column, x) if x.is_finite() => {
                format!("element {column} is {x}, which does not fit {}", tensor.spec.dtype)
            }
            Failure::Weight(column, x) => format!("element {column} is {x}, which is no weight"),
        };
        let file = checkpoint.file_of(&tensor.entry).display();
        Error::format(file, format!("tensor {}, row {row}: {reason}", tensor.source))
    }
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

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    halves: Vec<u16>,
    row: Vec<f32>,
    permuted: Vec<f32>,
}

impl Scratch {
    fn convert(&mut self, tensor: &Planned, bytes: &[u8], out: &mut [u8]) -> std::result::Result<(), Failure> {
        self.row.resize(tensor.cols, 0.0);
        self.widen(&tensor.entry.dtype, bytes);
        let limit = limit(tensor.spec.dtype);
        if let Some(column) = self.row.iter().position(|x| x.is_nan() || x.abs() >= limit) {
            return Err(Failure::Weight(column, self.row[column]));
        }
        let row = match tensor.conv {
            Some(conv) => {
                permute(&self.row, conv, &mut self.permuted);
                &self.permuted
            }
            None => &self.row,
        };
        quantize(tensor.spec.dtype, row, out).map_err(Failure::Encoder)
    }

    /// Little-endian elements to f32.
    fn widen(&mut self, dtype: &SourceType, bytes: &[u8]) {
        if *dtype == SourceType::F32 {
            for (x, b) in self.row.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
            return;
        }
        self.halves.clear();
        self.halves.extend(bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)));
        if *dtype == SourceType::F16 {
            let halves: &[half::f16] = half::slice::HalfBitsSliceExt::reinterpret_cast(self.halves.as_slice());
            halves.convert_to_f32_slice(&mut self.row);
        } else {
            let halves: &[half::bf16] = half::slice::HalfBitsSliceExt::reinterpret_cast(self.halves.as_slice());
            halves.convert_to_f32_slice(&mut self.row);
        }
    }
}

/// [cin, taps] -> [taps, cin], so that the product runs over whole pixels.
fn permute(row: &[f32], Conv { inputs, taps }: Conv, out: &mut Vec<f32>) {
    out.clear();
    out.extend((0..taps).flat_map(|tap| (0..inputs).map(move |input| row[input * taps + tap])));
}

#[cfg(test)]
mod tests {
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
    fn a_convolutions_row_is_reordered_to_pixels() {
        let mut out = Vec::new();
        // Two inputs of three taps: a0 a1 a2 b0 b1 b2.
        permute(&[0.0, 0.1, 0.2, 1.0, 1.1, 1.2], Conv { inputs: 2, taps: 3 }, &mut out);
        assert_eq!(out, [0.0, 1.0, 0.1, 1.1, 0.2, 1.2]);
    }
}
