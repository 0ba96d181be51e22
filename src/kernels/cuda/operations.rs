//! The kernels as functions of rows of numbers: sizes are checked here, and nowhere else is a kernel launched. All of them
//! queue work and return; what they compute is written at the kernels (`*.cu`).

use std::ops::Range;

use super::memory::{Indices, Memory, Part};
use super::queue::{Argument, Grid, Queue};
use super::unpacked::Unpacked;
use crate::error::{Error, Result};
use crate::kernels::activations::Scales;
use crate::kernels::product::Epilogue;
use crate::kernels::unpack::{Arithmetic, has_int8};
use crate::tensor::GgmlType;

/// A matrix of weights in a card's memory, in the blocks of its file.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    dtype: GgmlType,
    rows: usize,
    cols: usize,
    data: Part<'a, u8>,
    /// the same for Hopper's kernels, and which of its rows is the first here
    unpacked: Option<(&'a Unpacked, usize)>,
}

impl<'a> Weights<'a> {
    /// `Internal` if the bytes are not those of such a matrix.
    pub fn new(dtype: GgmlType, rows: usize, cols: usize, data: Part<'a, u8>) -> Result<Self> {
        let w = Weights { dtype, rows, cols, data, unpacked: None };
        let blocks = cols.is_multiple_of(dtype.block_len());
        match blocks && w.row_bytes().checked_mul(rows) == Some(data.len()) && i32::try_from(rows.max(cols)).is_ok() {
            true => Ok(w),
            false => Err(Error::Internal(format!("{} bytes for {rows} x {cols} weights of type {dtype}", data.len()))),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn dtype(&self) -> GgmlType {
        self.dtype
    }

    /// With what was unpacked of the same matrix, if it was.
    pub fn with_unpacked(self, unpacked: Option<&'a Unpacked>) -> Self {
        Weights { unpacked: unpacked.map(|unpacked| (unpacked, 0)), ..self }
    }

    /// Some of the rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let bytes = rows.start * self.row_bytes()..rows.end * self.row_bytes();
        let unpacked = self.unpacked.map(|(unpacked, first)| (unpacked, first + rows.start));
        Weights { rows: rows.len(), data: self.data.part(bytes), unpacked, ..*self }
    }

    /// Where the rows are, and how many bytes apart.
    pub(super) fn place(&self) -> [Argument<'_>; 2] {
        [self.data.into(), (self.row_bytes() as u64).into()]
    }

    /// How products with so many tokens are computed.
    pub fn arithmetic(&self, tokens: usize) -> Arithmetic {
        match self.unpacked(tokens) {
            Some((unpacked, _)) if unpacked.is_bf16() => Arithmetic::Bf16,
            _ => arithmetic(self.dtype),
        }
    }

    /// What Hopper's kernels multiply for so many tokens, where they are the faster ones.
    fn unpacked(&self, tokens: usize) -> Option<(&'a Unpacked, usize)> {
        self.unpacked.filter(|(unpacked, _)| unpacked.pays(tokens))
    }

    fn row_bytes(&self) -> usize {
        self.cols / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

/// Room for rows of activations in int8: q[n][k] with scales, and for scales of 32 the sums of 16.
pub struct Int8Memory {
    q: Memory<i8>,
    scale: Memory<f32>,
    sums: Memory<i16>,
}

/// `n` rows of `k` elements that [`quantize`] has put there.
#[derive(Clone, Copy)]
pub struct Int8<'a> {
    pub memory: &'a Int8Memory,
    pub n: usize,
    pub k: usize,
    pub scales: Scales,
}

impl Int8Memory {
    /// Room for `n` rows of up to `k` elements.
    pub fn new(queue: &Queue, n: usize, k: usize) -> Result<Self> {
        const WHAT: &str = "the activations of a batch";
        let gpu = queue.gpu();
        let (all, k) = (n.saturating_mul(k), k.next_multiple_of(32));
        Ok(Int8Memory {
            q: Memory::new(gpu, all, WHAT)?,
            scale: Memory::new(gpu, n.saturating_mul(k / 32), WHAT)?,
            sums: Memory::new(gpu, n.saturating_mul(k / 16), WHAT)?,
        })
    }

    /// The first `n` rows of `k` elements, as bytes.
    pub(super) fn rows(&self, n: usize, k: usize) -> Part<'_, u8> {
        self.q.part(0..n * k).bytes()
    }

    /// Elements, scales and sums.
    pub(super) fn arguments(&self) -> [Argument<'_>; 3] {
        [self.q.all().into(), self.scale.all().into(), self.sums.all().into()]
    }

    /// Bytes that `new` takes.
    pub fn bytes(n: usize, k: usize) -> usize {
        n.saturating_mul(k.saturating_add(k.div_ceil(32).saturating_mul(8)))
    }
}

/// Where rows that are quantized or rounded come from, [n, k] each.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Plain(Part<'a, f32>),
    /// RMSNorm of `x` with weights [k].
    Normed {
        x: Part<'a, f32>,
        weight: Part<'a, f32>,
        eps: f32,
    },
    /// SiLU of `gate` times `up`.
    Gated {
        gate: Part<'a, f32>,
        up: Part<'a, f32>,
    },
}

impl Source<'_> {
    /// An error unless it is `n` rows of `k` elements, which the kernels take 32 at a time.
    fn check(&self, n: usize, k: usize) -> Result<()> {
        let len = match self {
            Source::Plain(x) => x.len(),
            Source::Normed { x, weight, .. } if weight.len() == k => x.len(),
            Source::Normed { .. } => 0,
            Source::Gated { gate, up } => gate.len().min(up.len()),
        };
        check(len == n * k && k.is_multiple_of(32) && k > 0, "rows of activations")
    }

    /// A kernel that goes over rows, by the form it gives them: its name and first arguments.
    fn kernel(&self, form: &str) -> (String, Vec<Argument<'_>>) {
        match *self {
            Source::Plain(x) => {
                let name = if form == "bf16" { "round_to_bf16" } else { form };
                (name.to_owned(), vec![x.into()])
            }
            Source::Normed { x, weight, eps } => {
                (format!("rms_norm{}", suffix(form)), vec![x.into(), weight.into(), eps.into()])
            }
            Source::Gated { gate, up } => (format!("silu_mul{}", suffix(form)), vec![gate.into(), up.into()]),
        }
    }
}

fn suffix(form: &str) -> String {
    if form.is_empty() { String::new() } else { format!("_{form}") }
}

/// An error in this library rather than a read or write outside of memory.
pub(super) fn check(right: bool, what: &str) -> Result<()> {
    if right { Ok(()) } else { Err(Error::Internal(format!("{what} of a graphics card do not have their sizes"))) }
}

/// Threads of a block in kernels that go over rows.
const THREADS: usize = 256;

pub(super) fn rows_grid(rows: usize) -> Grid {
    Grid { blocks: [rows, 1, 1], threads: THREADS, shared: 0 }
}

/// A multiplication by tensor cores: tokens and rows of a block of threads, and how many threads those are.
pub(super) struct Tile {
    pub tokens: usize,
    pub rows: usize,
    threads: usize,
}

pub(super) const LARGE: Tile = Tile { tokens: 64, rows: 128, threads: 256 };
const FEW: Tile = Tile { tokens: 32, rows: 32, threads: 128 };
/// Bytes of a row in shared memory: one step along the inner dimension.
pub(super) const STEP: usize = 256;

impl Tile {
    pub fn grid(&self, n: usize, rows: usize, shared: usize) -> Grid {
        Grid { blocks: [n.div_ceil(self.tokens), rows.div_ceil(self.rows), 1], threads: self.threads, shared }
    }

    fn blocks(&self, n: usize, rows: usize) -> usize {
        n.div_ceil(self.tokens) * rows.div_ceil(self.rows)
    }

    /// What `Shared` of product_int8.cu takes.
    fn int8_shared(&self, dtype: GgmlType, scales: Scales) -> usize {
        use GgmlType::*;
        let groups = if matches!(dtype, Q6_K | Q3_K | Q2_K) { STEP / 16 } else { STEP / 32 };
        let offset = matches!(dtype, Q4_1 | Q5_1 | Q4_K | Q5_K | Q2_K);
        let (rows, tokens) = (self.rows, self.tokens);
        let floats = match (scales, offset) {
            (Scales::Wide, _) => rows + 1 + tokens + 1,
            (_, false) => groups * rows + 1 + STEP / 32 * tokens + 1,
            (_, true) => 2 * groups * rows + STEP / 32 * tokens + groups * tokens,
        };
        (rows + tokens) * STEP + floats * size_of::<f32>()
    }
}

pub(super) fn adds(epilogue: Epilogue) -> i32 {
    i32::from(matches!(epilogue, Epilogue::Add))
}

/// How weights of a type are multiplied on a card: as on a processor without bfloat16, but floats in bfloat16.
pub fn arithmetic(dtype: GgmlType) -> Arithmetic {
    match Arithmetic::of(dtype, true, false, false, false) {
        Arithmetic::F32 => Arithmetic::Bf16,
        int8 => int8,
    }
}

/// `out[i] = table[ids[i]]`, rows of `table.cols()` floats, for the first `n` ids.
pub fn embed(queue: &Queue, table: Weights, ids: &Indices, n: usize, out: Part<'_, f32>) -> Result<()> {
    let d = table.cols;
    check(out.len() == n * d && ids.limit() <= table.rows && d.is_multiple_of(32), "embeddings")?;
    let name = format!("embed_{}", table.dtype.name());
    let mut arguments: [Argument; 5] =
        [table.data.into(), (table.row_bytes() as u64).into(), ids.part(0..n).into(), (d as i32).into(), out.into()];
    // SAFETY: ids are below the limit and so rows of the table; it and `out` have the sizes that were checked
    unsafe { queue.launch(&name, rows_grid(n), &mut arguments) }
}

/// `out[i] = x[rows[i]]` for `range` of `rows`, of `d` elements each.
pub fn gather(
    queue: &Queue,
    x: Part<'_, f32>,
    (rows, range): (&Indices, Range<usize>),
    d: usize,
    out: Part<'_, f32>,
) -> Result<()> {
    let n = range.len();
    check(out.len() == n * d && rows.limit() * d <= x.len() && d.is_multiple_of(4), "gathered rows")?;
    let mut arguments: [Argument; 4] = [x.into(), rows.part(range).into(), (d as i32).into(), out.into()];
    // SAFETY: the rows are below the limit, which `x` has; `out` has the size that was checked
    unsafe { queue.launch("gather_rows", rows_grid(n), &mut arguments) }
}

/// Rows in f32: the norm of some, or a gate. `Plain` rows are there already.
pub fn floats(queue: &Queue, from: Source, n: usize, k: usize, out: Part<'_, f32>) -> Result<()> {
    from.check(n, k)?;
    check(out.len() == n * k && !matches!(from, Source::Plain(_)), "rows of floats")?;
    let (name, mut arguments) = from.kernel("");
    arguments.extend([(k as i32).into(), Argument::from(out)]);
    // SAFETY: rows of the sizes that were checked
    unsafe { queue.launch(&name, rows_grid(n), &mut arguments) }
}

/// Rows to int8.
pub fn quantize(queue: &Queue, from: Source, Int8 { memory: to, n, k, scales }: Int8) -> Result<()> {
    from.check(n, k)?;
    let group = scales.group();
    check(
        to.q.len() >= n * k && to.scale.len() >= n * k.div_ceil(32) && to.sums.len() >= n * k / 16,
        "quantized rows",
    )?;
    let (name, mut arguments) = from.kernel("quantize");
    arguments.extend([Argument::from(k as i32), Argument::from(group as i32)]);
    arguments.extend([Argument::from(to.q.all()), to.scale.all().into(), to.sums.all().into()]);
    // SAFETY: rows of the sizes that were checked; there are at most as many scales as 32nds of elements, and half the sums
    unsafe { queue.launch(&name, rows_grid(n), &mut arguments) }
}

/// Rows to bfloat16, `n` of `k` elements.
pub fn round(queue: &Queue, from: Source, n: usize, k: usize, to: Part<'_, u16>) -> Result<()> {
    from.check(n, k)?;
    check(to.len() == n * k, "rounded rows")?;
    let (name, mut arguments) = from.kernel("bf16");
    arguments.extend([(k as i32).into(), Argument::from(to)]);
    // SAFETY: rows of the sizes that were checked
    unsafe { queue.launch(&name, rows_grid(n), &mut arguments) }
}

/// `y[token] (=|+=) w x[token]` of int8 rows; `y` is [n, w.rows()].
pub fn product_int8(queue: &Queue, w: Weights, x: Int8, y: Part<'_, f32>, epilogue: Epilogue) -> Result<()> {
    let Weights { dtype, rows, cols, .. } = w;
    let there = x.memory.q.len() >= x.n * x.k;
    // there are no kernels for mixed scales, which `arithmetic` does not give
    let has_kernel = has_int8(dtype) && x.scales != Scales::Mixed;
    check(has_kernel && there && x.k == cols && y.len() == x.n * rows, "an int8 product")?;
    if let Some((unpacked, first)) = w.unpacked(x.n)
        && !unpacked.is_bf16()
    {
        return unpacked.product_int8(queue, (first, rows), x, y, epilogue);
    }
    let (kind, tile) = match x.scales {
        // larger tiles would leave multiprocessors idle
        Scales::Wide if LARGE.blocks(x.n, rows) < queue.gpu().multiprocessors() => ("few", FEW),
        Scales::Wide => ("wide", LARGE),
        Scales::Blocks | Scales::Mixed => ("blocks", LARGE),
    };
    let name = format!("product_{}_{kind}", dtype.name());
    let grid = tile.grid(x.n, rows, tile.int8_shared(dtype, x.scales));
    let [q, scale, sums] = x.memory.arguments();
    let mut arguments: [Argument; 11] = [
        w.data.into(),
        (w.row_bytes() as u64).into(),
        (rows as i32).into(),
        q,
        scale,
        sums,
        (x.n as i32).into(),
        (cols as i32).into(),
        y.into(),
        (rows as i32).into(),
        adds(epilogue).into(),
    ];
    // SAFETY: weights, activations and results of the sizes that were checked, in tiles that the kernel cuts off at both
    unsafe { queue.launch(&name, grid, &mut arguments) }
}

/// `y[token] (=|+=) w x[token] + bias` of `n` rows in bfloat16, `x_stride` elements apart, a multiple of 8; `y` is
/// [n, w.rows()].
pub fn product_bf16(
    queue: &Queue,
    w: Weights,
    (x, x_stride, n): (Part<'_, u16>, usize, usize),
    bias: Option<Part<'_, f32>>,
    y: Part<'_, f32>,
    epilogue: Epilogue,
) -> Result<()> {
    let Weights { dtype, rows, cols, .. } = w;
    let right = x.len() == n * x_stride && x_stride >= cols && x_stride.is_multiple_of(8) && y.len() == n * rows;
    check(right && bias.is_none_or(|bias| bias.len() == rows), "a product")?;
    if let Some((unpacked, first)) = w.unpacked(n)
        && unpacked.is_bf16()
    {
        return unpacked.product_bf16(queue, (first, rows), (x, x_stride, n), bias, y, epilogue);
    }
    let name = format!("product_{}_bf16", dtype.name());
    let grid = LARGE.grid(n, rows, (LARGE.rows + LARGE.tokens) * STEP);
    let mut arguments: [Argument; 11] = [
        w.data.into(),
        (w.row_bytes() as u64).into(),
        (rows as i32).into(),
        x.into(),
        (x_stride as i32).into(),
        (n as i32).into(),
        (cols as i32).into(),
        bias.into(),
        y.into(),
        (rows as i32).into(),
        adds(epilogue).into(),
    ];
    // SAFETY: weights, activations and results of the sizes that were checked, in tiles that the kernel cuts off at both
    unsafe { queue.launch(&name, grid, &mut arguments) }
}

/// Cosines and sines of rotary positions, [positions, half a head].
pub struct Angles {
    cos: Memory<f32>,
    sin: Memory<f32>,
    half: usize,
    /// whether neighbours are pairs in the file's rows
    neighbours: bool,
}

impl Angles {
    pub fn new(queue: &Queue, cos: &[f32], sin: &[f32], half: usize, neighbours: bool) -> Result<Self> {
        const WHAT: &str = "rotary angles";
        check(cos.len() == sin.len() && half > 0 && cos.len().is_multiple_of(half), WHAT)?;
        Ok(Angles { cos: queue.upload(cos, WHAT)?, sin: queue.upload(sin, WHAT)?, half, neighbours })
    }

    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

/// Rotates every head of rows of `d` elements, and rounds them to bfloat16.
pub fn rope(
    queue: &Queue,
    x: Part<'_, f32>,
    angles: &Angles,
    (positions, range): (&Indices, Range<usize>),
    out: Part<'_, u16>,
) -> Result<()> {
    let n = range.len();
    let d = x.len() / n.max(1);
    let heads = d / (2 * angles.half);
    let right = x.len() == n * heads * 2 * angles.half && out.len() == x.len();
    check(right && positions.limit() <= angles.positions(), "rotated rows")?;
    let mut arguments: [Argument; 8] = [
        x.into(),
        positions.part(range).into(),
        angles.cos.all().into(),
        angles.sin.all().into(),
        (heads as i32).into(),
        (angles.half as i32).into(),
        i32::from(angles.neighbours).into(),
        out.into(),
    ];
    // SAFETY: positions are below the limit, for which there are angles; rows have the sizes that were checked
    unsafe { queue.launch("rope", rows_grid(n), &mut arguments) }
}

/// The shape of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    /// 64 or 128.
    pub dim: usize,
}

/// Whether [`attention`] has heads of `dim`.
pub fn has_attention(dim: usize) -> bool {
    matches!(dim, 64 | 128)
}

/// Which kernels compute an attention. Both round probabilities to bfloat16, and add in another order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttentionKernel {
    /// attention.cu, of every card.
    Ampere,
    /// hopper_attention.cu, where [`Gpu::has_hopper_attention`](super::Gpu::has_hopper_attention).
    Hopper,
}

/// Queries of a sequence from which on Hopper's tiles, which are large, are the faster ones.
const LEAST_HOPPER_QUERIES: usize = 128;

/// Attention of sequences to themselves: `out` is [queries, heads * dim], as `q` is; `k` and `v` are [rows, kv_heads * dim].
/// `starts` holds, from place `first` on, where each of `sequences` sequences begins among the queries, and where the last
/// ends; then the same among the rows. `longest` is how many queries one of them has at most. There may be more memory than rows.
pub fn attention(
    queue: &Queue,
    heads: Heads,
    qkv: (Part<'_, u16>, Part<'_, u16>, Part<'_, u16>),
    starts: (&Indices, usize, usize, usize),
    out: Part<'_, f32>,
) -> Result<()> {
    let hopper = queue.gpu().has_hopper_attention(heads.dim) && starts.3 >= LEAST_HOPPER_QUERIES;
    attention_by(queue, if hopper { AttentionKernel::Hopper } else { AttentionKernel::Ampere }, heads, qkv, starts, out)
}

/// The same by kernels that the caller chooses, and the card has.
pub fn attention_by(
    queue: &Queue,
    kernel: AttentionKernel,
    Heads { heads, kv_heads, dim }: Heads,
    (q, k, v): (Part<'_, u16>, Part<'_, u16>, Part<'_, u16>),
    (starts, first, sequences, longest): (&Indices, usize, usize, usize),
    out: Part<'_, f32>,
) -> Result<()> {
    let (queries, rows) = (q.len() / (heads * dim), k.len() / (kv_heads * dim));
    let right = q.len() == queries * heads * dim && k.len() == rows * kv_heads * dim && v.len() == k.len();
    let whole = heads.is_multiple_of(kv_heads) && has_attention(dim) && out.len() == q.len();
    check(right && whole && starts.limit() <= queries.min(rows) + 1, "an attention")?;
    let all = starts.part(first..first + 2 * (sequences + 1));
    let (of_queries, of_rows) = (all.part(0..sequences + 1), all.part(sequences + 1..2 * (sequences + 1)));
    let mut arguments: [Argument; 11] = [
        q.into(),
        k.into(),
        v.into(),
        of_queries.into(),
        of_rows.into(),
        None::<Part<'_, u8>>.into(),
        (heads as i32).into(),
        (kv_heads as i32).into(),
        out.into(),
        (sequences as i32).into(),
        (longest as i32).into(),
    ];
    let (name, grid, arguments) = match kernel {
        AttentionKernel::Ampere => {
            const QUERIES: usize = 64;
            let blocks = [longest.div_ceil(QUERIES), heads, sequences];
            // two tiles of keys and two of values
            let grid = Grid { blocks, threads: 128, shared: 4 * QUERIES * dim * size_of::<u16>() };
            (if dim == 64 { "attention_64" } else { "attention_128" }, grid, &mut arguments[..9])
        }
        AttentionKernel::Hopper => {
            let (name, queries, threads, shared) = match dim {
                64 => ("attention_64_sm90", 192, 512, 189_616),
                _ => ("attention_128_sm90", 128, 384, 230_512),
            };
            // as many blocks as there are multiprocessors, which go through the tiles in turn
            let blocks = (longest.div_ceil(queries) * heads * sequences).min(queue.blocks());
            (name, Grid { blocks: [blocks, 1, 1], threads, shared }, &mut arguments[..])
        }
    };
    // SAFETY: where sequences begin and end is below the limit, so at most as many as there are queries and rows
    unsafe { queue.launch(name, grid, arguments) }
}
