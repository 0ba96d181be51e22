//! Full (bidirectional) attention, tiled over queries and keys with a running softmax (Milakov and Gimelshein 2018;
//! Dao et al. 2022): scores of one tile exist at a time, never the whole matrix.
//!
//! Queries stand in vector lanes. A tile is `R = I::PANEL * 16` queries of one head, held transposed as a float panel
//! `[head_dim][R]`, so both products are the float micro-kernel of `product`:
//!
//! ```text
//! scores [key][R]   = panel q [head_dim][R]  x  rows of k
//! out    [dim][R]  += panel p [key][R]       x  columns of v
//! ```
//!
//! and maximum, exponential and sum of the softmax are lane-wise, with no horizontal step.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::isa::{self, Isa, LANES, Op};
use super::product::F32Block;
use crate::error::Result;
use crate::memory::try_resize;
use crate::parallel::Exec;

/// Keys per tile.
const KEYS: usize = 64;
/// Most queries per tile on any instruction set.
const MAX_R: usize = 32;

/// Shapes of an attention call.
#[derive(Clone, Debug)]
pub struct Attention<'a> {
    pub heads: usize,
    /// fewer than `heads` in grouped-query attention; head h reads key/value head `h / (heads / kv_heads)`
    pub kv_heads: usize,
    pub head_dim: usize,
    /// the rows of each sequence; a sequence attends to itself alone
    pub sequences: &'a [Range<usize>],
}

struct Output(*mut f32);
// SAFETY: every task writes its own (queries, head) rectangle
unsafe impl Send for Output {}
// SAFETY: as above
unsafe impl Sync for Output {}

impl Attention<'_> {
    /// `out = softmax(q k^T / sqrt(head_dim)) v` for every sequence and head. `q` and `out` are
    /// [rows, heads * head_dim], `k` and `v` [rows, kv_heads * head_dim].
    ///
    /// # Errors
    /// `OutOfMemory` if a thread gets no memory for its tile.
    pub fn run(&self, exec: &Exec, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) -> Result<()> {
        let rows = self.sequences.iter().map(|s| s.end).max().unwrap_or(0);
        let (d, kv_d) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        assert!(q.len() >= rows * d && out.len() >= rows * d, "rows of queries");
        assert!(k.len() >= rows * kv_d && v.len() >= rows * kv_d, "rows of keys and values");
        assert!(self.heads.is_multiple_of(self.kv_heads), "heads in groups");
        let r = exec.kernels.float_panel_rows();
        let out = Output(out.as_mut_ptr());
        let out = &out;
        exec.run(|| {
            self.sequences.par_iter().try_for_each(|s| {
                let tiles = s.len().div_ceil(r);
                (0..tiles * self.heads).into_par_iter().try_for_each(|t| {
                    let first = s.start + t / self.heads * r;
                    let queries = first..s.end.min(first + r);
                    let head = t % self.heads;
                    let tile = Tile { shape: self, q, k, v, out: out.0, queries, keys: s.clone(), head };
                    // taken out here: a closure inside `call` would be compiled without the instruction set
                    SCRATCH.with_borrow_mut(|scratch| {
                        try_resize(scratch, r * (2 * self.head_dim + KEYS), "a tile of attention")?;
                        exec.kernels.run(TileTask { tile, scratch });
                        Ok(())
                    })
                })
            })
        })
    }
}

struct Tile<'a> {
    shape: &'a Attention<'a>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: *mut f32,
    queries: Range<usize>,
    keys: Range<usize>,
    head: usize,
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A tile with the memory of the thread that computes it.
struct TileTask<'a> {
    tile: Tile<'a>,
    /// [r * (2 * head_dim + KEYS)] or more
    scratch: &'a mut [f32],
}

impl Op for TileTask<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        self.tile.compute(isa, self.scratch);
    }
}

impl Tile<'_> {
    #[inline(always)]
    fn compute<I: Isa>(&self, isa: I, scratch: &mut [f32]) {
        let (r, dim) = (I::PANEL * LANES, self.shape.head_dim);
        let (q, rest) = scratch.split_at_mut(r * dim);
        let (out, rest) = rest.split_at_mut(r * dim);
        let scores = &mut rest[..r * KEYS];
        self.load_queries(r, q);
        out.fill(0.0);
        let (mut peak, mut sum) = ([f32::NEG_INFINITY; MAX_R], [0.0f32; MAX_R]);

        let (d, kv_d) = (self.shape.heads * dim, self.shape.kv_heads * dim);
        let kv_head = self.head / (self.shape.heads / self.shape.kv_heads);
        for first in self.keys.clone().step_by(KEYS) {
            let n = KEYS.min(self.keys.end - first);
            let at = first * kv_d + kv_head * dim;
            let qk = F32Block {
                panel: q.as_ptr(),
                k: dim,
                x: self.k[at..].as_ptr(),
                x_col: kv_d,
                x_k: 1,
                cols: 0..n,
                y: scores.as_mut_ptr(),
                y_stride: r,
                rows: r,
                add: false,
            };
            // SAFETY: the panel holds dim * R floats, k the rows first .. first + n, scores n * R floats
            unsafe { isa.f32_columns(&qk) };
            softmax_tile(isa, &mut scores[..n * r], &mut peak, &mut sum, out);
            let pv = F32Block {
                panel: scores.as_ptr(),
                k: n,
                x: self.v[at..].as_ptr(),
                x_col: 1,
                x_k: kv_d,
                cols: 0..dim,
                y: out.as_mut_ptr(),
                y_stride: r,
                rows: r,
                add: true,
            };
            // SAFETY: the panel holds n * R floats, v the rows first .. first + n, out dim * R floats
            unsafe { isa.f32_columns(&pv) };
        }
        for (i, row) in self.queries.clone().enumerate() {
            let inverse = 1.0 / sum[i];
            for c in 0..dim {
                // SAFETY: `run` checked that out holds all rows; this task alone writes (queries, head)
                unsafe { *self.out.add(row * d + self.head * dim + c) = out[c * r + i] * inverse };
            }
        }
    }

    /// The tile's queries, scaled and transposed: [dim][r]; lanes without a query are 0.
    #[inline(always)]
    fn load_queries(&self, r: usize, q: &mut [f32]) {
        let dim = self.shape.head_dim;
        let d = self.shape.heads * dim;
        let scale = 1.0 / (dim as f32).sqrt();
        q.fill(0.0);
        for (i, row) in self.queries.clone().enumerate() {
            let from = &self.q[row * d + self.head * dim..][..dim];
            for (v, to) in from.iter().zip(q[i..].iter_mut().step_by(r)) {
                *to = v * scale;
            }
        }
    }
}

/// Turns a tile of scores [n][R] into exponentials against the running maximum, and rescales what was summed before.
#[inline(always)]
fn softmax_tile<I: Isa>(isa: I, scores: &mut [f32], peak: &mut [f32; MAX_R], sum: &mut [f32; MAX_R], out: &mut [f32]) {
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
