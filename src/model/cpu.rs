//! Forward passes on the processor.

use std::ops::Range;

use super::backend::{Backend, Buffer, Input, Source};
use super::config::Config;
use super::layout::Layout;
use super::state::{Room, State};
use super::transformer::{Run, SequenceRequest, Transformer};
use super::weights::TensorRef;
use crate::error::{Error, Result};
use crate::kernels::attention::Attention;
use crate::kernels::elementwise::{Rope, Rows, rms_norm, silu_mul};
use crate::kernels::{Activations, Arithmetic, Epilogue, Operand, matmul};
use crate::tensor;

/// A context's threads and buffers, for one pass.
pub struct Cpu<'a> {
    run: &'a Run<'a>,
    state: &'a mut State,
    config: &'a Config,
    rope: &'a Rope,
    input: Input<&'a [f32]>,
}

impl<'a> Cpu<'a> {
    pub fn new(run: &'a Run<'a>, state: &'a mut State, transformer: &'a Transformer) -> Self {
        let Transformer { config, rope, .. } = transformer;
        Cpu { run, state, config, rope, input: Input::default() }
    }

    /// `y (=|+=) w input`, in the arithmetic that the weights' type and the context ask for.
    fn multiply(&mut self, w: Operand, y: &mut [f32], epilogue: Epilogue) -> Result<()> {
        let Input { from, rows, width, .. } = self.input;
        let (exec, len, eps) = (self.run.exec, rows * width, self.config.rms_eps);
        let State { x, h, q, k, v, gate, up, int8, bf16, .. } = &mut *self.state;
        let rows = match from {
            Source::Plain(buffer) => Rows::Plain(
                &match buffer {
                    Buffer::X => x,
                    Buffer::H => h,
                    Buffer::Q => q,
                    Buffer::K => k,
                    Buffer::V => v,
                    Buffer::Gate => gate,
                    Buffer::Up => up,
                }[..len],
            ),
            Source::Normed(weight) => Rows::Normed { x: &x[..len], weight, eps },
            Source::Gated => Rows::Gated { gate: &gate[..len], up: &up[..len] },
        };
        let (dtype, y_rows) = (w.matrix().dtype(), w.matrix().rows());
        let activations = match exec.kernels.arithmetic(dtype, self.run.fast) {
            Arithmetic::Int8(scales) => {
                if self.input.has_int8.replace(scales) != Some(scales) {
                    int8.quantize_rows(exec, rows, width, scales)?;
                }
                Activations::Int8(int8)
            }
            Arithmetic::Bf16 => {
                if !std::mem::replace(&mut self.input.has_bf16, true) {
                    bf16.round_rows(exec, rows, width)?;
                }
                Activations::Bf16(bf16)
            }
            Arithmetic::F32 => match rows {
                Rows::Plain(x) => Activations::F32 { x, k: width },
                _ => return Err(Error::Internal("a product in f32 without its input in f32".to_owned())),
            },
        };
        matmul(exec, w, activations, y, y_rows, epilogue)
    }
}

impl Backend for Cpu<'_> {
    fn begin(&mut self, batch: &[SequenceRequest], all: bool) -> Result<()> {
        let room = Room::of(batch.iter().map(|s| s.ids.len()), self.run.uses_bf16());
        self.state.reserve(self.run.exec, self.config, room)?;
        self.state.layout.set(batch, all)
    }

    fn layout(&self) -> &Layout {
        &self.state.layout
    }

    fn check(&self) -> Result<()> {
        self.run.exec.check()
    }

    fn enter(&mut self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn embed(&mut self, table: &TensorRef, batch: &[SequenceRequest]) -> Result<()> {
        let table = table.view(self.run.file);
        let ids = batch.iter().flat_map(|s| s.ids);
        for (id, to) in ids.zip(self.state.x.chunks_exact_mut(self.config.d_model)) {
            tensor::dequantize(table.dtype(), table.row(*id as usize), to)?;
        }
        Ok(())
    }

    fn input(
        &mut self,
        from: Source<&TensorRef>,
        rows: usize,
        matrices: &[&TensorRef],
        seen: bool,
    ) -> Result<Option<Buffer>> {
        let (exec, width) = (self.run.exec, matrices.first().map_or(0, |w| w.cols));
        let len = rows * width;
        let floats = seen || matrices.iter().any(|w| self.run.arithmetic(w) == Arithmetic::F32);
        let State { x, h, gate, up, .. } = &mut *self.state;
        let from = match from {
            Source::Plain(buffer) => Source::Plain(buffer),
            Source::Normed(weight) if floats => {
                rms_norm(exec, &x[..len], weight.floats(self.run.file), self.config.rms_eps, &mut h[..len]);
                Source::Plain(Buffer::H)
            }
            Source::Normed(weight) => Source::Normed(weight.floats(self.run.file)),
            Source::Gated if floats => {
                silu_mul(exec, &mut gate[..len], &up[..len]);
                Source::Plain(Buffer::Gate)
            }
            Source::Gated => Source::Gated,
        };
        self.input = Input::new(from, rows, width);
        Ok(match from {
            Source::Plain(buffer) => Some(buffer),
            _ => None,
        })
    }

    fn project(&mut self, w: &TensorRef, to: Buffer, epilogue: Epilogue) -> Result<()> {
        let len = self.input.rows * w.rows;
        // lent to itself: the input is in another buffer
        let mut y = std::mem::take(self.state.buffer(to));
        let done = self.multiply(self.run.operand(w), &mut y[..len], epilogue);
        *self.state.buffer(to) = y;
        done
    }

    fn rotate(&mut self, buffer: Buffer, rows: usize) -> Result<()> {
        let State { q, k, layout, .. } = &mut *self.state;
        let x = match buffer {
            Buffer::K => &mut k[..rows * self.config.kv_dim()],
            _ => &mut q[..rows * self.config.d_model],
        };
        self.rope.apply(self.run.exec, x, &layout.positions[..rows]);
        Ok(())
    }

    fn keep_wanted(&mut self) -> Result<()> {
        let (State { x, layout, .. }, d) = (&mut *self.state, self.config.d_model);
        for (to, &from) in layout.wanted.iter().enumerate() {
            // `to` is at most `from`: no row is overwritten before it has moved
            x.copy_within(from * d..(from + 1) * d, to * d);
        }
        layout.keep_wanted();
        Ok(())
    }

    fn attention(&mut self, cut: bool) -> Result<()> {
        let c = self.config;
        let State { h, q, k, v, attention, layout, .. } = &mut *self.state;
        let shape = Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            sequences: &layout.sequences,
            mask: None,
        };
        let queries = if cut { &layout.queries } else { &layout.sequences };
        let kv = layout.tokens() * c.kv_dim();
        let rows = if cut { layout.wanted.len() } else { layout.tokens() } * c.d_model;
        let (precision, q, out) = (self.run.attention_precision(), &q[..rows], &mut h[..rows]);
        shape.run_queries(self.run.exec, precision, attention, queries, q, &k[..kv], &v[..kv], out)
    }

    fn norm(&mut self, weight: &TensorRef, rows: usize) -> Result<()> {
        let len = rows * self.config.d_model;
        let (weight, eps) = (weight.floats(self.run.file), self.config.rms_eps);
        rms_norm(self.run.exec, &self.state.x[..len], weight, eps, &mut self.state.h[..len]);
        Ok(())
    }

    fn gather(&mut self, batch: &[SequenceRequest], sequences: Range<usize>) -> Result<usize> {
        let d = self.config.d_model;
        let rows = batch[sequences.clone()].iter().map(|s| s.rows.len()).sum();
        self.state.reserve_output(self.config, rows)?;
        let State { h, q, layout, .. } = &mut *self.state;
        for (at, to) in layout.places(batch, sequences).zip(q.chunks_exact_mut(d)) {
            to.copy_from_slice(&h[at * d..][..d]);
        }
        Ok(rows)
    }

    fn logits(&mut self, w: &TensorRef, ids: Range<u32>, out: &mut [f32]) -> Result<()> {
        let operand = self.run.operand(w).slice(ids.start as usize..ids.end as usize);
        self.multiply(operand, out, Epilogue::Store)
    }

    fn read(&mut self, buffer: Buffer, len: usize, look: &mut dyn FnMut(&[f32])) -> Result<()> {
        look(&self.state.buffer(buffer)[..len]);
        Ok(())
    }
}
