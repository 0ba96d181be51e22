//! The backbone's weights as products want them, unpacked once and kept in memory (see `kernels::Packed`).

use super::Compute;
use super::weights::{TensorRef, Weights};
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Packed};
use crate::memory::{try_push, try_with_capacity};
use crate::parallel::Exec;

/// The panels of all matrices that are multiplied with, as one instruction set and one arithmetic want them. The
/// embedding is looked up in the file, and so are the weights that are multiplied in f32.
pub struct PackedWeights {
    /// by where their tensors begin in the file, in this order
    matrices: Vec<(usize, Packed)>,
}

impl PackedWeights {
    /// Bytes that [`PackedWeights::new`] takes.
    pub fn bytes(weights: &Weights, kernels: &Kernels, compute: Compute) -> usize {
        let bytes = |t: &TensorRef| {
            Packed::bytes(kernels, t.dtype, (t.rows, t.cols), kernels.arithmetic(t.dtype, compute == Compute::Fast))
        };
        weights.multiplied().map(bytes).fold(0, usize::saturating_add)
    }

    /// Reads all of the weights in `file`.
    ///
    /// # Errors
    /// `OutOfMemory`, with the bytes of all of them.
    pub fn new(exec: &Exec, weights: &Weights, file: &[u8], compute: Compute) -> Result<Self> {
        let of_all = |e: Error| match e {
            Error::OutOfMemory { .. } => Error::OutOfMemory {
                what: WHAT.to_owned(),
                bytes: PackedWeights::bytes(weights, exec.kernels, compute),
            },
            e => e,
        };
        let mut matrices = try_with_capacity(weights.multiplied().count(), WHAT)?;
        for t in weights.multiplied() {
            let arithmetic = exec.kernels.arithmetic(t.dtype, compute == Compute::Fast);
            if let Some(packed) = Packed::new(exec, &t.view(file), arithmetic).map_err(of_all)? {
                try_push(&mut matrices, (t.begin(), packed), WHAT)?;
            }
        }
        matrices.sort_by_key(|(begin, _)| *begin);
        Ok(PackedWeights { matrices })
    }

    /// The panels of a tensor, if it has any.
    pub fn get(&self, t: &TensorRef) -> Option<&Packed> {
        let at = self.matrices.binary_search_by_key(&t.begin(), |(begin, _)| *begin).ok()?;
        Some(&self.matrices[at].1)
    }
}

/// What errors call them.
pub const WHAT: &str = "a packed copy of the model's weights";
