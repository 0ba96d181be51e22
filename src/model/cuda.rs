//! Forward passes on a graphics card. Nothing is computed here: kernels are queued, and whoever reads what comes of them
//! waits. Sizes of buffers are those of the largest batch so far.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::backend::{Backend, Buffer, Input, Source};
use super::config::Config;
use super::layout::Layout;
use super::transformer::{SequenceRequest, Transformer, parts_of};
use super::weights::TensorRef;
use crate::error::{Error, Result};
use crate::kernels::cuda::operations::{self as ops, Angles, Heads, Int8, Int8Memory, Weights};
use crate::kernels::cuda::{Arena, Gpu, Indices, Memory, Part, Queue, Unpacked};
use crate::kernels::elementwise::Pairs;
use crate::kernels::{Arithmetic, Epilogue};
use crate::memory::{try_reserve_entry, try_resize};
use crate::parallel::Exec;

/// The weights of the last layers and the output in a card's memory, as they lie in the file.
pub struct CudaWeights {
    gpu: Arc<Gpu>,
    arena: Arena,
    /// what Hopper's kernels multiply, by where it begins in the file
    unpacked: HashMap<usize, Unpacked>,
    angles: Angles,
    /// The first layer that is there.
    first: usize,
}

impl CudaWeights {
    /// An error where the kernels do not have the model's sizes.
    pub fn check(c: &Config, file: &str) -> Result<()> {
        let reason = match c {
            _ if !ops::has_attention(c.head_dim) => format!("heads of {} elements", c.head_dim),
            _ if [c.d_model, c.kv_dim(), c.d_ff].iter().any(|width| !width.is_multiple_of(32)) => {
                format!("rows of {}, {} and {} elements", c.d_model, c.kv_dim(), c.d_ff)
            }
            _ => return Ok(()),
        };
        Err(Error::unsupported(file, format!("the CUDA kernels are not for {reason}; run it on the cpu")))
    }

    /// The tensors that layers from `first` on need.
    fn tensors(transformer: &Transformer, first: usize) -> impl Iterator<Item = &TensorRef> {
        let weights = &transformer.weights;
        let layers = weights.layers[first..].iter().flat_map(|layer| layer.tensors());
        let embedding = (first == 0 && !weights.is_tied()).then_some(&weights.token_embd);
        layers.chain([&weights.output_norm, &weights.output]).chain(embedding)
    }

    /// Bytes on the card that layers from `first` on take.
    pub fn bytes(transformer: &Transformer, first: usize) -> usize {
        let (cos, sin) = transformer.rope.angles();
        Arena::bytes(CudaWeights::tensors(transformer, first).map(TensorRef::bytes))
            .saturating_add(size_of_val(cos) + size_of_val(sin))
    }

    /// Copies the weights of the layers from `first` on, and of the output, to the card.
    ///
    /// # Errors
    /// `OutOfMemory`; `Device`; `Cancelled` if the progress function says so.
    pub fn new(
        gpu: &Arc<Gpu>,
        transformer: &Transformer,
        file: &[u8],
        first: usize,
        progress: Option<&dyn Fn(u64, u64) -> bool>,
    ) -> Result<Self> {
        let queue = Queue::new(gpu)?;
        let tensors = CudaWeights::tensors(transformer, first).map(|t| (t.begin(), &file[t.begin()..][..t.bytes()]));
        let arena = Arena::new(gpu, tensors, "the model's weights", progress)?;
        let (cos, sin) = transformer.rope.angles();
        let neighbours = transformer.rope.pairs() == Pairs::Neighbours;
        let angles = Angles::new(&queue, cos, sin, transformer.config.head_dim / 2, neighbours)?;
        let mut weights = CudaWeights { gpu: gpu.clone(), arena, unpacked: HashMap::new(), angles, first };
        if gpu.has_hopper() {
            weights.unpack(&queue, transformer)?;
        }
        Ok(weights)
    }

    /// Unpacks all matrices that are multiplied with, if there is memory for that and for much more.
    fn unpack(&mut self, queue: &Queue, transformer: &Transformer) -> Result<()> {
        let weights = &transformer.weights;
        let layers = weights.layers[self.first..].iter().flat_map(|layer| layer.multiplied());
        let matrices = || layers.clone().chain([&weights.output]);
        let bytes = matrices().map(|t| Unpacked::bytes(t.dtype, t.rows, t.cols)).fold(0, usize::saturating_add);
        if bytes.saturating_mul(2) > self.gpu.free_memory()? {
            return Ok(());
        }
        for t in matrices() {
            try_reserve_entry(&mut self.unpacked, "a list of unpacked weights")?;
            match Unpacked::new(queue, self.matrix(t)?) {
                Ok(None) => {}
                Ok(Some(unpacked)) => drop(self.unpacked.insert(t.begin(), unpacked)),
                Err(Error::OutOfMemory { .. }) => {
                    // others took what was free a moment ago: products do without
                    queue.wait()?;
                    self.unpacked.clear();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        queue.wait()
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The first layer that is there; those before it run on the processor.
    pub fn first(&self) -> usize {
        self.first
    }

    /// As it lies in the file.
    fn matrix(&self, t: &TensorRef) -> Result<Weights<'_>> {
        Weights::new(t.dtype, t.rows, t.cols, self.arena.bytes_of(t.begin(), t.bytes())?)
    }

    fn vector(&self, t: &TensorRef) -> Result<Part<'_, f32>> {
        self.arena.bytes_of(t.begin(), t.bytes())?.cast()
    }
}

/// A context's memory on a card, for batches of up to `tokens` tokens.
pub struct CudaState {
    queue: Arc<Queue>,
    tokens: usize,
    buffers: Option<Buffers>,
    /// how often memory has moved
    moves: u64,
    layout: Layout,
}

struct Buffers {
    x: Memory<f32>,
    h: Memory<f32>,
    q: Memory<f32>,
    k: Memory<f32>,
    v: Memory<f32>,
    gate: Memory<f32>,
    up: Memory<f32>,
    /// queries, keys and values as attention reads them
    q16: Memory<u16>,
    k16: Memory<u16>,
    v16: Memory<u16>,
    /// the input of a product, quantized or rounded
    int8: Int8Memory,
    bf16: Memory<u16>,
    ids: Indices,
    positions: Indices,
    /// where sequences begin: first among the queries of the last layer and all rows, then twice among all rows
    starts: Indices,
    wanted: Indices,
    /// which of the wanted rows those of the output are
    places: Indices,
    /// on their way to the host, and there
    logits: Option<Memory<f32>>,
    host: Vec<f32>,
}

const WHAT: &str = "the buffers of a batch";

impl CudaState {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let queue = Arc::new(Queue::new(gpu)?);
        Ok(CudaState { queue, tokens: 0, buffers: None, moves: 0, layout: Layout::default() })
    }

    /// Waits until all that was queued is done.
    pub fn wait(&self) -> Result<()> {
        self.queue.wait()
    }

    /// Bytes on the card that a batch of `tokens` tokens takes.
    pub fn bytes(c: &Config, tokens: usize) -> usize {
        let floats = 3 * c.d_model + 2 * c.kv_dim() + 2 * c.d_ff;
        let halves = c.d_model + 2 * c.kv_dim() + c.d_model.max(c.d_ff);
        tokens
            .saturating_mul(4 * floats + 2 * halves)
            .saturating_add(Int8Memory::bytes(tokens, c.d_model.max(c.d_ff)))
            // ids, positions twice, rows twice, and three for each sequence, of which there may be one for each token
            .saturating_add(Indices::bytes(8 * tokens + 3))
    }

    /// Room for `tokens` tokens, at positions below `positions`.
    fn reserve(&mut self, c: &Config, tokens: usize, positions: usize) -> Result<()> {
        if tokens <= self.tokens && self.buffers.is_some() {
            return Ok(());
        }
        // give back before asking again: the peak is one set of buffers
        (self.buffers, self.tokens) = (None, 0);
        self.moves += 1;
        let (gpu, widest) = (self.queue.gpu(), c.d_model.max(c.d_ff));
        let floats = |width: usize| Memory::new(gpu, tokens.saturating_mul(width), WHAT);
        let halves = |width: usize| Memory::new(gpu, tokens.saturating_mul(width), WHAT);
        let indices = |len, limit| Indices::new(gpu, len, limit, WHAT);
        self.buffers = Some(Buffers {
            x: floats(c.d_model)?,
            h: floats(c.d_model)?,
            q: floats(c.d_model)?,
            k: floats(c.kv_dim())?,
            v: floats(c.kv_dim())?,
            gate: floats(c.d_ff)?,
            up: floats(c.d_ff)?,
            q16: halves(c.d_model)?,
            k16: halves(c.kv_dim())?,
            v16: halves(c.kv_dim())?,
            int8: Int8Memory::new(&self.queue, tokens, widest)?,
            bf16: halves(widest)?,
            ids: indices(tokens, c.vocab)?,
            positions: indices(2 * tokens, positions)?,
            starts: indices(3 * (tokens + 1), tokens + 1)?,
            wanted: indices(tokens, tokens)?,
            places: indices(tokens, tokens)?,
            logits: None,
            host: Vec::new(),
        });
        self.layout = Layout::with_capacity(tokens)?;
        self.tokens = tokens;
        Ok(())
    }
}

/// A pass on a graphics card.
pub struct Cuda<'a> {
    weights: &'a CudaWeights,
    state: &'a mut CudaState,
    config: &'a Config,
    /// whose cancel flag is looked at
    exec: &'a Exec<'a>,
    input: Input<Part<'a, f32>>,
    /// whether weights that were unpacked are multiplied: the same throughout, as inputs are made ready for one or the other
    has_hopper: bool,
    /// whether the batch was staged before: see [`Cuda::stage`]
    staged: bool,
}

impl Buffers {
    fn memory(&self, buffer: Buffer) -> &Memory<f32> {
        match buffer {
            Buffer::X => &self.x,
            Buffer::H => &self.h,
            Buffer::Q => &self.q,
            Buffer::K => &self.k,
            Buffer::V => &self.v,
            Buffer::Gate => &self.gate,
            Buffer::Up => &self.up,
        }
    }

    /// The first `len` numbers of a buffer.
    fn part(&self, buffer: Buffer, len: usize) -> Part<'_, f32> {
        self.memory(buffer).part(0..len)
    }

    /// Puts a batch where copies take it from.
    fn set(&mut self, batch: &[SequenceRequest], layout: &Layout) -> Result<()> {
        let Buffers { ids, positions, starts, wanted, places, .. } = self;
        ids.set(0, batch.iter().flat_map(|s| s.ids).map(|id| *id as usize))?;
        let position = |row: usize| layout.positions[row] as usize;
        let tokens = layout.tokens();
        positions.set(0, (0..tokens).map(position))?;
        positions.set(tokens, layout.wanted.iter().map(|&row| position(row)))?;
        for (list, sequences) in [&layout.queries, &layout.sequences, &layout.sequences].into_iter().enumerate() {
            let ends = sequences.iter().map(|s| s.end);
            starts.set(list * (batch.len() + 1), std::iter::once(0).chain(ends))?;
        }
        wanted.set(0, layout.wanted.iter().copied())?;
        places.set(0, layout.places(batch, 0..batch.len()))
    }

    /// Queues the copies of what [`Buffers::set`] has put there.
    fn send(&self, queue: &Queue, batch: &[SequenceRequest], layout: &Layout) -> Result<()> {
        let (tokens, wanted) = (layout.tokens(), layout.wanted.len());
        self.ids.send(queue, tokens)?;
        self.positions.send(queue, tokens + wanted)?;
        self.starts.send(queue, 3 * (batch.len() + 1))?;
        self.wanted.send(queue, wanted)?;
        self.places.send(queue, batch.iter().map(|s| s.rows.len()).sum())
    }

    /// Rows of the input as the kernels take them.
    fn source<'b>(&'b self, input: &Input<Part<'b, f32>>, eps: f32) -> ops::Source<'b> {
        let len = input.rows * input.width;
        match input.from {
            Source::Plain(buffer) => ops::Source::Plain(self.part(buffer, len)),
            Source::Normed(weight) => ops::Source::Normed { x: self.part(Buffer::X, len), weight, eps },
            Source::Gated => ops::Source::Gated { gate: self.part(Buffer::Gate, len), up: self.part(Buffer::Up, len) },
        }
    }
}

impl<'a> Cuda<'a> {
    pub fn new(weights: &'a CudaWeights, state: &'a mut CudaState, config: &'a Config, exec: &'a Exec<'a>) -> Self {
        let has_hopper = weights.gpu.has_hopper();
        Cuda { weights, state, config, exec, input: Input::default(), has_hopper, staged: false }
    }

    /// A matrix to multiply with.
    fn matrix(&self, t: &TensorRef) -> Result<Weights<'a>> {
        let unpacked = self.weights.unpacked.get(&t.begin()).filter(|_| self.has_hopper);
        Ok(self.weights.matrix(t)?.with_unpacked(unpacked))
    }

    /// Makes room for a batch, which was checked, and puts it where copies take it from, so that a pass over it can be
    /// recorded, or a recorded one be repeated with it.
    pub fn stage(&mut self, batch: &[SequenceRequest], all: bool) -> Result<()> {
        self.state.queue.wait()?; // copies of the pass before have been made
        let tokens: usize = batch.iter().map(|s| s.ids.len()).sum();
        let rows: usize = batch.iter().map(|s| s.rows.len()).sum();
        self.state.reserve(self.config, tokens.max(rows).max(1), self.weights.angles.positions())?;
        let CudaState { layout, buffers, .. } = &mut *self.state;
        layout.set(batch, all)?;
        buffers.as_mut().ok_or_else(nothing_begun)?.set(batch, layout)?;
        self.staged = true;
        Ok(())
    }

    /// A number that is another one once memory has moved: what was recorded before works on memory that is gone.
    pub fn moves(&self) -> u64 {
        self.state.moves
    }

    /// Where its work is queued.
    pub fn queue(&self) -> &Queue {
        &self.state.queue
    }

    /// The same, to be held while work is queued.
    pub fn shared_queue(&self) -> Arc<Queue> {
        self.state.queue.clone()
    }

    /// The first layer whose weights are on the card.
    pub fn first_layer(&self) -> usize {
        self.weights.first
    }

    pub fn d_model(&self) -> usize {
        self.config.d_model
    }

    /// Puts numbers into a buffer, from its beginning on.
    pub fn write(&self, buffer: Buffer, x: &[f32]) -> Result<()> {
        self.state.queue.write(self.buffers()?.part(buffer, x.len()), x)
    }

    fn buffers(&self) -> Result<&Buffers> {
        self.state.buffers.as_ref().ok_or_else(nothing_begun)
    }

    fn buffers_mut(&mut self) -> Result<&mut Buffers> {
        self.state.buffers.as_mut().ok_or_else(nothing_begun)
    }

    /// Quantizes or rounds the input as weights of a type need it, unless it is there.
    fn prepare(&mut self, w: &TensorRef) -> Result<()> {
        let Input { rows, width, has_int8, has_bf16, .. } = self.input;
        let (queue, buffers) = (&self.state.queue, self.buffers()?);
        let source = buffers.source(&self.input, self.config.rms_eps);
        match self.matrix(w)?.arithmetic(rows) {
            Arithmetic::Int8(scales) if has_int8 != Some(scales) => {
                ops::quantize(queue, source, Int8 { memory: &buffers.int8, n: rows, k: width, scales })?;
                self.input.has_int8 = Some(scales);
            }
            Arithmetic::Bf16 if !has_bf16 => {
                ops::round(queue, source, rows, width, buffers.bf16.part(0..rows * width))?;
                self.input.has_bf16 = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// `y (=|+=) w input`, which [`Cuda::prepare`] has made ready.
    fn product(&self, w: Weights, y: Part<'_, f32>, epilogue: Epilogue) -> Result<()> {
        let Input { rows, width, .. } = self.input;
        let (queue, buffers) = (&self.state.queue, self.buffers()?);
        match w.arithmetic(rows) {
            Arithmetic::Int8(scales) => {
                let x = Int8 { memory: &buffers.int8, n: rows, k: width, scales };
                ops::product_int8(queue, w, x, y, epilogue)
            }
            _ => {
                let x = (buffers.bf16.part(0..rows * width), width, rows);
                ops::product_bf16(queue, w, x, None, y, epilogue)
            }
        }
    }

    /// Queues the product of some rows of the output with its input, whose number of rows is that of `y` by those of ids.
    pub fn logits_to(&mut self, w: &TensorRef, ids: Range<u32>, y: Part<'_, f32>) -> Result<()> {
        self.prepare(w)?;
        let w = self.matrix(w)?.slice(ids.start as usize..ids.end as usize);
        self.product(w, y, Epilogue::Store)
    }
}

fn nothing_begun() -> Error {
    Error::Internal("a pass on a graphics card that was not begun".to_owned())
}

impl Backend for Cuda<'_> {
    fn begin(&mut self, batch: &[SequenceRequest], all: bool) -> Result<()> {
        if !std::mem::take(&mut self.staged) {
            self.stage(batch, all)?;
            self.staged = false;
        }
        self.buffers()?.send(&self.state.queue, batch, &self.state.layout)
    }

    fn layout(&self) -> &Layout {
        &self.state.layout
    }

    fn check(&self) -> Result<()> {
        self.exec.check()
    }

    fn enter(&mut self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn embed(&mut self, table: &TensorRef, _: &[SequenceRequest]) -> Result<()> {
        let buffers = self.buffers()?;
        let tokens = self.state.layout.tokens();
        let out = buffers.part(Buffer::X, tokens * self.config.d_model);
        ops::embed(&self.state.queue, self.weights.matrix(table)?, &buffers.ids, tokens, out)
    }

    fn input(
        &mut self,
        from: Source<&TensorRef>,
        rows: usize,
        matrices: &[&TensorRef],
        seen: bool,
    ) -> Result<Option<Buffer>> {
        let width = matrices.first().map_or(0, |w| w.cols);
        let from = match from {
            Source::Plain(buffer) => Source::Plain(buffer),
            Source::Normed(weight) => Source::Normed(self.weights.vector(weight)?),
            Source::Gated => Source::Gated,
        };
        self.input = Input::new(from, rows, width);
        let to = match from {
            Source::Plain(buffer) => return Ok(Some(buffer)),
            _ if !seen => return Ok(None),
            Source::Normed(_) => Buffer::H,
            Source::Gated => Buffer::Gate,
        };
        let buffers = self.buffers()?;
        let source = buffers.source(&self.input, self.config.rms_eps);
        ops::floats(&self.state.queue, source, rows, width, buffers.part(to, rows * width))?;
        self.input.from = Source::Plain(to);
        Ok(Some(to))
    }

    fn project(&mut self, w: &TensorRef, to: Buffer, epilogue: Epilogue) -> Result<()> {
        self.prepare(w)?;
        self.product(self.matrix(w)?, self.buffers()?.part(to, self.input.rows * w.rows), epilogue)
    }

    fn rotate(&mut self, buffer: Buffer, rows: usize) -> Result<()> {
        let buffers = self.buffers()?;
        let (width, to) = match buffer {
            Buffer::K => (self.config.kv_dim(), &buffers.k16),
            _ => (self.config.d_model, &buffers.q16),
        };
        let tokens = self.state.layout.tokens();
        // those of the wanted rows stand behind those of all
        let positions = if rows < tokens { tokens..tokens + rows } else { 0..rows };
        let (x, to, len) = (buffers.part(buffer, rows * width), to.part(0..rows * width), positions);
        ops::rope(&self.state.queue, x, &self.weights.angles, (&buffers.positions, len), to)
    }

    fn keep_wanted(&mut self) -> Result<()> {
        let (d, buffers) = (self.config.d_model, self.buffers()?);
        let wanted = self.state.layout.wanted.len();
        let (x, h) = (buffers.x.all(), buffers.part(Buffer::H, wanted * d));
        ops::gather(&self.state.queue, x, (&buffers.wanted, 0..wanted), d, h)?;
        self.state.queue.copy(buffers.part(Buffer::X, wanted * d), h)
    }

    fn attention(&mut self, cut: bool) -> Result<()> {
        let (c, buffers, queue) = (self.config, self.buffers()?, &self.state.queue);
        let layout = &self.state.layout;
        let kv = layout.tokens() * c.kv_dim();
        let v16 = buffers.v16.part(0..kv);
        ops::round(queue, ops::Source::Plain(buffers.part(Buffer::V, kv)), layout.tokens(), c.kv_dim(), v16)?;
        let queries = if cut { &layout.queries } else { &layout.sequences };
        let longest = queries.iter().map(Range::len).max().unwrap_or(0);
        let heads = Heads { heads: c.heads, kv_heads: c.kv_heads, dim: c.head_dim };
        let qkv = (buffers.q16.all(), buffers.k16.all(), buffers.v16.all());
        let first = if cut { 0 } else { queries.len() + 1 };
        let starts = (&buffers.starts, first, queries.len(), longest);
        ops::attention(queue, heads, qkv, starts, buffers.h.all())
    }

    fn norm(&mut self, weight: &TensorRef, rows: usize) -> Result<()> {
        let (d, buffers, eps) = (self.config.d_model, self.buffers()?, self.config.rms_eps);
        let weight = self.weights.vector(weight)?;
        let source = ops::Source::Normed { x: buffers.part(Buffer::X, rows * d), weight, eps };
        ops::floats(&self.state.queue, source, rows, d, buffers.part(Buffer::H, rows * d))
    }

    fn gather(&mut self, batch: &[SequenceRequest], sequences: Range<usize>) -> Result<usize> {
        let (d, buffers) = (self.config.d_model, self.buffers()?);
        let rows = |sequences: &[SequenceRequest]| sequences.iter().map(|s| s.rows.len()).sum::<usize>();
        let (before, n) = (rows(&batch[..sequences.start]), rows(&batch[sequences]));
        let (h, q) = (buffers.h.all(), buffers.part(Buffer::Q, n * d));
        ops::gather(&self.state.queue, h, (&buffers.places, before..before + n), d, q)?;
        Ok(n)
    }

    fn logits(&mut self, w: &TensorRef, ids: Range<u32>, out: &mut [f32]) -> Result<()> {
        let (rows, width) = (self.input.rows, ids.len());
        let most = (LOGITS / rows.max(1)).max(1).min(width);
        let queue = self.state.queue.clone();
        let buffers = self.buffers_mut()?;
        let (mut buffer, mut host) = (buffers.logits.take(), std::mem::take(&mut buffers.host));
        if buffer.as_ref().is_none_or(|buffer| buffer.len() < rows * most) {
            drop(buffer.take()); // give back before asking again
            buffer = Some(Memory::new(queue.gpu(), rows * most, "logits")?);
        }
        try_resize(&mut host, rows * most, "logits")?;
        for part in parts_of(ids.clone(), most) {
            self.check()?;
            let (len, first) = (part.len(), (part.start - ids.start) as usize);
            let y = buffer.as_ref().ok_or_else(nothing_begun)?.part(0..rows * len);
            self.logits_to(w, part, y)?;
            if len == width {
                queue.read(y, &mut out[..rows * len])?;
                continue;
            }
            queue.read(y, &mut host[..rows * len])?;
            for (from, to) in host.chunks_exact(len).zip(out.chunks_exact_mut(width)) {
                to[first..first + len].copy_from_slice(from);
            }
        }
        let buffers = self.buffers_mut()?;
        (buffers.logits, buffers.host) = (buffer, host);
        Ok(())
    }

    fn read(&mut self, buffer: Buffer, len: usize, look: &mut dyn FnMut(&[f32])) -> Result<()> {
        let mut host = std::mem::take(&mut self.buffers_mut()?.host);
        try_resize(&mut host, len, "numbers from a graphics card")?;
        self.state.queue.read(self.buffers()?.part(buffer, len), &mut host[..len])?;
        look(&host[..len]);
        self.buffers_mut()?.host = host;
        Ok(())
    }
}

/// Logits that are in a card's memory at a time (64 MiB).
const LOGITS: usize = 16 << 20;
