//! Full (bidirectional) attention, tiled over queries and keys with a running softmax (Milakov and Gimelshein 2018;
//! Dao et al. 2022): scores of one tile exist at a time, never the whole matrix.
//!
//! [`float`] is the definition, on every instruction set; [`amx`] and [`pairs`] multiply in bfloat16.

#[cfg(target_arch = "x86_64")]
mod amx;
mod float;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::memory::{Aligned, Charge, Line, try_collect};
use crate::parallel::Exec;

/// Shapes of an attention call.
#[derive(Clone, Debug)]
pub struct Attention<'a> {
    pub heads: usize,
    /// fewer than `heads` in grouped-query attention; head h reads key/value head `h / (heads / kv_heads)`
    pub kv_heads: usize,
    pub head_dim: usize,
    /// the rows of each sequence; a sequence attends to itself alone
    pub sequences: &'a [Range<usize>],
    /// for every row whether it is attended to (as key and value; as a query it always attends); all are where there is
    /// no mask
    pub mask: Option<&'a [bool]>,
}

/// What the products of an attention are computed in. The softmax is always in f32, and so are sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    F32,
    /// Queries, keys, values and probabilities are rounded to bfloat16; where
    /// [`Kernels::has_bf16`](super::Kernels::has_bf16).
    Bf16,
}

/// Memory for packed keys and values, kept from call to call.
#[derive(Default)]
pub struct Scratch {
    lines: Aligned<Line>,
    _charge: Charge,
}

impl Scratch {
    /// Room for sequences of `rows` keys and values in [`Precision::Bf16`] (f32 needs none), each counted as
    /// [`Scratch::padded`]; it counts against the budget of `exec`. A call that needs more makes it grow.
    ///
    /// # Errors
    /// `OutOfMemory`, after which there is no room at all.
    pub fn reserve(&mut self, exec: &Exec, rows: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
        self.grow(exec, packed_lines(rows, head_dim).saturating_mul(2 * kv_heads))
    }

    /// The keys that a sequence of `keys` takes room for.
    pub fn padded(keys: usize) -> usize {
        keys.div_ceil(PADDED_KEYS).saturating_mul(PADDED_KEYS)
    }

    /// Bytes that [`Scratch::reserve`] takes.
    pub fn bytes(rows: usize, kv_heads: usize, head_dim: usize) -> usize {
        packed_lines(rows, head_dim).saturating_mul(2 * kv_heads).saturating_mul(size_of::<Line>())
    }

    fn grow(&mut self, exec: &Exec, lines: usize) -> Result<()> {
        const WHAT: &str = "the packed keys and values of an attention";
        if self.lines.len() < lines {
            *self = Scratch::default();
            let charge = exec.take(lines.saturating_mul(size_of::<Line>()), WHAT)?;
            self.lines.try_grow_to(lines, WHAT)?;
            self._charge = charge;
        }
        Ok(())
    }
}

/// Keys are packed in steps of 32, each for a multiple of 32 dimensions.
const PADDED_KEYS: usize = 32;
const PADDED_DIMS: usize = 32;

/// Lines that `keys` packed keys (or values) of a head take.
fn packed_lines(keys: usize, head_dim: usize) -> usize {
    Scratch::padded(keys).saturating_mul(head_dim.div_ceil(PADDED_DIMS))
}

/// Where a row's head begins and how rows follow each other.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    /// from row to row
    stride: usize,
    /// of the head in a row
    offset: usize,
    dim: usize,
}

impl Rows<'_> {
    /// The head's part of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride + self.offset..][..self.dim]
    }
}

/// The rows that are keys: all of a sequence, or those that a mask leaves.
#[derive(Clone, Copy)]
enum Keys<'a> {
    All { start: usize, len: usize },
    Some(&'a [u32]),
}

impl Keys<'_> {
    fn len(&self) -> usize {
        match self {
            Keys::All { len, .. } => *len,
            Keys::Some(rows) => rows.len(),
        }
    }

    /// The row of key `i`; past the last key that of the last one, whose probability then counts nothing: so no score
    /// exceeds those of true keys.
    #[inline(always)]
    fn row(&self, i: usize) -> usize {
        match self {
            Keys::All { start, len } => start + i.min(len - 1),
            Keys::Some(rows) => rows[i.min(rows.len() - 1)] as usize,
        }
    }
}

/// What tasks write, each its own part.
struct Shared<T>(*mut T);
// SAFETY: every task writes its own (rows, head) rectangle
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above
unsafe impl<T> Sync for Shared<T> {}

thread_local! {
    static SCRATCH: RefCell<Aligned<Line>> = RefCell::default();
}

/// Query tiles of a task, at most: packed keys are read from far once for all of them.
const MAX_TILES: usize = 8;

/// Splits `tiles` tiles of each of `heads` heads into tasks for `threads` threads: the tiles of one.
fn tiles_per_task(tiles: usize, heads: usize, threads: usize) -> usize {
    let most = (tiles * heads / (4 * threads)).clamp(1, MAX_TILES);
    tiles.div_ceil(tiles.div_ceil(most).max(1))
}

impl Attention<'_> {
    /// `out = softmax(q k^T / sqrt(head_dim)) v` for every sequence and head. `q` and `out` are
    /// [rows, heads * head_dim], `k` and `v` [rows, kv_heads * head_dim]. Where a mask leaves a sequence no key, its
    /// output is 0.
    ///
    /// # Errors
    /// `OutOfMemory` if there is none for packed keys, or for a thread's tile.
    ///
    /// # Panics
    /// Where slices are too short for the sequences, or `precision` is not there on these kernels: defects of the
    /// caller.
    #[allow(clippy::too_many_arguments)] // the operands of an attention
    pub fn run(
        &self,
        exec: &Exec,
        precision: Precision,
        scratch: &mut Scratch,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        self.run_queries(exec, precision, scratch, self.sequences, q, k, v, out)
    }

    /// [`Attention::run`] with any number of queries: `queries` are the rows in `q` and `out` of each sequence, which
    /// attend to all of its keys. What a query gets does not depend on the others.
    ///
    /// # Errors
    /// As that function.
    ///
    /// # Panics
    /// As that function, and where there are not as many ranges of queries as sequences.
    #[allow(clippy::too_many_arguments)] // the operands of an attention
    pub fn run_queries(
        &self,
        exec: &Exec,
        precision: Precision,
        scratch: &mut Scratch,
        queries: &[Range<usize>],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let end = |ranges: &[Range<usize>]| ranges.iter().map(|s| s.end).max().unwrap_or(0);
        let (rows, keys) = (end(queries), end(self.sequences));
        let (d, kv_d) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        assert_eq!(queries.len(), self.sequences.len(), "queries of every sequence");
        assert!(q.len() >= rows * d && out.len() >= rows * d, "rows of queries");
        assert!(k.len() >= keys * kv_d && v.len() >= keys * kv_d, "rows of keys and values");
        assert!(self.mask.is_none_or(|mask| mask.len() >= keys), "a mask of all rows");
        assert!(self.heads.is_multiple_of(self.kv_heads), "heads in groups");
        let live = Live::new(self.sequences, self.mask)?;
        for s in (0..self.sequences.len()).filter(|s| live.keys(self.sequences, *s).len() == 0) {
            out[queries[s].start * d..queries[s].end * d].fill(0.0);
        }
        let call = Call { shape: self, exec, live: &live, queries, q, k, v, out: Shared(out.as_mut_ptr()) };
        match precision {
            Precision::F32 => call.in_f32(),
            Precision::Bf16 => call.in_bf16(scratch),
        }
    }
}

/// Which rows are keys, where a mask leaves some out.
#[derive(Default)]
struct Live {
    rows: Vec<u32>,
    /// those of each sequence; none where there is no mask
    ends: Vec<usize>,
}

impl Live {
    fn new(sequences: &[Range<usize>], mask: Option<&[bool]>) -> Result<Live> {
        let Some(mask) = mask else { return Ok(Live::default()) };
        const WHAT: &str = "the list of keys that are attended to";
        let of = |s: &Range<usize>| s.clone().filter(|row| mask[*row]).map(|row| row as u32);
        let mut end = 0;
        let ends = sequences.iter().map(|s| {
            end += of(s).count();
            end
        });
        Ok(Live { ends: try_collect(ends, WHAT)?, rows: try_collect(sequences.iter().flat_map(of), WHAT)? })
    }

    /// The keys of sequence `s`.
    fn keys(&self, sequences: &[Range<usize>], s: usize) -> Keys<'_> {
        match self.ends.get(s) {
            None => Keys::All { start: sequences[s].start, len: sequences[s].len() },
            Some(&end) => Keys::Some(&self.rows[if s == 0 { 0 } else { self.ends[s - 1] }..end]),
        }
    }
}

/// The operands of a call.
struct Call<'a> {
    shape: &'a Attention<'a>,
    exec: &'a Exec<'a>,
    live: &'a Live,
    /// the rows of each sequence in `q` and `out`
    queries: &'a [Range<usize>],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: Shared<f32>,
}

impl Call<'_> {
    fn rows<'a>(&self, data: &'a [f32], heads: usize, head: usize) -> Rows<'a> {
        let dim = self.shape.head_dim;
        Rows { data, stride: heads * dim, offset: head * dim, dim }
    }
    fn keys(&self, s: usize) -> Keys<'_> {
        self.live.keys(self.shape.sequences, s)
    }
    fn q(&self, head: usize) -> Rows<'_> {
        self.rows(self.q, self.shape.heads, head)
    }
    fn kv_head(&self, head: usize) -> usize {
        head / (self.shape.heads / self.shape.kv_heads)
    }

    /// Runs `task(sequence, head, queries)` for all, in parallel: tiles of `r` queries, those of a head one after the
    /// other, so that a thread meets the same keys again.
    fn tasks(&self, r: usize, task: impl Fn(usize, usize, Range<usize>) -> Result<()> + Sync) -> Result<()> {
        let sequences = self.shape.sequences;
        let is_run = |s: &usize| self.keys(*s).len() > 0 && !self.queries[*s].is_empty();
        let attended = (0..sequences.len()).into_par_iter().filter(is_run);
        self.exec.run(|| {
            attended.try_for_each(|s| {
                let all = self.queries[s].clone();
                let tiles = all.len().div_ceil(r);
                let step = r * tiles_per_task(tiles, self.shape.heads, self.exec.threads.count());
                let parts = all.len().div_ceil(step);
                (0..parts * self.shape.heads).into_par_iter().try_for_each(|t| {
                    self.exec.check()?;
                    let first = all.start + t % parts * step;
                    task(s, t / parts, first..all.end.min(first + step))
                })
            })
        })
    }

    fn in_f32(&self) -> Result<()> {
        let r = self.exec.kernels.float_panel_rows();
        self.tasks(r, |s, head, queries| {
            let kv_heads = self.shape.kv_heads;
            let floats = float::scratch_floats(queries.len(), r, self.shape.head_dim);
            let task = float::Task {
                q: self.q(head),
                queries,
                keys: self.keys(s),
                k: self.rows(self.k, kv_heads, self.kv_head(head)),
                v: self.rows(self.v, kv_heads, self.kv_head(head)),
                out: self.out.0,
            };
            with_scratch(floats.div_ceil(16), |lines| {
                self.exec.kernels.run(float::TaskOp { task, scratch: bytemuck::cast_slice_mut(lines) });
            })
        })
    }

    fn in_bf16(&self, scratch: &mut Scratch) -> Result<()> {
        #[cfg(target_arch = "x86_64")]
        match (self.exec.kernels.amx(), self.exec.kernels.bf16()) {
            (Some(amx), _) => return self.packed(amx, scratch),
            (None, Some(pairs)) => return self.packed(pairs, scratch),
            (None, None) => {}
        }
        let _ = scratch;
        unreachable!("no attention in bfloat16 on {}", self.exec.kernels.name());
    }

    #[cfg(target_arch = "x86_64")]
    fn packed<P: Packing>(&self, packing: P, scratch: &mut Scratch) -> Result<()> {
        const GROUP: usize = PACKED_STEPS * PADDED_KEYS;
        let (dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        // packed keys and values of a sequence: [kv head][keys, values]
        let lines = |s: usize| packed_lines(self.keys(s).len(), dim);
        let sizes = (0..self.shape.sequences.len()).map(|s| lines(s).saturating_mul(2 * kv_heads));
        let starts: Vec<usize> = try_collect(
            sizes.scan(0usize, |end, size| {
                let start = *end;
                *end = end.saturating_add(size);
                Some(start)
            }),
            "the places of packed keys",
        )?;
        let last = self.shape.sequences.len().saturating_sub(1);
        let total = starts.last().map_or(0, |start| start.saturating_add(lines(last).saturating_mul(2 * kv_heads)));
        scratch.grow(self.exec, total)?;
        let packed = &Shared(scratch.lines.as_mut_ptr());
        self.exec.run(|| {
            starts.par_iter().enumerate().for_each(|(s, &start)| {
                let (keys, lines) = (self.keys(s), lines(s));
                let groups = keys.len().div_ceil(GROUP);
                (0..groups * kv_heads).into_par_iter().for_each(|t| {
                    let (head, first) = (t % kv_heads, t / kv_heads * GROUP);
                    let at = packed_lines(first, dim);
                    let len = packed_lines((keys.len() - first).min(GROUP), dim);
                    // SAFETY: inside the scratch memory, where each sequence, head and group has a part of its own
                    let [k, v] = [0, 1].map(|i| unsafe {
                        std::slice::from_raw_parts_mut(packed.0.add(start + (2 * head + i) * lines + at), len)
                    });
                    let rows = |data| self.rows(data, kv_heads, head);
                    packing.pack(keys, first, rows(self.k), rows(self.v), k, v);
                });
            });
        });
        let packed = &scratch.lines[..total];
        self.tasks(P::QUERIES, |s, head, queries| {
            let lines = lines(s);
            let at = starts[s] + 2 * self.kv_head(head) * lines;
            let need = P::scratch_lines(queries.len().div_ceil(P::QUERIES), dim);
            let task = PackedTask {
                q: self.q(head),
                queries,
                keys: self.keys(s).len(),
                packed_k: &packed[at..at + lines],
                packed_v: &packed[at + lines..at + 2 * lines],
                out: self.out.0,
            };
            // SAFETY: `run` checked that the output holds all rows; no other task has these queries and this head
            with_scratch(need, |lines| unsafe { packing.attend(&task, lines) })
        })
    }
}

/// One head of one sequence, and some of its queries.
#[cfg(target_arch = "x86_64")]
struct PackedTask<'a> {
    q: Rows<'a>,
    queries: Range<usize>,
    /// how many keys are packed, at least one
    keys: usize,
    packed_k: &'a [Line],
    packed_v: &'a [Line],
    /// [rows, stride] as `q`
    out: *mut f32,
}

/// Steps of keys that are packed at a time: the probabilities of as many stay in the nearest cache.
#[cfg(target_arch = "x86_64")]
const PACKED_STEPS: usize = 8;

/// Attention with packed keys and values, [`packed_lines`] of them.
#[cfg(target_arch = "x86_64")]
trait Packing: Copy + Send + Sync {
    /// Queries of a unit of work.
    const QUERIES: usize;
    /// Packs some of a head's keys and values: keys `first..`, up to [`PACKED_STEPS`] steps, into their parts of the two.
    fn pack(self, keys: Keys, first: usize, k: Rows, v: Rows, to_k: &mut [Line], to_v: &mut [Line]);
    /// Lines of scratch memory for a task of `units` units of queries.
    fn scratch_lines(units: usize, head_dim: usize) -> usize;
    /// Computes the task's part of the output.
    ///
    /// # Safety
    /// `out` is writable at the queries' rows where the head lies, and used by nobody else meanwhile. The packed keys
    /// and values are those of [`Packing::pack`] for `keys` keys and this head size.
    unsafe fn attend(self, task: &PackedTask, scratch: &mut [Line]);
}

/// Calls `work` with the thread's memory, `len` lines or more.
fn with_scratch(len: usize, work: impl FnOnce(&mut [Line])) -> Result<()> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.try_grow_to(len, "a tile of attention")?;
        work(scratch);
        Ok(())
    })
}
