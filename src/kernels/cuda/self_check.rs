//! Whether a card computes what it should, before anything is trusted to it: a small product of each kind and an attention,
//! beside the processor's; and attention by Hopper's kernels, beside that by the others. What pictures need is looked at when the
//! first one comes: `image_check`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device::{Checks, Gpu};
use super::driver::{allow_hopper, knows_hopper};
use super::memory::{Indices, Memory};
use super::operations::{self as ops, AttentionKernel, Heads, Int8, Int8Memory, Weights};
use super::queue::Queue;
use super::unpacked::Unpacked;
use crate::error::{Error, Result};
use crate::kernels::attention::{Attention, Precision, Scratch};
use crate::kernels::product::{Activations, Epilogue, matmul};
use crate::kernels::{Int8Rows, Kernels, Scales};
use crate::memory::{try_collect, try_vec};
use crate::parallel::{Exec, Threads};
use crate::tensor::{GgmlType, Matrix, quantize};

const WHAT: &str = "a check of a graphics card";

/// Sizes of a product.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    rows: usize,
    cols: usize,
}

/// Parts of tiles, and enough for Hopper's kernels to be taken where weights are unpacked.
const SMALL: Sizes = Sizes { tokens: 65, rows: 40, cols: 256 };
/// What Hopper's kernels do in passes: tiles of 256 tokens, rings of tiles that are filled again and again.
const LARGE: Sizes = Sizes { tokens: 300, rows: 300, cols: 2048 };
/// Of kernels that go through tiles in turn: each has several.
const BLOCKS: usize = 2;
/// Of attention for every card.
const TOKENS: usize = 65;

/// An error if kernels do not give on this card what they give on the processor. Products, and attention of heads of `dim`, are
/// looked at once each, while it goes well: what a model does not use is not translated for it. Kernels for Hopper that go
/// wrong are left alone, products and attention by themselves, as others do their work: a sentence says so. Those that had to
/// be ended have taken the context with them, though: [`open_checked`] begins another.
pub fn self_check(gpu: &Arc<Gpu>, dim: usize) -> Result<Option<String>> {
    let attention = gpu.attention_checks(dim).ok_or_else(|| is_wrong(gpu, &format!("attentions of heads of {dim}")))?;
    let products = once(gpu, &gpu.product_checks, |hopper| compare_products(gpu, hopper))?;
    let attentions = once(gpu, attention, |hopper| match hopper {
        false => compare_attentions(gpu, dim),
        true => compare_hopper_attentions(gpu, dim),
    })?;
    Ok(products.or(attentions).map(|error| left_alone(&error)))
}

/// The card `index`, after [`self_check`], and its sentence. If kernels for Hopper have ended its context, there is another one
/// without them, now and whenever this process opens the card again.
///
/// # Errors
/// Those of [`Gpu::open`] and [`self_check`]. `Device`, with what to do, if there is no other context: the driver need not give a
/// process one after such an error, and does not while somebody else in it holds the one that has ended.
pub fn open_checked(index: usize, dim: usize) -> Result<(Arc<Gpu>, Option<String>)> {
    let gpu = Gpu::open(index)?;
    let could_be_hopper = knows_hopper(gpu.card());
    match self_check(&gpu, dim) {
        Err(error) if could_be_hopper && !knows_hopper(gpu.card()) => {
            drop(gpu);
            let begin = || Gpu::open(index).and_then(|gpu| self_check(&gpu, dim).map(|_| gpu));
            match begin() {
                Ok(gpu) => Ok((gpu, Some(left_alone(&error)))),
                Err(again) => Err(Error::Device {
                    device: format!("cuda:{index}"),
                    reason: format!(
                        "kernels for Hopper have ended its context ({error}), and no other can be had ({again}): begin a new \
                         process, with the device cuda:{index}/ampere"
                    ),
                }),
            }
        }
        outcome => Ok((gpu, outcome?)),
    }
}

fn left_alone(reason: &Error) -> String {
    format!("kernels for Hopper are left alone: {reason}")
}

/// Compares kernels for every card, then those for Hopper, where it is one, unless that was done. Returns what speaks against
/// the latter.
fn once(gpu: &Gpu, checks: &Checks, compare: impl Fn(bool) -> Result<()>) -> Result<Option<Error>> {
    if checks.is_done.load(Ordering::Acquire) {
        return Ok(None);
    }
    compare(false)?;
    let mut reason = None;
    if knows_hopper(gpu.card()) {
        reason = reason_against(gpu, compare(true))?;
        checks.has_hopper.store(reason.is_none(), Ordering::Relaxed);
    }
    checks.is_done.store(true, Ordering::Release); // the last: what was found before is seen by whoever sees this
    Ok(reason)
}

/// What speaks against kernels that others can do the work of: an error of the device, which may be their own. It is an error
/// where nothing else can run any more; they are not tried again then.
fn reason_against(gpu: &Gpu, outcome: Result<()>) -> Result<Option<Error>> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error @ Error::Device { .. }) if !gpu.is_lost() => Ok(Some(error)),
        Err(error) => {
            if matches!(error, Error::Device { .. }) {
                allow_hopper(gpu.card().index, false);
            }
            Err(error)
        }
    }
}

pub(super) fn is_wrong(gpu: &Gpu, what: &str) -> Error {
    Error::Device { device: gpu.name(), reason: format!("{what} come out wrong on it") }
}

/// With `unpacked`, products are those of Hopper's kernels.
fn compare_products(gpu: &Arc<Gpu>, unpacked: bool) -> Result<()> {
    let queue = Queue::with_blocks(gpu, BLOCKS)?;
    let threads = Threads::new(1)?;
    let exec = Exec::new(&threads, Kernels::best(), None);
    // Hopper's kernels are few; of the others, which every type has its own of, two stand for all: the driver has to translate
    // each
    const TYPES: [(Scales, GgmlType); 3] =
        [(Scales::Blocks, GgmlType::Q8_0), (Scales::Wide, GgmlType::Q4_K), (Scales::Blocks, GgmlType::Q5_1)];
    let (sizes, types): (&[Sizes], _) = if unpacked { (&[SMALL, LARGE], &TYPES[..]) } else { (&[SMALL], &TYPES[..2]) };
    for &sizes in sizes {
        let (x, w) = (numbers(1, sizes.tokens * sizes.cols)?, numbers(2, sizes.rows * sizes.cols)?);
        for &how in types {
            compare_int8(&exec, &queue, sizes, (&w, &x), how, unpacked)?;
        }
        compare_bf16(&exec, &queue, sizes, (&w, &x), unpacked)?;
    }
    Ok(())
}

fn compare_int8(
    exec: &Exec,
    queue: &Queue,
    Sizes { tokens, rows, cols }: Sizes,
    (w, x): (&[f32], &[f32]),
    (scales, dtype): (Scales, GgmlType),
    unpacked: bool,
) -> Result<()> {
    let wrong = |what: &str| is_wrong(queue.gpu(), what);
    let mut bytes = try_vec(dtype.row_bytes(rows * cols).unwrap_or(0), WHAT)?;
    quantize(dtype, w, &mut bytes)?;
    let got = int8_product(queue, (dtype, rows, cols, &bytes), (x, tokens), scales, unpacked)?;
    let w = Matrix::new(dtype, rows, cols, &bytes).ok_or_else(|| wrong("sizes"))?;
    let (mut quantized, mut y) = (Int8Rows::default(), try_vec(tokens * rows, WHAT)?);
    quantized.quantize(exec, x, cols, scales)?;
    matmul(exec, &w, Activations::Int8(&quantized), &mut y, rows, Epilogue::Store)?;
    // the same sums in the same order
    match got.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()) {
        true => Ok(()),
        false => Err(wrong("products of quantized weights")),
    }
}

fn compare_bf16(
    exec: &Exec,
    queue: &Queue,
    Sizes { tokens, rows, cols }: Sizes,
    (w, x): (&[f32], &[f32]),
    unpacked: bool,
) -> Result<()> {
    let wrong = |what: &str| is_wrong(queue.gpu(), what);
    let mut y = try_vec(tokens * rows, WHAT)?;
    let as_matrix = Matrix::from_f32(rows, cols, w).ok_or_else(|| wrong("sizes"))?;
    matmul(exec, &as_matrix, Activations::F32 { x, k: cols }, &mut y, rows, Epilogue::Store)?;
    let got = bf16_product(queue, (rows, cols, w), (x, tokens), unpacked)?;
    if close(&got, &y) { Ok(()) } else { Err(wrong("products in bfloat16")) }
}

/// Attention by the kernels for every card, beside the processor's.
fn compare_attentions(gpu: &Arc<Gpu>, dim: usize) -> Result<()> {
    let queue = Queue::new(gpu)?;
    let threads = Threads::new(1)?;
    let exec = Exec::new(&threads, Kernels::best(), None);
    let heads = Heads { heads: 2, kv_heads: 1, dim };
    let (d, kv) = (heads.heads * dim, heads.kv_heads * dim);
    let (q, k, v) = (numbers(3, TOKENS * d)?, numbers(4, TOKENS * kv)?, numbers(5, TOKENS * kv)?);
    let shape = Attention {
        heads: heads.heads,
        kv_heads: heads.kv_heads,
        head_dim: dim,
        sequences: std::slice::from_ref(&(0..TOKENS)),
        mask: None,
    };
    let mut out = try_vec(TOKENS * d, WHAT)?;
    shape.run(&exec, Precision::F32, &mut Scratch::default(), &q, &k, &v, &mut out)?;
    let got = attention(&queue, AttentionKernel::Ampere, heads, (&q, &k, &v), (TOKENS, TOKENS))?;
    if close(&got, &out) { Ok(()) } else { Err(is_wrong(gpu, "attentions")) }
}

/// Attention by Hopper's kernels beside that by the others: more queries than a tile has, and more keys than a ring of tiles.
fn compare_hopper_attentions(gpu: &Arc<Gpu>, dim: usize) -> Result<()> {
    const QUERIES: usize = 200;
    const KEYS: usize = 700;
    let queue = Queue::with_blocks(gpu, BLOCKS)?;
    let heads = Heads { heads: 2, kv_heads: 1, dim };
    let (d, kv) = (heads.heads * dim, heads.kv_heads * dim);
    let (mut q, k, v) = (numbers(6, KEYS * d)?, numbers(7, KEYS * kv)?, numbers(8, KEYS * kv)?);
    // scores far enough apart that the largest matter, which come in any tile
    q.iter_mut().for_each(|q| *q *= 8.0);
    let by = |kernel| attention(&queue, kernel, heads, (&q, &k, &v), (QUERIES, KEYS));
    let (got, expected) = (by(AttentionKernel::Hopper)?, by(AttentionKernel::Ampere)?);
    if close(&got, &expected) { Ok(()) } else { Err(is_wrong(gpu, "attentions")) }
}

/// Numbers in [-1, 1), always the same.
pub(super) fn numbers(seed: u32, len: usize) -> Result<Vec<f32>> {
    let mut state = seed.wrapping_mul(0x9e37_79b9);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    try_collect(std::iter::repeat_with(next).take(len), WHAT)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Whether all differ by no more than rounding to bfloat16 explains.
fn close(got: &[f32], expected: &[f32]) -> bool {
    let size = (dot(expected, expected) / expected.len() as f32).sqrt();
    got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 0.03 * size)
}

pub(super) fn download(queue: &Queue, from: &Memory<f32>) -> Result<Vec<f32>> {
    let mut to = try_vec(from.len(), WHAT)?;
    queue.read(from.all(), &mut to)?;
    Ok(to)
}

/// Rows of `k` numbers, rounded.
fn rounded(queue: &Queue, from: &[f32], k: usize) -> Result<Memory<u16>> {
    let (x, to) = (queue.upload(from, WHAT)?, Memory::new(queue.gpu(), from.len(), WHAT)?);
    ops::round(queue, ops::Source::Plain(x.all()), from.len() / k, k, to.all())?;
    queue.wait()?;
    Ok(to)
}

fn int8_product(
    queue: &Queue,
    (dtype, rows, cols, bytes): (GgmlType, usize, usize, &[u8]),
    (x, n): (&[f32], usize),
    scales: Scales,
    unpacked: bool,
) -> Result<Vec<f32>> {
    let gpu = queue.gpu();
    let (w, x, y) = (queue.upload(bytes, WHAT)?, queue.upload(x, WHAT)?, Memory::new(gpu, n * rows, WHAT)?);
    let memory = Int8Memory::new(queue, n, cols)?;
    let quantized = Int8 { memory: &memory, n, k: cols, scales };
    ops::quantize(queue, ops::Source::Plain(x.all()), quantized)?;
    let w = Weights::new(dtype, rows, cols, w.all())?;
    let unpacked = if unpacked { Unpacked::new(queue, w)? } else { None };
    ops::product_int8(queue, w.with_unpacked(unpacked.as_ref()), quantized, y.all(), Epilogue::Store)?;
    download(queue, &y)
}

fn bf16_product(
    queue: &Queue,
    (rows, cols, w): (usize, usize, &[f32]),
    (x, n): (&[f32], usize),
    unpacked: bool,
) -> Result<Vec<f32>> {
    let bytes: &[u8] = bytemuck::cast_slice(w);
    let (w, y) = (queue.upload(bytes, WHAT)?, Memory::new(queue.gpu(), n * rows, WHAT)?);
    let (w, x) = (Weights::new(GgmlType::F32, rows, cols, w.all())?, rounded(queue, x, cols)?);
    let unpacked = if unpacked { Unpacked::new(queue, w)? } else { None };
    let w = w.with_unpacked(unpacked.as_ref());
    ops::product_bf16(queue, w, (x.all(), cols, n), None, y.all(), Epilogue::Store)?;
    download(queue, &y)
}

/// Of as many queries and keys, for which there is memory for as many rows as there are keys.
fn attention(
    queue: &Queue,
    kernel: AttentionKernel,
    heads: Heads,
    (q, k, v): (&[f32], &[f32], &[f32]),
    (queries, keys): (usize, usize),
) -> Result<Vec<f32>> {
    let out = Memory::new(queue.gpu(), q.len(), WHAT)?;
    let (d, kv) = (heads.heads * heads.dim, heads.kv_heads * heads.dim);
    let (q, k, v) = (rounded(queue, q, d)?, rounded(queue, k, kv)?, rounded(queue, v, kv)?);
    let mut starts = Indices::new(queue.gpu(), 4, keys + 1, WHAT)?;
    starts.set(0, [0, queries, 0, keys])?;
    starts.send(queue, 4)?;
    ops::attention_by(queue, kernel, heads, (q.all(), k.all(), v.all()), (&starts, 0, 1, queries), out.all())?;
    let mut out = download(queue, &out)?;
    out.truncate(queries * d);
    Ok(out)
}
