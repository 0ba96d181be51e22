//! Buffers of a forward pass: sized up front, so that a step allocates nothing.

use super::backend::Buffer;
use super::config::Config;
use super::layout::Layout;
use crate::error::{Error, Result};
use crate::kernels::attention::Scratch;
use crate::kernels::{Bf16Rows, Int8Rows};
use crate::memory::{Charge, try_resize, try_vec};
use crate::parallel::Exec;

/// What batches there is room for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    /// over all sequences
    pub tokens: usize,
    /// the same, each sequence's keys as attention pads them
    pub keys: usize,
    /// whether products and attention may be in bfloat16
    pub bf16: bool,
}

impl Room {
    /// For sequences of these lengths.
    pub fn of(lengths: impl Iterator<Item = usize>, bf16: bool) -> Self {
        lengths.fold(Room { bf16, ..Room::default() }, |room, n| Room {
            tokens: room.tokens.saturating_add(n),
            keys: room.keys.saturating_add(Scratch::padded(n)),
            ..room
        })
    }

    /// Keys that attention packs.
    fn packed(self) -> usize {
        if self.bf16 { self.keys } else { 0 }
    }
}

/// Scratch memory of one context.
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
    /// where the sequences of a batch lie, and what is wanted of them
    pub(super) layout: Layout,
    /// the buffers as the context counts them
    charge: Charge,
}

impl State {
    /// Room for a batch; memory that is there already is kept. It counts against the budget of `exec`.
    ///
    /// # Errors
    /// `OutOfMemory`, after which there is no room at all, or none for attention.
    pub fn reserve(&mut self, exec: &Exec, c: &Config, room: Room) -> Result<()> {
        let tokens = room.tokens;
        if tokens <= self.tokens {
            return self.attention.reserve(exec, room.packed(), c.kv_heads, c.head_dim);
        }
        // give back before asking again: the peak is one set of buffers
        *self = State::default();
        let mut attention = Scratch::default();
        attention.reserve(exec, room.packed(), c.kv_heads, c.head_dim)?;
        let charge = exec.take(State::own_bytes(c, room), &format!("a run over {tokens} tokens"))?;
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
            bf16: Bf16Rows::with_capacity(if room.bf16 { tokens } else { 0 }, d.max(ff))?,
            attention,
            layout: Layout::with_capacity(tokens)?,
            charge,
        };
        self.tokens = tokens;
        Ok(())
    }

    /// Bytes that [`State::reserve`] takes.
    pub fn bytes(c: &Config, room: Room) -> usize {
        State::own_bytes(c, room).saturating_add(Scratch::bytes(room.packed(), c.kv_heads, c.head_dim))
    }

    /// Without those that the memory of attention counts itself.
    fn own_bytes(c: &Config, Room { tokens, bf16, .. }: Room) -> usize {
        let widest = c.d_model.max(c.d_ff);
        let floats = 3 * c.d_model + 2 * c.kv_dim() + 2 * c.d_ff;
        tokens
            .saturating_mul(floats * 4)
            .saturating_add(Layout::bytes(tokens))
            .saturating_add(Int8Rows::bytes(tokens, widest))
            .saturating_add(Bf16Rows::bytes(if bf16 { tokens } else { 0 }, widest))
    }

    pub(super) fn buffer(&mut self, buffer: Buffer) -> &mut Vec<f32> {
        match buffer {
            Buffer::X => &mut self.x,
            Buffer::H => &mut self.h,
            Buffer::Q => &mut self.q,
            Buffer::K => &mut self.k,
            Buffer::V => &mut self.v,
            Buffer::Gate => &mut self.gate,
            Buffer::Up => &mut self.up,
        }
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
