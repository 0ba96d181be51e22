//! The forward pass: token ids in, logits out.

use std::ops::Range;

use super::Compute;
use super::config::Config;
use super::packed::PackedWeights;
use super::state::{State, place_of};
use super::weights::{TensorRef, Weights};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::kernels::attention::{Attention, Precision};
use crate::kernels::elementwise::{Rope, Rows, rms_norm, silu_mul};
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

/// Where the logits of a batch go.
pub enum Logits<'a> {
    /// One sequence after the other, row by row: [rows, vocab].
    All(&'a mut [f32]),
    /// Nowhere: they are looked at, some ids after the other. All sequences want the same ids.
    Parts(Parts<'a>),
}

/// Logits in parts of the vocabulary, so that rows as long as that are nowhere in memory.
pub struct Parts<'a> {
    /// Room for `width` logits of every wanted row of the batch.
    pub buffer: &'a mut [f32],
    /// How many ids come together, at least one; fewer do at the end of the vocabulary.
    pub width: usize,
    pub visit: LogitVisitor<'a>,
}

/// Sees ids in ascending order, and the logits that they have in all rows: [rows, ids], one sequence after the other.
/// It may overwrite them. An error ends the run.
pub type LogitVisitor<'a> = &'a mut (dyn FnMut(Range<u32>, &mut [f32]) -> Result<()> + Send);

impl Logits<'_> {
    /// An error where there is no room for all that are wanted.
    fn check(&self, batch: &[SequenceRequest]) -> Result<()> {
        let sum = |of: &dyn Fn(&SequenceRequest) -> usize| batch.iter().map(of).fold(0, usize::saturating_add);
        let (room, wanted) = match self {
            Logits::All(out) => (out.len(), sum(&|s| s.logits())),
            Logits::Parts(parts) => {
                let alike = batch.windows(2).all(|two| two[0].vocab == two[1].vocab);
                if !alike || parts.width == 0 {
                    return Err(Error::Internal("logits in parts of no ids, or of different ids".to_owned()));
                }
                let rows = sum(&|s| s.rows.len());
                (parts.buffer.len(), rows.saturating_mul(parts.width))
            }
        };
        match room == wanted {
            true => Ok(()),
            false => Err(Error::Internal(format!("room for {room} logits where {wanted} are wanted"))),
        }
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
    /// Whether somebody wants to see all rows.
    fn any(&self) -> bool {
        self.layers.is_some() || self.inputs.is_some()
    }

    fn layer(&mut self, layer: usize, x: &[f32]) {
        if let Some(observe) = &mut self.layers {
            observe(layer, x);
        }
    }

    /// [`Observers::input`] of rows, which are there in f32 if somebody looks at them.
    fn rows(&mut self, layer: Option<usize>, matrices: &'static [&'static str], x: Rows, width: usize) {
        if let Rows::Plain(x) = x {
            self.input(layer, matrices, x, width);
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

    /// Runs a batch of sequences of any lengths; they do not see each other. Looks at the cancel flag before every layer
    /// and every part of the logits.
    ///
    /// Errors: an id, row or vocabulary range outside the model, an empty or too long sequence, no memory, or one of
    /// whom the logits are shown to.
    pub fn forward(
        &self,
        run: &Run,
        state: &mut State,
        batch: &[SequenceRequest],
        logits: Logits,
        mut observers: Observers,
    ) -> Result<()> {
        let tokens = self.check(batch)?;
        logits.check(batch)?;
        let Run { exec, file, .. } = *run;
        state.reserve(exec, &self.config, tokens)?;
        exec.run(|| {
            self.embed(file, state, batch)?;
            match observers.any() {
                true => state.list_wanted(tokens, 0..tokens)?,
                false => state.list_wanted(tokens, wanted(batch))?,
            }
            let d = self.config.d_model;
            let mut rows = tokens;
            for layer in 0..self.config.layers {
                exec.check()?;
                observers.layer(layer, &state.x[..tokens * d]);
                rows = self.attention(run, layer, state, tokens, &mut observers)?;
                self.feed_forward(run, layer, state, rows, &mut observers)?;
            }
            exec.check()?;
            let norm = self.weights.output_norm.floats(file);
            rms_norm(exec, &state.x[..rows * d], norm, self.config.rms_eps, &mut state.h[..rows * d]);
            observers.layer(self.config.layers, &state.h[..rows * d]);
            self.output(run, state, batch, logits, &mut observers)?;
            exec.check()
        })
    }

    /// Validates a batch; returns its number of tokens.
    fn check(&self, batch: &[SequenceRequest]) -> Result<usize> {
        let c = &self.config;
        let mut tokens = 0usize;
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

    /// `x += attn_output(attention(norm(x)))`; returns how many rows `x` has then: in the last layer only those that
    /// are wanted, whose queries attend to the keys and values of all.
    fn attention(&self, run: &Run, n: usize, s: &mut State, tokens: usize, observers: &mut Observers) -> Result<usize> {
        let (c, layer) = (&self.config, &self.weights.layers[n]);
        let (d, kv) = (c.d_model, tokens * c.kv_dim());
        let is_cut = n + 1 == c.layers && s.wanted.len() < tokens;
        let (norm, floats) = (&layer.attn_norm, run.needs_floats(&[&layer.q, &layer.k, &layer.v], observers));
        let x = self.normed(run, norm, &s.x[..tokens * d], &mut s.h[..tokens * d], floats);
        observers.rows(Some(n), &["attn_q", "attn_k", "attn_v"], x, d);
        let mut input = Input::new(x, d, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.k), &mut s.k[..kv], Epilogue::Store)?;
        run.project(&mut input, run.operand(&layer.v), &mut s.v[..kv], Epilogue::Store)?;
        self.rope.apply(run.exec, &mut s.k[..kv], &s.positions[..tokens]);
        let rows = if is_cut {
            let rows = s.keep_wanted(d);
            let x = self.normed(run, norm, &s.x[..rows * d], &mut s.h[..rows * d], floats);
            input = Input::new(x, d, &mut s.int8, &mut s.bf16);
            rows
        } else {
            tokens
        };
        run.project(&mut input, run.operand(&layer.q), &mut s.q[..rows * d], Epilogue::Store)?;
        self.rope.apply(run.exec, &mut s.q[..rows * d], &s.positions[..rows]);
        let shape = Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            sequences: &s.sequences,
            mask: None,
        };
        let queries = if is_cut { &s.queries } else { &s.sequences };
        let (precision, q, out) = (run.attention_precision(), &s.q[..rows * d], &mut s.h[..rows * d]);
        shape.run_queries(run.exec, precision, &mut s.attention, queries, q, &s.k[..kv], &s.v[..kv], out)?;
        observers.input(Some(n), &["attn_output"], &s.h[..rows * d], d);
        let mut input = Input::new(Rows::Plain(&s.h[..rows * d]), d, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.attn_output), &mut s.x[..rows * d], Epilogue::Add)?;
        Ok(rows)
    }

    /// The norm of `x` as an input: in `h` if `floats` are needed, otherwise left to whoever quantizes it.
    fn normed<'a>(&self, run: &Run<'a>, norm: &TensorRef, x: &'a [f32], h: &'a mut [f32], floats: bool) -> Rows<'a> {
        let (weight, eps) = (norm.floats(run.file), self.config.rms_eps);
        if !floats {
            return Rows::Normed { x, weight, eps };
        }
        rms_norm(run.exec, x, weight, eps, h);
        Rows::Plain(h)
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn feed_forward(&self, run: &Run, n: usize, s: &mut State, tokens: usize, observers: &mut Observers) -> Result<()> {
        let (c, layer) = (&self.config, &self.weights.layers[n]);
        let (d, ff) = (tokens * c.d_model, tokens * c.d_ff);
        let floats = run.needs_floats(&[&layer.gate, &layer.up], observers);
        let x = self.normed(run, &layer.ffn_norm, &s.x[..d], &mut s.h[..d], floats);
        observers.rows(Some(n), &["ffn_gate", "ffn_up"], x, c.d_model);
        let mut input = Input::new(x, c.d_model, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.gate), &mut s.gate[..ff], Epilogue::Store)?;
        run.project(&mut input, run.operand(&layer.up), &mut s.up[..ff], Epilogue::Store)?;
        let x = if run.needs_floats(&[&layer.down], observers) {
            silu_mul(run.exec, &mut s.gate[..ff], &s.up[..ff]);
            Rows::Plain(&s.gate[..ff])
        } else {
            Rows::Gated { gate: &s.gate[..ff], up: &s.up[..ff] }
        };
        observers.rows(Some(n), &["ffn_down"], x, c.d_ff);
        let mut input = Input::new(x, c.d_ff, &mut s.int8, &mut s.bf16);
        run.project(&mut input, run.operand(&layer.down), &mut s.x[..d], Epilogue::Add)
    }

    /// Logits of the wanted rows, once per run of sequences that want the same part of the vocabulary.
    fn output(
        &self,
        run: &Run,
        s: &mut State,
        batch: &[SequenceRequest],
        mut logits: Logits,
        observers: &mut Observers,
    ) -> Result<()> {
        let d = self.config.d_model;
        let output = run.operand(&self.weights.output);
        let name: &[&str] = if self.weights.is_tied() { &["token_embd"] } else { &["output"] };
        let mut first = 0;
        while first < batch.len() {
            let vocab = batch[first].vocab.clone();
            let same = batch[first..].iter().take_while(|s| s.vocab == vocab).count();
            let rows = self.gather(s, batch, first..first + same)?;
            first += same;
            observers.input(None, name, &s.q[..rows * d], d);
            if rows == 0 || vocab.is_empty() {
                continue;
            }
            let mut input = Input::new(Rows::Plain(&s.q[..rows * d]), d, &mut s.int8, &mut s.bf16);
            let mut project = |ids: Range<u32>, y: &mut [f32]| {
                run.project(&mut input, output.slice(ids.start as usize..ids.end as usize), y, Epilogue::Store)
            };
            match &mut logits {
                Logits::All(out) => {
                    let (y, later) = std::mem::take(out).split_at_mut(rows * vocab.len());
                    *out = later;
                    project(vocab, y)?;
                }
                Logits::Parts(parts) => {
                    let width = u32::try_from(parts.width).unwrap_or(u32::MAX);
                    for start in vocab.clone().step_by(parts.width) {
                        run.exec.check()?;
                        let ids = start..vocab.end.min(start.saturating_add(width));
                        let y = &mut parts.buffer[..rows * ids.len()];
                        project(ids.clone(), y)?;
                        (parts.visit)(ids, y)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies what the wanted rows of some sequences leave the last norm with into `q`, which is free by then; returns
    /// how many there are.
    fn gather(&self, s: &mut State, batch: &[SequenceRequest], sequences: Range<usize>) -> Result<usize> {
        let d = self.config.d_model;
        let now = &batch[sequences.clone()];
        let rows: usize = now.iter().map(|s| s.rows.len()).sum();
        s.reserve_output(&self.config, rows)?;
        let mut gathered = s.q.chunks_exact_mut(d);
        for (sequence, place) in now.iter().zip(&s.sequences[sequences]) {
            for (row, to) in sequence.rows.iter().zip(&mut gathered) {
                let at = place_of(&s.wanted, place.start + row);
                to.copy_from_slice(&s.h[at * d..][..d]);
            }
        }
        Ok(rows)
    }
}

/// The rows of a batch whose logits are wanted.
fn wanted<'a>(batch: &'a [SequenceRequest]) -> impl Iterator<Item = usize> + 'a {
    let starts = batch.iter().scan(0, |next, s| Some(std::mem::replace(next, *next + s.ids.len())));
    batch.iter().zip(starts).flat_map(|(s, start)| s.rows.iter().map(move |row| start + row))
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
    x: Rows<'a>,
    width: usize,
    int8: &'a mut Int8Rows,
    bf16: &'a mut Bf16Rows,
    has_int8: Option<Scales>,
    has_bf16: bool,
}

impl<'a> Input<'a> {
    fn new(x: Rows<'a>, width: usize, int8: &'a mut Int8Rows, bf16: &'a mut Bf16Rows) -> Self {
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

    /// Whether the input of these matrices must be there in f32: to be multiplied as it is, or to be seen.
    fn needs_floats(&self, matrices: &[&TensorRef], observers: &Observers) -> bool {
        let in_f32 = |w: &&TensorRef| self.exec.kernels.arithmetic(w.dtype, self.fast) == Arithmetic::F32;
        observers.inputs.is_some() || matrices.iter().any(in_f32)
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
                    input.int8.quantize_rows(self.exec, input.x, input.width, scales)?;
                }
                Activations::Int8(input.int8)
            }
            Arithmetic::Bf16 => {
                if !std::mem::replace(&mut input.has_bf16, true) {
                    input.bf16.round_rows(self.exec, input.x, input.width)?;
                }
                Activations::Bf16(input.bf16)
            }
            Arithmetic::F32 => match input.x {
                Rows::Plain(x) => Activations::F32 { x, k: input.width },
                _ => return Err(Error::Internal("a product in f32 without its input in f32".to_owned())),
            },
        };
        matmul(self.exec, w, activations, y, rows, epilogue)
    }
}
