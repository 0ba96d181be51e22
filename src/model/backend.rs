//! What a forward pass asks of whatever computes it: buffers, copies out of them, and the operations of the model. The pass
//! itself is written once, in `transformer`; `cpu` computes it with threads and vectors, `cuda` on a graphics card, and
//! `offload` with both.

use std::ops::Range;

use super::layout::Layout;
use super::transformer::SequenceRequest;
use super::weights::TensorRef;
use crate::error::Result;
use crate::kernels::{Epilogue, Scales};

/// Rows of numbers in f32, of all tokens of a batch or of those that are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Buffer {
    /// residual stream [tokens, d_model]
    X,
    /// normed input, then attention output [tokens, d_model]
    H,
    /// queries [tokens, d_model], then the rows whose logits are wanted
    Q,
    /// [tokens, kv_dim]
    K,
    V,
    /// [tokens, d_ff]
    Gate,
    Up,
}

/// What a product's input is; `N` is how weights of a norm are given.
#[derive(Clone, Copy)]
pub enum Source<N> {
    Plain(Buffer),
    /// RMSNorm of `X` with these weights.
    Normed(N),
    /// SiLU of `Gate` times `Up`.
    Gated,
}

/// The input of some projections, as backends keep it: quantized or rounded once for all of them, when the first needs it.
#[derive(Clone, Copy)]
pub struct Input<N> {
    pub from: Source<N>,
    pub rows: usize,
    pub width: usize,
    pub has_int8: Option<Scales>,
    pub has_bf16: bool,
}

impl<N> Input<N> {
    pub fn new(from: Source<N>, rows: usize, width: usize) -> Self {
        Input { from, rows, width, has_int8: None, has_bf16: false }
    }
}

impl<N> Default for Input<N> {
    /// Nothing.
    fn default() -> Self {
        Input::new(Source::Plain(Buffer::X), 0, 0)
    }
}

/// Computes forward passes. Numbers of rows are those of the [`Layout`]: all, or from [`Backend::keep_wanted`] on the wanted
/// ones.
pub trait Backend {
    /// Makes room for a batch and lays it out; with `all` every row counts as wanted.
    fn begin(&mut self, batch: &[SequenceRequest], all: bool) -> Result<()>;
    fn layout(&self) -> &Layout;
    /// An error if the work was cancelled.
    fn check(&self) -> Result<()>;
    /// Layer `layer` comes next, with so many rows; after the last layer comes the output.
    fn enter(&mut self, layer: usize, rows: usize) -> Result<()>;
    /// `X`: the embeddings of the batch's ids.
    fn embed(&mut self, table: &TensorRef, batch: &[SequenceRequest]) -> Result<()>;
    /// Decides on the input of the products that follow, with `matrices`: rows of `width` numbers. With `seen` they will be
    /// in a buffer in f32, which is returned.
    fn input(
        &mut self,
        from: Source<&TensorRef>,
        rows: usize,
        matrices: &[&TensorRef],
        seen: bool,
    ) -> Result<Option<Buffer>>;
    /// `to (=|+=) w input`
    fn project(&mut self, w: &TensorRef, to: Buffer, epilogue: Epilogue) -> Result<()>;
    /// Rotary positions of the first `rows` rows of `Q` or `K`, in place.
    fn rotate(&mut self, buffer: Buffer, rows: usize) -> Result<()>;
    /// Moves the wanted rows of `X` to the front, with their positions.
    fn keep_wanted(&mut self) -> Result<()>;
    /// `H`: attention of the queries in `Q`, those of all rows or with `cut` those of the wanted ones, to `K` and `V`.
    fn attention(&mut self, cut: bool) -> Result<()>;
    /// `H`: the norm of the first `rows` rows of `X`.
    fn norm(&mut self, weight: &TensorRef, rows: usize) -> Result<()>;
    /// `Q`: the rows of `H` whose logits some sequences want, in the order of requests; returns how many.
    fn gather(&mut self, batch: &[SequenceRequest], sequences: Range<usize>) -> Result<usize>;
    /// `out = w[ids] input`, [rows, ids].
    fn logits(&mut self, w: &TensorRef, ids: Range<u32>, out: &mut [f32]) -> Result<()>;
    /// Shows the first `len` numbers of a buffer.
    fn read(&mut self, buffer: Buffer, len: usize, look: &mut dyn FnMut(&[f32])) -> Result<()>;
}
