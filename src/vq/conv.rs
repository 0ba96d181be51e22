//! Convolutions as matrix products: in tiles where the kernels have them; elsewhere the windows of a chunk of output
//! positions are gathered side by side ("im2col"), then multiplied by the weights. A chunk is small enough to stay in a
//! cache and large enough to make unpacking the weights cheap. Normalization of the input and nearest-neighbour
//! upsampling happen on the way.

use std::ops::Range;

use rayon::prelude::*;

use super::features::{Features, Scratch, set_len};
use super::norm::Norm;
use super::weights::ConvWeights;
use crate::error::{Error, Result};
use crate::kernels::conv::{self, Normalization, Sampling};
use crate::kernels::{Activations, Bf16Rows, Epilogue, matmul, matmul_f32};
use crate::memory::try_vec;
use crate::parallel::Exec;

/// Numbers in the gathered windows of a chunk (8 MiB).
pub(super) const PATCH_LEN: usize = 2 << 20;
/// Positions whose windows one thread gathers in one go.
const GATHER: usize = 32;

/// The input rows that the windows of these output rows read.
fn source_rows(sampling: Sampling, rows: Range<usize>, side: usize) -> Range<usize> {
    let last = rows.end - 1;
    let first = (0..3).find_map(|ky| sampling.source(rows.start, ky, side)).unwrap_or(0);
    first..(0..3).rev().find_map(|ky| sampling.source(last, ky, side)).map_or(first, |y| y + 1)
}

/// A convolution of `x`, which is normalized by `norm` first, if there is one.
pub(super) struct Convolution<'a> {
    pub exec: &'a Exec<'a>,
    pub weights: &'a ConvWeights,
    pub x: &'a Features,
    pub norm: Option<&'a Norm>,
    /// `Same` where the kernel is 1x1.
    pub sampling: Sampling,
}

impl Convolution<'_> {
    /// The result as a new feature map.
    pub fn store(&self, bytes: &[u8], scratch: &mut Scratch) -> Result<Features> {
        let (height, width) = (self.x.height, self.x.width);
        let (Some(h), Some(w)) = (self.sampling.output_side(height), self.sampling.output_side(width)) else {
            return Err(Error::invalid(format!("a feature map of {height}x{width} positions cannot be doubled")));
        };
        let mut y = scratch.features(h, w, self.weights.outputs)?;
        self.run(bytes, scratch, &mut y, Epilogue::Store)?;
        Ok(y)
    }

    /// Adds the result to `y`, which has the height and width of `x`.
    pub fn add_to(&self, y: &mut Features, bytes: &[u8], scratch: &mut Scratch) -> Result<()> {
        self.run(bytes, scratch, y, Epilogue::Add)
    }

    fn run(&self, bytes: &[u8], scratch: &mut Scratch, y: &mut Features, mode: Epilogue) -> Result<()> {
        let (matrix, bias) = (self.weights.matrix(bytes)?, self.weights.bias(bytes)?);
        let (inputs, outputs) = (self.x.channels, y.channels);
        if (inputs, outputs) != (self.weights.inputs, self.weights.outputs) {
            return Err(Error::Internal(format!(
                "a convolution got {inputs} to {outputs} channels: {:?}",
                self.weights
            )));
        }
        y.sums = None;
        if let Some(precision) = scratch.precision {
            let norm = self.norm.map(|n| Normalization { scale: &n.scale, shift: &n.shift, swish: n.swish });
            let (kernel, sampling) = (self.weights.kernel, self.sampling);
            let (x, height, width) = (&self.x.data, self.x.height, self.x.width);
            let tiles = conv::Convolution { weights: &matrix, bias: &bias, kernel, x, height, width, norm, sampling };
            y.sums = Some(tiles.run(self.exec, precision, &mut scratch.tiles, &mut y.data, mode)?);
            return Ok(());
        }
        let (positions, width) = (y.positions(), y.width);
        let chunk = chunk_len(matrix.cols(), width);
        let mut ready = 0..0; // input rows that scratch.rows holds
        for start in (0..positions).step_by(chunk) {
            self.exec.check()?;
            let chunk = start..positions.min(start + chunk);
            let out = &mut y.data[chunk.start * outputs..chunk.end * outputs];
            self.set_bias(&bias, out, mode);
            let windows = if self.weights.kernel == 1 && self.norm.is_none() {
                &self.x.data[chunk.start * inputs..chunk.end * inputs]
            } else {
                let needed = self.source_rows(&chunk, width);
                let first_row = needed.start;
                let rows = match self.norm {
                    Some(norm) => {
                        self.normalize(norm, scratch, &mut ready, needed)?;
                        &scratch.rows[..]
                    }
                    None => &self.x.data[first_row * self.x.row_len()..],
                };
                let len = chunk.len() * matrix.cols();
                set_len(&mut scratch.charge, &mut scratch.patches, len, "the windows of a convolution")?;
                self.gather(rows, first_row, chunk, width, &mut scratch.patches);
                &scratch.patches
            };
            match &mut scratch.bf16 {
                Some(rounded) => {
                    let (len, had) =
                        (Bf16Rows::bytes(windows.len() / matrix.cols(), matrix.cols()), rounded.capacity());
                    scratch.charge.grow(len.saturating_sub(had), "the windows of a convolution")?;
                    rounded.round(self.exec, windows, matrix.cols())?;
                    matmul(self.exec, &matrix, Activations::Bf16(rounded), out, outputs, Epilogue::Add)?;
                }
                None => matmul_f32(self.exec, &matrix, windows, out, outputs, Epilogue::Add)?,
            }
        }
        Ok(())
    }

    fn source_rows(&self, chunk: &Range<usize>, width: usize) -> Range<usize> {
        let rows = chunk.start / width..(chunk.end - 1) / width + 1;
        if self.weights.kernel == 1 { rows } else { source_rows(self.sampling, rows, self.x.height) }
    }

    /// What the product will be added to: the bias, or the bias and what `out` holds.
    fn set_bias(&self, bias: &[f32], out: &mut [f32], mode: Epilogue) {
        let grain = bias.len() * GATHER;
        self.exec.run(|| {
            out.par_chunks_mut(grain).flat_map_iter(|part| part.chunks_exact_mut(bias.len())).for_each(|position| {
                match mode {
                    Epilogue::Store => position.copy_from_slice(bias),
                    Epilogue::Add => position.iter_mut().zip(bias).for_each(|(o, b)| *o += b),
                }
            });
        });
    }

    /// Brings the normalized input rows `needed` into `rows`, keeping those that are there from the chunk before.
    fn normalize(
        &self,
        norm: &Norm,
        Scratch { rows, charge, .. }: &mut Scratch,
        ready: &mut Range<usize>,
        needed: Range<usize>,
    ) -> Result<()> {
        let len = self.x.row_len();
        let mut kept = 0;
        if ready.contains(&needed.start) {
            rows.copy_within((needed.start - ready.start) * len..ready.len() * len, 0);
            kept = ready.end.min(needed.end) - needed.start;
        }
        if rows.len() < needed.len() * len {
            const WHAT: &str = "normalized rows of a feature map";
            charge.grow((needed.len() * len - rows.len()) * size_of::<f32>(), WHAT)?;
            let mut grown = try_vec(needed.len() * len, WHAT)?;
            grown[..kept * len].copy_from_slice(&rows[..kept * len]);
            *rows = grown;
        }
        let source = &self.x.data[(needed.start + kept) * len..needed.end * len];
        norm.apply(self.exec, source, &mut rows[kept * len..needed.len() * len]);
        *ready = needed;
        Ok(())
    }

    /// Copies the window of every position of `chunk` to `patches`. `rows` begins with input row `first_row`.
    fn gather(&self, rows: &[f32], first_row: usize, chunk: Range<usize>, width: usize, patches: &mut [f32]) {
        let window = self.weights.kernel * self.weights.kernel * self.x.channels;
        self.exec.run(|| {
            patches.par_chunks_mut(window * GATHER).enumerate().for_each(|(i, part)| {
                for (j, patch) in part.chunks_exact_mut(window).enumerate() {
                    let position = chunk.start + i * GATHER + j;
                    self.gather_window(rows, first_row, position / width, position % width, patch);
                }
            });
        });
    }

    fn gather_window(&self, rows: &[f32], first_row: usize, y: usize, x: usize, patch: &mut [f32]) {
        let (c, side, len) = (self.x.channels, self.x.width, self.x.row_len());
        if self.weights.kernel == 1 {
            return patch.copy_from_slice(&rows[(y - first_row) * len + x * c..][..c]);
        }
        for (ky, line) in patch.chunks_exact_mut(3 * c).enumerate() {
            let Some(row) = self.sampling.source(y, ky, self.x.height) else {
                line.fill(0.0);
                continue;
            };
            let row = &rows[(row - first_row) * len..][..len];
            let columns = [0, 1, 2].map(|kx| self.sampling.source(x, kx, side));
            match columns {
                // Neighbours in the input as well: one copy.
                [Some(left), Some(_), Some(right)] if right == left + 2 => {
                    line.copy_from_slice(&row[left * c..(right + 1) * c]);
                }
                _ => {
                    for (pixel, column) in line.chunks_exact_mut(c).zip(columns) {
                        match column {
                            Some(column) => pixel.copy_from_slice(&row[column * c..][..c]),
                            None => pixel.fill(0.0),
                        }
                    }
                }
            }
        }
    }
}

/// Positions of a chunk: whole rows of the picture where one fits.
fn chunk_len(window: usize, width: usize) -> usize {
    let most = (PATCH_LEN / window).max(GATHER);
    if most >= width { most - most % width } else { most }
}
