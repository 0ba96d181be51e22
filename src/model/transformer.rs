//! The forward pass: token ids in, logits out.

use std::ops::Range;

use super::config::Config;
use super::state::State;
use super::weights::{Layer, TensorRef, Weights};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::kernels::attention::Attention;
use crate::kernels::elementwise::{Rope, rms_norm, silu_mul};
use crate::kernels::{Activations, Epilogue, Int8Rows, has_int8, matmul, matmul_f32};
use crate::parallel::Exec;
use crate::tensor;

/// A sequence to run the network on, and the part of its logits that is wanted.
#[derive(Clone, Debug)]
pub struct SequenceRequest<'a> {
    /// The whole sequence, masks included. It attends to itself only.
    pub ids: &'a [u32],
    /// The positions whose logits are wanted, in this order.
    pub rows: &'a [usize],
    /// The ids whose logits are wanted.
    pub vocab: Range<u32>,
}

impl SequenceRequest<'_> {
    /// Number of logits wanted; they are [rows, vocab].
    pub fn logits(&self) -> usize {
        self.rows.len().saturating_mul(self.vocab.len())
    }
}

/// Sees the residual stream [tokens, d_model] that enters each layer, and the final norm's output after the last.
pub type LayerObserver<'a> = &'a mut (dyn FnMut(usize, &[f32]) + Send);

/// The backbone over a mapped file.
pub struct Transformer {
    pub config: Config,
    pub weights: Weights,
    rope: Rope,
}

impl Transformer {
    pub fn from_header(h: &Header) -> Result<Self> {
        let config = Config::from_header(h)?;
        let weights = Weights::from_header(h, &config)?;
        // a file may claim any context; the angles are only as many as can be used
        let rope = Rope::new(config.context.min(MAX_POSITIONS), config.head_dim, config.rope_theta)?;
        Ok(Transformer { config, weights, rope })
    }

    /// Most positions that a sequence can have.
    pub fn max_positions(&self) -> usize {
        self.config.context.min(MAX_POSITIONS)
    }

    /// Runs a batch of sequences of any lengths; they do not see each other. Logits come one sequence after the
    /// other, row by row: [rows][vocab]. Looks at `exec`'s cancel flag before every layer.
    ///
    /// Errors: an id, row or vocabulary range outside the model, an empty or too long sequence, no memory.
    pub fn forward(
        &self,
        exec: &Exec,
        file: &[u8],
        state: &mut State,
        batch: &[SequenceRequest],
        logits: &mut [f32],
        mut observe: Option<LayerObserver>,
    ) -> Result<()> {
        let tokens = self.check(batch, logits.len())?;
        state.reserve(&self.config, tokens)?;
        exec.run(|| {
            self.embed(file, state, batch)?;
            let d = self.config.d_model;
            for (n, layer) in self.weights.layers.iter().enumerate() {
                exec.check()?;
                if let Some(observe) = &mut observe {
                    observe(n, &state.x[..tokens * d]);
                }
                self.attention(exec, file, layer, state, tokens);
                self.feed_forward(exec, file, layer, state, tokens);
            }
            exec.check()?;
            let norm = self.weights.output_norm.floats(file);
            rms_norm(exec, &state.x[..tokens * d], norm, self.config.rms_eps, &mut state.h[..tokens * d]);
            if let Some(observe) = &mut observe {
                observe(self.config.layers, &state.h[..tokens * d]);
            }
            self.output(exec, file, state, batch, logits);
            exec.check()
        })
    }

    /// Validates a batch; returns its number of tokens.
    fn check(&self, batch: &[SequenceRequest], logits: usize) -> Result<usize> {
        let c = &self.config;
        let mut tokens = 0usize;
        let mut wanted = 0usize;
        for s in batch {
            let n = s.ids.len();
            if n == 0 {
                return Err(Error::invalid("a sequence is empty"));
            }
            if n > self.max_positions() {
                let what = "a sequence".to_owned();
                return Err(Error::ContextOverflow { what, needed: n, limit: self.max_positions() });
            }
            if let Some(id) = s.ids.iter().find(|id| **id as usize >= c.vocab) {
                return Err(Error::invalid(format!("token id {id} is outside the vocabulary of {}", c.vocab)));
            }
            if let Some(row) = s.rows.iter().find(|row| **row >= n) {
                return Err(Error::invalid(format!("logits of position {row} of a sequence of {n} were asked for")));
            }
            if s.vocab.start > s.vocab.end || s.vocab.end as usize > c.vocab {
                return Err(Error::invalid(format!("logits of ids {:?} of a vocabulary of {}", s.vocab, c.vocab)));
            }
            tokens += n;
            wanted = wanted.saturating_add(s.logits());
        }
        if wanted != logits {
            return Err(Error::Internal(format!("room for {logits} logits where {wanted} are wanted")));
        }
        Ok(tokens)
    }

    fn embed(&self, file: &[u8], state: &mut State, batch: &[SequenceRequest]) -> Result<()> {
        let d = self.config.d_model;
        let table = self.weights.token_embd.view(file);
        let mut at = 0;
        state.sequences.clear();
        for s in batch {
            state.sequences.push(at..at + s.ids.len());
            for (p, id) in s.ids.iter().enumerate() {
                tensor::dequantize(table.dtype(), table.row(*id as usize), &mut state.x[at * d..][..d])?;
                state.positions[at] = p as u32;
                at += 1;
            }
        }
        Ok(())
    }

    /// `x += attn_output(attention(norm(x)))`
    fn attention(&self, exec: &Exec, file: &[u8], layer: &Layer, s: &mut State, tokens: usize) {
        let c = &self.config;
        let (d, kv) = (tokens * c.d_model, tokens * c.kv_dim());
        let (q, k, v) = (&mut s.q[..d], &mut s.k[..kv], &mut s.v[..kv]);
        rms_norm(exec, &s.x[..d], layer.attn_norm.floats(file), c.rms_eps, &mut s.h[..d]);
        let mut input = Input::new(exec, file, &s.h[..d], &mut s.int8, c.d_model);
        input.project(&layer.q, q, Epilogue::Store);
        input.project(&layer.k, k, Epilogue::Store);
        input.project(&layer.v, v, Epilogue::Store);
        self.rope.apply(exec, q, &s.positions[..tokens]);
        self.rope.apply(exec, k, &s.positions[..tokens]);
        let shape = Attention { heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim, sequences: &s.sequences };
        shape.run(exec, q, k, v, &mut s.h[..d]);
        let mut input = Input::new(exec, file, &s.h[..d], &mut s.int8, c.d_model);
        input.project(&layer.attn_output, &mut s.x[..d], Epilogue::Add);
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn feed_forward(&self, exec: &Exec, file: &[u8], layer: &Layer, s: &mut State, tokens: usize) {
        let c = &self.config;
        let (d, ff) = (tokens * c.d_model, tokens * c.d_ff);
        rms_norm(exec, &s.x[..d], layer.ffn_norm.floats(file), c.rms_eps, &mut s.h[..d]);
        let mut input = Input::new(exec, file, &s.h[..d], &mut s.int8, c.d_model);
        input.project(&layer.gate, &mut s.gate[..ff], Epilogue::Store);
        input.project(&layer.up, &mut s.up[..ff], Epilogue::Store);
        silu_mul(exec, &mut s.gate[..ff], &s.up[..ff]);
        let mut input = Input::new(exec, file, &s.gate[..ff], &mut s.int8, c.d_ff);
        input.project(&layer.down, &mut s.x[..d], Epilogue::Add);
    }

    /// Logits of the wanted rows: they are gathered first (into `q`, free by now), then multiplied once per run of
    /// sequences that want the same part of the vocabulary.
    fn output(&self, exec: &Exec, file: &[u8], s: &mut State, batch: &[SequenceRequest], mut logits: &mut [f32]) {
        let d = self.config.d_model;
        let output = self.weights.output.view(file);
        let mut first = 0;
        while first < batch.len() {
            let vocab = batch[first].vocab.clone();
            let mut end = first;
            let mut rows = 0;
            // a row may be wanted twice: the buffer's length is the bound of a run
            while end < batch.len()
                && batch[end].vocab == vocab
                && (end == first || (rows + batch[end].rows.len()) * d <= s.q.len())
            {
                rows += batch[end].rows.len();
                end += 1;
            }
            if s.q.len() < rows * d {
                s.q.resize(rows * d, 0.0);
            }
            let mut gathered = s.q.chunks_exact_mut(d);
            for (seq, at) in batch[first..end].iter().zip(&s.sequences[first..end]) {
                for (row, to) in seq.rows.iter().zip(&mut gathered) {
                    to.copy_from_slice(&s.h[(at.start + row) * d..][..d]);
                }
            }
            let range: Range<usize> = vocab.start as usize..vocab.end as usize;
            let (now, later) = std::mem::take(&mut logits).split_at_mut(rows * range.len());
            logits = later;
            if !now.is_empty() {
                let w = output.slice(range.clone());
                let x = &s.q[..rows * d];
                if has_int8(w.dtype()) {
                    s.int8.quantize(exec, x, d);
                    matmul(exec, &w, Activations::Int8(&s.int8), now, range.len(), Epilogue::Store);
                } else {
                    matmul_f32(exec, &w, x, now, range.len(), Epilogue::Store);
                }
            }
            first = end;
        }
    }
}

/// No published model comes near; keeps a file's claim from sizing the table of angles.
const MAX_POSITIONS: usize = 1 << 17;

/// The input of some projections, quantized once for all of them when the first needs it.
struct Input<'a> {
    exec: &'a Exec<'a>,
    file: &'a [u8],
    x: &'a [f32],
    int8: &'a mut Int8Rows,
    width: usize,
    quantized: bool,
}

impl<'a> Input<'a> {
    fn new(exec: &'a Exec<'a>, file: &'a [u8], x: &'a [f32], int8: &'a mut Int8Rows, width: usize) -> Self {
        Input { exec, file, x, int8, width, quantized: false }
    }

    fn project(&mut self, w: &TensorRef, y: &mut [f32], epilogue: Epilogue) {
        let w = w.view(self.file);
        if !has_int8(w.dtype()) {
            return matmul_f32(self.exec, &w, self.x, y, w.rows(), epilogue);
        }
        if !self.quantized {
            self.int8.quantize(self.exec, self.x, self.width);
            self.quantized = true;
        }
        matmul(self.exec, &w, Activations::Int8(self.int8), y, w.rows(), epilogue);
    }
}
