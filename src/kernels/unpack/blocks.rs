//! Blocks as int8 with the scales that they have.

use bytemuck::Pod;

use crate::kernels::activations::WIDE;
use crate::kernels::isa::{CELLS, Isa, LANES};
use crate::tensor::GgmlType;
use crate::tensor::block::*;

/// Elements that share a scale, and whether weights are `scale * q + offset` rather than `scale * q`; `None` for types
/// without an int8 form.
pub(super) const fn groups(dtype: GgmlType) -> Option<(usize, bool)> {
    use GgmlType::*;
    Some(match dtype {
        Q8_0 | Q4_0 | Q5_0 | IQ4_NL | IQ4_XS | MXFP4 => (32, false),
        Q4_1 | Q5_1 | Q4_K | Q5_K => (32, true),
        Q6_K | Q3_K => (16, false),
        Q2_K => (16, true),
        _ => return None,
    })
}

/// The numbers of the codes of a type.
pub(super) const CODES: [f32; LANES] = codes(0, 16);
pub(super) const CODES_Q4_0: [f32; LANES] = codes(-8, 16);
pub(super) const CODES_IQ4: [f32; LANES] = floats_of(&IQ4_VALUES);
pub(super) const CODES_FP4: [f32; LANES] = floats_of(&FP4_VALUES);

/// `count` numbers from `first` on, again and again.
pub(super) const fn codes(first: i32, count: usize) -> [f32; LANES] {
    let mut v = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        v[i] = (first + (i % count) as i32) as f32;
        i += 1;
    }
    v
}

const fn floats_of(values: &[i8; LANES]) -> [f32; LANES] {
    let mut v = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        v[i] = values[i] as f32;
        i += 1;
    }
    v
}

/// Some whole blocks, up to 256 elements, as int8 with a scale (and offset) per group.
#[inline(always)]
pub(super) fn unpack<I: Isa>(
    isa: I,
    dtype: GgmlType,
    bytes: &[u8],
    q: &mut [i8; WIDE],
    scale: &mut [f32; 16],
    offset: &mut [f32; 16],
) {
    match dtype {
        GgmlType::Q8_0 => {
            for (i, bytes) in bytes.chunks_exact(size_of::<BlockQ8_0>()).enumerate().take(8) {
                let b: &BlockQ8_0 = one(bytes);
                scale[i] = b.d.get();
                q[32 * i..][..32].copy_from_slice(&b.qs);
            }
        }
        GgmlType::Q4_0 => {
            scales(bytes, scale, offset, |b: &BlockQ4_0| (b.d.get(), 0.0));
            let quants = quants(bytes, |b: &BlockQ4_0| &b.qs);
            look_up(isa, quants, &CODES_Q4_0, q);
        }
        GgmlType::Q4_1 => {
            scales(bytes, scale, offset, |b: &BlockQ4_1| (b.d.get(), b.m.get()));
            let quants = quants(bytes, |b: &BlockQ4_1| &b.qs);
            look_up(isa, quants, &CODES, q);
        }
        GgmlType::Q5_0 => {
            scales(bytes, scale, offset, |b: &BlockQ5_0| (b.d.get(), 0.0));
            let quants = quants(bytes, |b: &BlockQ5_0| &b.qs);
            look_up(isa, quants, &codes(-16, 16), q);
            fifth_bits(bytes, q, |b: &BlockQ5_0| b.qh);
        }
        GgmlType::Q5_1 => {
            scales(bytes, scale, offset, |b: &BlockQ5_1| (b.d.get(), b.m.get()));
            let quants = quants(bytes, |b: &BlockQ5_1| &b.qs);
            look_up(isa, quants, &CODES, q);
            fifth_bits(bytes, q, |b: &BlockQ5_1| b.qh);
        }
        GgmlType::IQ4_NL => {
            scales(bytes, scale, offset, |b: &BlockIQ4_NL| (b.d.get(), 0.0));
            let quants = quants(bytes, |b: &BlockIQ4_NL| &b.qs);
            look_up(isa, quants, &CODES_IQ4, q);
        }
        GgmlType::MXFP4 => {
            scales(bytes, scale, offset, |b: &BlockMXFP4| (scale_mxfp4(b.e), 0.0));
            let quants = quants(bytes, |b: &BlockMXFP4| &b.qs);
            look_up(isa, quants, &CODES_FP4, q);
        }
        _ => {
            scales_of_block(dtype, bytes, scale, offset);
            numbers_of_block(isa, dtype, bytes, q);
        }
    }
}

/// Scales and offsets of up to eight blocks of 32.
#[inline(always)]
pub(super) fn scales<B: Block>(
    bytes: &[u8],
    scale: &mut [f32; 16],
    offset: &mut [f32; 16],
    of: impl Fn(&B) -> (f32, f32),
) {
    for (g, bytes) in bytes.chunks_exact(size_of::<B>()).enumerate().take(WIDE / 32) {
        (scale[g], offset[g]) = of(one(bytes));
    }
}

/// The quants of up to eight blocks of 32; those that are not there have zeros.
#[inline(always)]
pub(super) fn quants<'a, B: Block>(bytes: &'a [u8], of: impl Fn(&'a B) -> &'a [u8; 16]) -> [&'a [u8; 16]; WIDE / 32] {
    const NONE: [u8; 16] = [0; 16];
    let mut quants = [&NONE; WIDE / 32];
    for (quants, bytes) in quants.iter_mut().zip(bytes.chunks_exact(size_of::<B>())) {
        *quants = of(one(bytes));
    }
    quants
}

/// The numbers of nibbles: low nibbles of sixteen bytes are 16 elements, high ones the next.
#[inline(always)]
fn look_up<I: Isa>(isa: I, quants: [&[u8; 16]; WIDE / 32], codes: &[f32; LANES], q: &mut [i8; WIDE]) {
    let tables = isa.tables([isa.load(codes); 4]);
    for (s, q) in q.as_chunks_mut::<CELLS>().0.iter_mut().enumerate() {
        isa.look_up_two([quants[2 * s], quants[2 * s + 1]], tables, q);
    }
}

/// Scales and offsets of the groups of a block of 256.
#[inline(always)]
pub(super) fn scales_of_block(dtype: GgmlType, bytes: &[u8], scale: &mut [f32; 16], offset: &mut [f32; 16]) {
    match dtype {
        GgmlType::IQ4_XS => {
            let b: &BlockIQ4_XS = one(bytes);
            for (g, scale) in scale.iter_mut().enumerate().take(8) {
                *scale = b.d.get() * f32::from(scale_iq4_xs(b, g));
            }
        }
        GgmlType::Q4_K => {
            let b: &BlockQ4_K = one(bytes);
            k4_scales(b.d, b.dmin, &b.scales, scale, offset);
        }
        GgmlType::Q5_K => {
            let b: &BlockQ5_K = one(bytes);
            k4_scales(b.d, b.dmin, &b.scales, scale, offset);
        }
        GgmlType::Q6_K => {
            let b: &BlockQ6_K = one(bytes);
            sixteen_scales(b.d, b.scales, scale);
        }
        GgmlType::Q3_K => {
            let b: &BlockQ3_K = one(bytes);
            sixteen_scales(b.d, scales_q3_k(&b.scales), scale);
        }
        GgmlType::Q2_K => {
            let b: &BlockQ2_K = one(bytes);
            for g in 0..16 {
                scale[g] = b.d.get() * f32::from(b.scales[g] & 15);
                offset[g] = -(b.dmin.get() * f32::from(b.scales[g] >> 4));
            }
        }
        _ => unreachable!("`groups` has no such type"),
    }
}

/// The numbers of a block of 256.
#[inline(always)]
fn numbers_of_block<I: Isa>(isa: I, dtype: GgmlType, bytes: &[u8], q: &mut [i8; WIDE]) {
    match dtype {
        GgmlType::IQ4_XS => look_up(isa, quants_of_iq4_xs(one(bytes)), &CODES_IQ4, q),
        GgmlType::Q4_K => k4_nibbles(isa, &one::<BlockQ4_K>(bytes).qs, q),
        GgmlType::Q5_K => {
            let b: &BlockQ5_K = one(bytes);
            k4_nibbles(isa, &b.qs, q);
            or_planes(&b.qh, 4, q);
        }
        GgmlType::Q6_K => {
            let b: &BlockQ6_K = one(bytes);
            for half in 0..2 {
                let (low, high) = (&b.ql[half * 64..][..64], &b.qh[half * 32..][..32]);
                let q = &mut q[half * 128..][..128];
                for i in 0..32 {
                    q[i] = (low[i] & 15 | (high[i] & 3) << 4) as i8 - 32;
                    q[i + 32] = (low[i + 32] & 15 | (high[i] >> 2 & 3) << 4) as i8 - 32;
                    q[i + 64] = (low[i] >> 4 | (high[i] >> 4 & 3) << 4) as i8 - 32;
                    q[i + 96] = (low[i + 32] >> 4 | (high[i] >> 6) << 4) as i8 - 32;
                }
            }
        }
        GgmlType::Q3_K => {
            let b: &BlockQ3_K = one(bytes);
            crumbs(&b.qs, q);
            or_planes(&b.hmask, 2, q);
            shift(q, -4);
        }
        GgmlType::Q2_K => crumbs(&one::<BlockQ2_K>(bytes).qs, q),
        _ => unreachable!("`groups` has no such type"),
    }
}

/// The bytes of one block as its struct.
#[inline(always)]
pub(super) fn one<B: Block>(bytes: &[u8]) -> &B {
    bytemuck::from_bytes(bytes)
}

/// The quants of the groups.
#[inline(always)]
pub(super) fn quants_of_iq4_xs(b: &BlockIQ4_XS) -> [&[u8; 16]; WIDE / 32] {
    let quants = b.qs.as_chunks::<16>().0;
    std::array::from_fn(|g| &quants[g])
}

/// Adds a constant to every element.
#[inline(always)]
fn shift(q: &mut [i8; WIDE], by: i8) {
    q.iter_mut().for_each(|q| *q += by);
}

/// The fifth bits of up to eight blocks of 32.
#[inline(always)]
fn fifth_bits<B: Block>(bytes: &[u8], q: &mut [i8; WIDE], high: impl Fn(&B) -> [u8; 4]) {
    for (bytes, q) in bytes.chunks_exact(size_of::<B>()).zip(q.as_chunks_mut::<32>().0) {
        let high = u32::from_le_bytes(high(one(bytes)));
        for (i, q) in q.iter_mut().enumerate() {
            *q += ((high >> i & 1) << 4) as i8;
        }
    }
}

/// Scales of sixteen groups.
#[inline(always)]
fn sixteen_scales(d: Half, scales: [i8; 16], scale: &mut [f32; 16]) {
    for (scale, s) in scale.iter_mut().zip(scales) {
        *scale = d.get() * f32::from(s);
    }
}

/// Scales and offsets of the eight groups of Q4_K and Q5_K.
#[inline(always)]
fn k4_scales(d: Half, dmin: Half, scales: &[u8; 12], scale: &mut [f32], offset: &mut [f32]) {
    let (s, m) = scales_mins_k4(scales);
    for g in 0..8 {
        (scale[g], offset[g]) = (d.get() * f32::from(s[g]), -(dmin.get() * f32::from(m[g])));
    }
}

/// Four times 32 bytes: low nibbles are one group of 32 elements, high ones the next.
#[inline(always)]
fn k4_nibbles<I: Isa>(isa: I, bytes: &[u8; 128], q: &mut [i8; WIDE]) {
    let tables = isa.tables([isa.load(&CODES); 4]);
    for (b, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<CELLS>().0) {
        isa.look_up_nibbles(b, tables, q);
    }
}

/// Twice 32 bytes of four 2-bit planes: each plane is 32 elements. Eight bytes are shifted at a time, since
/// x86 has no shift of bytes.
#[inline(always)]
pub(super) fn crumbs<T: Pod>(bytes: &[u8; 64], q: &mut [T]) {
    const TWO: u64 = 0x0303_0303_0303_0303;
    for (b, q) in bytes.as_chunks::<32>().0.iter().zip(bytemuck::cast_slice_mut::<T, u8>(q).as_chunks_mut::<128>().0) {
        for (plane, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, b) in q.as_chunks_mut::<8>().0.iter_mut().zip(b.as_chunks::<8>().0) {
                *q = (u64::from_le_bytes(*b) >> (2 * plane) & TWO).to_le_bytes();
            }
        }
    }
}

/// Eight bit planes of 32 elements: they become bit `at` of `q`.
#[inline(always)]
pub(super) fn or_planes<T: Pod>(bytes: &[u8; 32], at: usize, q: &mut [T]) {
    const ONE: u64 = 0x0101_0101_0101_0101;
    for (plane, q) in bytemuck::cast_slice_mut::<T, u8>(q).as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (q, b) in q.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *q = (u64::from_le_bytes(*q) | (u64::from_le_bytes(*b) >> plane & ONE) << at).to_le_bytes();
        }
    }
}
