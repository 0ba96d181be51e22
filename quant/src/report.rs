//! What a run tells of itself: while it works, and at its end.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use mmada::gguf::{GgmlType, TensorSpec};

use crate::rows::Stats;

/// What happens during a run.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A sentence that the user should see: a tensor in another type than asked for, something left out.
    Note(&'a str),
    /// A tensor is done (with `--dry-run`: would be).
    Tensor(&'a TensorLine<'a>),
    /// `done` of `total` bytes of weights are written; `tensor` is being converted.
    Bytes { tensor: &'a str, done: u64, total: u64 },
    /// `done` of `total` pieces of work, which `what` names, are done.
    Steps { what: &'a str, done: usize, total: usize },
}

/// A tensor of the output. Displayed as a line: number, name, shape, types, bits per weight, error.
#[derive(Clone, Copy, Debug)]
pub struct TensorLine<'a> {
    /// From 0 on, of `count`.
    pub index: usize,
    pub count: usize,
    pub spec: &'a TensorSpec,
    /// What it was stored as; `None` where it was made.
    pub from: Option<GgmlType>,
    pub bytes: u64,
    /// `None` where nothing was encoded.
    pub stats: Option<Stats>,
}

impl TensorLine<'_> {
    /// Relative root mean square error of encoding; `None` where the weights were not measured.
    pub fn error(&self) -> Option<f64> {
        self.stats.filter(|_| self.from != Some(self.spec.dtype)).map(|s| s.relative_error())
    }

    pub fn bits_per_weight(&self) -> f64 {
        let weights: usize = self.spec.dims.iter().product();
        self.bytes as f64 * 8.0 / weights.max(1) as f64
    }
}

impl fmt::Display for TensorLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TensorSpec { name, dtype, dims } = self.spec;
        let width = self.count.to_string().len();
        // As mathematics has it: rows first.
        let shape = dims.iter().rev().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let types = match self.from {
            Some(from) if from != *dtype => format!("{from} -> {dtype}"),
            _ => dtype.to_string(),
        };
        let (at, of, bits) = (self.index + 1, self.count, self.bits_per_weight());
        write!(f, "[{at:width$}/{of}] {name:<36} {shape:>15}  {types:<12} {bits:6.3} bits")?;
        match self.error() {
            Some(error) => write!(f, "  error {error:.5}"),
            None => Ok(()),
        }
    }
}

/// What was written, or would be.
#[derive(Clone, Debug)]
pub struct Report {
    pub tensors: usize,
    /// Elements of all tensors.
    pub weights: u64,
    /// Bytes of all tensors, without header and padding.
    pub weight_bytes: u64,
    /// Bytes of the file, or of all parts of it.
    pub file_bytes: u64,
    /// The file, or its parts.
    pub files: Vec<PathBuf>,
    pub seconds: Duration,
    /// The file has an image tokenizer.
    pub has_images: bool,
}

impl Report {
    pub fn bits_per_weight(&self) -> f64 {
        self.weight_bytes as f64 * 8.0 / self.weights.max(1) as f64
    }
}
