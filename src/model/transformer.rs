//! The forward pass: token ids in, logits out.

use std::ops::Range;

use super::Compute;
use super::backend::{Backend, Buffer, Source};
use super::config::Config;
use super::cpu::Cpu;
use super::packed::PackedWeights;
use super::state::State;
use super::weights::{TensorRef, Weights};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::kernels::attention::Precision;
use crate::kernels::elementwise::Rope;
use crate::kernels::{Arithmetic, Epilogue, Operand};
use crate::parallel::Exec;

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

    /// Shows what enters a layer.
    fn layer(&mut self, backend: &mut impl Backend, layer: usize, buffer: Buffer, len: usize) -> Result<()> {
        match &mut self.layers {
            Some(observe) => backend.read(buffer, len, &mut |x| observe(layer, x)),
            None => Ok(()),
        }
    }

    /// Shows the input of some matrices: rows of a width, in a buffer if somebody wants to see them.
    fn input(
        &mut self,
        backend: &mut impl Backend,
        layer: Option<usize>,
        matrices: &'static [&'static str],
        input: Option<Buffer>,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        match (&mut self.inputs, input) {
            (None, _) => Ok(()),
            (Some(observe), Some(buffer)) => {
                backend.read(buffer, rows * width, &mut |x| observe(&MatrixInput { layer, matrices, x, width }))
            }
            (Some(_), None) => Err(Error::Internal("an input that is to be seen is not there in f32".to_owned())),
        }
    }
}

/// The backbone over a mapped file.
pub struct Transformer {
    pub config: Config,
    pub weights: Weights,
    pub(super) rope: Rope,
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

    /// Runs a batch of sequences of any lengths on the processor; they do not see each other. Looks at the cancel flag before
    /// every layer and every part of the logits.
    ///
    /// Errors: an id, row or vocabulary range outside the model, an empty or too long sequence, no memory, or one of
    /// whom the logits are shown to.
    pub fn forward(
        &self,
        run: &Run,
        state: &mut State,
        batch: &[SequenceRequest],
        logits: Logits,
        observers: Observers,
    ) -> Result<()> {
        let mut cpu = Cpu::new(run, state, self);
        run.exec.run(|| self.forward_on(&mut cpu, batch, logits, observers))
    }

    /// [`Transformer::forward`] on any backend.
    pub fn forward_on(
        &self,
        backend: &mut impl Backend,
        batch: &[SequenceRequest],
        logits: Logits,
        mut observers: Observers,
    ) -> Result<()> {
        logits.check(batch)?;
        self.hidden(backend, batch, &mut observers)?;
        self.output(backend, batch, logits, &mut observers)?;
        backend.check()
    }

    /// All but the output: the last norm of the rows that are wanted, in `H`.
    pub fn hidden(&self, b: &mut impl Backend, batch: &[SequenceRequest], observers: &mut Observers) -> Result<()> {
        self.check(batch)?;
        let (d, layers) = (self.config.d_model, self.config.layers);
        b.begin(batch, observers.any())?;
        b.embed(&self.weights.token_embd, batch)?;
        let mut rows = b.layout().tokens();
        for layer in 0..layers {
            b.check()?;
            b.enter(layer, rows)?;
            observers.layer(b, layer, Buffer::X, rows * d)?;
            rows = self.attention(b, layer, observers)?;
            self.feed_forward(b, layer, rows, observers)?;
        }
        b.check()?;
        b.enter(layers, rows)?;
        b.norm(&self.weights.output_norm, rows)?;
        observers.layer(b, layers, Buffer::H, rows * d)
    }

    /// An error for a batch that cannot be run: see [`Transformer::forward`].
    pub fn check(&self, batch: &[SequenceRequest]) -> Result<()> {
        let c = &self.config;
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
        }
        Ok(())
    }

    /// `x += attn_output(attention(norm(x)))`; returns how many rows `x` has then: in the last layer only those that
    /// are wanted, whose queries attend to the keys and values of all.
    fn attention(&self, b: &mut impl Backend, n: usize, observers: &mut Observers) -> Result<usize> {
        let layer = &self.weights.layers[n];
        let (tokens, wanted) = (b.layout().tokens(), b.layout().wanted.len());
        let cut = n + 1 == self.config.layers && wanted < tokens;
        let from = Source::Normed(&layer.attn_norm);
        let matrices = [&layer.q, &layer.k, &layer.v];
        let input = b.input(from, tokens, &matrices, observers.inputs.is_some())?;
        observers.input(b, Some(n), &["attn_q", "attn_k", "attn_v"], input, (tokens, layer.q.cols))?;
        b.project(&layer.k, Buffer::K, Epilogue::Store)?;
        b.project(&layer.v, Buffer::V, Epilogue::Store)?;
        b.rotate(Buffer::K, tokens)?;
        let mut rows = tokens;
        if cut {
            b.keep_wanted()?;
            rows = wanted;
            b.input(from, rows, &matrices, false)?;
        }
        b.project(&layer.q, Buffer::Q, Epilogue::Store)?;
        b.rotate(Buffer::Q, rows)?;
        b.attention(cut)?;
        let input = b.input(Source::Plain(Buffer::H), rows, &[&layer.attn_output], observers.inputs.is_some())?;
        observers.input(b, Some(n), &["attn_output"], input, (rows, layer.attn_output.cols))?;
        b.project(&layer.attn_output, Buffer::X, Epilogue::Add)?;
        Ok(rows)
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn feed_forward(&self, b: &mut impl Backend, n: usize, rows: usize, observers: &mut Observers) -> Result<()> {
        let layer = &self.weights.layers[n];
        let seen = observers.inputs.is_some();
        let input = b.input(Source::Normed(&layer.ffn_norm), rows, &[&layer.gate, &layer.up], seen)?;
        observers.input(b, Some(n), &["ffn_gate", "ffn_up"], input, (rows, layer.gate.cols))?;
        b.project(&layer.gate, Buffer::Gate, Epilogue::Store)?;
        b.project(&layer.up, Buffer::Up, Epilogue::Store)?;
        let input = b.input(Source::Gated, rows, &[&layer.down], seen)?;
        observers.input(b, Some(n), &["ffn_down"], input, (rows, layer.down.cols))?;
        b.project(&layer.down, Buffer::X, Epilogue::Add)
    }

    /// Logits of the wanted rows, once per run of sequences that want the same part of the vocabulary.
    fn output(
        &self,
        b: &mut impl Backend,
        batch: &[SequenceRequest],
        mut logits: Logits,
        observers: &mut Observers,
    ) -> Result<()> {
        let output = &self.weights.output;
        let name: &[&str] = if self.weights.is_tied() { &["token_embd"] } else { &["output"] };
        let mut first = 0;
        while first < batch.len() {
            let vocab = batch[first].vocab.clone();
            let same = batch[first..].iter().take_while(|s| s.vocab == vocab).count();
            let rows = b.gather(batch, first..first + same)?;
            first += same;
            let input = b.input(Source::Plain(Buffer::Q), rows, &[output], observers.inputs.is_some())?;
            observers.input(b, None, name, input, (rows, output.cols))?;
            if rows == 0 || vocab.is_empty() {
                continue;
            }
            match &mut logits {
                Logits::All(out) => {
                    let (y, later) = std::mem::take(out).split_at_mut(rows * vocab.len());
                    *out = later;
                    b.logits(output, vocab, y)?;
                }
                Logits::Parts(parts) => {
                    for ids in parts_of(vocab, parts.width) {
                        b.check()?;
                        let y = &mut parts.buffer[..rows * ids.len()];
                        b.logits(output, ids.clone(), y)?;
                        (parts.visit)(ids, y)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Ids in parts of `width`, of which the last may have fewer.
pub fn parts_of(vocab: Range<u32>, width: usize) -> impl Iterator<Item = Range<u32>> {
    let (end, most) = (vocab.end, u32::try_from(width).unwrap_or(u32::MAX));
    vocab.step_by(width).map(move |start| start..end.min(start.saturating_add(most)))
}

/// No published model comes near; keeps a file's claim from sizing the table of angles.
const MAX_POSITIONS: usize = 1 << 17;

/// What the parts of a forward pass share: threads and instruction set, the model file's bytes, and the arithmetic.
pub struct Run<'a> {
    pub(super) exec: &'a Exec<'a>,
    pub(super) file: &'a [u8],
    /// 8- and 16-bit products of what is stored in more
    pub(super) fast: bool,
    packed: Option<&'a PackedWeights>,
}

impl<'a> Run<'a> {
    pub fn new(exec: &'a Exec<'a>, file: &'a [u8], compute: Compute) -> Self {
        Run { exec, file, fast: compute == Compute::Fast, packed: None }
    }

    /// The threads, and the work's cancel flag.
    pub fn exec(&self) -> &'a Exec<'a> {
        self.exec
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

    pub(super) fn arithmetic(&self, w: &TensorRef) -> Arithmetic {
        self.exec.kernels.arithmetic(w.dtype, self.fast)
    }

    pub(super) fn attention_precision(&self) -> Precision {
        if self.uses_bf16() { Precision::Bf16 } else { Precision::F32 }
    }

    /// Whether products and attention may be in bfloat16.
    pub(super) fn uses_bf16(&self) -> bool {
        self.fast && self.exec.kernels.prefers_bf16()
    }
}
