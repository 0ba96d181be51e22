//! Blocks as int8 with the scales that they have.

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

/// Some whole blocks, up to 256 elements, as int8 with a scale (and offset) per group.
#[inline(always)]
pub(super) fn unpack(dtype: GgmlType, bytes: &[u8], q: &mut [i8; 256], scale: &mut [f32; 16], offset: &mut [f32; 16]) {
    let size = match dtype {
        GgmlType::Q4_0 | GgmlType::IQ4_NL => size_of::<BlockQ4_0>(),
        GgmlType::Q4_1 => size_of::<BlockQ4_1>(),
        GgmlType::Q5_0 => size_of::<BlockQ5_0>(),
        GgmlType::Q5_1 => size_of::<BlockQ5_1>(),
        GgmlType::Q8_0 => size_of::<BlockQ8_0>(),
        GgmlType::MXFP4 => size_of::<BlockMXFP4>(),
        _ => return block(dtype, bytes, q, scale, offset), // of 256
    };
    for (i, bytes) in bytes.chunks_exact(size).enumerate().take(8) {
        block(dtype, bytes, &mut q[32 * i..], &mut scale[i..], &mut offset[i..]);
    }
}

/// One block.
#[inline(always)]
fn block(dtype: GgmlType, bytes: &[u8], q: &mut [i8], scale: &mut [f32], offset: &mut [f32]) {
    match dtype {
        GgmlType::Q8_0 => {
            let b: &BlockQ8_0 = one(bytes);
            scale[0] = b.d.get();
            q[..32].copy_from_slice(&b.qs);
        }
        GgmlType::Q4_0 => {
            let b: &BlockQ4_0 = one(bytes);
            scale[0] = b.d.get();
            nibbles(&b.qs, q, |v| v as i8 - 8);
        }
        GgmlType::Q4_1 => {
            let b: &BlockQ4_1 = one(bytes);
            (scale[0], offset[0]) = (b.d.get(), b.m.get());
            nibbles(&b.qs, q, |v| v as i8);
        }
        GgmlType::Q5_0 => {
            let b: &BlockQ5_0 = one(bytes);
            scale[0] = b.d.get();
            nibbles(&b.qs, q, |v| v as i8 - 16);
            fifth_bits(b.qh, q);
        }
        GgmlType::Q5_1 => {
            let b: &BlockQ5_1 = one(bytes);
            (scale[0], offset[0]) = (b.d.get(), b.m.get());
            nibbles(&b.qs, q, |v| v as i8);
            fifth_bits(b.qh, q);
        }
        GgmlType::IQ4_NL => {
            let b: &BlockIQ4_NL = one(bytes);
            scale[0] = b.d.get();
            nibbles(&b.qs, q, |v| IQ4_VALUES[usize::from(v)]);
        }
        GgmlType::MXFP4 => {
            let b: &BlockMXFP4 = one(bytes);
            scale[0] = scale_mxfp4(b.e);
            nibbles(&b.qs, q, |v| FP4_VALUES[usize::from(v)]);
        }
        GgmlType::IQ4_XS => {
            let b: &BlockIQ4_XS = one(bytes);
            let (qs, q) = (b.qs.as_chunks::<16>().0, q.as_chunks_mut::<32>().0);
            for g in 0..8 {
                scale[g] = b.d.get() * f32::from(scale_iq4_xs(b, g));
                nibbles(&qs[g], &mut q[g], |v| IQ4_VALUES[usize::from(v)]);
            }
        }
        GgmlType::Q4_K => {
            let b: &BlockQ4_K = one(bytes);
            k4_scales(b.d, b.dmin, &b.scales, scale, offset);
            k4_nibbles(&b.qs, q);
        }
        GgmlType::Q5_K => {
            let b: &BlockQ5_K = one(bytes);
            k4_scales(b.d, b.dmin, &b.scales, scale, offset);
            k4_nibbles(&b.qs, q);
            for (g, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (q, high) in q.iter_mut().zip(&b.qh) {
                    *q |= ((high >> g & 1) << 4) as i8;
                }
            }
        }
        GgmlType::Q6_K => {
            let b: &BlockQ6_K = one(bytes);
            for (scale, s) in scale.iter_mut().zip(&b.scales) {
                *scale = b.d.get() * f32::from(*s);
            }
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
            for (g, scale) in scale.iter_mut().enumerate() {
                *scale = b.d.get() * f32::from(scale_q3_k(&b.scales, g));
            }
            crumbs(&b.qs, q);
            for (plane, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (q, mask) in q.iter_mut().zip(&b.hmask) {
                    *q += ((mask >> plane & 1) << 2) as i8 - 4;
                }
            }
        }
        GgmlType::Q2_K => {
            let b: &BlockQ2_K = one(bytes);
            for g in 0..16 {
                scale[g] = b.d.get() * f32::from(b.scales[g] & 15);
                offset[g] = -(b.dmin.get() * f32::from(b.scales[g] >> 4));
            }
            crumbs(&b.qs, q);
        }
        _ => unreachable!("`groups` has no such type"),
    }
}

/// The bytes of one block as its struct.
#[inline(always)]
pub(super) fn one<B: Block>(bytes: &[u8]) -> &B {
    bytemuck::from_bytes(bytes)
}

/// Sixteen bytes: low nibbles are the first 16 elements, high ones the others.
#[inline(always)]
fn nibbles(bytes: &[u8; 16], q: &mut [i8], value: impl Fn(u8) -> i8) {
    for (i, b) in bytes.iter().enumerate() {
        q[i] = value(b & 15);
        q[i + 16] = value(b >> 4);
    }
}

/// The fifth bits of 32 elements.
#[inline(always)]
fn fifth_bits(high: [u8; 4], q: &mut [i8]) {
    let high = u32::from_le_bytes(high);
    for (i, q) in q[..32].iter_mut().enumerate() {
        *q += ((high >> i & 1) << 4) as i8;
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
fn k4_nibbles(bytes: &[u8; 128], q: &mut [i8]) {
    for (b, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<64>().0) {
        for i in 0..32 {
            q[i] = (b[i] & 15) as i8;
            q[i + 32] = (b[i] >> 4) as i8;
        }
    }
}

/// Twice 32 bytes of four 2-bit planes: each plane is 32 elements.
#[inline(always)]
fn crumbs(bytes: &[u8; 64], q: &mut [i8]) {
    for (b, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<128>().0) {
        for (plane, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for i in 0..32 {
                q[i] = (b[i] >> (2 * plane) & 3) as i8;
            }
        }
    }
}
