//! The specification: plain Rust that every processor runs.

use super::int8;
use super::isa::{CELLS, Isa, LANES, Op, larger, tables_in_memory};
use super::product::{F32Block, f32_columns};

#[derive(Clone, Copy, Debug)]
pub struct Portable;

macro_rules! lanes {
    ($f:expr) => {
        std::array::from_fn($f)
    };
}

impl Isa for Portable {
    const NAME: &'static str = "portable";
    const PANEL: usize = 1;
    const INT8_ROWS: usize = 4;
    const INT8_VECTORS: usize = 1;
    const F32_COLUMNS: usize = 4;
    const BIASED: bool = false;
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];
    type X8 = [i8; CELLS];
    type W8 = [i8; 4];

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        op.call(self)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        [v; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::F32, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn peak(self, peak: Self::F32, v: Self::F32) -> Self::F32 {
        lanes!(|i| larger(peak[i], v[i].abs()))
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        lanes!(|i| a[i].abs())
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        lanes!(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn fused(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        lanes!(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn round(self, a: Self::F32) -> Self::F32 {
        // adding and taking away 1.5 * 2^23 rounds to even in the current mode; larger values are whole already
        const MAGIC: f32 = 12_582_912.0;
        lanes!(|i| if a[i].abs() < 4_194_304.0 { (a[i] + MAGIC) - MAGIC } else { a[i] })
    }
    #[inline(always)]
    fn exp2_int(self, a: Self::F32) -> Self::F32 {
        lanes!(|i| f32::from_bits(((a[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn zero_if_less(self, a: Self::F32, b: Self::F32, v: Self::F32) -> Self::F32 {
        lanes!(|i| if a[i] < b[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    fn if_less(self, a: Self::F32, b: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32 {
        lanes!(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn store_i8(self, v: Self::F32, to: &mut [i8; LANES]) {
        *to = lanes!(|i| v[i] as i8);
    }
    #[inline(always)]
    fn splat_i32(self, v: i32) -> Self::I32 {
        [v; LANES]
    }
    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I32 {
        *from
    }
    #[inline(always)]
    fn to_f32(self, a: Self::I32) -> Self::F32 {
        lanes!(|i| a[i] as f32)
    }
    #[inline(always)]
    fn load_x8(self, from: &[u8; CELLS]) -> Self::X8 {
        lanes!(|i| from[i] as i8)
    }
    #[inline(always)]
    fn splat_w8(self, w: [i8; 4]) -> Self::W8 {
        w
    }
    #[inline(always)]
    fn dot4(self, acc: Self::I32, x: Self::X8, w: Self::W8) -> Self::I32 {
        lanes!(|i| acc[i] + (0..4).map(|q| i32::from(w[q]) * i32::from(x[4 * i + q])).sum::<i32>())
    }
    tables_in_memory!();
    #[inline(always)]
    fn look_up(self, indices: &[u8; CELLS], tables: Self::Tables, out: &mut [i8; CELLS]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = tables[i / LANES][usize::from(indices[i] & 15)];
        }
    }
    #[inline(always)]
    unsafe fn int8_tiles(self, p: &int8::Block<'_>) {
        // SAFETY: the caller's promise is the same
        unsafe { int8::tiles::<Self, { Self::INT8_ROWS }, { Self::INT8_VECTORS }>(self, p) }
    }
    #[inline(always)]
    unsafe fn f32_columns(self, p: &F32Block) {
        // SAFETY: the caller's promise is the same
        unsafe { f32_columns::<Self, 1, { Self::F32_COLUMNS }>(self, p) }
    }
}
