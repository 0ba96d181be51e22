//! 256 weights to int8 with one scale, whatever scales their blocks have.
//!
//! Types of up to 4 bits per weight have at most 16 values in a group, so the values are scaled and rounded, not the
//! weights: every group gets a table of 16 bytes, and a weight is looked up in it. The scale fits the largest value that
//! the group could hold. Products and sums are not fused here, so that all instruction sets make the same bytes.

use super::blocks::{self, CODES, CODES_FP4, CODES_IQ4, CODES_Q4_0, codes};
use crate::kernels::activations::WIDE;
use crate::kernels::isa::{CELLS, Isa, LANES};
use crate::tensor::GgmlType;
use crate::tensor::block::*;

/// The first `n` of up to 256 elements of a row; returns the scale.
#[inline(always)]
pub(super) fn unpack<I: Isa>(isa: I, dtype: GgmlType, bytes: &[u8], n: usize, q: &mut [i8; WIDE]) -> f32 {
    match dtype {
        GgmlType::Q4_0 => {
            simple(isa, bytes, Values::new(&CODES_Q4_0), (-8.0, 7.0), q, |b: &BlockQ4_0| (b.d.get(), 0.0, &b.qs))
        }
        GgmlType::Q4_1 => {
            simple(isa, bytes, Values::new(&CODES), (0.0, 15.0), q, |b: &BlockQ4_1| (b.d.get(), b.m.get(), &b.qs))
        }
        GgmlType::IQ4_NL => {
            simple(isa, bytes, Values::new(&CODES_IQ4), (CODES_IQ4[0], CODES_IQ4[15]), q, |b: &BlockIQ4_NL| {
                (b.d.get(), 0.0, &b.qs)
            })
        }
        GgmlType::MXFP4 => simple(isa, bytes, Values::new(&CODES_FP4), (-12.0, 12.0), q, |b: &BlockMXFP4| {
            (scale_mxfp4(b.e), 0.0, &b.qs)
        }),
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

const CODES_Q3: [f32; LANES] = codes(-4, 8);
const CODES_Q2: [f32; LANES] = codes(0, 4);

/// The values that the groups of up to 256 elements may have: `a * codes + b` in each. Groups beyond the end have none but
/// zero.
struct Values {
    codes: &'static [f32; LANES],
    a: [f32; LANES],
    b: [f32; LANES],
}

impl Values {
    #[inline(always)]
    fn new(codes: &'static [f32; LANES]) -> Self {
        Values { codes, a: [0.0; LANES], b: [0.0; LANES] }
    }

    /// The scale that fits all values, and what to multiply them with. The largest magnitude of a group is that of its
    /// least or greatest code, since rounding keeps order; the groups stand in the lanes.
    #[inline(always)]
    fn scale<I: Isa>(&self, isa: I, least: f32, greatest: f32) -> (f32, I::F32) {
        let (a, b) = (isa.load(&self.a), isa.load(&self.b));
        let low = isa.abs(isa.add(isa.mul(a, isa.splat(least)), b));
        let high = isa.abs(isa.add(isa.mul(a, isa.splat(greatest)), b));
        let (scale, inverse) = scale_of(isa.reduce_max(isa.max(low, high)));
        (scale, isa.splat(inverse))
    }

    /// The tables of four quarters of a step, each with the number of its group.
    #[inline(always)]
    fn tables<I: Isa>(&self, isa: I, groups: [usize; 4], inverse: I::F32) -> I::Tables {
        let codes = isa.load(self.codes);
        let mut v = [inverse; 4];
        for (v, g) in v.iter_mut().zip(groups) {
            let value = isa.add(isa.mul(isa.splat(self.a[g]), codes), isa.splat(self.b[g]));
            *v = isa.mul(value, inverse);
        }
        isa.tables(v)
    }

    /// As [`Values::tables`], of groups of 32.
    #[inline(always)]
    fn pair<I: Isa>(&self, isa: I, step: usize, inverse: I::F32) -> I::Tables {
        let codes = isa.load(self.codes);
        let mut v = [inverse; 2];
        for (v, g) in v.iter_mut().zip([2 * step, 2 * step + 1]) {
            let value = isa.add(isa.mul(isa.splat(self.a[g]), codes), isa.splat(self.b[g]));
            *v = isa.mul(value, inverse);
        }
        isa.tables([v[0], v[0], v[1], v[1]])
    }

    /// Groups of 32, each in 16 bytes.
    #[inline(always)]
    fn look_up<I: Isa>(&self, isa: I, quants: [&[u8; 16]; WIDE / 32], inverse: I::F32, q: &mut [i8; WIDE]) {
        for (s, q) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate() {
            isa.look_up_two([quants[2 * s], quants[2 * s + 1]], self.pair(isa, s, inverse), q);
        }
    }
}

/// Up to eight blocks of 32: sixteen bytes whose low nibbles are the first 16 elements, high ones the others.
#[inline(always)]
fn simple<'a, I: Isa, B: Block>(
    isa: I,
    bytes: &'a [u8],
    mut values: Values,
    (least, greatest): (f32, f32),
    q: &mut [i8; WIDE],
    parts: impl Fn(&'a B) -> (f32, f32, &'a [u8; 16]),
) -> f32 {
    let quants = blocks::quants(bytes, &mut values.a, &mut values.b, parts);
    let (scale, inverse) = values.scale(isa, least, greatest);
    values.look_up(isa, quants, inverse, q);
    scale
}

#[inline(always)]
fn iq4_xs<I: Isa>(isa: I, b: &BlockIQ4_XS, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d) = (Values::new(&CODES_IQ4), b.d.get());
    for g in 0..8 {
        values.a[g] = d * f32::from(scale_iq4_xs(b, g));
    }
    let (scale, inverse) = values.scale(isa, CODES_IQ4[0], CODES_IQ4[15]);
    values.look_up(isa, blocks::quants_of_iq4_xs(b), inverse, q);
    scale
}

#[inline(always)]
fn q4_k<I: Isa>(isa: I, b: &BlockQ4_K, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d, dmin) = (Values::new(&CODES), b.d.get(), b.dmin.get());
    let (s, m) = scales_mins_k4(&b.scales);
    for g in 0..8 {
        values.a[g] = d * f32::from(s[g]);
        values.b[g] = -(dmin * f32::from(m[g]));
    }
    let (scale, inverse) = values.scale(isa, 0.0, 15.0);
    for ((s, q), bytes) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate().zip(b.qs.as_chunks::<32>().0) {
        isa.look_up_nibbles(bytes, values.pair(isa, s, inverse), q);
    }
    scale
}

#[inline(always)]
fn q3_k<I: Isa>(isa: I, b: &BlockQ3_K, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d) = (Values::new(&CODES_Q3), b.d.get());
    for (a, s) in values.a.iter_mut().zip(scales_q3_k(&b.scales)) {
        *a = d * f32::from(s);
    }
    let mut indices = [[0; CELLS]; 4];
    blocks::crumbs(&b.qs, indices.as_flattened_mut());
    blocks::or_planes(&b.hmask, 2, indices.as_flattened_mut());
    sixteens(isa, &values, (-4.0, 3.0), &indices, q)
}

#[inline(always)]
fn q2_k<I: Isa>(isa: I, b: &BlockQ2_K, q: &mut [i8; WIDE]) -> f32 {
    let (mut values, d, dmin) = (Values::new(&CODES_Q2), b.d.get(), b.dmin.get());
    for g in 0..16 {
        values.a[g] = d * f32::from(b.scales[g] & 15);
        values.b[g] = -(dmin * f32::from(b.scales[g] >> 4));
    }
    let mut indices = [[0; CELLS]; 4];
    blocks::crumbs(&b.qs, indices.as_flattened_mut());
    sixteens(isa, &values, (0.0, 3.0), &indices, q)
}

/// Groups of 16 elements.
#[inline(always)]
fn sixteens<I: Isa>(
    isa: I,
    values: &Values,
    (least, greatest): (f32, f32),
    indices: &[[u8; CELLS]; 4],
    q: &mut [i8; WIDE],
) -> f32 {
    let (scale, inverse) = values.scale(isa, least, greatest);
    for (s, (q, indices)) in q.as_chunks_mut::<CELLS>().0.iter_mut().zip(indices).enumerate() {
        let tables = values.tables(isa, [4 * s, 4 * s + 1, 4 * s + 2, 4 * s + 3], inverse);
        isa.look_up(indices, tables, q);
    }
    scale
}

/// Types of more values: the weights themselves are scaled and rounded.
#[inline(always)]
fn scaled<I: Isa>(isa: I, dtype: GgmlType, bytes: &[u8], n: usize, q: &mut [i8; WIDE]) -> f32 {
    let (mut scales, mut offsets) = ([0.0; 16], [0.0; 16]);
    blocks::unpack(isa, dtype, bytes, q, &mut scales, &mut offsets);
    let (width, offset) = blocks::groups(dtype).unwrap_or((32, false));
    let mut values = [[0.0f32; LANES]; WIDE / LANES];
    let mut peak = isa.splat(0.0);
    for (i, (values, q)) in values.iter_mut().zip(q.as_chunks::<LANES>().0).enumerate().take(n / LANES) {
        let g = i * LANES / width;
        let mut v = isa.mul(isa.splat(scales[g]), isa.load_i8(q));
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
