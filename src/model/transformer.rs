//! The forward pass: token ids in, logits out.

use std::ops::Range;

use super::Compute;
use super::config::Config;
use super::packed::PackedWeights;
use super::state::State;
use super::weights::{TensorRef, Weights};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::kernels::attention::{Attention, Precision};
use crate::kernels::elementwise::{Rope, rms_norm, silu_mul};
use crate::kernels::{Activations, Arithmetic, Bf16Rows, Epilogue, Int8Rows, Operand, Scales, matmul};
use crate::memory::try_reserve;
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

/// Sees what every matrix is multiplied with.
pub type InputObserver<'a> = &'a mut (dyn FnMut(&MatrixInput) + Send);

/// What some matrices of the backbone are about to be multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct MatrixInput<'a> {
    /// The block that they are in; `None` for the output head.
    pub layer: Option<usize>,
    /// Their names within it. Those that share an input come together: `attn_q`, `attn_k` and `attn_v`.
    pub matrices: &'static [&'static str],
    /// Row-major [rows, width]: a row for every token of the batch, one sequence after the other. At the output head
    /// there is one for every wanted row instead; requests that follow each other with the same `vocab` come together.
    pub x: &'a [f32],
    pub width: usize,
}

impl MatrixInput<'_> {
    /// The full name of one of the matrices, as the model file has it.
    pub fn tensor(&self, matrix: &str) -> String {
        match self.layer {
            Some(layer) => format!("blk.{layer}.{matrix}.weight"),
            None => format!("{matrix}.weight"),
        }
    }
}

/// Who looks on while the network runs; usually nobody.
#[derive(Default)]
pub struct Observers<'a> {
    pub layers: Option<LayerObserver<'a>>,
    pub inputs: Option<InputObserver<'a>>,
}

impl Observers<'_> {
    fn layer(&mut self, layer: usize, x: &[f32]) {
        if let Some(observe) = &mut self.layers {
            observe(layer, x);
        }
    }

    fn input(&mut self, layer: Option<usize>, matrices: &'static [&'static str], x: &[f32], width: usize) {
        if let Some(observe) = &mut self.inputs {
            observe(&MatrixInput { layer, matrices, x, width });
        }
    }
}

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
        let positions = config.context.min(MAX_POSITIONS);
        let rope = Rope::new(positions, config.head_dim, config.rope_theta, config.rope_pairs)?;
        Ok(Transformer { config, weights, rope })
    }

    /// Most positions that a sequence can have.
    pub fn max_positions(&self) -> usize {
        self.config.context.min(MAX_POSITIONS)
    }

    /// Runs a batch of sequences of any lengths; they do not see each other. Logits come one sequence after the
    /// other, row by row: [rows, vocab]. Looks at the cancel flag before every layer.
    ///
    /// Errors: an id, row or vocabulary range outside the model, an empty or too long sequence, no memory.
    pub fn forward(
        &self,
        run: &Run,
        state: &mut State,
        batch: &[SequenceRequest],
        logits: &mut [f32],
        mut observers: Observers,
    ) -> Result<()> {
        let tokens = self.check(batch, logits.len())?;
        let Run { exec, file, .. } = *run;
        state.reserve(exec, &self.config, tokens)?;
        exec.run(|| {
            self.embed(file, state, batch)?;
            let d = self.config.d_model;
            for layer in 0..self.config.layers {
                exec.check()?;
                observers.layer(layer, &state.x[..tokens * d]);
                self.attention(run, layer, state, tokens, &mut observers)?;
                self.feed_forward(run, layer, state, tokens, &mut observers)?;
            }
            exec.check()?;
            let norm = self.weights.output_norm.floats(file);
            rms_norm(exec, &state.x[..tokens * d], norm, self.config.rms_eps, &mut state.h[..tokens * d]);
            observers.layer(self.config.layers, &state.h[..tokens * d]);
            self.output(run, state, batch, logits, &mut observers)?;
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
        try_reserve(&mut state.sequences, batch.len(), "the list of a batch's sequences")?;
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
    fn attention(&self, run: &Run, n: usize, s: &mut State, tokens: usize, observers: &mut Observers) -> Result<()> {
        let (c, layer) = (&self.config, &self.weights.layers[n]);
        let (d, kv) = (tokens * c.d_model, tokens * c.kv_dim());
        let (q, k, v) = (&mut s.q[..d], &mut s.k[..kv], &mut s.v[..kv]);
        rms_norm(run.exec, &s.x[..d], layer.attn_norm.floats(run.file), c.rms_eps, &mut s.h[..d]);
        observers.input(Some(n), &["attn_q", "attn_k", "attn_v"], &s.h[..d], c.d_model);
        let mut input = Input::new(&s.h[..d], c.d_model, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.q), q, Epilogue::Store)?;
        run.project(&mut input, run.operand(&layer.k), k, Epilogue::Store)?;
        run.project(&mut input, run.operand(&layer.v), v, Epilogue::Store)?;
        self.rope.apply(run.exec, q, &s.positions[..tokens]);
        self.rope.apply(run.exec, k, &s.positions[..tokens]);
        let shape = Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            sequences: &s.sequences,
            mask: None,
        };
        shape.run(run.exec, run.attention_precision(), &mut s.attention, q, k, v, &mut s.h[..d])?;
        observers.input(Some(n), &["attn_output"], &s.h[..d], c.d_model);
        let mut input = Input::new(&s.h[..d], c.d_model, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.attn_output), &mut s.x[..d], Epilogue::Add)
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn feed_forward(&self, run: &Run, n: usize, s: &mut State, tokens: usize, observers: &mut Observers) -> Result<()> {
        let (c, layer) = (&self.config, &self.weights.layers[n]);
        let (d, ff) = (tokens * c.d_model, tokens * c.d_ff);
        rms_norm(run.exec, &s.x[..d], layer.ffn_norm.floats(run.file), c.rms_eps, &mut s.h[..d]);
        observers.input(Some(n), &["ffn_gate", "ffn_up"], &s.h[..d], c.d_model);
        let mut input = Input::new(&s.h[..d], c.d_model, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.gate), &mut s.gate[..ff], Epilogue::Store)?;
        run.project(&mut input, run.operand(&layer.up), &mut s.up[..ff], Epilogue::Store)?;
        silu_mul(run.exec, &mut s.gate[..ff], &s.up[..ff]);
        observers.input(Some(n), &["ffn_down"], &s.gate[..ff], c.d_ff);
        let mut input = Input::new(&s.gate[..ff], c.d_ff, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.down), &mut s.x[..d], Epilogue::Add)
    }

    /// Logits of the wanted rows: they are gathered first (into `q`, free by now), then multiplied once per run of
    /// sequences that want the same part of the vocabulary.
    fn output(
        &self,
        run: &Run,
        s: &mut State,
        batch: &[SequenceRequest],
        mut logits: &mut [f32],
        observers: &mut Observers,
    ) -> Result<()> {
        let d = self.config.d_model;
        let output = run.operand(&self.weights.output);
        let name: &[&str] = if self.weights.is_tied() { &["token_embd"] } else { &["output"] };
        let mut first = 0;
        while first < batch.len() {
            let vocab = batch[first].vocab.clone();
            let same = batch[first..].iter().take_while(|s| s.vocab == vocab).count();
            let now = &batch[first..first + same];
            let rows: usize = now.iter().map(|s| s.rows.len()).sum();
            s.reserve_output(&self.config, rows)?;
            let places = &s.sequences[first..first + same];
            let mut gathered = s.q.chunks_exact_mut(d);
            for (sequence, place) in now.iter().zip(places) {
                for (row, to) in sequence.rows.iter().zip(&mut gathered) {
                    to.copy_from_slice(&s.h[(place.start + row) * d..][..d]);
                }
            }
            observers.input(None, name, &s.q[..rows * d], d);
            let (y, later) = std::mem::take(&mut logits).split_at_mut(rows * vocab.len());
            logits = later;
            if !y.is_empty() {
                let w = output.slice(vocab.start as usize..vocab.end as usize);
                let mut input = Input::new(&s.q[..rows * d], d, &mut s.int8, &mut s.bf16);
                run.project(&mut input, w, y, Epilogue::Store)?;
            }
            first += same;
        }
        Ok(())
    }
}

/// No published model comes near; keeps a file's claim from sizing the table of angles.
const MAX_POSITIONS: usize = 1 << 17;

/// What the parts of a forward pass share: threads and instruction set, the model file's bytes, and the arithmetic.
pub struct Run<'a> {
    exec: &'a Exec<'a>,
    file: &'a [u8],
    /// 8- and 16-bit products of what is stored in more
    fast: bool,
    packed: Option<&'a PackedWeights>,
}

/// The input of some projections, [rows, width]: quantized or rounded once for all of them, when the first needs it.
struct Input<'a> {
    x: &'a [f32],
    width: usize,
    int8: &'a mut Int8Rows,
    bf16: &'a mut Bf16Rows,
    has_int8: Option<Scales>,
    has_bf16: bool,
}

impl<'a> Input<'a> {
    fn new(x: &'a [f32], width: usize, int8: &'a mut Int8Rows, bf16: &'a mut Bf16Rows) -> Self {
        Input { x, width, int8, bf16, has_int8: None, has_bf16: false }
    }
}

impl<'a> Run<'a> {
    pub fn new(exec: &'a Exec<'a>, file: &'a [u8], compute: Compute) -> Self {
        Run { exec, file, fast: compute == Compute::Fast, packed: None }
    }

    /// With weights that were packed for the instruction set of `exec` and for `compute`.
    pub fn with_packed(self, packed: Option<&'a PackedWeights>) -> Self {
        Run { packed, ..self }
    }

    /// A matrix of weights as products take it.
    pub fn operand(&self, t: &TensorRef) -> Operand<'a> {
        let matrix = t.view(self.file);
        match self.packed.and_then(|packed| packed.get(t)) {
            Some(packed) => Operand::with_packed(matrix, packed),
            None => Operand::from(&matrix),
        }
    }

    fn attention_precision(&self) -> Precision {
        if self.fast && self.exec.kernels.has_bf16_attention() { Precision::Bf16 } else { Precision::F32 }
    }

    /// `y (=|+=) w input`, in the arithmetic that the weights' type and the context ask for.
    fn project(&self, input: &mut Input, w: Operand, y: &mut [f32], epilogue: Epilogue) -> Result<()> {
        let (dtype, rows) = (w.matrix().dtype(), w.matrix().rows());
        let activations = match self.exec.kernels.arithmetic(dtype, self.fast) {
            Arithmetic::Int8(scales) => {
                if input.has_int8.replace(scales) != Some(scales) {
                    input.int8.quantize(self.exec, input.x, input.width, scales)?;
                }
                Activations::Int8(input.int8)
            }
            Arithmetic::Bf16 => {
                if !std::mem::replace(&mut input.has_bf16, true) {
                    input.bf16.round(self.exec, input.x, input.width)?;
                }
                Activations::Bf16(input.bf16)
            }
            Arithmetic::F32 => Activations::F32 { x: input.x, k: input.width },
        };
        matmul(self.exec, w, activations, y, rows, epilogue)
    }
}
