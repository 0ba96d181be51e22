//! 256 weights to int8 with one scale, whatever scales their blocks have.
//!
//! Types of up to 4 bits per weight have at most 16 values in a group, so the values are scaled and rounded, not the
//! weights: every group gets a table of 16 bytes, and a weight is looked up in it. The scale fits the largest value that
//! the group could hold. Products and sums are not fused here, so that all instruction sets make the same bytes, or
//! the same scale where it is not finite.
//!
//! Rows come 16 at a time. What needs all groups of a row (the largest value, from which two divisions follow one another) is
//! done for 16 rows at once, one in each lane: row by row the processor would wait for that longer than it looks up.

use super::blocks::{self, CODES, CODES_FP4, CODES_IQ4, CODES_Q4_0, codes};
use crate::kernels::activations::WIDE;
use crate::kernels::isa::{CELLS, Isa, LANES};
use crate::tensor::GgmlType;
use crate::tensor::block::*;

const CODES_Q3: [f32; LANES] = codes(-4, 8);
const CODES_Q2: [f32; LANES] = codes(0, 4);

/// The values of a type of up to 4 bits but for scale and offset, the least and the greatest of them.
#[inline(always)]
fn codes_of(dtype: GgmlType) -> Option<(&'static [f32; LANES], f32, f32)> {
    use GgmlType::*;
    Some(match dtype {
        Q4_0 => (&CODES_Q4_0, -8.0, 7.0),
        Q4_1 | Q4_K => (&CODES, 0.0, 15.0),
        IQ4_NL | IQ4_XS => (&CODES_IQ4, CODES_IQ4[0], CODES_IQ4[15]),
        MXFP4 => (&CODES_FP4, -12.0, 12.0),
        Q3_K => (&CODES_Q3, -4.0, 3.0),
        Q2_K => (&CODES_Q2, 0.0, 3.0),
        _ => return None,
    })
}

/// Up to 16 rows of up to 256 elements on their way.
#[derive(Default)]
pub(super) struct Rows {
    /// The values that each group of a row may have are `a * codes + b`. Groups beyond the end have none but zero.
    a: [[f32; LANES]; LANES],
    b: [[f32; LANES]; LANES],
    /// of the rows
    pub scales: [f32; LANES],
    inverses: [f32; LANES],
}

impl Rows {
    /// Reads the scales of row `i`.
    #[inline(always)]
    pub fn read(&mut self, dtype: GgmlType, i: usize, bytes: &[u8]) {
        if codes_of(dtype).is_none() {
            return;
        }
        let (a, b) = (&mut self.a[i], &mut self.b[i]);
        (*a, *b) = ([0.0; LANES], [0.0; LANES]);
        match dtype {
            GgmlType::Q4_0 => blocks::scales(bytes, a, b, |b: &BlockQ4_0| (b.d.get(), 0.0)),
            GgmlType::Q4_1 => blocks::scales(bytes, a, b, |b: &BlockQ4_1| (b.d.get(), b.m.get())),
            GgmlType::IQ4_NL => blocks::scales(bytes, a, b, |b: &BlockIQ4_NL| (b.d.get(), 0.0)),
            GgmlType::MXFP4 => blocks::scales(bytes, a, b, |b: &BlockMXFP4| (scale_mxfp4(b.e), 0.0)),
            _ => blocks::scales_of_block(dtype, bytes, a, b),
        }
    }

    /// The scales that fit all values of each row.
    #[inline(always)]
    pub fn fit<I: Isa>(&mut self, isa: I, dtype: GgmlType) {
        let Some((_, least, greatest)) = codes_of(dtype) else { return };
        let (least, greatest) = (isa.splat(least), isa.splat(greatest));
        let (mut by_row, mut by_group) = ([[0.0; LANES]; LANES], [[0; LANES]; LANES]);
        for ((a, b), peaks) in self.a.iter().zip(&self.b).zip(&mut by_row) {
            // of the least or the greatest code, since rounding keeps order
            let (a, b) = (isa.load(a), isa.load(b));
            let (low, high) = (isa.add(isa.mul(a, least), b), isa.add(isa.mul(a, greatest), b));
            isa.store(isa.peak(isa.abs(low), high), peaks);
        }
        isa.transpose(bytemuck::cast_ref(&by_row), &mut by_group);
        let by_group: &[[f32; LANES]; LANES] = bytemuck::cast_ref(&by_group);
        let mut peaks = isa.splat(0.0);
        for group in by_group {
            peaks = isa.peak(peaks, isa.load(group));
        }
        let (scales, inverses) = scale_of(isa, peaks);
        isa.store(scales, &mut self.scales);
        isa.store(inverses, &mut self.inverses);
    }

    /// Looks the weights of row `i` up, whose scale is known; those of other types are looked at only now.
    #[inline(always)]
    pub fn unpack<I: Isa>(&mut self, isa: I, dtype: GgmlType, i: usize, bytes: &[u8], n: usize, q: &mut [i8; WIDE]) {
        let Some((codes, ..)) = codes_of(dtype) else {
            self.scales[i] = scaled(isa, dtype, bytes, n, q);
            return;
        };
        let inverse = isa.splat(self.inverses[i]);
        let values = Values { codes, a: &self.a[i], b: &self.b[i], inverse };
        match dtype {
            GgmlType::Q4_0 => values.look_up(isa, blocks::quants(bytes, |b: &BlockQ4_0| &b.qs), q),
            GgmlType::Q4_1 => values.look_up(isa, blocks::quants(bytes, |b: &BlockQ4_1| &b.qs), q),
            GgmlType::IQ4_NL => values.look_up(isa, blocks::quants(bytes, |b: &BlockIQ4_NL| &b.qs), q),
            GgmlType::MXFP4 => values.look_up(isa, blocks::quants(bytes, |b: &BlockMXFP4| &b.qs), q),
            GgmlType::IQ4_XS => values.look_up(isa, blocks::quants_of_iq4_xs(blocks::one(bytes)), q),
            GgmlType::Q4_K => {
                let b: &BlockQ4_K = blocks::one(bytes);
                for ((s, q), b) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate().zip(b.qs.as_chunks::<32>().0) {
                    isa.look_up_nibbles(b, values.pair(isa, s), q);
                }
            }
            GgmlType::Q3_K => {
                let b: &BlockQ3_K = blocks::one(bytes);
                let mut indices = [[0; CELLS]; 4];
                blocks::crumbs(&b.qs, indices.as_flattened_mut());
                blocks::or_planes(&b.hmask, 2, indices.as_flattened_mut());
                values.look_up_sixteens(isa, &indices, q);
            }
            _ => {
                let b: &BlockQ2_K = blocks::one(bytes);
                let mut indices = [[0; CELLS]; 4];
                blocks::crumbs(&b.qs, indices.as_flattened_mut());
                values.look_up_sixteens(isa, &indices, q);
            }
        }
    }
}

/// The scales that take each of `peaks` to 127, and their inverses.
#[inline(always)]
fn scale_of<I: Isa>(isa: I, peaks: I::F32) -> (I::F32, I::F32) {
    let least = isa.splat(f32::MIN_POSITIVE);
    let d = isa.div(peaks, isa.splat(127.0));
    // a subnormal scale counts as zero; an infinite one and NaN are kept, as the weights are
    let inverse = isa.zero_if_less(d, least, isa.div(isa.splat(1.0), d));
    (isa.zero_if_less(d, least, d), inverse)
}

/// The values of a row's groups.
struct Values<'a, I: Isa> {
    codes: &'static [f32; LANES],
    a: &'a [f32; LANES],
    b: &'a [f32; LANES],
    /// of the row's scale
    inverse: I::F32,
}

impl<I: Isa> Values<'_, I> {
    /// In units of the row's scale.
    #[inline(always)]
    fn of(&self, isa: I, group: usize) -> I::F32 {
        let value = isa.add(isa.mul(isa.splat(self.a[group]), isa.load(self.codes)), isa.splat(self.b[group]));
        isa.mul(value, self.inverse)
    }

    /// The tables of the four quarters of a step, two of each group of 32.
    #[inline(always)]
    fn pair(&self, isa: I, step: usize) -> I::Tables {
        let [a, b] = [self.of(isa, 2 * step), self.of(isa, 2 * step + 1)];
        isa.tables([a, a, b, b])
    }

    /// Groups of 32, each in 16 bytes.
    #[inline(always)]
    fn look_up(&self, isa: I, quants: [&[u8; 16]; WIDE / 32], q: &mut [i8; WIDE]) {
        for (s, q) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate() {
            isa.look_up_two([quants[2 * s], quants[2 * s + 1]], self.pair(isa, s), q);
        }
    }

    /// Groups of 16.
    #[inline(always)]
    fn look_up_sixteens(&self, isa: I, indices: &[[u8; CELLS]; 4], q: &mut [i8; WIDE]) {
        for (s, (q, indices)) in q.as_chunks_mut::<CELLS>().0.iter_mut().zip(indices).enumerate() {
            let [a, b, c, d] = [4 * s, 4 * s + 1, 4 * s + 2, 4 * s + 3];
            let values = [self.of(isa, a), self.of(isa, b), self.of(isa, c), self.of(isa, d)];
            isa.look_up(indices, isa.tables(values), q);
        }
    }
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
        peak = isa.peak(peak, v);
        isa.store(v, values);
    }
    let (scale, inverse) = scale_of(isa, isa.splat(isa.reduce_peak(peak)));
    for (values, q) in values.iter().zip(q.as_chunks_mut::<LANES>().0).take(n / LANES) {
        isa.store_i8(isa.round(isa.mul(isa.load(values), inverse)), q);
    }
    let mut scales = [0.0; LANES];
    isa.store(scale, &mut scales);
    scales[0]
}
