//! Attention in bfloat16 with AVX512-BF16, whose instruction sums products of pairs.
//!
//! Keys and values are packed once per call and head (a padded head has `32 * steps` dimensions), queries stand in the
//! lanes as in [`float`](super::float):
//!
//! ```text
//! keys           [key][dims padded] bfloat16
//! values         [pair of keys][dims padded][2 keys] bfloat16
//! queries        [pair of dims][32 queries][2 dims] bfloat16, times log2 e / sqrt(dims)
//! scores         [key][32 queries] f32
//! probabilities  [pair of keys][32 queries][2 keys] bfloat16
//! out            [dim][32 queries] f32
//! ```
//!
//! Scores are in powers of two. Probabilities are a polynomial of degree 3, 0.0075% from the exact ones, rounded to
//! bfloat16 (0.4%); their sum is that of what was not rounded. What was summed before is rescaled by a polynomial of degree
//! 5, which is exact where the maximum stays: errors would add up from tile to tile.

use std::arch::x86_64::*;

use super::pack::{paired, rounded, transpose};
use super::{Keys, PADDED_DIMS, PackedTask, Packing, Rows, packed_lines};
use crate::kernels::avx512::Avx512Bf16;
use crate::kernels::isa::{LANES, unroll};
use crate::memory::Line;

/// Queries of a unit, and vectors of them.
const QUERIES: usize = VECTORS * LANES;
const VECTORS: usize = 2;
/// Keys of a tile of scores.
const KEYS: usize = 64;
/// Columns of a tile of a product: 24 accumulators.
const COLUMNS: usize = 12;
/// What a running maximum begins with: any score exceeds it, and its difference to one is a number.
const LOWEST: f32 = -1e30;

impl Packing for Avx512Bf16 {
    const QUERIES: usize = QUERIES;

    fn pack(self, keys: Keys, first: usize, k: Rows, v: Rows, to_k: &mut [Line], to_v: &mut [Line]) {
        // SAFETY: the token proves the features
        unsafe {
            pack_keys(keys, first, k, to_k);
            pack_values(keys, first, v, to_v);
        }
    }

    fn scratch_lines(units: usize, head_dim: usize) -> usize {
        TILE_LINES + units * unit_lines(head_dim)
    }

    unsafe fn attend(self, task: &PackedTask, scratch: &mut [Line]) {
        let units = task.queries.len().div_ceil(QUERIES);
        assert!(task.keys > 0 && scratch.len() >= Self::scratch_lines(units, task.q.dim), "a task of attention");
        let lines = packed_lines(task.keys, task.q.dim);
        assert!(task.packed_k.len() >= lines && task.packed_v.len() >= lines, "packed keys");
        // SAFETY: the token proves the features, sizes were checked; the rest is the caller's promise
        unsafe { compute(task, scratch, units) }
    }
}

/// Dimensions of a head in packed form.
fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PADDED_DIMS)
}

/// Lines of a tile's scores and of its probabilities.
const TILE_LINES: usize = (KEYS + KEYS / 2) * VECTORS;

/// Lines that stay with a unit of queries from keys to keys: see [`Unit`].
fn unit_lines(head_dim: usize) -> usize {
    (padded(head_dim) / 2 + padded(head_dim) + 2) * VECTORS
}

/// What is kept of 32 queries, in lanes.
struct Unit<'a> {
    /// [pair of dims][query]
    q: &'a mut [Line],
    /// [dim][query]
    out: &'a mut [Line],
    peak: &'a mut [Line],
    sum: &'a mut [Line],
}

impl<'a> Unit<'a> {
    fn new(memory: &'a mut [Line], head_dim: usize) -> Self {
        let (q, rest) = memory.split_at_mut(padded(head_dim) / 2 * VECTORS);
        let (out, rest) = rest.split_at_mut(padded(head_dim) * VECTORS);
        let (peak, sum) = rest.split_at_mut(VECTORS);
        Unit { q, out, peak, sum }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_keys(keys: Keys, first: usize, k: Rows, to: &mut [Line]) {
    let steps = padded(k.dim) / PADDED_DIMS;
    for (i, to) in to.chunks_exact_mut(steps).enumerate() {
        for (step, to) in to.iter_mut().enumerate() {
            store(to, rounded(k.row(keys.row(first + i)), step * PADDED_DIMS, _mm512_set1_ps(1.0)));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_values(keys: Keys, first: usize, v: Rows, to: &mut [Line]) {
    let row = |at: usize| if at < keys.len() { v.row(keys.row(at)) } else { &[] };
    for (pair, to) in to.chunks_exact_mut(padded(v.dim) / LANES).enumerate() {
        let (low, high) = (row(first + 2 * pair), row(first + 2 * pair + 1));
        for (block, to) in to.iter_mut().enumerate() {
            store(to, paired(low, high, block * LANES));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &Line) -> __m512i {
    // SAFETY: 64 aligned bytes are readable
    unsafe { _mm512_load_si512(std::ptr::from_ref(from).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut Line, v: __m512i) {
    // SAFETY: 64 aligned bytes are writable
    unsafe { _mm512_store_si512(std::ptr::from_mut(to).cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_ps(from: &Line) -> __m512 {
    _mm512_castsi512_ps(load(from))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_ps(to: &mut Line, v: __m512) {
    store(to, _mm512_castps_si512(v));
}

/// # Safety
/// As [`Packing::attend`]; packed keys and values and `scratch` are as long as they must be.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn compute(task: &PackedTask, scratch: &mut [Line], units: usize) {
    let dim = task.q.dim;
    let (tile, rest) = scratch.split_at_mut(TILE_LINES);
    let (scores, pairs) = tile.split_at_mut(KEYS * VECTORS);
    let memory = &mut rest[..units * unit_lines(dim)];
    for (i, memory) in memory.chunks_exact_mut(unit_lines(dim)).enumerate() {
        begin(task, i * QUERIES, Unit::new(memory, dim));
    }
    for first in (0..task.keys).step_by(KEYS) {
        let n = KEYS.min(task.keys - first);
        // lines of a key are half of those of a pair of values
        let k = &task.packed_k[packed_lines(first, dim)..][..n * padded(dim) / PADDED_DIMS];
        let v = &task.packed_v[packed_lines(first, dim)..][..n.div_ceil(2) * padded(dim) / LANES];
        for memory in memory.chunks_exact_mut(unit_lines(dim)) {
            let unit = Unit::new(memory, dim);
            let cells = padded(dim) / 2;
            let of_scores = Product { panel: unit.q, x: k, len: cells, column: cells, step: 1, columns: n };
            // SAFETY: the panel has `cells` rows, k has n keys of as many, scores room for n
            unsafe { of_scores.run::<false>(scores) };
            let used = &mut pairs[..n.div_ceil(2) * VECTORS];
            softmax(&scores[..n * VECTORS], used, unit.peak, unit.sum, unit.out);
            let (len, step) = (n.div_ceil(2), padded(dim));
            let of_values = Product { panel: used, x: v, len, column: 1, step, columns: dim };
            // SAFETY: the panel has `len` rows, v as many pairs of `step` dimensions, out room for all dimensions
            unsafe { of_values.run::<true>(unit.out) };
        }
    }
    for (i, memory) in memory.chunks_exact_mut(unit_lines(dim)).enumerate() {
        // SAFETY: the caller's promise
        unsafe { finish(task, i * QUERIES, Unit::new(memory, dim)) };
    }
}

/// A unit's queries, scaled and transposed; lanes without a query are 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn begin(task: &PackedTask, first: usize, unit: Unit) {
    let scale = _mm512_set1_ps(std::f32::consts::LOG2_E / (task.q.dim as f32).sqrt());
    for (step, to) in unit.q.chunks_exact_mut(LANES * VECTORS).enumerate() {
        for m in 0..VECTORS {
            let mut cells = [_mm512_setzero_si512(); LANES];
            for (cells, row) in cells.iter_mut().zip(task.queries.clone().skip(first + m * LANES)) {
                *cells = rounded(task.q.row(row), step * PADDED_DIMS, scale);
            }
            transpose(&mut cells);
            for (to, cells) in to[m..].iter_mut().step_by(VECTORS).zip(cells) {
                store(to, cells);
            }
        }
    }
    unit.out.iter_mut().chain(unit.sum).for_each(|to| store(to, _mm512_setzero_si512()));
    unit.peak.iter_mut().for_each(|to| store_ps(to, _mm512_set1_ps(LOWEST)));
}

/// Writes a unit's output.
///
/// # Safety
/// `out` of the task is writable at the queries' rows where the head lies, and used by nobody else meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn finish(task: &PackedTask, first: usize, unit: Unit) {
    for m in 0..VECTORS {
        let inverse = _mm512_div_ps(_mm512_set1_ps(1.0), load_ps(&unit.sum[m]));
        for (block, out) in unit.out.chunks_exact(LANES * VECTORS).enumerate() {
            let mut cells = [_mm512_setzero_si512(); LANES];
            for (cells, out) in cells.iter_mut().zip(out[m..].iter().step_by(VECTORS)) {
                *cells = _mm512_castps_si512(_mm512_mul_ps(load_ps(out), inverse));
            }
            transpose(&mut cells);
            let left = task.q.dim.saturating_sub(block * LANES).min(LANES);
            let mask = ((1u32 << left) - 1) as u16;
            for (cells, row) in cells.into_iter().zip(task.queries.clone().skip(first + m * LANES)) {
                let at = task.out.wrapping_add(row * task.q.stride + task.q.offset + block * LANES);
                // SAFETY: the caller's promise; the mask has only lanes of this head
                unsafe { _mm512_mask_storeu_ps(at, mask, _mm512_castsi512_ps(cells)) };
            }
        }
    }
}

/// Turns a tile of scores [n][32] into probabilities against the running maximum, in pairs of keys, and rescales what
/// was summed before.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn softmax(scores: &[Line], pairs: &mut [Line], peak: &mut [Line], sum: &mut [Line], out: &mut [Line]) {
    let half = _mm512_set1_epi32(0x8000);
    for m in 0..VECTORS {
        let old = load_ps(&peak[m]);
        let mut new = old;
        for s in scores[m..].iter().step_by(VECTORS) {
            new = _mm512_max_ps(load_ps(s), new);
        }
        let raised = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(old, new);
        let rescale = exp2(_mm512_sub_ps(old, new), &RESCALING);
        let mut total = _mm512_mul_ps(load_ps(&sum[m]), rescale);
        let mut rows = scores[m..].iter().step_by(VECTORS);
        for to in pairs[m..].iter_mut().step_by(VECTORS) {
            let mut next = || match rows.next() {
                Some(s) => {
                    let p = exp2(_mm512_sub_ps(load_ps(s), new), &PROBABILITIES);
                    total = _mm512_add_ps(total, p);
                    // rounded up from the middle on, in the upper half
                    _mm512_add_epi32(_mm512_castps_si512(p), half)
                }
                None => _mm512_setzero_si512(), // the pair of a last key
            };
            let (low, high) = (next(), next());
            let high = _mm512_and_si512(high, _mm512_set1_epi32(!0xffff));
            store(to, _mm512_or_si512(_mm512_srli_epi32::<16>(low), high));
        }
        if raised != 0 {
            // where it stays this is a multiplication by 1: what becomes of a query does not hang on those beside it
            for out in out[m..].iter_mut().step_by(VECTORS) {
                store_ps(out, _mm512_mul_ps(load_ps(out), rescale));
            }
        }
        store_ps(&mut peak[m], new);
        store_ps(&mut sum[m], total);
    }
}

/// Coefficients of 2^r for r of at most 1/2 either way, the constant first: to 0.0075%, and to 3e-6 and exactly 1 at 0.
const PROBABILITIES: [f32; 4] = [0.999_928_07, 0.693_261, 0.242_611_16, 0.055_171_675];
const RESCALING: [f32; 6] = [1.0, std::f32::consts::LN_2, 0.240_226_5, 0.055_504_11, 0.009_618_13, 0.001_333_36];

/// 2^x for x up to 0 with these coefficients; 0 for what is less than any exponent, infinity too.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2<const N: usize>(x: __m512, coefficients: &[f32; N]) -> __m512 {
    // of two the second where one is NaN, which stays
    let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let r = _mm512_sub_ps(x, n);
    let mut p = _mm512_set1_ps(coefficients[N - 1]);
    unroll!(i < N - 1, {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficients[N - 2 - i]));
    });
    _mm512_scalef_ps(p, n)
}

/// `y[column][32] (=|+=) sum over i of panel[i][32] * x[column, i]`, products of pairs of bfloat16.
struct Product<'a> {
    /// [len][32] pairs
    panel: &'a [Line],
    /// pair (column, i) is `column * self.column + i * self.step`
    x: &'a [Line],
    len: usize,
    column: usize,
    step: usize,
    columns: usize,
}

impl Product<'_> {
    /// # Safety
    /// `panel` has `len` rows, `x` all pairs of the columns, `y` room for all columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn run<const ADD: bool>(&self, y: &mut [Line]) {
        let mut column = 0;
        // SAFETY: every tile lies inside the columns, the rest is the caller's promise
        unsafe {
            while column + COLUMNS <= self.columns {
                self.tile::<COLUMNS, ADD>(column, y);
                column += COLUMNS;
            }
            while column + 4 <= self.columns {
                self.tile::<4, ADD>(column, y);
                column += 4;
            }
            while column < self.columns {
                self.tile::<1, ADD>(column, y);
                column += 1;
            }
        }
    }

    /// # Safety
    /// As [`Product::run`], for N columns from `first` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn tile<const N: usize, const ADD: bool>(&self, first: usize, y: &mut [Line]) {
        let bf16 = |v: __m512i| {
            // SAFETY: 64 bytes each, every bit pattern is valid
            unsafe { std::mem::transmute::<__m512i, __m512bh>(v) }
        };
        let y = &mut y[first * VECTORS..(first + N) * VECTORS];
        let mut sum = [[_mm512_setzero_ps(); VECTORS]; N];
        if ADD {
            unroll!(j < N, {
                sum[j] = [load_ps(&y[VECTORS * j]), load_ps(&y[VECTORS * j + 1])];
            });
        }
        // SAFETY: the caller's promise
        unsafe {
            let x = self.x.as_ptr().cast::<i32>().add(first * self.column);
            for i in 0..self.len {
                let panel = self.panel.as_ptr().add(VECTORS * i);
                let (low, high) = (load(&*panel), load(&*panel.add(1)));
                unroll!(j < N, {
                    let x = bf16(_mm512_set1_epi32(*x.add(j * self.column + i * self.step)));
                    sum[j] = [_mm512_dpbf16_ps(sum[j][0], bf16(low), x), _mm512_dpbf16_ps(sum[j][1], bf16(high), x)];
                });
            }
        }
        unroll!(j < N, {
            store_ps(&mut y[VECTORS * j], sum[j][0]);
            store_ps(&mut y[VECTORS * j + 1], sum[j][1]);
        });
    }
}
