//! The rows of a checkpoint's tensors: widened to f32, and reordered where they are a convolution's.

use mmada::gguf::GgmlType;
use mmada::kernels::Kernels;
use mmada::{Error, Result};

use crate::checkpoint::{Checkpoint, SourceType};
use crate::plan::{Conv, Planned};
use crate::rows::{Rows, Scratch};

/// A planned tensor's rows.
pub struct CheckpointRows<'a> {
    checkpoint: &'a Checkpoint,
    tensor: &'a Planned,
    dtype: GgmlType,
}

impl<'a> CheckpointRows<'a> {
    pub fn new(checkpoint: &'a Checkpoint, tensor: &'a Planned) -> Result<Self> {
        let dtype = match tensor.entry.dtype {
            SourceType::F32 => GgmlType::F32,
            SourceType::F16 => GgmlType::F16,
            SourceType::BF16 => GgmlType::BF16,
            SourceType::Other(_) => {
                return Err(Error::Internal(format!("the type of {} was not checked", tensor.spec.name)));
            }
        };
        Ok(CheckpointRows { checkpoint, tensor, dtype })
    }

    /// What the checkpoint stores the tensor as.
    pub fn dtype(&self) -> GgmlType {
        self.dtype
    }
}

impl Rows for CheckpointRows<'_> {
    fn row_bytes(&self) -> usize {
        // Whole in a file that was opened, so it cannot overflow.
        self.tensor.cols * self.dtype.block_bytes()
    }

    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
        self.checkpoint.read(&self.tensor.entry, first as u64 * self.row_bytes() as u64, buffer)
    }

    fn decode(&self, _: usize, bytes: &[u8], scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        let kernels = Kernels::best();
        let Some(conv) = self.tensor.conv else { return kernels.dequantize(self.dtype, bytes, out) };
        scratch.permuted.resize(out.len(), 0.0);
        kernels.dequantize(self.dtype, bytes, &mut scratch.permuted)?;
        permute(&scratch.permuted, conv, out);
        Ok(())
    }

    fn stored_as(&self) -> Option<GgmlType> {
        self.tensor.conv.is_none().then_some(self.dtype)
    }

    fn fault(&self, row: usize, reason: &str) -> Error {
        let file = self.checkpoint.file_of(&self.tensor.entry).display();
        Error::format(file, format!("tensor {}, row {row}: {reason}", self.tensor.source))
    }
}

/// [cin, taps] -> [taps, cin], so that the product runs over whole pixels.
fn permute(row: &[f32], Conv { inputs, taps }: Conv, out: &mut [f32]) {
    for (tap, out) in out.chunks_exact_mut(inputs).enumerate() {
        for (input, x) in out.iter_mut().enumerate() {
            *x = row[input * taps + tap];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolutions_row_is_reordered_to_pixels() {
        let mut out = [0.0; 6];
        // Two inputs of three taps: a0 a1 a2 b0 b1 b2.
        permute(&[0.0, 0.1, 0.2, 1.0, 1.1, 1.2], Conv { inputs: 2, taps: 3 }, &mut out);
        assert_eq!(out, [0.0, 1.0, 0.1, 1.1, 0.2, 1.2]);
    }
}
