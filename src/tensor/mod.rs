//! Tensors as they lie in a file: a type, a shape and borrowed bytes. `block` draws the layouts of the block types.

#![forbid(unsafe_code)]

use std::ops::Range;

pub mod block;
mod dequantize;
mod dequantize_iq;
mod fit;
mod grids;
mod groups;
mod quantize;
mod quantize_k;

pub use crate::gguf::GgmlType;
pub use dequantize::{can_dequantize, dequantize};
pub(crate) use dequantize::{check as check_stored, decode};
pub(crate) use fit::{LANES, Simd, fold};
pub(crate) use quantize::{Row, TooLarge, quantize_with};
pub use quantize::{can_quantize, quantize, quantize_weighted};

/// A row-major matrix in any GGUF type, borrowed from the mapped file. A GGUF tensor with `ne = [cols, rows]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: GgmlType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// `None` unless `data` holds exactly `rows` rows of `cols` elements in whole blocks.
    pub fn new(dtype: GgmlType, rows: usize, cols: usize, data: &'a [u8]) -> Option<Self> {
        let row_bytes = dtype.row_bytes(cols)?;
        (rows.checked_mul(row_bytes)? == data.len()).then_some(Matrix { dtype, rows, cols, row_bytes, data })
    }

    /// An f32 slice as a matrix.
    pub fn from_f32(rows: usize, cols: usize, data: &'a [f32]) -> Option<Self> {
        Self::new(GgmlType::F32, rows, cols, bytemuck::cast_slice(data))
    }

    pub fn dtype(&self) -> GgmlType {
        self.dtype
    }
    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn cols(&self) -> usize {
        self.cols
    }
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }

    /// The matrix of some of the rows.
    pub fn slice(&self, rows: Range<usize>) -> Matrix<'a> {
        let data = &self.data[rows.start * self.row_bytes..rows.end * self.row_bytes];
        Matrix { rows: rows.len(), data, ..*self }
    }
}
