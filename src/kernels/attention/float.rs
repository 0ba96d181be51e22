//! Attention in f32 on every instruction set.
//!
//! Queries stand in vector lanes. A tile is `R = I::PANEL * 16` queries of one head, held transposed as a float panel
//! `[head_dim][R]`, so both products are the float micro-kernel of `product`:
//!
//! ```text
//! scores [key][R]   = panel q [head_dim][R]  x  rows of k
//! out    [dim][R]  += panel p [key][R]       x  columns of v
//! ```
//!
//! and maximum, exponential and sum of the softmax are lane-wise, with no horizontal step. A tile of keys and values is
//! copied together first, for all query tiles of the task: heads of different rows lie so far apart that they would
//! share the same sets of a cache.

use std::ops::Range;

use super::{Keys, Rows};
use crate::kernels::isa::{self, Isa, LANES, Op};
use crate::kernels::product::F32Block;

/// Keys per tile.
const KEYS: usize = 64;

/// One head of one sequence, and some of its queries.
pub struct Task<'a> {
    pub q: Rows<'a>,
    pub queries: Range<usize>,
    pub keys: Keys<'a>,
    pub k: Rows<'a>,
    pub v: Rows<'a>,
    /// [rows, stride] as `q`
    pub out: *mut f32,
}

/// Floats of scratch memory for `queries` queries in tiles of `r`.
pub fn scratch_floats(queries: usize, r: usize, head_dim: usize) -> usize {
    2 * KEYS * head_dim + KEYS * r + queries.div_ceil(r) * tile_floats(r, head_dim)
}

/// What stays with a tile of queries from keys to keys: see [`Tile`].
fn tile_floats(r: usize, head_dim: usize) -> usize {
    2 * r * (head_dim + 1)
}

/// A task with the memory of the thread that computes it.
pub struct TaskOp<'a> {
    pub task: Task<'a>,
    pub scratch: &'a mut [f32],
}

impl Op for TaskOp<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        self.task.compute(isa, self.scratch);
    }
}

/// What is kept of R queries, in lanes.
struct Tile<'a> {
    /// [dim][R], scaled by 1 / sqrt(dims)
    q: &'a mut [f32],
    /// [dim][R]
    out: &'a mut [f32],
    peak: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<'a> Tile<'a> {
    fn new(memory: &'a mut [f32], r: usize, dim: usize) -> Self {
        let (q, rest) = memory.split_at_mut(r * dim);
        let (out, rest) = rest.split_at_mut(r * dim);
        let (peak, sum) = rest.split_at_mut(r);
        Tile { q, out, peak, sum }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn compute<I: Isa>(&self, isa: I, scratch: &mut [f32]) {
        let (r, dim, len) = (I::PANEL * LANES, self.q.dim, self.keys.len());
        let (k, rest) = scratch.split_at_mut(KEYS * dim);
        let (v, rest) = rest.split_at_mut(KEYS * dim);
        let (scores, rest) = rest.split_at_mut(KEYS * r);
        let tiles = &mut rest[..self.queries.len().div_ceil(r) * tile_floats(r, dim)];
        for (i, memory) in tiles.chunks_exact_mut(tile_floats(r, dim)).enumerate() {
            self.begin(r, i * r, Tile::new(memory, r, dim));
        }
        for first in (0..len).step_by(KEYS) {
            let n = KEYS.min(len - first);
            for i in 0..n {
                let row = self.keys.row(first + i);
                k[i * dim..][..dim].copy_from_slice(self.k.row(row));
                v[i * dim..][..dim].copy_from_slice(self.v.row(row));
            }
            for memory in tiles.chunks_exact_mut(tile_floats(r, dim)) {
                attend(isa, &k[..n * dim], &v[..n * dim], Tile::new(memory, r, dim), scores);
            }
        }
        for (i, memory) in tiles.chunks_exact_mut(tile_floats(r, dim)).enumerate() {
            self.finish(r, i * r, Tile::new(memory, r, dim));
        }
    }

    /// A tile's queries, scaled and transposed: [dim][r]; lanes without a query are 0.
    #[inline(always)]
    fn begin(&self, r: usize, first: usize, tile: Tile) {
        let scale = 1.0 / (self.q.dim as f32).sqrt();
        tile.q.fill(0.0);
        for (i, row) in self.queries.clone().skip(first).take(r).enumerate() {
            for (v, to) in self.q.row(row).iter().zip(tile.q[i..].iter_mut().step_by(r)) {
                *to = v * scale;
            }
        }
        tile.out.fill(0.0);
        tile.peak.fill(f32::NEG_INFINITY);
        tile.sum.fill(0.0);
    }

    /// Writes a tile's output.
    #[inline(always)]
    fn finish(&self, r: usize, first: usize, tile: Tile) {
        for (i, row) in self.queries.clone().skip(first).take(r).enumerate() {
            let inverse = 1.0 / tile.sum[i];
            for c in 0..self.q.dim {
                // SAFETY: the output holds all rows; this task alone writes (queries, head)
                unsafe { *self.out.add(row * self.q.stride + self.q.offset + c) = tile.out[c * r + i] * inverse };
            }
        }
    }
}

/// Adds keys and values [n, dim] to a tile.
#[inline(always)]
fn attend<I: Isa>(isa: I, k: &[f32], v: &[f32], tile: Tile, scores: &mut [f32]) {
    let r = I::PANEL * LANES;
    let dim = tile.q.len() / r;
    let n = k.len() / dim;
    let qk = F32Block {
        panel: tile.q.as_ptr(),
        k: dim,
        x: k.as_ptr(),
        x_col: dim,
        x_k: 1,
        cols: 0..n,
        y: scores.as_mut_ptr(),
        y_stride: r,
        rows: r,
        add: false,
    };
    // SAFETY: the panel holds dim * R floats, k n rows of dim, scores n * R floats
    unsafe { isa.f32_columns(&qk) };
    softmax(isa, &mut scores[..n * r], tile.peak, tile.sum, tile.out);
    let pv = F32Block {
        panel: scores.as_ptr(),
        k: n,
        x: v.as_ptr(),
        x_col: 1,
        x_k: dim,
        cols: 0..dim,
        y: tile.out.as_mut_ptr(),
        y_stride: r,
        rows: r,
        add: true,
    };
    // SAFETY: the panel holds n * R floats, v n rows of dim, out dim * R floats
    unsafe { isa.f32_columns(&pv) };
}

/// Turns a tile of scores [n][R] into exponentials against the running maximum, and rescales what was summed before.
#[inline(always)]
fn softmax<I: Isa>(isa: I, scores: &mut [f32], peak: &mut [f32], sum: &mut [f32], out: &mut [f32]) {
    let scores = scores.as_chunks_mut::<LANES>().0;
    let out = out.as_chunks_mut::<LANES>().0;
    let (peak, sum) = (peak.as_chunks_mut::<LANES>().0, sum.as_chunks_mut::<LANES>().0);
    for m in 0..I::PANEL {
        let old = isa.load(&peak[m]);
        let mut new = old;
        for s in scores[m..].iter().step_by(I::PANEL) {
            new = isa.max(new, isa.load(s));
        }
        // the first tile has old = -inf: exp gives 0, and there is nothing to rescale
        let rescale = isa::exp(isa, isa.sub(old, new));
        let mut total = isa.mul(isa.load(&sum[m]), rescale);
        for s in scores[m..].iter_mut().step_by(I::PANEL) {
            let e = isa::exp(isa, isa.sub(isa.load(s), new));
            total = isa.add(total, e);
            isa.store(e, s);
        }
        for o in out[m..].iter_mut().step_by(I::PANEL) {
            isa.store(isa.mul(isa.load(o), rescale), o);
        }
        isa.store(new, &mut peak[m]);
        isa.store(total, &mut sum[m]);
    }
}
