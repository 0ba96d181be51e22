//! Matrix products: one driver over the micro-kernels of every instruction set.
//!
//! `y[j][i] = sum_k w[i][k] * x[j][k]`. A *panel* is some rows of weights over a chunk of the inner dimension, unpacked
//! from its GGUF blocks once per product and used for all columns while it is in cache:
//!
//! ```text
//! int8 and bfloat16   see `int8`: 16 activation rows in the lanes, weights are broadcast
//! float               [k][R] f32, R = I::PANEL * 16: weights in the lanes, activations are broadcast
//! ```
//!
//! Work is split over rows and columns, never over k, so every output is summed in one order.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::activations::{BF16_STEP, Bf16Rows, Int8Rows};
use super::int8;
use super::isa::{Isa, LANES, Op, unroll};
use super::packed::Packed;
use super::unpack::{self, Arithmetic, Place};
use crate::error::Result;
use crate::memory::Aligned;
use crate::parallel::Exec;
use crate::tensor::Matrix;

/// Elements of k in a float panel, with 32 rows 32 KiB; in a bfloat16 panel.
const F32_CHUNK: usize = 256;
pub(super) const BF16_CHUNK: usize = 256;
/// Columns of activations that are copied to lie closer together: in place they may be a power of two apart, and fall
/// into the same cache sets. With the elements of a chunk and some room between columns, 39 KiB.
const F32_COLUMNS: usize = 36;
const F32_STRIDE: usize = F32_CHUNK + LANES;
/// Most columns of a task, and most results: 1 MiB, which stays in the second cache.
const MAX_COLUMNS: usize = 1024;
const ACC_LEN: usize = 1 << 18;

/// What a product does with its results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Epilogue {
    /// y = w x
    Store,
    /// y += w x
    Add,
}

/// The right side of a product, `n` rows of `k` elements: floats, or the same rows in a smaller type.
#[derive(Clone, Copy)]
pub enum Activations<'a> {
    F32 {
        x: &'a [f32],
        k: usize,
    },
    /// for float weights, where [`Kernels::has_bf16`](super::Kernels::has_bf16)
    Bf16(&'a Bf16Rows),
    /// for quantized weights
    Int8(&'a Int8Rows),
}

impl Activations<'_> {
    /// What they are multiplied in.
    pub(super) fn arithmetic(&self) -> Arithmetic {
        match self {
            Activations::F32 { .. } => Arithmetic::F32,
            Activations::Bf16(_) => Arithmetic::Bf16,
            Activations::Int8(x) => Arithmetic::Int8(x.scales()),
        }
    }

    fn n_k(&self) -> (usize, usize) {
        match self {
            Activations::F32 { x, k } => (x.len() / (*k).max(1), *k),
            Activations::Bf16(x) => (x.n(), x.k()),
            Activations::Int8(x) => (x.n(), x.k()),
        }
    }
}

/// The left side of a product: weights, and their panels where those were made before ([`Packed`]).
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    matrix: Matrix<'a>,
    packed: Option<&'a Packed>,
    /// the row of `packed` that `matrix` begins with; 0 without it
    first: usize,
}

impl<'a> From<&Matrix<'a>> for Operand<'a> {
    fn from(matrix: &Matrix<'a>) -> Self {
        Operand { matrix: *matrix, packed: None, first: 0 }
    }
}

impl<'a> Operand<'a> {
    /// `matrix` with the panels that were made of it.
    ///
    /// # Panics
    /// When `packed` was made of a matrix of another shape: a defect of the caller.
    pub fn with_packed(matrix: Matrix<'a>, packed: &'a Packed) -> Self {
        assert_eq!((matrix.rows(), matrix.cols()), packed.shape(), "a matrix and its panels");
        Operand { matrix, packed: Some(packed), first: 0 }
    }

    /// The weights as they are stored.
    pub fn matrix(&self) -> &Matrix<'a> {
        &self.matrix
    }

    /// Some of the rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let first = self.packed.map_or(0, |_| self.first + rows.start);
        Operand { matrix: self.matrix.slice(rows), first, ..*self }
    }
}

/// Where results go. Tasks write disjoint rows and columns through it.
#[derive(Clone, Copy)]
struct Output(*mut f32);
// SAFETY: every task writes its own (rows, columns) rectangle, see `matmul`
unsafe impl Send for Output {}
// SAFETY: as above
unsafe impl Sync for Output {}

/// `y[j * y_stride + i] (=|+=) sum_k w[i, k] * x[j, k]`. Int8 activations want a type of [`unpack::has_int8`];
/// float activations take every type that can be dequantized (in f32 arithmetic). `w` is a `&Matrix`, or an [`Operand`]
/// whose panels were made for this instruction set and the arithmetic of `x`.
///
/// # Errors
/// `OutOfMemory` if a thread gets no memory for its panel; `y` may hold a part of the results.
///
/// # Panics
/// When shapes do not fit: `x` rows shorter than `w.cols()`, `y` too small, or panels made for something else. These are
/// defects of the caller, who has checked the model's shapes.
pub fn matmul<'w>(
    exec: &Exec,
    w: impl Into<Operand<'w>>,
    x: Activations,
    y: &mut [f32],
    y_stride: usize,
    epilogue: Epilogue,
) -> Result<()> {
    product(exec, w.into(), x, y, y_stride, epilogue)
}

fn product(
    exec: &Exec,
    Operand { matrix, packed, first: offset }: Operand,
    x: Activations,
    y: &mut [f32],
    y_stride: usize,
    epilogue: Epilogue,
) -> Result<()> {
    let w = &matrix;
    let (n, k) = x.n_k();
    if n == 0 || w.rows() == 0 {
        return Ok(());
    }
    assert_eq!(k, w.cols(), "inner dimensions of a product");
    assert!(y_stride >= w.rows() && y.len() >= (n - 1) * y_stride + w.rows(), "output of a product");
    let y = Output(y.as_mut_ptr());
    if let Some(packed) = packed {
        packed.expect_for(exec.kernels, w.dtype(), x.arithmetic());
    }
    let panel_rows = exec.kernels.panel_rows(x.arithmetic());
    // tasks begin where panels do, which is before the first row where that stands in the middle of one made before
    let (begin, end) = (offset / panel_rows * panel_rows, offset + w.rows());
    let panels = (end - begin).div_ceil(panel_rows);
    // enough tasks to keep all threads busy, but columns long enough to pay for unpacking the panel again
    let wanted = (4 * exec.threads.count()).div_ceil(panels);
    let chunks = wanted.min(n.div_ceil(96)).max(n.div_ceil(MAX_COLUMNS));
    let chunk = n.div_ceil(chunks).next_multiple_of(2 * LANES);
    // a task has as many panels as its results leave room for in the second cache: activations are read once for all
    let depth = match x {
        Activations::F32 { .. } => 1,
        _ => (ACC_LEN / (chunk * panel_rows)).min(panels / (4 * exec.threads.count())).max(1),
    };
    let (task_rows, panels) = (panel_rows * depth, panels.div_ceil(depth));
    let task = |t: usize| {
        let first = begin + (t % panels) * task_rows;
        let rows = first..end.min(first + task_rows);
        let cols = (t / panels) * chunk..n.min((t / panels + 1) * chunk);
        let add = epilogue == Epilogue::Add;
        let panel = Panel { w, packed, offset, x, rows, cols, panel_rows, y, y_stride, add };
        // the scratch is taken out here: a closure inside `call` would be compiled without the instruction set
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.reserve(&x, panel_rows, panel.acc_len())?;
            exec.kernels.run_panel(panel, scratch);
            Ok(())
        })
    };
    let tasks = panels * n.div_ceil(chunk);
    if tasks == 1 { task(0) } else { exec.run(|| (0..tasks).into_par_iter().try_for_each(task)) }
}

/// [`matmul`] of float activations `x` ([n, w.cols()]).
pub fn matmul_f32(
    exec: &Exec,
    w: &Matrix,
    x: &[f32],
    y: &mut [f32],
    y_stride: usize,
    epilogue: Epilogue,
) -> Result<()> {
    product(exec, w.into(), Activations::F32 { x, k: w.cols() }, y, y_stride, epilogue)
}

/// Memory of a thread for one panel, kept from task to task.
#[derive(Default)]
pub(super) struct Scratch {
    pub f32: Aligned<f32>,
    /// columns of float activations
    pub columns: Aligned<f32>,
    pub bf16: Aligned<u16>,
    pub i8: Aligned<i8>,
    pub scale: Aligned<f32>,
    pub offset: Aligned<f32>,
    pub start: Aligned<i32>,
    /// results, [rows][columns]
    pub acc: Aligned<f32>,
}

impl Scratch {
    /// Room for panels of `panel_rows` rows against `x`, and for `acc` results.
    fn reserve(&mut self, x: &Activations, panel_rows: usize, acc: usize) -> Result<()> {
        let what = "a panel of weights";
        match x {
            Activations::F32 { .. } => {
                self.f32.try_grow_to(panel_rows * F32_CHUNK, what)?;
                return self.columns.try_grow_to(F32_COLUMNS * F32_STRIDE, what);
            }
            Activations::Bf16(_) => self.bf16.try_grow_to(panel_rows * BF16_CHUNK, what)?,
            Activations::Int8(_) => {
                let groups = panel_rows * int8::CHUNK / unpack::SHORTEST_GROUP;
                self.i8.try_grow_to(panel_rows * int8::CHUNK, what)?;
                self.scale.try_grow_to(groups, what)?;
                self.offset.try_grow_to(groups, what)?;
                self.start.try_grow_to(groups, what)?;
            }
        }
        self.acc.try_grow_to(acc, "a product's results")
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One task: some rows, some columns, all of k.
pub(super) struct Panel<'a> {
    pub w: &'a Matrix<'a>,
    pub packed: Option<&'a Packed>,
    /// the row that the results begin with
    offset: usize,
    pub x: Activations<'a>,
    /// rows of `w`; of what `packed` was made of, where it is there
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    pub panel_rows: usize,
    y: Output,
    y_stride: usize,
    add: bool,
}

/// A panel with the memory of the thread that computes it, on instruction sets that have nothing better.
pub(super) struct PanelTask<'a> {
    pub panel: Panel<'a>,
    pub scratch: &'a mut Scratch,
}

impl Op for PanelTask<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let PanelTask { panel, scratch } = self;
        match panel.x {
            Activations::F32 { x, .. } => panel.f32(isa, x, scratch),
            Activations::Int8(x) => panel.int8(isa, x, scratch),
            Activations::Bf16(_) => unreachable!("`Kernels::run_panel` looks for an instruction set that has them"),
        }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn f32<I: Isa>(&self, isa: I, x: &[f32], scratch: &mut Scratch) {
        let (r, k) = (I::PANEL * LANES, self.w.cols());
        for k0 in (0..k).step_by(F32_CHUNK) {
            let len = F32_CHUNK.min(k - k0);
            unpack::f32_panel(self.w, self.rows.clone(), k0..k0 + len, r, &mut scratch.f32);
            for first in self.cols.clone().step_by(F32_COLUMNS) {
                let cols = first..self.cols.end.min(first + F32_COLUMNS);
                for (j, to) in cols.clone().zip(scratch.columns.chunks_exact_mut(F32_STRIDE)) {
                    to[..len].copy_from_slice(&x[j * k + k0..][..len]);
                }
                let block = F32Block {
                    panel: scratch.f32.as_ptr(),
                    k: len,
                    x: scratch.columns.as_ptr(),
                    x_col: F32_STRIDE,
                    x_k: 1,
                    cols: 0..cols.len(),
                    // SAFETY: rows.start < w.rows() <= y_stride and first < n: inside `y`
                    y: unsafe { self.y.0.add(first * self.y_stride + self.rows.start) },
                    y_stride: self.y_stride,
                    rows: self.rows.len(),
                    add: self.add || k0 > 0,
                };
                // SAFETY: the panel holds k * R floats; `columns` holds the columns; `matmul` checked that `y` holds
                // (cols, rows), which no other task writes
                unsafe { isa.f32_columns(&block) };
            }
        }
    }

    #[inline(always)]
    fn int8<I: Isa>(&self, isa: I, x: &Int8Rows, scratch: &mut Scratch) {
        self.clear(I::INT8_ROWS, scratch);
        let mut places = self.places(int8::CHUNK, I::INT8_ROWS).peekable();
        while let Some(place) = places.next() {
            let mut block = self.int8_block(isa, &place, x, I::BIASED, scratch);
            if let (Some(packed), Some(next)) = (self.packed, places.peek()) {
                block.next = packed.bytes_at(next.rows.start, next.k.start);
            }
            // SAFETY: the panel holds `groups` groups of its rows, `x` the blocks, `acc` rows * columns floats
            unsafe { isa.int8_tiles(&block) };
        }
        self.write(isa, &scratch.acc);
    }

    /// Unpacks the chunk at `place`.
    #[inline(always)]
    pub(super) fn int8_block<'s, I: Isa>(
        &'s self,
        isa: I,
        place: &Place,
        x: &'s Int8Rows,
        biased: bool,
        scratch: &'s mut Scratch,
    ) -> int8::Block<'s> {
        let shape = unpack::shape(self.w.dtype(), x.scales());
        let acc = self.acc(place, scratch);
        let weights = match self.packed {
            Some(packed) => packed.int8(place.rows.start, place.k.start),
            None => {
                let Scratch { i8: q, scale, start, offset, .. } = scratch;
                unpack::int8_panel(
                    isa,
                    self.w,
                    place,
                    x.scales(),
                    biased,
                    int8::WeightsMut { q, scale, start, offset },
                );
                int8::Weights { q, scale, start, offset }
            }
        };
        int8::Block {
            weights,
            shape,
            groups: place.k.len().div_ceil(shape.group),
            panel_rows: place.panel_rows,
            rows: place.padded,
            x,
            k0: place.k.start,
            k: place.k.len(),
            first_block: self.blocks().start,
            blocks: self.blocks().len(),
            acc,
            acc_row: self.acc_row(),
            next: &[],
        }
    }

    /// Against activations in bfloat16, on an instruction set that has its products.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
    pub(super) fn bf16<I: Isa, B: Bf16Tiles>(&self, isa: I, tiles: B, x: &Bf16Rows, scratch: &mut Scratch) {
        self.clear(B::ROWS, scratch);
        for place in self.places(BF16_CHUNK, B::ROWS) {
            let panel = match self.packed {
                Some(packed) => packed.bf16(place.rows.start, place.k.start),
                None => {
                    unpack::bf16_panel(isa, self.w, &place, &mut scratch.bf16, tiles);
                    &scratch.bf16
                }
            };
            let block = Bf16Block {
                panel: panel.as_ptr(),
                panel_rows: place.panel_rows,
                rows: place.padded,
                steps: place.k.len().div_ceil(BF16_STEP),
                x: x.cells(self.blocks().start, place.k.start / BF16_STEP),
                x_block: x.block_bytes(),
                blocks: self.blocks().len(),
                acc: self.acc(&place, scratch),
                acc_row: self.acc_row(),
            };
            // SAFETY: the panel holds `steps` steps of its rows, `x` the blocks, `acc` rows * columns floats
            unsafe { tiles.tiles(&block) };
        }
        self.write(isa, &scratch.acc);
    }

    /// Blocks of 16 columns.
    pub(super) fn blocks(&self) -> Range<usize> {
        self.cols.start / LANES..self.cols.end.div_ceil(LANES)
    }

    /// Floats from row to row of `acc`: an odd number of blocks, so that rows fall into different cache sets.
    fn acc_row(&self) -> usize {
        (self.blocks().len() | 1) * LANES
    }

    /// Most results that there are in `acc`, whatever the tiles.
    fn acc_len(&self) -> usize {
        self.rows.len().next_multiple_of(self.panel_rows) * self.acc_row()
    }

    /// Makes `acc` zeros, [rows in whole tiles][columns in whole blocks].
    #[inline(always)]
    pub(super) fn clear(&self, tile_rows: usize, scratch: &mut Scratch) {
        let len = self.rows.len().next_multiple_of(tile_rows) * self.acc_row();
        scratch.acc[..len].fill(0.0);
    }

    /// The results of a panel at `place`.
    fn acc(&self, place: &Place, scratch: &mut Scratch) -> *mut f32 {
        scratch.acc[(place.rows.start - self.rows.start) * self.acc_row()..].as_mut_ptr()
    }

    /// The panels of this task, a chunk of k after the other, so that the chunk's activations stay in the second cache
    /// for all of its panels.
    pub(super) fn places(&self, chunk: usize, tile_rows: usize) -> impl Iterator<Item = Place> {
        let (rows, cols, panel_rows) = (self.rows.clone(), self.w.cols(), self.panel_rows);
        let block = (self.w.dtype().block_len(), self.w.dtype().block_bytes());
        (0..cols).step_by(chunk).flat_map(move |k0| {
            rows.clone().step_by(panel_rows).map({
                let end = rows.end;
                move |first| {
                    let rows = first..end.min(first + panel_rows);
                    let padded = rows.len().next_multiple_of(tile_rows);
                    Place { rows, k: k0..cols.min(k0 + chunk), panel_rows, padded, block }
                }
            })
        })
    }

    /// Transposes `acc` to where the results go.
    #[inline(always)]
    pub(super) fn write<I: Isa>(&self, isa: I, acc: &[f32]) {
        let acc_row = self.acc_row();
        let (mut tile, mut turned) = ([[0u32; LANES]; LANES], [[0u32; LANES]; LANES]);
        for block in self.blocks() {
            let n = LANES.min(self.cols.end - block * LANES);
            for first in (0..self.rows.len()).step_by(LANES) {
                let rows = LANES.min(self.rows.len() - first);
                // rows before those that are asked for, in a panel that was made before
                let skip = self.offset.saturating_sub(self.rows.start + first);
                if skip >= rows {
                    continue;
                }
                for (i, tile) in tile.iter_mut().enumerate().take(rows) {
                    let from = &acc[(first + i) * acc_row + (block - self.blocks().start) * LANES..][..LANES];
                    tile.copy_from_slice(bytemuck::cast_slice(from));
                }
                isa.transpose(&tile, &mut turned);
                for (j, column) in turned.iter().enumerate().take(n) {
                    let column = &column[skip..];
                    let at = (block * LANES + j) * self.y_stride + self.rows.start + first + skip - self.offset;
                    // SAFETY: `matmul` checked that `y` holds (cols, rows), which no other task writes
                    let to = unsafe { std::slice::from_raw_parts_mut(self.y.0.add(at), rows - skip) };
                    match <&mut [f32; LANES]>::try_from(&mut *to) {
                        Ok(to) => {
                            let v = isa.load(bytemuck::cast_ref(&turned[j]));
                            isa.store(if self.add { isa.add(isa.load(to), v) } else { v }, to);
                        }
                        Err(_) => {
                            for (to, v) in to.iter_mut().zip(column) {
                                *to = if self.add { *to + f32::from_bits(*v) } else { f32::from_bits(*v) };
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A float panel against some columns. Also the two products of attention, with their own strides.
pub struct F32Block {
    /// [k][R]
    pub panel: *const f32,
    pub k: usize,
    /// element (column j, k) lies at `x[j * x_col + k * x_k]`
    pub x: *const f32,
    pub x_col: usize,
    pub x_k: usize,
    pub cols: Range<usize>,
    /// element (column j, row i) goes to `y[j * y_stride + i]`
    pub y: *mut f32,
    pub y_stride: usize,
    /// rows that are written, at most R
    pub rows: usize,
    pub add: bool,
}

/// Columns in tiles of `NR`, then of 4, then single ones.
macro_rules! tiles {
    ($cols:expr, $tile:ident, $isa:ident, $p:ident) => {{
        let mut j = $cols.start;
        // SAFETY: every tile lies inside `cols`, the rest is the caller's promise
        unsafe {
            while j + NR <= $cols.end {
                $tile::<I, MR, NR>($isa, $p, j);
                j += NR;
            }
            while j + 4 <= $cols.end {
                $tile::<I, MR, 4>($isa, $p, j);
                j += 4;
            }
            while j < $cols.end {
                $tile::<I, MR, 1>($isa, $p, j);
                j += 1;
            }
        }
    }};
}

/// All columns of a float block, in tiles of MR vectors of rows x NR columns.
///
/// # Safety
/// `panel` holds `k * MR * 16` floats, `x` every element that `cols` and `k` reach through the strides, and `y` is
/// writable at every (column, row) and not accessed by others meanwhile.
#[inline(always)]
pub unsafe fn f32_columns<I: Isa, const MR: usize, const NR: usize>(isa: I, p: &F32Block) {
    tiles!(p.cols, f32_tile, isa, p)
}

/// A bfloat16 panel, activations, and where their products are added; layouts as in `int8`, in cells of two elements.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
pub(super) struct Bf16Block {
    pub panel: *const u16,
    pub panel_rows: usize,
    /// rows to compute, a multiple of [`Bf16Tiles::ROWS`]
    pub rows: usize,
    pub steps: usize,
    pub x: *const u8,
    /// bytes from block to block of `x`
    pub x_block: usize,
    /// blocks of 16 activation rows
    pub blocks: usize,
    /// element (row i, column j) is `acc[i * acc_row + j]`
    pub acc: *mut f32,
    pub acc_row: usize,
}

/// Instructions for products in bfloat16.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
pub(super) trait Bf16Tiles: Copy {
    /// Rows of a tile.
    const ROWS: usize;
    /// To the nearest, ties to even; subnormal numbers may become zeros.
    fn round(self, from: &[f32; BF16_STEP], to: &mut [u16; BF16_STEP]);
    /// All products of a block.
    ///
    /// # Safety
    /// `panel` has `steps` steps of `panel_rows` rows, `x` has `steps` steps of all `blocks`, and `acc` has `rows` rows of
    /// `16 * blocks` floats that nobody else uses meanwhile.
    unsafe fn tiles(self, p: &Bf16Block);
}

/// # Safety
/// As [`f32_columns`], for columns `j0 .. j0 + NR`.
#[inline(always)]
unsafe fn f32_tile<I: Isa, const MR: usize, const NR: usize>(isa: I, p: &F32Block, j0: usize) {
    let mut acc = [[isa.splat(0.0); MR]; NR];
    // SAFETY: k * MR * 16 panel floats and all of the columns' elements are readable
    unsafe {
        let x = p.x.add(j0 * p.x_col);
        for k in 0..p.k {
            let at = p.panel.add(k * MR * LANES);
            let mut w = [isa.splat(0.0); MR];
            unroll!(m < MR, of 2 { w[m] = isa.load(&*at.add(m * LANES).cast::<[f32; LANES]>()) });
            unroll!(j < NR, {
                let v = isa.splat(*x.add(j * p.x_col + k * p.x_k));
                unroll!(m < MR, of 2 { acc[j][m] = isa.mul_add(w[m], v, acc[j][m]) });
            });
        }
        write::<I, MR, NR>(isa, acc, p.y.add(j0 * p.y_stride), p.y_stride, p.rows, p.add);
    }
}

/// Stores (or adds) a tile; the last panel of a matrix may have fewer rows than the tile.
///
/// # Safety
/// `y[j * stride .. + rows]` is writable for all NR columns.
#[inline(always)]
unsafe fn write<I: Isa, const MR: usize, const NR: usize>(
    isa: I,
    acc: [[I::F32; MR]; NR],
    y: *mut f32,
    stride: usize,
    rows: usize,
    add: bool,
) {
    unroll!(j < NR, {
        unroll!(m < MR, of 2 {
            let v = acc[j][m];
            // SAFETY: only the first `rows` of a column are touched
            unsafe {
                let at = y.add(j * stride + m * LANES);
                if (m + 1) * LANES <= rows {
                    let at = &mut *at.cast::<[f32; LANES]>();
                    let v = if add { isa.add(isa.load(at), v) } else { v };
                    isa.store(v, at);
                } else {
                    let mut lanes = [0.0; LANES];
                    isa.store(v, &mut lanes);
                    for (i, v) in lanes.into_iter().enumerate().take(rows.saturating_sub(m * LANES)) {
                        let at = at.add(i);
                        *at = if add { *at + v } else { v };
                    }
                }
            }
        });
    });
}
