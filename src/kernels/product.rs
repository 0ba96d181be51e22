//! Matrix products: one driver over the micro-kernels of every instruction set.
//!
//! `y[j][i] = sum_k w[i][k] * x[j][k]`. A *panel* is `R = I::PANEL * 16` rows of weights over a chunk of the inner
//! dimension, unpacked from its GGUF blocks once per product into the layout that the dot instruction wants, and
//! used for all columns while it is in cache:
//!
//! ```text
//! float panel   [k][R] f32                     one vector load per 16 rows and k
//! bf16 panel    [pair of k][R] 2 x bf16
//! int8 panel    [group][quad][R][4] i8         quad = 4 consecutive k; group = 32 (or 16) k with one scale
//!               scale [group][R] f32, start [group][R] i32, offset [group][R] f32 (types with a minimum)
//! ```
//!
//! Panels are row-major inside a quad because the broadcast operand is the activation: one 4-byte load serves all
//! 16 rows of a register. Work is split over rows and columns, never over k, so every output is summed in one order.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::isa::{Isa, LANES, Op};
use super::quantize::{Bf16Rows, Int8Rows};
use super::unpack;
use crate::parallel::Exec;
use crate::tensor::Matrix;

/// Elements of k in a panel: 1024 x 32 rows of int8 are 32 KiB, of f32 (256) too.
const INT8_CHUNK: usize = 1024;
const F32_CHUNK: usize = 256;
const BF16_CHUNK: usize = 512;

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
    fn n_k(&self) -> (usize, usize) {
        match self {
            Activations::F32 { x, k } => (x.len() / (*k).max(1), *k),
            Activations::Bf16(x) => (x.n(), x.k()),
            Activations::Int8(x) => (x.n(), x.k()),
        }
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
/// float activations take every type that can be dequantized (in f32 arithmetic).
///
/// # Panics
/// When shapes do not fit: `x` rows shorter than `w.cols()`, or `y` too small. These are defects of the caller,
/// who has checked the model's shapes.
pub fn matmul(exec: &Exec, w: &Matrix, x: Activations, y: &mut [f32], y_stride: usize, epilogue: Epilogue) {
    let (n, k) = x.n_k();
    if n == 0 || w.rows() == 0 {
        return;
    }
    assert_eq!(k, w.cols(), "inner dimensions of a product");
    assert!(y_stride >= w.rows() && y.len() >= (n - 1) * y_stride + w.rows(), "output of a product");
    let y = Output(y.as_mut_ptr());
    let panel_rows = exec.kernels.panel_rows();
    let panels = w.rows().div_ceil(panel_rows);
    // enough tasks to keep all threads busy, but columns long enough to pay for unpacking the panel again
    let wanted = (4 * exec.threads.count()).div_ceil(panels);
    let chunks = wanted.min(n.div_ceil(96)).max(1);
    let chunk = n.div_ceil(chunks);
    let task = |t: usize| {
        let first = (t % panels) * panel_rows;
        let rows = first..w.rows().min(first + panel_rows);
        let cols = (t / panels) * chunk..n.min((t / panels + 1) * chunk);
        let panel = Panel { w, x, rows, cols, y, y_stride, add: epilogue == Epilogue::Add };
        // the scratch is taken out here: a closure inside `call` would be compiled without the instruction set
        SCRATCH.with_borrow_mut(|scratch| match x {
            Activations::Bf16(x) => exec.kernels.run_bf16(panel, x, scratch),
            _ => exec.kernels.run(PanelTask { panel, scratch }),
        });
    };
    let tasks = panels * n.div_ceil(chunk);
    if tasks == 1 {
        task(0);
    } else {
        exec.run(|| (0..tasks).into_par_iter().for_each(task));
    }
}

/// [`matmul`] of float activations `x` ([n, w.cols()]).
pub fn matmul_f32(exec: &Exec, w: &Matrix, x: &[f32], y: &mut [f32], y_stride: usize, epilogue: Epilogue) {
    matmul(exec, w, Activations::F32 { x, k: w.cols() }, y, y_stride, epilogue);
}

/// Memory of a thread for one panel, kept from task to task.
#[derive(Default)]
pub(super) struct Scratch {
    pub f32: Vec<f32>,
    pub bf16: Vec<u32>,
    pub i8: Vec<i8>,
    pub scale: Vec<f32>,
    pub offset: Vec<f32>,
    pub start: Vec<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One task: some rows, some columns, all of k.
pub(super) struct Panel<'a> {
    w: &'a Matrix<'a>,
    x: Activations<'a>,
    rows: Range<usize>,
    cols: Range<usize>,
    y: Output,
    y_stride: usize,
    add: bool,
}

/// A panel with the memory of the thread that computes it.
struct PanelTask<'a> {
    panel: Panel<'a>,
    scratch: &'a mut Scratch,
}

impl Op for PanelTask<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let PanelTask { panel, scratch } = self;
        match panel.x {
            Activations::F32 { x, .. } => panel.f32(isa, x, scratch),
            Activations::Int8(x) => panel.int8(isa, x, scratch),
            Activations::Bf16(_) => unreachable!("goes through `run_bf16`"),
        }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn f32<I: Isa>(&self, isa: I, x: &[f32], scratch: &mut Scratch) {
        let (r, k) = (I::PANEL * LANES, self.w.cols());
        for k0 in (0..k).step_by(F32_CHUNK) {
            let len = F32_CHUNK.min(k - k0);
            scratch.f32.resize(r * F32_CHUNK, 0.0);
            unpack::f32_panel(self.w, self.rows.clone(), k0..k0 + len, r, &mut scratch.f32);
            let block = F32Block {
                panel: scratch.f32.as_ptr(),
                k: len,
                x: x[k0..].as_ptr(),
                x_col: k,
                x_k: 1,
                cols: self.cols.clone(),
                // SAFETY: rows.start < w.rows() <= y_stride, inside `y`
                y: unsafe { self.y.0.add(self.rows.start) },
                y_stride: self.y_stride,
                rows: self.rows.len(),
                add: self.add || k0 > 0,
            };
            // SAFETY: the panel holds k * R floats; `x` holds columns cols of k floats; `matmul` checked that `y`
            // holds (cols, rows), which no other task writes
            unsafe { isa.f32_columns(&block) };
        }
    }

    /// The panel against activations in bfloat16; `columns` is the micro-kernel, for panels of `r` rows.
    #[inline(always)]
    pub(super) fn bf16(&self, x: &Bf16Rows, r: usize, scratch: &mut Scratch, columns: impl Fn(&Bf16Block)) {
        let k = self.w.cols();
        for k0 in (0..k).step_by(BF16_CHUNK) {
            let len = BF16_CHUNK.min(k - k0);
            scratch.bf16.resize(r * BF16_CHUNK / 2, 0);
            unpack::bf16_panel(self.w, self.rows.clone(), k0..k0 + len, r, &mut scratch.bf16);
            columns(&Bf16Block {
                panel: scratch.bf16.as_ptr(),
                pairs: len.div_ceil(2),
                x: x.pairs(k0).as_ptr(),
                x_col: x.stride(),
                cols: self.cols.clone(),
                // SAFETY: rows.start < w.rows() <= y_stride, inside `y`
                y: unsafe { self.y.0.add(self.rows.start) },
                y_stride: self.y_stride,
                rows: self.rows.len(),
                add: self.add || k0 > 0,
            });
        }
    }

    #[inline(always)]
    fn int8<I: Isa>(&self, isa: I, x: &Int8Rows, scratch: &mut Scratch) {
        let (r, k) = (I::PANEL * LANES, self.w.cols());
        for k0 in (0..k).step_by(INT8_CHUNK) {
            let len = INT8_CHUNK.min(k - k0);
            let shape = unpack::int8_panel(self.w, self.rows.clone(), k0..k0 + len, r, I::BIASED, scratch);
            let block = Int8Block {
                q: &scratch.i8[..r * len],
                scale: &scratch.scale,
                start: &scratch.start,
                offset: shape.offset.then_some(&scratch.offset[..]),
                group: shape.group,
                groups: len / shape.group,
                x,
                k0,
                cols: self.cols.clone(),
                // SAFETY: rows.start < w.rows() <= y_stride, inside `y`
                y: unsafe { self.y.0.add(self.rows.start) },
                y_stride: self.y_stride,
                rows: self.rows.len(),
                add: self.add || k0 > 0,
            };
            // SAFETY: the panel holds `groups` groups of R rows; `x` holds columns cols up to k0 + len; `matmul`
            // checked that `y` holds (cols, rows), which no other task writes
            unsafe { isa.int8_columns(&block) };
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

/// A bfloat16 panel against some columns.
pub struct Bf16Block {
    /// [pair of k][R], the even k in the low half
    pub panel: *const u32,
    pub pairs: usize,
    /// pair (column j, p) lies at `x[j * x_col + p]`
    pub x: *const u32,
    pub x_col: usize,
    pub cols: Range<usize>,
    pub y: *mut f32,
    pub y_stride: usize,
    pub rows: usize,
    pub add: bool,
}

/// An int8 panel against some columns.
pub struct Int8Block<'a> {
    q: &'a [i8],
    scale: &'a [f32],
    start: &'a [i32],
    offset: Option<&'a [f32]>,
    /// elements per group: 16 or 32
    group: usize,
    groups: usize,
    x: &'a Int8Rows,
    k0: usize,
    cols: Range<usize>,
    y: *mut f32,
    y_stride: usize,
    rows: usize,
    add: bool,
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

/// All columns of an int8 block, in tiles of MR vectors of rows x NR columns.
///
/// # Safety
/// The block's slices hold `groups` groups of `MR * 16` rows, `x` has all of `cols` and `k0 + groups * group`
/// elements, and `y` is writable at every (column, row) and not accessed by others meanwhile.
#[inline(always)]
pub unsafe fn int8_columns<I: Isa, const MR: usize, const NR: usize>(isa: I, p: &Int8Block<'_>) {
    tiles!(p.cols, int8_tile, isa, p)
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
            let w: [I::F32; MR] =
                std::array::from_fn(|m| isa.load(&*p.panel.add((k * MR + m) * LANES).cast::<[f32; LANES]>()));
            for (j, acc) in acc.iter_mut().enumerate() {
                let v = isa.splat(*x.add(j * p.x_col + k * p.x_k));
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = isa.mul_add(w, v, *acc);
                }
            }
        }
        write::<I, MR, NR>(isa, acc, p.y.add(j0 * p.y_stride), p.y_stride, p.rows, p.add);
    }
}

/// # Safety
/// As [`int8_columns`], for columns `j0 .. j0 + NR`.
#[inline(always)]
unsafe fn int8_tile<I: Isa, const MR: usize, const NR: usize>(isa: I, p: &Int8Block<'_>, j0: usize) {
    let r = MR * LANES;
    let mut acc = [[isa.splat(0.0); MR]; NR];
    // SAFETY: the panel's arrays hold `groups` groups of R rows; `x` has the columns and elements asked for
    unsafe {
        let (q, scale, start) = (p.q.as_ptr(), p.scale.as_ptr(), p.start.as_ptr());
        for g in 0..p.groups {
            let k = p.k0 + g * p.group;
            let start: [I::I32; MR] =
                std::array::from_fn(|m| isa.load_i32(&*start.add(g * r + m * LANES).cast::<[i32; LANES]>()));
            let mut sum = [start; NR];
            for quad in 0..p.group / 4 {
                let at = q.add((g * p.group + quad * 4) * r);
                let w: [I::I8; MR] =
                    std::array::from_fn(|m| isa.load_i8(&*at.add(m * LANES * 4).cast::<[i8; LANES * 4]>()));
                for (j, sum) in sum.iter_mut().enumerate() {
                    let x = p.x.quad(j0 + j, k + quad * 4);
                    for (sum, w) in sum.iter_mut().zip(w) {
                        *sum = isa.dot4(*sum, w, x);
                    }
                }
            }
            let scale: [I::F32; MR] =
                std::array::from_fn(|m| isa.load(&*scale.add(g * r + m * LANES).cast::<[f32; LANES]>()));
            for j in 0..NR {
                let d = isa.splat(p.x.scale_at(j0 + j, k));
                for m in 0..MR {
                    acc[j][m] = isa.fused(isa.to_f32(sum[j][m]), isa.mul(scale[m], d), acc[j][m]);
                }
            }
            if let Some(offset) = p.offset {
                for m in 0..MR {
                    let o = isa.load(&*offset.as_ptr().add(g * r + m * LANES).cast::<[f32; LANES]>());
                    for (j, acc) in acc.iter_mut().enumerate() {
                        acc[m] = isa.fused(o, isa.splat(p.x.sum_at(j0 + j, k, p.group)), acc[m]);
                    }
                }
            }
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
    for (j, acc) in acc.into_iter().enumerate() {
        for (m, v) in acc.into_iter().enumerate() {
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
        }
    }
}
