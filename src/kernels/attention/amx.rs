//! Attention in bfloat16 on AMX: products of tiles, the softmax between them in AVX-512.
//!
//! Keys and values are packed once per call and head, into the layouts that the products want (see [`amx`]); a padded
//! head has `32 * steps` dimensions, and keys come in *steps* of 32 and *groups* of [`GROUP`] steps:
//!
//! ```text
//! keys    [step of 32 keys][step of 32 dims][2 blocks of 16 keys][cell: 2 dims][16 keys]
//! values  [group][block of 16 dims][step of 32 keys][cell i: keys i and i + 16][16 dims]
//! ```
//!
//! A unit of work is 32 queries against a group of keys: scores of one step of keys at a time, turned into
//! probabilities in the layout of the next product, `out += probabilities x values` for the group. Scores are in
//! powers of two (log2 e is in the queries) and come out of the product less the row's *shift*: it is what the sum
//! starts from.
//!
//! Probabilities are a polynomial of degree 2 with their lower half cut off: up to 0.5% + 0.18% from the exact ones, and
//! 0.2% on average; normalization takes part of that out again. A score costs five and a half vector instructions.
//!
//! The shift is the largest score of the first step of keys, not of all: a softmax is the same for every shift, and
//! floats lose nothing until they overflow. Only where a sum of probabilities passes 2^60 is the group done again with
//! the row's largest score as its shift, so that no unit looks for maxima or rescales what is summed. Other rows of the
//! unit keep theirs: what a row gets does not depend on those beside it.

use std::arch::asm;
use std::arch::x86_64::*;

use super::pack::{pack_keys, pack_values, rounded};
use super::{
    Keys, PACKED_STEPS as GROUP, PADDED_DIMS, PADDED_KEYS as KEYS, PackedTask as Task, Packing, Rows, packed_lines,
};
use crate::kernels::amx::{Amx, TILE, Tiles};
use crate::memory::Line;

/// Queries of a unit: two tiles.
const QUERIES: usize = 2 * TILE;
/// Bytes of packed keys and values that stay in the second cache.
const NEAR: usize = 1 << 20;
/// 32-bit numbers of a line, and of a tile's row.
const CELLS: usize = 16;
/// A sum of probabilities from which on a group is done again.
const LIMIT: f32 = (1u64 << 60) as f32;

/// Steps of 32 dimensions in a head.
pub fn dim_steps(head_dim: usize) -> usize {
    head_dim.div_ceil(PADDED_DIMS)
}

/// Lines of a group's probabilities [step][query][cell], of two steps' scores [query][step][key], and of a group's sums
/// [query][16 partial sums].
const PROBABILITIES: usize = GROUP * QUERIES;
const SCORES: usize = 2 * QUERIES * 2;
const FRESH: usize = QUERIES;

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
        let q = unsafe { scratch.add(PROBABILITIES + SCORES + FRESH + index * unit_lines(steps)) };
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

impl Packing for Amx {
    const QUERIES: usize = QUERIES;

    fn pack(self, keys: Keys, first: usize, k: Rows, v: Rows, to_k: &mut [Line], to_v: &mut [Line]) {
        // SAFETY: the token proves the features
        unsafe {
            pack_keys(keys, first, k, to_k);
            pack_values(keys, first, v, to_v);
        }
    }

    fn scratch_lines(units: usize, head_dim: usize) -> usize {
        PROBABILITIES + SCORES + FRESH + units * unit_lines(dim_steps(head_dim))
    }

    unsafe fn attend(self, task: &Task, scratch: &mut [Line]) {
        let units = task.queries.len().div_ceil(QUERIES);
        assert!(task.keys > 0 && scratch.len() >= Self::scratch_lines(units, task.q.dim), "a task of attention");
        let lines = packed_lines(task.keys, task.q.dim);
        assert!(task.packed_k.len() >= lines && task.packed_v.len() >= lines, "packed keys");
        // keys that stay near are read by one unit after the other, others by all units in turn
        let near = 2 * lines * size_of::<Line>() <= NEAR;
        let step = if near { QUERIES } else { task.queries.len().max(1) };
        for first in task.queries.clone().step_by(step) {
            let queries = first..task.queries.end.min(first + step);
            let units = queries.len().div_ceil(QUERIES);
            let part = Task { queries, ..*task };
            // SAFETY: the token proves the features; sizes were checked; the rest is the caller's promise
            unsafe { part.compute(&self.tiles(), scratch.as_mut_ptr(), units) }
        }
    }
}

impl Task<'_> {
    /// # Safety
    /// As [`Packing::attend`], with `scratch` for `units`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn compute(&self, tiles: &Tiles, scratch: *mut Line, units: usize) {
        let steps = dim_steps(self.q.dim);
        let items = self.keys.div_ceil(GROUP * KEYS) * units;
        // SAFETY: all pointers stay in the scratch memory and the packed keys, whose sizes `attend` checked
        unsafe {
            let mut line = Pipeline::new(tiles, steps, scratch);
            for index in 0..units {
                let unit = Unit::at(scratch, index, steps);
                self.begin(unit, index);
                line.raise(unit, Group { steps: 1, ..self.group(0) }, None);
            }
            let item = |n: usize| (Unit::at(scratch, n % units, steps), self.group(n / units));
            line.scores(item(0), 0);
            for n in 0..items {
                let now = item(n);
                let next = (n + 1 < items).then(|| item(n + 1));
                line.probabilities(now, next);
                let over = line.settle(now.0, false);
                if over != 0 {
                    line.raise(now.0, now.1, Some(over));
                    line.scores(now, 0);
                    line.probabilities(now, next);
                    line.settle(now.0, true);
                }
                line.values(now, n >= units);
            }
            for index in 0..units {
                self.finish(Unit::at(scratch, index, steps), index);
            }
        }
    }

    /// The keys of a group.
    ///
    /// # Safety
    /// There are as many groups.
    unsafe fn group(&self, group: usize) -> Group {
        let (all, from) = (self.keys.div_ceil(KEYS), group * GROUP);
        let at = from * KEYS * dim_steps(self.q.dim);
        let steps = GROUP.min(all - from);
        let last = if from + steps == all { self.keys - (all - 1) * KEYS } else { KEYS };
        // SAFETY: the caller's promise
        unsafe { Group { k: self.packed_k.as_ptr().add(at), v: self.packed_v.as_ptr().add(at), steps, last } }
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
    /// As [`Packing::attend`]; the unit is complete.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn finish(&self, unit: Unit, index: usize) {
        let (dim, first) = (self.q.dim, self.queries.start + index * QUERIES);
        for (i, row) in (first..self.queries.end.min(first + QUERIES)).enumerate() {
            // SAFETY: lines of the unit; the caller's promise about `out`, of which the mask leaves what is in the head
            unsafe {
                let inverse = UPLIFT / _mm512_reduce_add_ps(_mm512_load_ps(unit.sum.add(i * CELLS)));
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

/// Both products and the softmax, step by step.
///
/// A processor renames few tiles, and a product takes 52 cycles to the end: what waits for one holds up everything
/// behind it, and vectors have one port of two while products run. So the softmax of a step is spread among the products
/// of the next, the last queries after them, and results are stored behind that; those of the second product are stored
/// while the next ones are computed.
struct Pipeline<'a> {
    tiles: &'a Tiles,
    /// of dims
    steps: usize,
    /// [step][query][cell]
    p: *mut Line,
    /// [query][two steps of 32 keys]: side by side, because loads from one that equal stores to the other in their lower
    /// twelve bits of address would wait for them
    s: *mut f32,
    /// which of the two is complete
    turn: usize,
    /// the sums of the group that is being computed, [query][16 partial sums]
    fresh: *mut f32,
}

/// From query to query in scores.
const SCORES_ROW: usize = 2 * KEYS;
/// Queries whose softmax comes after the products.
const AFTER: usize = 8;

/// Probabilities and sums of the next `$n` queries.
macro_rules! softmax {
    ($n:literal) => {
        concat!(
            "mov {t}, {",
            $n,
            "}\n",
            "test {t}, {t}\n",
            "jz 5f\n",
            "4:\n",
            "vmovaps {a}, [{s}]\n",
            "vmovaps {b}, [{s} + 64]\n",
            // 2^x = 2^floor(x) p(x - floor(x))
            "vreduceps {x}, {a}, 9\n",
            "vreduceps {y}, {b}, 9\n",
            "vmovaps {u}, {x}\n",
            "vmovaps {w}, {y}\n",
            "vfmadd213ps {u}, {c2}, {c1}\n",
            "vfmadd213ps {w}, {c2}, {c1}\n",
            "vfmadd213ps {u}, {x}, {c0}\n",
            "vfmadd213ps {w}, {y}, {c0}\n",
            "vscalefps {u}, {u}, {a}\n",
            "vscalefps {w}, {w}, {b}\n",
            "vaddps {a}, {u}, {w}\n",
            // cells: the upper halves of both
            "vpshufb {w}{{{lower_halves}}}, {u}, {upper}\n",
            "vaddps {a}, {a}, [{sums}]\n",
            "vmovaps [{sums}], {a}\n",
            "vmovdqa64 [{p}], {w}\n",
            "add {s}, 256\n",
            "add {p}, 64\n",
            "add {sums}, 64\n",
            "dec {t}\n",
            "jnz 4b\n",
            "5:",
        )
    };
}

/// A block of 16 dims of the second product in tiles `$c` and `$d`; after its first step, those of the block before are
/// stored, if there is a `$before`.
macro_rules! values_block {
    ($self:ident, $steps:expr, $v:expr, $out:expr, $row:expr, $add:expr, $before:expr,
     $c:literal $d:literal $before_c:literal $before_d:literal) => {
        asm!(
            "test {flags}, 1", "jnz 2f",
            concat!("tilezero tmm", $c), concat!("tilezero tmm", $d), "jmp 3f",
            "2:",
            concat!("tileloadd tmm", $c, ", [{out} + {row}]"), concat!("tileloadd tmm", $d, ", [{out2} + {row}]"),
            "3:",
            "tileloadd tmm6, [{v} + {line}]",
            "tileloadd tmm4, [{p} + {line}]",
            concat!("tdpbf16ps tmm", $c, ", tmm4, tmm6"),
            "tileloadd tmm5, [{p} + {line} + 1024]",
            concat!("tdpbf16ps tmm", $d, ", tmm5, tmm6"),
            "test {flags}, 2", "jz 4f",
            concat!("tilestored [{out} + {row} - 64], tmm", $before_c),
            concat!("tilestored [{out2} + {row} - 64], tmm", $before_d),
            "and {flags}, 1",
            "4:",
            "add {v}, 1024", "add {p}, 2048",
            "dec {steps}", "jnz 3b",
            flags = inout(reg) usize::from($add) + 2 * usize::from($before) => _,
            out = in(reg) $out,
            out2 = in(reg) $out.add(TILE * $row),
            row = in(reg) 4 * $row,
            v = inout(reg) $v => _,
            p = inout(reg) $self.p => _,
            steps = inout(reg) $steps => _,
            line = in(reg) 64usize,
            options(nostack),
        )
    };
}

impl<'a> Pipeline<'a> {
    /// # Safety
    /// `scratch` begins with probabilities, scores and sums.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn new(tiles: &'a Tiles, steps: usize, scratch: *mut Line) -> Self {
        // SAFETY: the caller's promise
        unsafe {
            let s = scratch.add(PROBABILITIES);
            let fresh: *mut f32 = s.add(SCORES).cast();
            for i in 0..QUERIES {
                _mm512_store_ps(fresh.add(i * CELLS), _mm512_setzero_ps());
            }
            Pipeline { tiles, steps, p: scratch, s: s.cast(), turn: 0, fresh }
        }
    }

    /// The probabilities of a group, from the scores of its first step; leaves behind the scores of the first step of
    /// the next.
    ///
    /// # Safety
    /// Units and groups have their memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn probabilities(&mut self, now: (Unit, Group), next: Option<(Unit, Group)>) {
        let key_steps = now.1.steps;
        for step in 0..key_steps {
            let ((unit, keys), of) = if step + 1 < key_steps { (now, step + 1) } else { (next.unwrap_or(now), 0) };
            // SAFETY: the caller's promise
            unsafe {
                if step + 1 == key_steps && now.1.last < KEYS {
                    self.forget(now.1.last);
                }
                self.step(unit, keys, of, QUERIES, step);
            }
        }
    }

    /// Gives the complete step's keys from `from` on a probability of 0.
    ///
    /// # Safety
    /// The pipeline has its memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn forget(&self, from: usize) {
        for i in 0..QUERIES * (KEYS - from) {
            let (query, key) = (i / (KEYS - from), from + i % (KEYS - from));
            // SAFETY: a score of the complete step
            unsafe { *self.s.add(query * SCORES_ROW + self.turn * KEYS + key) = f32::NEG_INFINITY };
        }
    }

    /// The scores of one step of keys alone.
    ///
    /// # Safety
    /// Unit and group have their memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn scores(&mut self, of: (Unit, Group), step: usize) {
        // SAFETY: the caller's promise
        unsafe { self.step(of.0, of.1, step, 0, 0) }
    }

    /// Scores of key step `of` into the incomplete half, which is complete then; meanwhile the probabilities of the
    /// complete half, as those of step `to`, for the first `queries` queries (0 or all).
    ///
    /// # Safety
    /// Unit and group have their memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn step(&mut self, unit: Unit, keys: Group, of: usize, queries: usize, to: usize) {
        let at_once = queries.saturating_sub(AFTER) / (2 * self.steps);
        let after = queries - at_once * 2 * self.steps;
        // SAFETY: the tiles are configured; two tiles of queries, two blocks of keys and `steps` steps of dims in each;
        // scores, probabilities and sums of 32 queries
        unsafe {
            asm!(
                "tileloadd tmm0, [{t} + {line}]", "tileloadd tmm1, [{t} + {line}]",
                "tileloadd tmm2, [{t} + {line} + 1024]", "tileloadd tmm3, [{t} + {line} + 1024]",
                "2:",
                "tileloadd tmm6, [{k} + {line}]",
                "tileloadd tmm4, [{q} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{q} + {line} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                softmax!("at_once"),
                "tileloadd tmm7, [{k} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                softmax!("at_once"),
                "add {k}, 2048", "add {q}, 2048",
                "dec {steps}", "jnz 2b",
                softmax!("after"),
                "tilestored [{c} + {c_row}], tmm0", "tilestored [{c} + {c_row} + 64], tmm1",
                "tilestored [{c} + {c_row} + 4096], tmm2", "tilestored [{c} + {c_row} + 4160], tmm3",
                t = inout(reg) unit.start => _,
                q = inout(reg) unit.q => _,
                k = inout(reg) keys.k.add(2 * of * self.steps * TILE) => _,
                steps = inout(reg) self.steps => _,
                line = in(reg) 64usize,
                c = in(reg) self.s.add((self.turn ^ 1) * KEYS),
                c_row = in(reg) 4 * SCORES_ROW,
                at_once = in(reg) at_once,
                after = in(reg) after,
                s = inout(reg) self.s.add(self.turn * KEYS) => _,
                p = inout(reg) self.p.add(to * QUERIES) => _,
                sums = inout(reg) self.fresh => _,
                c0 = in(zmm_reg) _mm512_set1_ps(EXP2[0]),
                c1 = in(zmm_reg) _mm512_set1_ps(EXP2[1]),
                c2 = in(zmm_reg) _mm512_set1_ps(EXP2[2]),
                upper = in(zmm_reg) _mm512_set4_epi32(0x0f0e_0f0e, 0x0b0a_0b0a, 0x0706_0706, 0x0302_0302),
                lower_halves = in(kreg) 0x3333_3333_3333_3333u64,
                a = out(zmm_reg) _, b = out(zmm_reg) _, x = out(zmm_reg) _,
                y = out(zmm_reg) _, u = out(zmm_reg) _, w = out(zmm_reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        self.turn ^= 1;
    }

    /// `out += probabilities x values` of a group; stored without adding where `add` is false. Tiles 0 and 1 are of even
    /// blocks of 16 dims, 2 and 3 of odd ones; each pair is stored while the other is computed.
    ///
    /// # Safety
    /// Unit and group have their memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn values(&mut self, of: (Unit, Group), add: bool) {
        let (unit, keys) = of;
        let row = self.steps * KEYS;
        // SAFETY: the tiles are configured and keep their values in between (see `Tiles`); two tiles of queries,
        // `2 * self.steps` blocks of dims, `keys.steps` steps of keys in each
        unsafe {
            for block in (0..2 * self.steps).step_by(2) {
                let v = keys.v.add(block * keys.steps * TILE);
                let out = unit.out.add(block * TILE);
                values_block!(self, keys.steps, v, out, row, add, block > 0, "0" "1" "2" "3");
                let v = v.add(keys.steps * TILE);
                values_block!(self, keys.steps, v, out.add(TILE), row, add, true, "2" "3" "0" "1");
            }
            let last = unit.out.add((2 * self.steps - 1) * TILE);
            self.tiles.store::<2>(last.cast(), 4 * row);
            self.tiles.store::<3>(last.add(TILE * row).cast(), 4 * row);
        }
    }

    /// Adds the sums of a group to its unit's if all are below the limit, or `always`: they are not where an input is
    /// not a number. Returns which queries are not, a bit for each: 0 if it added them.
    ///
    /// # Safety
    /// The unit has its memory.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn settle(&mut self, unit: Unit, always: bool) -> u32 {
        // SAFETY: the caller's promise
        unsafe {
            let mut over = 0;
            for i in 0..QUERIES {
                let sum = _mm512_load_ps(self.fresh.add(i * CELLS));
                let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sum, _mm512_set1_ps(LIMIT));
                over |= u32::from(below != !0) << i;
            }
            if always {
                over = 0;
            }
            for i in 0..QUERIES {
                let (at, fresh) = (unit.sum.add(i * CELLS), self.fresh.add(i * CELLS));
                if over == 0 {
                    _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), _mm512_load_ps(fresh)));
                }
                _mm512_store_ps(fresh, _mm512_setzero_ps());
            }
            over
        }
    }

    /// Makes the largest score of a group the shift of some queries, a bit for each, and scales what was summed before to
    /// it; `None` is all queries, with nothing summed yet.
    ///
    /// # Safety
    /// Unit and group have their memory.
    #[cold]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn raise(&mut self, unit: Unit, keys: Group, over: Option<u32>) {
        // SAFETY: the caller's promise
        unsafe {
            let mut old = [0.0; QUERIES];
            for (i, old) in old.iter_mut().enumerate() {
                *old = if over.is_none() { 0.0 } else { *unit.start.add(i * CELLS) };
                _mm512_store_ps(unit.start.add(i * CELLS), _mm512_setzero_ps());
            }
            let mut peak = [f32::NEG_INFINITY; QUERIES];
            for step in 0..keys.steps {
                self.scores((unit, keys), step);
                for (i, peak) in peak.iter_mut().enumerate() {
                    let from = self.s.add(i * SCORES_ROW + self.turn * KEYS);
                    let both = _mm512_max_ps(_mm512_load_ps(from), _mm512_load_ps(from.add(TILE)));
                    *peak = peak.max(_mm512_reduce_max_ps(both));
                }
            }
            for (i, (old, peak)) in old.into_iter().zip(peak).enumerate() {
                // a shift only grows
                let start = match over {
                    None => -peak,
                    Some(rows) if rows >> i & 1 == 1 => (-peak).min(old),
                    Some(_) => old,
                };
                _mm512_store_ps(unit.start.add(i * CELLS), _mm512_set1_ps(start));
                if start != old && over.is_some() {
                    let scale = _mm512_set1_ps((start - old).exp2());
                    let sum = unit.sum.add(i * CELLS);
                    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), scale));
                    for at in (0..self.steps * KEYS).step_by(CELLS) {
                        let out = unit.out.add(i * self.steps * KEYS + at);
                        _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), scale));
                    }
                }
            }
        }
    }
}

/// Cutting off the lower half of a float takes 2^-8 of it at most, and 0.28% on average (of numbers whose logarithms are
/// spread evenly: 2^-8 / (2 ln 2)). Probabilities are larger by that, and so are their sums.
const UPLIFT: f32 = 1.0 + 0.721_347_5 / 256.0;

/// 2^x = 2^floor(x) p(x - floor(x)): p, times UPLIFT; largest relative error 1.8e-3.
const EXP2: [f32; 3] = [1.001_724_8 * UPLIFT, 0.657_636_3 * UPLIFT, 0.337_189_43 * UPLIFT];
