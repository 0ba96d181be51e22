//! Instruction sets as tokens.
//!
//! A value of a type that implements [`Isa`] exists only where the processor has the instructions, so that safe
//! code can use them. Algorithms are written once, generic over `Isa`; [`Isa::run`] compiles them with the
//! instruction set switched on (all generic code is `inline(always)`, so it lands inside that function).
//!
//! Every instruction set shows vectors of 16 lanes, whatever its registers are: sums then have one fixed order,
//! and results do not depend on which set ran (up to fused multiply-adds, see [`Isa::mul_add`]).

use crate::tensor::block::Half;
use crate::tensor::{self, fold};

/// Lanes of every vector here, and of the encoders', which are written for them.
pub const LANES: usize = tensor::LANES;
/// Bytes of a vector of cells: four bytes in each lane.
pub const CELLS: usize = 4 * LANES;

/// `$body` for `$i` in `0..$n`, with `$n` a constant of at most 14 (or 2: `of 2`), written out so that `$i` is a constant in each: arrays
/// of vectors that are indexed with it live in registers. (The compiler unrolls loops too late for that, or not at all
/// where the body is long, and then stores every accumulator at every step.)
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!(@ $i $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    ($i:ident < $n:expr, of 2 $body:block) => {
        unroll!(@ $i $n, $body, 0 1)
    };
    (@ $i:ident $n:expr, $body:block, $($at:literal)+) => {
        $(if $at < $n {
            #[allow(unused_variables)]
            let $i = $at;
            $body
        })+
    };
}
pub(super) use unroll;

/// Asks for the cache line at an address, which need not be one: nothing is read.
#[inline(always)]
pub fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and prefetching reads nothing
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// The same for a line that will be written.
#[inline(always)]
pub fn prefetch_to_write(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: processors without the instruction take it for one that does nothing, and prefetching writes nothing
    unsafe {
        std::arch::asm!("prefetchw [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// The larger of two numbers without a sign; NaN is larger than anything.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a.to_bits() > b.to_bits() { a } else { b }
}

/// Work that is generic over the instruction set.
pub trait Op {
    type Output;
    /// Mark the implementation `#[inline(always)]`.
    fn call<I: Isa>(self, isa: I) -> Self::Output;
}

/// One instruction set. Methods are lane-wise unless they say otherwise.
pub trait Isa: Copy + Send + Sync + 'static {
    const NAME: &'static str;
    /// Vectors of rows in a panel of float weights: a panel has `PANEL * LANES` rows.
    const PANEL: usize;
    /// 16 floats.
    type F32: Copy;
    /// 16 integers.
    type I32: Copy;
    /// A cell, that is four consecutive elements, of 16 rows of int8 activations.
    type X8: Copy;
    /// A cell of one row of int8 weights, as [`Isa::dot4`] wants it for all lanes.
    type W8: Copy;

    /// Runs `op` compiled for this instruction set.
    fn run<O: Op>(self, op: O) -> O::Output;

    fn splat(self, v: f32) -> Self::F32;
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    fn store(self, v: Self::F32, to: &mut [f32; LANES]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b`, so NaN in `a` gives `b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a < b ? a : b`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// `a * b + c`, fused where the set has the instruction (all but `portable`).
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a * b + c` with one rounding on every instruction set.
    fn fused(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F32) -> Self::F32;
    /// 2^a for whole numbers a in -126..=127.
    fn exp2_int(self, a: Self::F32) -> Self::F32;
    /// `a < b ? 0 : v`
    fn zero_if_less(self, a: Self::F32, b: Self::F32, v: Self::F32) -> Self::F32;
    /// `a < b ? x : y`
    fn if_less(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32;
    /// 16 bytes as numbers.
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F32 {
        self.load(&from.map(f32::from))
    }
    /// 16 halves as numbers.
    #[inline(always)]
    fn load_f16(self, from: &[Half; LANES]) -> Self::F32 {
        let mut v = [0.0; LANES];
        for (v, half) in v.iter_mut().zip(from) {
            *v = half.get();
        }
        self.load(&v)
    }
    /// Whole numbers in -128..=127 as bytes.
    fn store_i8(self, v: Self::F32, to: &mut [i8; LANES]);

    fn splat_i32(self, v: i32) -> Self::I32;
    fn load_i32(self, from: &[i32; LANES]) -> Self::I32;
    fn to_f32(self, a: Self::I32) -> Self::F32;
    fn load_x8(self, from: &[u8; CELLS]) -> Self::X8;
    fn splat_w8(self, w: [i8; 4]) -> Self::W8;
    /// Per lane `acc + sum_4 w x`.
    fn dot4(self, acc: Self::I32, x: Self::X8, w: Self::W8) -> Self::I32;
    /// -128 times the sums of `group` bytes each, 16 (all of `starts`) or 32 (the first eight).
    #[inline(always)]
    fn group_starts(self, q: &[i8; 16 * LANES], group: usize, starts: &mut [i32; LANES]) {
        for (start, q) in starts.iter_mut().zip(q.chunks_exact(group)) {
            *start = -128 * q.iter().map(|q| i32::from(*q)).sum::<i32>();
        }
    }
    /// Sums of some of the bytes each, all together of all.
    #[inline(always)]
    fn partial_sums(self, q: &[i8; 16 * LANES], sums: &mut [i32; LANES]) {
        *sums = [0; LANES];
        for q in q.as_chunks::<LANES>().0 {
            sums.iter_mut().zip(q).for_each(|(sum, q)| *sum += i32::from(*q));
        }
    }
    /// Whether [`Isa::dot4`] takes activations as unsigned bytes: they are then stored with 128 added, and the caller
    /// starts from `-128 * sum w`.
    const BIASED: bool;

    /// Four tables of 16 bytes.
    type Tables: Copy;
    /// The tables whose entries are the numbers rounded, ties to even; all within -128..=127.
    fn tables(self, values: [Self::F32; 4]) -> Self::Tables;
    /// `out[i] = tables[i / 16][index of i]`, where the indices are the low nibbles of 32 bytes, then the high ones.
    fn look_up_nibbles(self, bytes: &[u8; 32], tables: Self::Tables, out: &mut [i8; CELLS]);
    /// The same with the low nibbles of 16 bytes, their high ones, and the nibbles of 16 other bytes.
    fn look_up_two(self, bytes: [&[u8; 16]; 2], tables: Self::Tables, out: &mut [i8; CELLS]);
    /// The same with indices of a byte each, all below 16.
    fn look_up(self, indices: &[u8; CELLS], tables: Self::Tables, out: &mut [i8; CELLS]);
    /// Rows to columns of 16 x 16 numbers.
    #[inline(always)]
    fn transpose(self, m: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        for (i, row) in m.iter().enumerate() {
            for (j, v) in row.iter().enumerate() {
                out[j][i] = *v;
            }
        }
    }

    /// Sum over lanes in one fixed order: halves folded onto each other.
    #[inline(always)]
    fn reduce_add(self, v: Self::F32) -> f32 {
        let mut a = [0.0; LANES];
        self.store(v, &mut a);
        fold(a, |x, y| x + y)
    }
    /// The larger of `peak`, which is not negative, and the magnitude of `v`; NaN is larger than anything.
    fn peak(self, peak: Self::F32, v: Self::F32) -> Self::F32;
    /// The largest of peaks.
    #[inline(always)]
    fn reduce_peak(self, peak: Self::F32) -> f32 {
        let mut a = [0.0; LANES];
        self.store(peak, &mut a);
        fold(a, larger)
    }

    /// Rows of weights of a tile of the integer product, and vectors of 16 activation rows.
    const INT8_ROWS: usize;
    const INT8_VECTORS: usize;
    /// Columns of a tile of the float product.
    const F32_COLUMNS: usize;
    /// [`super::int8::dot_cells`], unless the set has something better than a broadcast cell after the other.
    ///
    /// # Safety
    /// As that function.
    #[inline(always)]
    unsafe fn int8_cells<const MR: usize, const NV: usize>(
        self,
        sum: [[Self::I32; NV]; MR],
        p: &super::int8::Cells,
    ) -> [[Self::I32; NV]; MR] {
        // SAFETY: the caller's promise is the same
        unsafe { super::int8::dot_cells(self, sum, p) }
    }
    /// [`super::int8::tiles`] with this set's tile.
    ///
    /// # Safety
    /// As that function.
    unsafe fn int8_tiles(self, p: &super::int8::Block<'_>);
    /// [`super::product::f32_columns`] with this set's tile.
    ///
    /// # Safety
    /// As that function.
    unsafe fn f32_columns(self, p: &super::product::F32Block);
}

/// A function `run(isa, op)` that is compiled with some features, for a level of an instruction set whose
/// token proves that the processor has them.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_macros))]
macro_rules! run_with {
    ($isa:ty, $features:literal) => {
        #[inline(always)]
        fn run<O: Op>(isa: $isa, op: O) -> O::Output
        where
            $isa: Isa,
        {
            #[target_feature(enable = $features)]
            fn inner<I: Isa, O: Op>(isa: I, op: O) -> O::Output {
                op.call(isa)
            }
            // SAFETY: `isa` proves that the processor has these features
            unsafe { inner(isa, op) }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use run_with;

/// The table methods of [`Isa`] for sets whose tables are arrays of bytes and [`Isa::look_up`] all they have of their own.
macro_rules! tables_in_memory {
    () => {
        type Tables = [[i8; LANES]; 4];
        #[inline(always)]
        fn tables(self, values: [Self::F32; 4]) -> Self::Tables {
            let mut tables = [[0; LANES]; 4];
            for (table, v) in tables.iter_mut().zip(values) {
                self.store_i8(self.round(v), table);
            }
            tables
        }
        #[inline(always)]
        fn look_up_nibbles(self, bytes: &[u8; 32], tables: Self::Tables, out: &mut [i8; CELLS]) {
            let mut indices = [0; CELLS];
            for (i, b) in bytes.iter().enumerate() {
                indices[i] = b & 15;
                indices[i + 32] = b >> 4;
            }
            self.look_up(&indices, tables, out);
        }
        #[inline(always)]
        fn look_up_two(self, bytes: [&[u8; 16]; 2], tables: Self::Tables, out: &mut [i8; CELLS]) {
            let mut indices = [0; CELLS];
            for (half, bytes) in indices.as_chunks_mut::<32>().0.iter_mut().zip(bytes) {
                for (i, b) in bytes.iter().enumerate() {
                    half[i] = b & 15;
                    half[i + 16] = b >> 4;
                }
            }
            self.look_up(&indices, tables, out);
        }
    };
}
pub(super) use tables_in_memory;

/// exp(x) by range reduction to |r| <= ln2/2 and a degree-7 polynomial; below -87 the result is 0, above 88 it
/// stays at exp(88). Error at most 2 ULP (checked in the tests).
#[inline(always)]
pub fn exp<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    const C: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let lo = isa.splat(-87.0);
    let clamped = isa.sub(isa.splat(0.0), isa.max(isa.sub(isa.splat(0.0), x), isa.splat(-88.0)));
    let clamped = isa.max(clamped, lo);
    let n = isa.round(isa.mul(clamped, isa.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that n * ln2 is exact to more than f32
    let r = isa.mul_add(n, isa.splat(-0.693_359_4), clamped);
    let r = isa.mul_add(n, isa.splat(2.121_944_4e-4), r);
    let mut p = isa.splat(C[0]);
    for c in &C[1..] {
        p = isa.mul_add(p, r, isa.splat(*c));
    }
    let p = isa.mul_add(isa.mul(p, r), r, r);
    let p = isa.add(p, isa.splat(1.0));
    isa.zero_if_less(x, lo, isa.mul(p, isa.exp2_int(n)))
}
