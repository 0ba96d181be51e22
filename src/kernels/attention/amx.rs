//! Attention in bfloat16 on AMX: products of tiles, the softmax between them in AVX-512.
//!
//! Keys and values are packed once per call and head, into the layouts that the products want (see [`amx`]); a padded
//! head has `32 * steps` dimensions, and keys come in *steps* of 32 and *groups* of [`GROUP`] steps:
//!
//! ```text
//! keys    [block of 16 keys][step of 32 dims][cell: 2 dims][16 keys]
//! values  [group][block of 16 dims][step of 32 keys][cell i: keys i and i + 16][16 dims]
//! ```
//!
//! A unit of work is 32 queries against a group of keys: scores of one step of keys at a time, turned into
//! probabilities in the layout of the next product, `out += probabilities x values` for the group. Scores are in
//! powers of two (log2 e is in the queries) and come out of the product less the row's *shift*: it is what the sum
//! starts from.
//!
//! The shift is the largest score of the first step of keys, not of all: a softmax is the same for every shift, and
//! floats lose nothing until they overflow. Only where a sum of probabilities passes 2^60 is the group done again with
//! its largest score as the shift, so that no unit looks for maxima or rescales what is summed.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Keys, Line, PADDED_DIMS, PADDED_KEYS as KEYS, Rows, packed_lines};
use crate::kernels::amx::{Amx, Cells, Operands, TILE, Tiles};

/// Queries of a unit: two tiles.
pub const QUERIES: usize = 2 * TILE;
/// Steps of keys in a group: their probabilities (16 KiB) stay in the nearest cache.
pub const GROUP: usize = 8;
/// 32-bit numbers in a step of a tile's row, and in a whole step.
const CELLS: usize = 16;
const STEP: usize = TILE * CELLS;
/// A sum of probabilities from which on a group is done again.
const LIMIT: f32 = (1u64 << 60) as f32;

/// Steps of 32 dimensions in a head.
pub fn dim_steps(head_dim: usize) -> usize {
    head_dim.div_ceil(PADDED_DIMS)
}

/// 32 floats from `at` of a row as bfloat16; what is past its end is 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn rounded(row: &[f32], at: usize, scale: __m512) -> __m512i {
    // SAFETY: masks leave out what is past the end of the row
    let [low, high] = unsafe { [load_part(row, at), load_part(row, at + CELLS)] };
    let pairs = _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale));
    // SAFETY: 64 bytes each, every bit pattern is valid
    unsafe { std::mem::transmute::<__m512bh, __m512i>(pairs) }
}

/// 16 floats from `at`, zeros past the end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load_part(row: &[f32], at: usize) -> __m512 {
    let left = row.len().saturating_sub(at).min(CELLS);
    // SAFETY: the mask has only lanes that are in the row
    unsafe { _mm512_maskz_loadu_ps(((1u32 << left) - 1) as u16, row.as_ptr().wrapping_add(at)) }
}

/// For each of the four sizes of blocks that are exchanged: which lanes of two rows make the new first and second.
const EXCHANGES: [([i32; 16], [i32; 16]); 4] = [exchange(8), exchange(4), exchange(2), exchange(1)];

const fn exchange(size: usize) -> ([i32; 16], [i32; 16]) {
    let (mut first, mut second) = ([0; 16], [0; 16]);
    let mut lane = 0;
    while lane < 16 {
        let here = lane & size == 0;
        first[lane] = (if here { lane } else { 16 + lane - size }) as i32;
        second[lane] = (if here { lane + size } else { 16 + lane }) as i32;
        lane += 1;
    }
    (first, second)
}

/// Transposes 16 x 16 32-bit numbers: the off-diagonal halves change places, then those of every quarter, and so on.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(a: &mut [__m512i; 16]) {
    macro_rules! exchange {
        ($n:literal, $size:literal: $($i:literal)*) => {{
            // SAFETY: 64 bytes are readable in each
            let (first, second) = unsafe {
                (_mm512_loadu_si512(EXCHANGES[$n].0.as_ptr().cast()), _mm512_loadu_si512(EXCHANGES[$n].1.as_ptr().cast()))
            };
            $(
                let (x, y) = (a[$i], a[$i + $size]);
                a[$i] = _mm512_permutex2var_epi32(x, first, y);
                a[$i + $size] = _mm512_permutex2var_epi32(x, second, y);
            )*
        }};
    }
    exchange!(0, 8: 0 1 2 3 4 5 6 7);
    exchange!(1, 4: 0 1 2 3 8 9 10 11);
    exchange!(2, 2: 0 1 4 5 8 9 12 13);
    exchange!(3, 1: 0 2 4 6 8 10 12 14);
}

/// Packs a group of a head's keys and values: keys `first..` up to [`GROUP`] steps, into their parts of the two.
pub fn pack(_: Amx, keys: Keys, first: usize, k: Rows, v: Rows, to_k: &mut [Line], to_v: &mut [Line]) {
    // SAFETY: the token proves the features
    unsafe {
        pack_keys(keys, first, k, to_k);
        pack_values(keys, first, v, to_v);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_keys(keys: Keys, first: usize, k: Rows, to: &mut [Line]) {
    let steps = dim_steps(k.dim);
    let one = _mm512_set1_ps(1.0);
    for (block, to) in to.chunks_exact_mut(TILE * steps).enumerate() {
        for (step, to) in to.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
            let mut cells = [_mm512_setzero_si512(); TILE];
            for (i, cells) in cells.iter_mut().enumerate() {
                *cells = rounded(k.row(keys.row(first + block * TILE + i)), step * KEYS, one);
            }
            transpose(&mut cells);
            for (to, cells) in to.iter_mut().zip(cells) {
                // SAFETY: 64 aligned bytes are writable
                unsafe { _mm512_store_si512((to as *mut Line).cast(), cells) };
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn pack_values(keys: Keys, first: usize, v: Rows, to: &mut [Line]) {
    let (len, blocks) = (keys.len(), 2 * dim_steps(v.dim));
    let steps = to.len() / (blocks * TILE);
    // words 0 and 16, 1 and 17 and so on
    let words: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: 64 bytes are readable
    let words = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
    for (step, i) in (0..steps).flat_map(|step| (0..TILE).map(move |i| (step, i))) {
        let at = first + step * KEYS + i;
        let row = |at: usize| if at < len { v.row(keys.row(at)) } else { &[] };
        let (low, high) = (row(at), row(at + TILE));
        for block in 0..blocks {
            // SAFETY: masks leave out what is past the end of the rows; 64 bytes each of any bits
            let cells = unsafe {
                let pairs = _mm512_cvtne2ps_pbh(load_part(high, block * TILE), load_part(low, block * TILE));
                _mm512_permutexvar_epi16(words, std::mem::transmute::<__m512bh, __m512i>(pairs))
            };
            // SAFETY: 64 aligned bytes are writable
            unsafe { _mm512_store_si512((&raw mut to[(block * steps + step) * TILE + i]).cast(), cells) };
        }
    }
}

/// One head of one sequence, and some of its queries.
pub struct Task<'a> {
    pub q: Rows<'a>,
    pub queries: Range<usize>,
    /// how many keys are packed, at least one
    pub keys: usize,
    pub packed_k: &'a [Line],
    pub packed_v: &'a [Line],
    /// [rows, stride] as `q`
    pub out: *mut f32,
}

/// Lines of scratch memory for a task of `units` units of queries.
pub fn scratch_lines(units: usize, head_dim: usize) -> usize {
    PROBABILITIES + SCORES + units * unit_lines(dim_steps(head_dim))
}

/// Lines of a group's probabilities [step][query][cell], and of two steps' scores [query][key].
const PROBABILITIES: usize = GROUP * QUERIES;
const SCORES: usize = 2 * QUERIES * 2;

/// Lines that stay with a unit of queries from group to group: see [`Unit`].
fn unit_lines(steps: usize) -> usize {
    QUERIES * (steps + 1 + 1 + 2 * steps)
}

/// What is kept of 32 queries from group to group.
#[derive(Clone, Copy)]
struct Unit {
    /// [step of dims][query][16 cells], times log2 e / sqrt(dims)
    q: *mut u32,
    /// [query][16 times the same]: what scores start from, less the shift
    start: *mut f32,
    /// [query][16 partial sums] of probabilities
    sum: *mut f32,
    /// [query][dims padded]
    out: *mut f32,
}

impl Unit {
    /// # Safety
    /// `scratch` holds the `index + 1` units that come after scores and probabilities.
    unsafe fn at(scratch: *mut Line, index: usize, steps: usize) -> Unit {
        // SAFETY: the caller's promise
        let q = unsafe { scratch.add(PROBABILITIES + SCORES + index * unit_lines(steps)) };
        let start = q.wrapping_add(QUERIES * steps);
        let sum = start.wrapping_add(QUERIES);
        Unit { q: q.cast(), start: start.cast(), sum: sum.cast(), out: sum.wrapping_add(QUERIES).cast() }
    }
}

/// A group of keys as the products see it.
#[derive(Clone, Copy)]
struct Group {
    k: *const Line,
    v: *const Line,
    /// of keys, 1 to GROUP
    steps: usize,
    /// keys of the last step, 1 to 32
    last: usize,
}

impl Task<'_> {
    /// Computes the task's part of the output.
    ///
    /// # Safety
    /// `out` is writable at the queries' rows where the head lies, and used by nobody else meanwhile. The packed keys
    /// and values are those of [`pack`] for `keys` keys and this head size.
    pub unsafe fn run(&self, amx: Amx, scratch: &mut [Line]) {
        let units = self.queries.len().div_ceil(QUERIES);
        assert!(self.keys > 0 && scratch.len() >= scratch_lines(units, self.q.dim), "a task of attention");
        let lines = packed_lines(self.keys, self.q.dim);
        assert!(self.packed_k.len() >= lines && self.packed_v.len() >= lines, "packed keys");
        // SAFETY: the token proves the features; sizes were checked; the rest is the caller's promise
        unsafe { self.compute(&amx.tiles(), scratch.as_mut_ptr(), units) }
    }

    /// # Safety
    /// As [`Task::run`], with `scratch` for `units`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn compute(&self, tiles: &Tiles, scratch: *mut Line, units: usize) {
        let steps = dim_steps(self.q.dim);
        let key_steps = self.keys.div_ceil(KEYS);
        // SAFETY: all pointers stay in the scratch memory and the packed keys, whose sizes `run` checked
        unsafe {
            for (group, from) in (0..key_steps).step_by(GROUP).enumerate() {
                let to = key_steps.min(from + GROUP);
                let at = from * KEYS * steps;
                let last = if to == key_steps { self.keys - (key_steps - 1) * KEYS } else { KEYS };
                let keys = Group {
                    k: self.packed_k.as_ptr().add(at),
                    v: self.packed_v.as_ptr().add(at),
                    steps: to - from,
                    last,
                };
                for index in 0..units {
                    let unit = Unit::at(scratch, index, steps);
                    if group == 0 {
                        self.begin(unit, index);
                        raise(tiles, unit, steps, Group { steps: 1, ..keys }, scratch, true);
                    }
                    attend(tiles, unit, steps, keys, scratch, group > 0);
                }
            }
            for index in 0..units {
                self.finish(Unit::at(scratch, index, steps), index);
            }
        }
    }

    /// Loads a unit's queries; those past the last one are zeros.
    ///
    /// # Safety
    /// The unit has its memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn begin(&self, unit: Unit, index: usize) {
        let scale = _mm512_set1_ps(std::f32::consts::LOG2_E / (self.q.dim as f32).sqrt());
        for i in 0..QUERIES {
            let row = self.queries.start + index * QUERIES + i;
            let row = if row < self.queries.end { self.q.row(row) } else { &[] };
            for step in 0..dim_steps(self.q.dim) {
                // SAFETY: inside the unit's queries
                let to = unsafe { unit.q.add((step * QUERIES + i) * CELLS) };
                // SAFETY: a line of them
                unsafe { _mm512_store_si512(to.cast(), rounded(row, step * KEYS, scale)) };
            }
            // SAFETY: a line of the unit's sums
            unsafe { _mm512_store_ps(unit.sum.add(i * CELLS), _mm512_setzero_ps()) };
        }
    }

    /// Writes a unit's output.
    ///
    /// # Safety
    /// As [`Task::run`]; the unit is complete.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn finish(&self, unit: Unit, index: usize) {
        let (dim, first) = (self.q.dim, self.queries.start + index * QUERIES);
        for (i, row) in (first..self.queries.end.min(first + QUERIES)).enumerate() {
            // SAFETY: lines of the unit; the caller's promise about `out`, of which the mask leaves what is in the head
            unsafe {
                let inverse = 1.0 / _mm512_reduce_add_ps(_mm512_load_ps(unit.sum.add(i * CELLS)));
                let from = unit.out.add(i * dim_steps(dim) * KEYS);
                let to = self.out.add(row * self.q.stride + self.q.offset);
                for at in (0..dim).step_by(CELLS) {
                    let mask = ((1u32 << (dim - at).min(CELLS)) - 1) as u16;
                    let v = _mm512_mul_ps(_mm512_load_ps(from.add(at)), _mm512_set1_ps(inverse));
                    _mm512_mask_storeu_ps(to.add(at), mask, v);
                }
            }
        }
    }
}

/// Adds a group of keys to a unit's output and sums; `add` is false for the first.
///
/// # Safety
/// Unit, group and scratch have their memory.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn attend(tiles: &Tiles, unit: Unit, steps: usize, keys: Group, scratch: *mut Line, add: bool) {
    // SAFETY: the caller's promise; a group's probabilities and values have its steps
    unsafe {
        probabilities(tiles, unit, steps, keys, scratch);
        let mut sums = [_mm512_setzero_ps(); QUERIES];
        if !sum_up(keys, scratch, &mut sums) {
            raise(tiles, unit, steps, keys, scratch, !add);
            probabilities(tiles, unit, steps, keys, scratch);
            sum_up(keys, scratch, &mut sums);
        }
        for (i, sum) in sums.into_iter().enumerate() {
            let at = unit.sum.add(i * CELLS);
            _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), sum));
        }
        for step in 0..steps {
            let p = Operands {
                a: scratch.cast(),
                a_step: QUERIES * 64,
                b: keys.v.add(2 * step * keys.steps * TILE).cast(),
                b_block: keys.steps * TILE * 64,
                steps: keys.steps,
                c: unit.out.add(step * KEYS).cast(),
                c_row: steps * KEYS * 4,
            };
            tiles.multiply::<2, 2>(Cells::Bf16, p, add);
        }
    }
}

/// The sums of a group's probabilities by query (as partial sums in 16 lanes), rounded as they are multiplied; whether
/// all are below the limit.
///
/// # Safety
/// The scratch memory begins with the group's probabilities.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn sum_up(keys: Group, scratch: *const Line, sums: &mut [__m512; QUERIES]) -> bool {
    const ONES: u32 = 0x3f80_3f80;
    let ones = _mm512_set1_epi32(ONES as i32);
    // cell i holds keys i and i + 16
    let low = ((1u64 << keys.last.min(TILE)) - 1) as u16;
    let high = ((1u64 << keys.last.saturating_sub(TILE)) - 1) as u16;
    let last = _mm512_or_si512(
        _mm512_maskz_set1_epi32(low, (ONES & 0xffff) as i32),
        _mm512_maskz_set1_epi32(high, (ONES & 0xffff_0000) as i32),
    );
    let mut below = !0;
    for (i, sum) in sums.iter_mut().enumerate() {
        let mut total = _mm512_setzero_ps();
        for step in 0..keys.steps {
            let count = if step + 1 == keys.steps { last } else { ones };
            // SAFETY: the line of a step and query; 64 bytes each of any bits
            total = unsafe {
                let cells = _mm512_load_si512(scratch.add(step * QUERIES + i).cast());
                _mm512_dpbf16_ps(
                    total,
                    std::mem::transmute::<__m512i, __m512bh>(cells),
                    std::mem::transmute::<__m512i, __m512bh>(count),
                )
            };
        }
        below &= _mm512_cmp_ps_mask::<_CMP_LT_OQ>(total, _mm512_set1_ps(LIMIT));
        *sum = total;
    }
    below == !0
}

/// Scores of step `step` of a group into `to`, [query][key].
///
/// # Safety
/// Unit, group and `to` have their memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn scores(tiles: &Tiles, unit: Unit, steps: usize, keys: Group, step: usize, to: *mut f32) {
    // SAFETY: the caller's promise: two tiles of queries, two blocks of keys, `steps` steps of dims in each
    unsafe {
        for r in 0..2 {
            let from = unit.start.add(r * STEP);
            for c in 0..2 {
                for i in 0..TILE {
                    _mm512_store_ps(to.add((r * TILE + i) * KEYS + c * TILE), _mm512_load_ps(from.add(i * CELLS)));
                }
            }
        }
        let p = Operands {
            a: unit.q.cast(),
            a_step: QUERIES * 64,
            b: keys.k.add(2 * step * steps * TILE).cast(),
            b_block: steps * TILE * 64,
            steps,
            c: to.cast(),
            c_row: KEYS * 4,
        };
        tiles.multiply::<2, 2>(Cells::Bf16, p, true);
    }
}

/// The probabilities of a group, [step][query][cell] at the front of the scratch memory: 2^score, rounded.
///
/// # Safety
/// Unit, group and scratch have their memory.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn probabilities(tiles: &Tiles, unit: Unit, steps: usize, keys: Group, scratch: *mut Line) {
    // SAFETY: the caller's promise
    unsafe {
        let s: *mut f32 = scratch.add(PROBABILITIES).cast();
        scores(tiles, unit, steps, keys, 0, s);
        for step in 0..keys.steps {
            let now = s.add(step % 2 * QUERIES * KEYS);
            if step + 1 < keys.steps {
                scores(tiles, unit, steps, keys, step + 1, s.add((step + 1) % 2 * QUERIES * KEYS));
            }
            let p: *mut u32 = scratch.add(step * QUERIES).cast();
            for i in 0..QUERIES {
                let from = now.add(i * KEYS);
                let cells = exp2_pair(_mm512_load_ps(from), _mm512_load_ps(from.add(TILE)));
                _mm512_store_si512(p.add(i * CELLS).cast(), cells);
            }
        }
    }
}

/// 2^x in bfloat16, those of `low` in the low halves of cells. 2^x = 2^floor(x) p(x - floor(x)), where p is a polynomial
/// of degree 3, and 2^-8 is added to it: half of bfloat16's last place in 1..2, so that cutting off the lower half of the
/// float rounds it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn exp2_pair(low: __m512, high: __m512) -> __m512i {
    // the upper two bytes of a float
    const UPPER: [u8; 4] = [2, 3, 2, 3];
    let upper = _mm512_set4_epi32(0x0f0e_0f0e, 0x0b0a_0b0a, 0x0706_0706, i32::from_le_bytes(UPPER));
    let (low, high) = (_mm512_castps_si512(exp2(low)), _mm512_castps_si512(exp2(high)));
    _mm512_mask_shuffle_epi8(high, 0x3333_3333_3333_3333, low, upper)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn exp2(x: __m512) -> __m512 {
    /// Largest relative error 7.5e-5 before rounding.
    const C: [f32; 4] = [0.999_925_2 + 1.0 / 256.0, 0.695_833_54, 0.226_067_16, 0.078_024_52];
    const FLOOR: i32 = 0x09; // to 2^0, rounding down, no exceptions
    let f = _mm512_reduce_ps::<FLOOR>(x);
    let p = _mm512_fmadd_ps(_mm512_set1_ps(C[3]), f, _mm512_set1_ps(C[2]));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(C[1]));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(C[0]));
    _mm512_scalef_ps(p, x)
}

/// Makes the largest score of a group each query's shift, and scales what was summed before to it (there is nothing yet
/// where it is the `first`).
///
/// # Safety
/// Unit, group and scratch have their memory.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn raise(tiles: &Tiles, unit: Unit, steps: usize, keys: Group, scratch: *mut Line, first: bool) {
    // SAFETY: the caller's promise
    unsafe {
        let s: *mut f32 = scratch.add(PROBABILITIES).cast();
        let mut old = [0.0; QUERIES];
        for (i, old) in old.iter_mut().enumerate() {
            *old = if first { 0.0 } else { *unit.start.add(i * CELLS) };
            _mm512_store_ps(unit.start.add(i * CELLS), _mm512_setzero_ps());
        }
        let mut peak = [f32::NEG_INFINITY; QUERIES];
        for step in 0..keys.steps {
            scores(tiles, unit, steps, keys, step, s);
            for (i, peak) in peak.iter_mut().enumerate() {
                let from = s.add(i * KEYS);
                let both = _mm512_max_ps(_mm512_load_ps(from), _mm512_load_ps(from.add(TILE)));
                *peak = peak.max(_mm512_reduce_max_ps(both));
            }
        }
        for (i, (old, peak)) in old.into_iter().zip(peak).enumerate() {
            // a shift only grows
            let start = if first { -peak } else { (-peak).min(old) };
            _mm512_store_ps(unit.start.add(i * CELLS), _mm512_set1_ps(start));
            if !first {
                let scale = _mm512_set1_ps((start - old).exp2());
                let sum = unit.sum.add(i * CELLS);
                _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), scale));
                for at in (0..steps * KEYS).step_by(CELLS) {
                    let out = unit.out.add(i * steps * KEYS + at);
                    _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), scale));
                }
            }
        }
    }
}
