//! The product of a panel of int8 weights with int8 activations, written once for all instruction sets.
//!
//! A panel is some rows of weights over a chunk of the inner dimension, row by row inside a step of 64 elements, so that
//! unpacking never transposes and a tile's rows lie together:
//!
//! ```text
//! q       [step][R][64] i8
//! scale   [R][group] f32
//! start   [R][group] i32     -128 * sum of q, where activations carry 128 too much
//! offset  [R][group] f32     types with a minimum: weight = scale * q + offset
//! acc     [R][columns] f32   results, transposed at the end
//! ```
//!
//! 16 rows of activations stand in the lanes of a vector; a cell of weights is broadcast. An int32 sum runs over a group
//! and leaves through one conversion, one product of scales and one fused multiply-add (mixed scales: none of scales, and one
//! more for 256 elements).

use super::activations::{Int8Rows, STEP};
use super::isa::{self, CELLS, Isa, LANES, unroll};
use super::unpack::Shape;

/// Elements of k in a panel: with 56 or 64 rows 32 KiB, so that a panel stays in the first cache.
pub(super) const CHUNK: usize = 512;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Groups of a row of a panel, whether or not it has that many.
pub(super) const fn groups(group: usize) -> usize {
    CHUNK / group
}

/// The numbers of a panel. `start` may be empty where activations are not biased, `offset` where there is none.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub q: &'a [i8],
    pub scale: &'a [f32],
    pub start: &'a [i32],
    pub offset: &'a [f32],
}

/// Room for the numbers of a panel.
pub struct WeightsMut<'a> {
    pub q: &'a mut [i8],
    pub scale: &'a mut [f32],
    pub start: &'a mut [i32],
    pub offset: &'a mut [f32],
}

/// A panel, activations, and where their products are added.
pub struct Block<'a> {
    pub weights: Weights<'a>,
    pub shape: Shape,
    pub groups: usize,
    /// R, and how many of them are computed (a multiple of the tile's rows)
    pub panel_rows: usize,
    pub rows: usize,
    pub x: &'a Int8Rows,
    /// the chunk's first element, a multiple of CHUNK
    pub k0: usize,
    /// elements of the chunk
    pub k: usize,
    /// blocks of 16 activation rows
    pub first_block: usize,
    pub blocks: usize,
    /// element (row i, column j) is `acc[i * acc_row + j]`
    pub acc: *mut f32,
    pub acc_row: usize,
    /// what the next panel is, if it was made before: asked for while this one is computed
    pub next: &'a [u8],
}

/// Where the results of a tile are from group to group.
pub mod results {
    /// In `acc`.
    pub const MEMORY: u8 = 0;
    /// In registers, and in `acc` before and after: where groups are short, loads and stores would take as long as
    /// products.
    pub const REGISTERS: u8 = 1;
    /// Sums of a group of activations ([`super::Shape::mixed`]) in registers, results in `acc`.
    pub const MIXED: u8 = 2;
}

/// All tiles of a block, of MR rows x NV vectors, then one vector; results are in memory from group to group.
///
/// # Safety
/// The slices hold `groups` groups of `panel_rows` rows, `rows <= panel_rows` is a multiple of MR, `x` has all of the
/// blocks and elements, and `acc` has `rows` rows of `16 * blocks` floats that nobody else uses meanwhile.
#[inline(always)]
pub unsafe fn tiles<I: Isa, const MR: usize, const NV: usize>(isa: I, p: &Block<'_>) {
    // SAFETY: the caller's promise
    unsafe {
        match p.shape.mixed() {
            true => tiles_with::<I, MR, NV, { results::MIXED }>(isa, p, p.shape.group),
            false => tiles_with::<I, MR, NV, { results::MEMORY }>(isa, p, p.shape.group),
        }
    }
}

/// [`tiles`] with RESULTS, one of [`results`].
///
/// # Safety
/// As [`tiles`]; `group` is that of the shape (a constant, where the caller knows it), and RESULTS is `MIXED` where, and only
/// where, the shape is.
#[inline(always)]
pub unsafe fn tiles_with<I: Isa, const MR: usize, const NV: usize, const RESULTS: u8>(
    isa: I,
    p: &Block<'_>,
    group: usize,
) {
    debug_assert!(group == p.shape.group && (RESULTS == results::MIXED) == p.shape.mixed());
    let mut block = 0;
    // SAFETY: every tile lies inside the rows and blocks, the rest is the caller's promise
    unsafe {
        while block + NV <= p.blocks {
            for row in (0..p.rows).step_by(MR) {
                tile::<I, MR, NV, RESULTS>(isa, p, group, (row, block));
            }
            block += NV;
        }
        while block < p.blocks {
            for row in (0..p.rows).step_by(MR) {
                tile::<I, MR, 1, RESULTS>(isa, p, group, (row, block));
            }
            block += 1;
        }
    }
}

/// # Safety
/// As [`tiles_with`], for rows `row .. row + MR` and blocks `block .. block + NV`.
#[inline(always)]
unsafe fn tile<I: Isa, const MR: usize, const NV: usize, const RESULTS: u8>(
    isa: I,
    p: &Block<'_>,
    group: usize,
    (row, block): (usize, usize),
) {
    let cells = group / 4;
    let r = p.panel_rows;
    let x = p.x.cells(p.first_block + block, p.k0 / STEP);
    let x_block = p.x.block_bytes();
    // groups of weights for one of activations
    let span = p.shape.x_group / group;
    // lines of the next panel for each group of the first block's tiles
    let lines = if block == 0 { p.next.len().div_ceil(LINE * (p.rows / MR) * p.groups) } else { 0 };
    // SAFETY: the caller's promise
    unsafe {
        let acc = p.acc.add(row * p.acc_row + block * LANES);
        let mut kept = [[isa.splat(0.0); NV]; MR];
        if RESULTS == results::REGISTERS {
            unroll!(m < MR, {
                unroll!(v < NV, of 2 { kept[m][v] = isa.load(&*acc.add(m * p.acc_row + v * LANES).cast()) });
            });
        }
        for g in 0..p.groups {
            let (at, row_groups) = (row * groups(group) + g, groups(group));
            let mut sum = [[isa.splat_i32(0); NV]; MR];
            if I::BIASED {
                unroll!(m < MR, { sum[m] = [isa.splat_i32(*p.weights.start.get_unchecked(at + m * row_groups)); NV] });
            }
            let next = p.next.as_ptr().wrapping_add((row / MR * p.groups + g) * lines * LINE);
            (0..lines).for_each(|line| isa::prefetch(next.wrapping_add(line * LINE)));
            let mut cell = g * cells;
            while cell < ((g + 1) * cells).min(p.k / 4) {
                // a step, or the part of one that the group has; rows are whole groups of 16 or 32
                let n = if cells < LANES { cells } else { LANES.min(p.k / 4 - cell) };
                let w = p.weights.q.as_ptr().add((cell / LANES * r + row) * STEP + cell % LANES * 4);
                let x = x.add(cell * CELLS);
                sum = isa.int8_cells(sum, &Cells { x, x_block, w, n });
                cell += n;
            }
            if RESULTS == results::MIXED {
                kept = scale_sums(isa, p, group, sum, kept, (row, g, block));
                if (g + 1).is_multiple_of(span) || g + 1 == p.groups {
                    add_scaled(isa, p, group, kept, acc, (g, block));
                    kept = [[isa.splat(0.0); NV]; MR];
                }
            } else {
                kept = leave::<I, MR, NV, RESULTS>(isa, p, group, sum, kept, acc, (row, g, block));
            }
        }
        if RESULTS == results::REGISTERS {
            unroll!(m < MR, {
                unroll!(v < NV, of 2 { isa.store(kept[m][v], &mut *acc.add(m * p.acc_row + v * LANES).cast()) });
            });
        }
    }
}

/// Some cells of the rows and columns of a tile: those of a step that share a scale.
pub struct Cells {
    /// of 16 activation rows, one after the other
    pub x: *const u8,
    /// bytes from these to the next 16
    pub x_block: usize,
    /// of a weight row, `STEP` bytes before those of the next
    pub w: *const i8,
    /// how many; a multiple of 4
    pub n: usize,
}

/// `sum[m][v] +=` the products of weight row `m` with activation rows `16 v ..`, a cell after the other.
///
/// # Safety
/// There are as many cells, for NV vectors and MR rows.
#[inline(always)]
pub unsafe fn dot_cells<I: Isa, const MR: usize, const NV: usize>(
    isa: I,
    mut sum: [[I::I32; NV]; MR],
    p: &Cells,
) -> [[I::I32; NV]; MR] {
    // SAFETY: the caller's promise
    unsafe {
        for c in 0..p.n {
            let first = isa.load_x8(&*p.x.add(c * CELLS).cast());
            let mut columns = [first; NV];
            unroll!(v < NV, of 2 {
                if v > 0 {
                    columns[v] = isa.load_x8(&*p.x.add(v * p.x_block + c * CELLS).cast());
                }
            });
            unroll!(m < MR, {
                let w = isa.splat_w8(*p.w.add(m * STEP + c * 4).cast::<[i8; 4]>());
                unroll!(v < NV, of 2 { sum[m][v] = isa.dot4(sum[m][v], columns[v], w) });
            });
        }
    }
    sum
}

/// The sums of a group to floats: `scale * (scale of x) * sum` and the offset times the sum of x are added to `kept`
/// where results are in registers, otherwise to `acc`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn leave<I: Isa, const MR: usize, const NV: usize, const RESULTS: u8>(
    isa: I,
    p: &Block<'_>,
    group: usize,
    sum: [[I::I32; NV]; MR],
    mut kept: [[I::F32; NV]; MR],
    acc: *mut f32,
    (row, g, block): (usize, usize, usize),
) -> [[I::F32; NV]; MR] {
    // SAFETY: the caller's promise
    unsafe {
        let (at, row_groups) = (row * groups(group) + g, groups(group));
        unroll!(v < NV, of 2 {
            let x = scale_of_x(isa, p, group, (g, block + v));
            let x_sum = if p.shape.offset { isa.mul(x, sum_of_x(isa, p, group, (g, block + v))) } else { x };
            unroll!(m < MR, {
                let to = &mut *acc.add(m * p.acc_row + v * LANES).cast::<[f32; LANES]>();
                let scale = isa.mul(isa.splat(*p.weights.scale.get_unchecked(at + m * row_groups)), x);
                let y = if RESULTS == results::REGISTERS { kept[m][v] } else { isa.load(to) };
                let mut y = isa.fused(isa.to_f32(sum[m][v]), scale, y);
                if p.shape.offset {
                    y = isa.fused(isa.splat(*p.weights.offset.get_unchecked(at + m * row_groups)), x_sum, y);
                }
                if RESULTS == results::REGISTERS {
                    kept[m][v] = y;
                } else {
                    isa.store(y, to);
                }
            });
        });
    }
    kept
}

/// The sums of a group to floats, without the scale of x: `scale * sum`, and the offset times the sum of x, are added to
/// `kept`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn scale_sums<I: Isa, const MR: usize, const NV: usize>(
    isa: I,
    p: &Block<'_>,
    group: usize,
    sum: [[I::I32; NV]; MR],
    mut kept: [[I::F32; NV]; MR],
    (row, g, block): (usize, usize, usize),
) -> [[I::F32; NV]; MR] {
    let (at, row_groups) = (row * groups(group) + g, groups(group));
    // SAFETY: the caller's promise
    unsafe {
        unroll!(v < NV, of 2 {
            let x_sum = if p.shape.offset { sum_of_x(isa, p, group, (g, block + v)) } else { isa.splat(0.0) };
            unroll!(m < MR, {
                let scale = isa.splat(*p.weights.scale.get_unchecked(at + m * row_groups));
                kept[m][v] = isa.fused(isa.to_f32(sum[m][v]), scale, kept[m][v]);
                if p.shape.offset {
                    let offset = isa.splat(*p.weights.offset.get_unchecked(at + m * row_groups));
                    kept[m][v] = isa.fused(offset, x_sum, kept[m][v]);
                }
            });
        });
    }
    kept
}

/// `acc += kept * (scale of x)`, the scale of which `g` is the last group.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_scaled<I: Isa, const MR: usize, const NV: usize>(
    isa: I,
    p: &Block<'_>,
    group: usize,
    kept: [[I::F32; NV]; MR],
    acc: *mut f32,
    (g, block): (usize, usize),
) {
    // SAFETY: the caller's promise
    unsafe {
        unroll!(v < NV, of 2 {
            let x = scale_of_x(isa, p, group, (g, block + v));
            unroll!(m < MR, {
                let to = &mut *acc.add(m * p.acc_row + v * LANES).cast::<[f32; LANES]>();
                isa.store(isa.fused(kept[m][v], x, isa.load(to)), to);
            });
        });
    }
}

/// # Safety
/// `x` has the block and the group.
#[inline(always)]
pub(super) unsafe fn scale_of_x<I: Isa>(isa: I, p: &Block<'_>, group: usize, (g, block): (usize, usize)) -> I::F32 {
    let (scale, len) = p.x.scale();
    let x_group = (p.k0 + g * group) / p.shape.x_group;
    // SAFETY: the caller's promise
    unsafe { isa.load(&*scale.as_ptr().add((p.first_block + block) * len + x_group * LANES).cast()) }
}

/// Sums of the activations' bytes over a group of 16 or 32 elements.
///
/// # Safety
/// `x` has the block and the group.
#[inline(always)]
unsafe fn sum_of_x<I: Isa>(isa: I, p: &Block<'_>, group: usize, (g, block): (usize, usize)) -> I::F32 {
    let (sums, len) = p.x.sums();
    let first = (p.first_block + block) * len + p.k0 + g * group;
    // SAFETY: the caller's promise: [16 elements][16 rows], so the first element's index is that of its sum
    unsafe {
        let at = sums.as_ptr().add(first).cast::<[f32; LANES]>();
        let sum = isa.load(&*at);
        if group == 32 { isa.add(sum, isa.load(&*at.add(1))) } else { sum }
    }
}
