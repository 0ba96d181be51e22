//! Buffers of a forward pass: sized up front, so that a step allocates nothing.

use std::ops::Range;

use super::config::Config;
use crate::error::{Error, Result};
use crate::kernels::attention::Scratch;
use crate::kernels::{Bf16Rows, Int8Rows};
use crate::memory::{Charge, try_reserve, try_resize, try_vec, try_with_capacity};
use crate::parallel::Exec;

/// Scratch memory of one context, for batches of up to `tokens` tokens (over all sequences).
#[derive(Default)]
pub struct State {
    tokens: usize,
    /// residual stream [tokens, d_model]
    pub(super) x: Vec<f32>,
    /// normed input, then attention output [tokens, d_model]
    pub(super) h: Vec<f32>,
    pub(super) q: Vec<f32>,
    /// [tokens, kv_dim]
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// [tokens, d_ff]
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    /// the input of a product, quantized or rounded
    pub(super) int8: Int8Rows,
    pub(super) bf16: Bf16Rows,
    pub(super) attention: Scratch,
    /// position of every token inside its sequence
    pub(super) positions: Vec<u32>,
    /// the rows of each sequence
    pub(super) sequences: Vec<Range<usize>>,
    /// the rows of the batch that go through all of the last layer, in ascending order, none twice
    pub(super) wanted: Vec<usize>,
    /// whether a row is among them
    is_wanted: Vec<bool>,
    /// those of each sequence among them
    pub(super) queries: Vec<Range<usize>>,
    /// the buffers as the context counts them
    charge: Charge,
}

impl State {
    /// Room for `tokens` tokens; memory that is there already is kept. It counts against the budget of `exec`.
    ///
    /// # Errors
    /// `OutOfMemory`, after which there is no room at all.
    pub fn reserve(&mut self, exec: &Exec, c: &Config, tokens: usize) -> Result<()> {
        if tokens <= self.tokens {
            return Ok(());
        }
        // give back before asking again: the peak is one set of buffers
        *self = State::default();
        let mut attention = Scratch::default();
        attention.reserve(exec, tokens, c.kv_heads, c.head_dim)?;
        let charge = exec.take(State::own_bytes(c, tokens), &format!("a run over {tokens} tokens"))?;
        let rows = |width: usize| -> Result<Vec<f32>> {
            let len = tokens
                .checked_mul(width)
                .ok_or_else(|| Error::OutOfMemory { what: format!("a batch of {tokens} tokens"), bytes: usize::MAX })?;
            try_vec(len, "a batch's activations")
        };
        let (d, kv, ff) = (c.d_model, c.kv_dim(), c.d_ff);
        *self = State {
            tokens: 0,
            x: rows(d)?,
            h: rows(d)?,
            q: rows(d)?,
            k: rows(kv)?,
            v: rows(kv)?,
            gate: rows(ff)?,
            up: rows(ff)?,
            int8: Int8Rows::with_capacity(tokens, d.max(ff))?,
            bf16: Bf16Rows::with_capacity(tokens, d.max(ff))?,
            attention,
            positions: try_vec(tokens, "a batch's positions")?,
            sequences: Vec::new(),
            wanted: try_with_capacity(tokens, "the rows whose logits are wanted")?,
            is_wanted: try_vec(tokens, "the rows whose logits are wanted")?,
            queries: Vec::new(),
            charge,
        };
        self.tokens = tokens;
        Ok(())
    }

    /// Bytes that [`State::reserve`] takes for `tokens` tokens.
    pub fn bytes(c: &Config, tokens: usize) -> usize {
        State::own_bytes(c, tokens).saturating_add(Scratch::bytes(tokens, c.kv_heads, c.head_dim))
    }

    /// Without those that the memory of attention counts itself.
    fn own_bytes(c: &Config, tokens: usize) -> usize {
        let widest = c.d_model.max(c.d_ff);
        let floats = 3 * c.d_model + 2 * c.kv_dim() + 2 * c.d_ff + 1;
        tokens
            .saturating_mul(floats * 4 + size_of::<usize>() + size_of::<bool>())
            .saturating_add(Int8Rows::bytes(tokens, widest))
            .saturating_add(Bf16Rows::bytes(tokens, widest))
    }

    /// Lists the rows of a batch of `tokens` tokens that are wanted, and where those of each sequence are among them. They
    /// may come in any order, and more than once.
    pub(super) fn list_wanted(&mut self, tokens: usize, rows: impl Iterator<Item = usize>) -> Result<()> {
        let marks = &mut self.is_wanted[..tokens];
        marks.fill(false);
        rows.for_each(|row| marks[row] = true);
        self.wanted.clear();
        self.wanted.extend((0..tokens).filter(|&row| marks[row])); // there is room for all
        self.queries.clear();
        try_reserve(&mut self.queries, self.sequences.len(), "the sequences of a batch")?;
        for place in &self.sequences {
            let queries = place_of(&self.wanted, place.start)..place_of(&self.wanted, place.end);
            self.queries.push(queries);
        }
        Ok(())
    }

    /// Moves the wanted rows of the residual stream and their positions to the front, and returns how many there are.
    pub(super) fn keep_wanted(&mut self, d: usize) -> usize {
        for (to, &from) in self.wanted.iter().enumerate() {
            // `to` is at most `from`: no row is overwritten before it has moved
            self.x.copy_within(from * d..(from + 1) * d, to * d);
            self.positions[to] = self.positions[from];
        }
        self.wanted.len()
    }

    /// Room for the input of the output matrix, `rows` rows: more than there are tokens where a row is wanted twice.
    pub(super) fn reserve_output(&mut self, c: &Config, rows: usize) -> Result<()> {
        let (more, d) = (rows.saturating_sub(self.q.len() / c.d_model), c.d_model);
        if more > 0 {
            // the smaller types have room for rows of the widest input, and may grow as well
            let bytes = more.saturating_mul(4 * d) + Int8Rows::bytes(more, d) + Bf16Rows::bytes(more, d);
            self.charge.grow(bytes, "logits that are wanted twice")?;
            try_resize(&mut self.q, rows.saturating_mul(d), "logits that are wanted twice")?;
        }
        Ok(())
    }
}

/// How many of `rows`, which ascend, come before `row`: where it is among them, if it is.
pub(super) fn place_of(rows: &[usize], row: usize) -> usize {
    rows.partition_point(|&other| other < row)
}
