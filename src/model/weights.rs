//! The backbone's tensors by name: where they lie in the mapped file. Nothing is copied and nothing is read here.

use std::ops::Range;

use super::config::Config;
use crate::error::{Error, Result};
use crate::gguf::{Architecture, GgmlType, Header};
use crate::kernels::has_int8;
use crate::memory::try_push;
use crate::tensor::{self, Matrix};

/// A matrix in the file: type, shape, and the bytes it takes.
#[derive(Clone, Debug)]
pub struct TensorRef {
    pub dtype: GgmlType,
    pub rows: usize,
    pub cols: usize,
    range: Range<usize>,
}

impl TensorRef {
    /// The tensor `name` with `rows` rows of `cols` elements; an error names the tensor and both shapes.
    pub fn matrix(h: &Header, name: &str, rows: usize, cols: usize) -> Result<Self> {
        let t = h.require_tensor(name)?;
        let (has_rows, has_cols) = (t.rows(), t.cols());
        if (has_rows, has_cols) != (rows, cols) {
            let reason = format!("tensor {name} is {has_rows} x {has_cols} but the model needs {rows} x {cols}");
            return Err(Error::format(h.file(), reason));
        }
        if !(t.dtype.is_float() || has_int8(t.dtype) || tensor::can_dequantize(t.dtype)) {
            let reason = format!("tensor {name} is of type {}, which this version cannot multiply", t.dtype);
            return Err(Error::unsupported(h.file(), reason));
        }
        Ok(TensorRef { dtype: t.dtype, rows, cols, range: t.range.clone() })
    }

    /// A vector of `len` f32.
    pub fn vector(h: &Header, name: &str, len: usize) -> Result<Self> {
        let t = Self::matrix(h, name, 1, len)?;
        if t.dtype != GgmlType::F32 {
            return Err(Error::unsupported(h.file(), format!("tensor {name} is {} but must be F32", t.dtype)));
        }
        if !t.range.start.is_multiple_of(4) {
            return Err(Error::format(h.file(), format!("tensor {name} does not start at a multiple of 4 bytes")));
        }
        Ok(t)
    }

    /// The matrix over the file's bytes.
    pub fn view<'a>(&self, file: &'a [u8]) -> Matrix<'a> {
        Matrix::new(self.dtype, self.rows, self.cols, &file[self.range.clone()])
            .expect("the reader checked shape against bytes")
    }

    /// The floats of a [`TensorRef::vector`].
    pub fn floats<'a>(&self, file: &'a [u8]) -> &'a [f32] {
        bytemuck::cast_slice(&file[self.range.clone()])
    }

    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Where it begins in the file.
    pub fn begin(&self) -> usize {
        self.range.start
    }
}

/// One transformer block.
#[derive(Clone, Debug)]
pub struct Layer {
    pub attn_norm: TensorRef,
    pub q: TensorRef,
    pub k: TensorRef,
    pub v: TensorRef,
    pub attn_output: TensorRef,
    pub ffn_norm: TensorRef,
    pub gate: TensorRef,
    pub up: TensorRef,
    pub down: TensorRef,
}

impl Layer {
    /// All of its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorRef> {
        self.multiplied().into_iter().chain([&self.attn_norm, &self.ffn_norm])
    }

    pub(super) fn multiplied(&self) -> [&TensorRef; 7] {
        [&self.q, &self.k, &self.v, &self.attn_output, &self.gate, &self.up, &self.down]
    }
}

/// All of the backbone's tensors.
#[derive(Clone, Debug)]
pub struct Weights {
    pub token_embd: TensorRef,
    pub layers: Vec<Layer>,
    pub output_norm: TensorRef,
    /// the embedding itself in a file with tied weights (`mmada.weight_tying`), which has no `output.weight`
    pub output: TensorRef,
}

impl Weights {
    /// Whether the embedding is the output head too.
    pub fn is_tied(&self) -> bool {
        self.output.range == self.token_embd.range
    }

    /// The matrices that products are made with.
    pub fn multiplied(&self) -> impl Iterator<Item = &TensorRef> {
        self.layers.iter().flat_map(Layer::multiplied).chain([&self.output])
    }

    pub fn from_header(h: &Header, c: &Config) -> Result<Self> {
        let (d, kv, ff) = (c.d_model, c.kv_dim(), c.d_ff);
        let token_embd = TensorRef::matrix(h, "token_embd.weight", c.vocab, d)?;
        // Said by a flag: a file that lost its output matrix must not be taken for one that needs none.
        let tied = match h.architecture()? {
            Architecture::Mmada => h.opt_bool("mmada.weight_tying")?.unwrap_or(false),
            Architecture::Llada => {
                check_names(h, c.layers)?;
                h.tensor("output.weight").is_none() // its files have no such flag
            }
        };
        let output = match tied {
            false => TensorRef::matrix(h, "output.weight", c.vocab, d)?,
            true => token_embd.clone(),
        };
        const WHAT: &str = "the list of a model's layers";
        let mut layers = Vec::new();
        for n in 0..c.layers {
            let matrix = |name: &str, rows, cols| TensorRef::matrix(h, &format!("blk.{n}.{name}.weight"), rows, cols);
            let norm = |name: &str| TensorRef::vector(h, &format!("blk.{n}.{name}.weight"), d);
            let layer = Layer {
                attn_norm: norm("attn_norm")?,
                q: matrix("attn_q", d, d)?,
                k: matrix("attn_k", kv, d)?,
                v: matrix("attn_v", kv, d)?,
                attn_output: matrix("attn_output", d, d)?,
                ffn_norm: norm("ffn_norm")?,
                gate: matrix("ffn_gate", ff, d)?,
                up: matrix("ffn_up", ff, d)?,
                down: matrix("ffn_down", d, ff)?,
            };
            try_push(&mut layers, layer, WHAT)?;
        }
        let output_norm = TensorRef::vector(h, "output_norm.weight", d)?;
        Ok(Weights { token_embd, layers, output_norm, output })
    }
}

/// The matrices and norms of a block, as [`Weights::from_header`] names them.
const LAYER: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

/// Whether `name` is a tensor of a backbone of so many layers.
pub fn is_backbone(name: &str, layers: usize) -> bool {
    let Some(name) = name.strip_suffix(".weight") else { return false };
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((n, what)) => n.parse().is_ok_and(|n: usize| n < layers) && LAYER.contains(&what),
        None => ["token_embd", "output_norm", "output"].contains(&name),
    }
}

/// An error where the file holds a tensor that would go unused: a bias, fused matrices, factors of the rotation.
/// llama.cpp computes with all of them, and nothing but their names says that they are there.
fn check_names(h: &Header, layers: usize) -> Result<()> {
    match h.tensors.iter().find(|t| !is_backbone(&t.name, layers)) {
        None => Ok(()),
        Some(t) => {
            Err(Error::unsupported(h.file(), format!("tensor {} is not one that this version computes", t.name)))
        }
    }
}
