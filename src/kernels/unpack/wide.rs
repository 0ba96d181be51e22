//! 256 weights to int8 with one scale, whatever scales their blocks have.
//!
//! Types of up to 4 bits per weight have at most 16 values in a group, so the values are scaled and rounded, not the
//! weights: every group gets a table of 16 bytes, and a weight is looked up in it. The scale fits the largest value that
//! the group could hold. Products and sums are not fused here, so that all instruction sets make the same bytes.

use super::blocks;
use crate::kernels::activations::WIDE;
use crate::kernels::isa::{CELLS, Isa, LANES};
use crate::tensor::GgmlType;
use crate::tensor::block::*;

/// The first `n` of up to 256 elements of a row; returns the scale.
#[inline(always)]
pub(super) fn unpack<I: Isa>(isa: I, dtype: GgmlType, bytes: &[u8], n: usize, q: &mut [i8; WIDE]) -> f32 {
    match dtype {
        GgmlType::Q4_0 => simple(isa, bytes, &CODES_Q4_0, q, |b: &BlockQ4_0| (b.d.get(), 0.0, &b.qs)),
        GgmlType::Q4_1 => simple(isa, bytes, &CODES, q, |b: &BlockQ4_1| (b.d.get(), b.m.get(), &b.qs)),
        GgmlType::IQ4_NL => simple(isa, bytes, &CODES_IQ4, q, |b: &BlockIQ4_NL| (b.d.get(), 0.0, &b.qs)),
        GgmlType::MXFP4 => simple(isa, bytes, &CODES_FP4, q, |b: &BlockMXFP4| (scale_mxfp4(b.e), 0.0, &b.qs)),
        GgmlType::IQ4_XS => iq4_xs(isa, blocks::one(bytes), q),
        GgmlType::Q4_K => q4_k(isa, blocks::one(bytes), q),
        GgmlType::Q3_K => q3_k(isa, blocks::one(bytes), q),
        GgmlType::Q2_K => q2_k(isa, blocks::one(bytes), q),
        _ => scaled(isa, dtype, bytes, n, q),
    }
}

/// `x / scale` for the scale that takes `peak` to 127.
#[inline(always)]
fn scale_of(peak: f32) -> (f32, f32) {
    let d = peak / 127.0;
    // a subnormal scale counts as zero; an infinite or NaN one is kept, as the weights are
    let inverse = if d.is_normal() { 1.0 / d } else { 0.0 };
    (if d.is_normal() || !d.is_finite() { d } else { 0.0 }, if inverse.is_finite() { inverse } else { 0.0 })
}

/// The numbers of the codes.
const CODES: [f32; LANES] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
const fn codes(first: i32, count: usize) -> [f32; LANES] {
    let mut v = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        v[i] = (first + (i % count) as i32) as f32;
        i += 1;
    }
    v
}
const CODES_Q4_0: [f32; LANES] = codes(-8, 16);
const CODES_Q3: [f32; LANES] = codes(-4, 8);
const CODES_Q2: [f32; LANES] = codes(0, 4);
const CODES_IQ4: [f32; LANES] = {
    let mut v = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        v[i] = IQ4_VALUES[i] as f32;
        i += 1;
    }
    v
};
const CODES_FP4: [f32; LANES] = {
    let mut v = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        v[i] = FP4_VALUES[i] as f32;
        i += 1;
    }
    v
};

/// The values that the groups of up to 256 elements may have: `a * codes + b` in each.
struct Values<I: Isa> {
    isa: I,
    values: [[f32; LANES]; WIDE / LANES],
    peak: I::F32,
}

impl<I: Isa> Values<I> {
    #[inline(always)]
    fn new(isa: I) -> Self {
        Values { isa, values: [[0.0; LANES]; WIDE / LANES], peak: isa.splat(0.0) }
    }

    #[inline(always)]
    fn set(&mut self, g: usize, codes: &[f32; LANES], a: f32, b: f32) {
        let isa = self.isa;
        let v = isa.add(isa.mul(isa.splat(a), isa.load(codes)), isa.splat(b));
        self.peak = isa.max(self.peak, isa.abs(v));
        isa.store(v, &mut self.values[g]);
    }

    /// The scale that fits all of them, and what to multiply them with.
    #[inline(always)]
    fn scale(&self) -> (f32, I::F32) {
        let (scale, inverse) = scale_of(self.isa.reduce_max(self.peak));
        (scale, self.isa.splat(inverse))
    }

    /// The tables of four quarters of a step, each with the number of its group.
    #[inline(always)]
    fn tables(&self, groups: [usize; 4], inverse: I::F32) -> I::Tables {
        let isa = self.isa;
        let mut v = [inverse; 4];
        for (v, g) in v.iter_mut().zip(groups) {
            *v = isa.mul(isa.load(&self.values[g]), inverse);
        }
        isa.tables(v)
    }
}

/// Up to eight blocks of 32: sixteen bytes whose low nibbles are the first 16 elements, high ones the others.
#[inline(always)]
fn simple<I: Isa, B: Block>(
    isa: I,
    bytes: &[u8],
    codes: &[f32; LANES],
    q: &mut [i8; WIDE],
    parts: impl Fn(&B) -> (f32, f32, &[u8; 16]),
) -> f32 {
    const NONE: [u8; 16] = [0; 16];
    let mut values = Values::new(isa);
    let mut quants = [&NONE; WIDE / 32];
    for (g, bytes) in bytes.chunks_exact(size_of::<B>()).enumerate().take(WIDE / 32) {
        let (d, m, qs) = parts(blocks::one(bytes));
        values.set(g, codes, d, m);
        quants[g] = qs;
    }
    let (scale, inverse) = values.scale();
    for (s, q) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate() {
        let tables = values.tables([2 * s, 2 * s, 2 * s + 1, 2 * s + 1], inverse);
        isa.look_up_two([quants[2 * s], quants[2 * s + 1]], tables, q);
    }
    scale
}

#[inline(always)]
fn iq4_xs<I: Isa>(isa: I, b: &BlockIQ4_XS, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d) = (Values::new(isa), b.d.get());
    for g in 0..8 {
        values.set(g, &CODES_IQ4, d * f32::from(scale_iq4_xs(b, g)), 0.0);
    }
    let (scale, inverse) = values.scale();
    let quants = b.qs.as_chunks::<16>().0;
    for (s, q) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate() {
        let tables = values.tables([2 * s, 2 * s, 2 * s + 1, 2 * s + 1], inverse);
        isa.look_up_two([&quants[2 * s], &quants[2 * s + 1]], tables, q);
    }
    scale
}

#[inline(always)]
fn q4_k<I: Isa>(isa: I, b: &BlockQ4_K, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d, dmin) = (Values::new(isa), b.d.get(), b.dmin.get());
    let (s, m) = scales_mins_k4(&b.scales);
    for g in 0..8 {
        values.set(g, &CODES, d * f32::from(s[g]), -(dmin * f32::from(m[g])));
    }
    let (scale, inverse) = values.scale();
    for ((s, q), bytes) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate().zip(b.qs.as_chunks::<32>().0) {
        let tables = values.tables([2 * s, 2 * s, 2 * s + 1, 2 * s + 1], inverse);
        isa.look_up_nibbles(bytes, tables, q);
    }
    scale
}

#[inline(always)]
fn q3_k<I: Isa>(isa: I, b: &BlockQ3_K, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d) = (Values::new(isa), b.d.get());
    for g in 0..16 {
        values.set(g, &CODES_Q3, d * f32::from(scale_q3_k(&b.scales, g)), 0.0);
    }
    let mut indices = crumbs(&b.qs);
    for (plane, q) in indices.as_flattened_mut().as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (q, mask) in q.iter_mut().zip(&b.hmask) {
            *q |= (mask >> plane & 1) << 2;
        }
    }
    sixteens(values, &indices, q)
}

#[inline(always)]
fn q2_k<I: Isa>(isa: I, b: &BlockQ2_K, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d, dmin) = (Values::new(isa), b.d.get(), b.dmin.get());
    for g in 0..16 {
        let (s, m) = (f32::from(b.scales[g] & 15), f32::from(b.scales[g] >> 4));
        values.set(g, &CODES_Q2, d * s, -(dmin * m));
    }
    sixteens(values, &crumbs(&b.qs), q)
}

/// Twice 32 bytes of four 2-bit planes: each plane is 32 elements.
#[inline(always)]
fn crumbs(bytes: &[u8; 64]) -> [[u8; CELLS]; 4] {
    let mut indices = [[0; CELLS]; 4];
    for (b, q) in bytes.as_chunks::<32>().0.iter().zip(indices.as_chunks_mut::<2>().0) {
        for (plane, q) in q.as_flattened_mut().as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for i in 0..32 {
                q[i] = b[i] >> (2 * plane) & 3;
            }
        }
    }
    indices
}

/// Groups of 16 elements.
#[inline(always)]
fn sixteens<I: Isa>(values: Values<I>, indices: &[[u8; CELLS]; 4], q: &mut [i8; WIDE]) -> f32 {
    let (scale, inverse) = values.scale();
    for (s, (q, indices)) in q.as_chunks_mut::<CELLS>().0.iter_mut().zip(indices).enumerate() {
        let tables = values.tables([4 * s, 4 * s + 1, 4 * s + 2, 4 * s + 3], inverse);
        values.isa.look_up(indices, tables, q);
    }
    scale
}

/// Types of more values: the weights themselves are scaled and rounded.
#[inline(always)]
fn scaled<I: Isa>(isa: I, dtype: GgmlType, bytes: &[u8], n: usize, q: &mut [i8; WIDE]) -> f32 {
    let (mut scales, mut offsets) = ([0.0; 16], [0.0; 16]);
    blocks::unpack(dtype, bytes, q, &mut scales, &mut offsets);
    let (width, offset) = blocks::groups(dtype).unwrap_or((32, false));
    let mut values = [[0.0f32; LANES]; WIDE / LANES];
    let mut peak = isa.splat(0.0);
    for (i, (values, q)) in values.iter_mut().zip(q.as_chunks::<LANES>().0).enumerate().take(n / LANES) {
        for (v, q) in values.iter_mut().zip(q) {
            *v = f32::from(*q);
        }
        let g = i * LANES / width;
        let mut v = isa.mul(isa.splat(scales[g]), isa.load(values));
        if offset {
            v = isa.add(v, isa.splat(offsets[g]));
        }
        peak = isa.max(peak, isa.abs(v));
        isa.store(v, values);
    }
    let (scale, inverse) = scale_of(isa.reduce_max(peak));
    for (values, q) in values.iter().zip(q.as_chunks_mut::<LANES>().0).take(n / LANES) {
        isa.store_i8(isa.round(isa.mul(isa.load(values), isa.splat(inverse))), q);
    }
    scale
}
