//! Weights from their GGUF blocks to panels (layouts: see `product`).

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::product::Scratch;
use super::quantize::bf16_bits;
use crate::tensor::block::*;
use crate::tensor::{self, GgmlType, Matrix};

/// How the int8 panel of a type looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Int8Shape {
    /// elements that share a scale: 16 or 32
    pub group: usize,
    /// weights are `scale * q + offset` rather than `scale * q`
    pub offset: bool,
}

/// The int8 form of a type; `None` for types that are multiplied as floats.
pub const fn int8_shape(dtype: GgmlType) -> Option<Int8Shape> {
    use GgmlType::*;
    let (group, offset) = match dtype {
        Q8_0 | Q4_0 | Q5_0 | IQ4_NL | IQ4_XS => (32, false),
        Q4_1 | Q5_1 | Q4_K | Q5_K => (32, true),
        Q6_K | Q3_K => (16, false),
        Q2_K => (16, true),
        _ => return None,
    };
    Some(Int8Shape { group, offset })
}

/// Whether `dtype` is multiplied with int8 activations.
pub const fn has_int8(dtype: GgmlType) -> bool {
    int8_shape(dtype).is_some()
}

/// Rows `rows` and elements `k` of `w` (from a block's start) as a float panel of `r` rows, [k][r].
#[inline(always)]
pub(super) fn f32_panel(w: &Matrix, rows: Range<usize>, k: Range<usize>, r: usize, panel: &mut [f32]) {
    let block = w.dtype().block_len();
    let bytes = k.start / block * w.dtype().block_bytes()..k.end / block * w.dtype().block_bytes();
    let mut row = [0.0f32; 256];
    let row = &mut row[..k.len()];
    for (i, at) in rows.enumerate() {
        floats(w.dtype(), &w.row(at)[bytes.clone()], row);
        for (v, to) in row.iter().zip(panel[i..].iter_mut().step_by(r)) {
            *to = *v;
        }
    }
}

/// The same as a bfloat16 panel, [pair of k][r]: BF16 as it is, other types rounded.
#[inline(always)]
pub(super) fn bf16_panel(w: &Matrix, rows: Range<usize>, k: Range<usize>, r: usize, panel: &mut [u32]) {
    let block = w.dtype().block_len();
    let bytes = k.start / block * w.dtype().block_bytes()..k.end / block * w.dtype().block_bytes();
    let mut row = [0.0f32; 512];
    for (i, at) in rows.enumerate() {
        let bytes = &w.row(at)[bytes.clone()];
        let mut to = panel[i..].iter_mut().step_by(r);
        if w.dtype() == GgmlType::BF16 {
            let (pairs, last) = bytes.as_chunks::<4>();
            for (pair, to) in pairs.iter().zip(&mut to) {
                *to = u32::from_le_bytes(*pair);
            }
            if let ([a, b], Some(to)) = (last, to.next()) {
                *to = u32::from(u16::from_le_bytes([*a, *b]));
            }
            continue;
        }
        let row = &mut row[..k.len().next_multiple_of(2)];
        row[k.len() - 1..].fill(0.0);
        for (part, bytes) in row[..k.len()].chunks_mut(256).zip(bytes.chunks(256 / block * w.dtype().block_bytes())) {
            floats(w.dtype(), bytes, part);
        }
        for (pair, to) in row.as_chunks::<2>().0.iter().zip(to) {
            *to = bf16_bits(pair[0]) | bf16_bits(pair[1]) << 16;
        }
    }
}

/// Some blocks of a row as floats.
#[inline(always)]
fn floats(dtype: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        GgmlType::F32 => {
            for (v, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *v = f32::from_le_bytes(*b);
            }
        }
        GgmlType::F16 => {
            let mut halves = [f16::ZERO; 256];
            for (h, b) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *h = f16::from_le_bytes(*b);
            }
            halves[..out.len()].convert_to_f32_slice(out);
        }
        GgmlType::BF16 => {
            for (v, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *v = bf16::from_le_bytes(*b).to_f32();
            }
        }
        // the model's loader refuses types that cannot be dequantized
        _ => tensor::dequantize(dtype, bytes, out).unwrap_or_else(|_| out.fill(f32::NAN)),
    }
}

/// Rows `rows` and elements `k` of `w` as an int8 panel of `r` rows in `scratch`.
/// With `biased`, `start` holds `-128 * sum w`, which makes up for activations that carry 128 too much.
#[inline(always)]
pub(super) fn int8_panel(
    w: &Matrix,
    rows: Range<usize>,
    k: Range<usize>,
    r: usize,
    biased: bool,
    scratch: &mut Scratch,
) -> Int8Shape {
    let shape = int8_shape(w.dtype()).expect("a type with an int8 form, checked by matmul's caller");
    let (group, groups) = (shape.group, k.len() / shape.group);
    scratch.i8.resize(scratch.i8.len().max(r * k.len()), 0);
    scratch.scale.resize(scratch.scale.len().max(r * groups), 0.0);
    scratch.start.resize(scratch.start.len().max(r * groups), 0);
    scratch.offset.resize(scratch.offset.len().max(r * groups), 0.0);

    let (block, size) = (w.dtype().block_len(), w.dtype().block_bytes());
    let per_block = block / group;
    let mut q = [0i8; 256];
    let (mut scale, mut offset) = ([0.0f32; 16], [0.0f32; 16]);
    let panel: &mut [[i8; 4]] = scratch.i8.as_chunks_mut().0;
    for (i, at) in rows.enumerate() {
        let blocks = &w.row(at)[k.start / block * size..k.end / block * size];
        for (b, bytes) in blocks.chunks_exact(size).enumerate() {
            block_int8(w.dtype(), bytes, &mut q, &mut scale, &mut offset);
            for g in 0..per_block {
                let q = &q[g * group..][..group];
                let to = (b * per_block + g) * r + i;
                scratch.scale[to] = scale[g];
                scratch.offset[to] = offset[g];
                scratch.start[to] = if biased { -128 * q.iter().map(|&q| i32::from(q)).sum::<i32>() } else { 0 };
                let first = (b * per_block + g) * (group / 4) * r + i;
                for (quad, to) in q.as_chunks::<4>().0.iter().zip(panel[first..].iter_mut().step_by(r)) {
                    *to = *quad;
                }
            }
        }
    }
    shape
}

/// One block as int8 with a scale (and offset) per group.
#[inline(always)]
fn block_int8(dtype: GgmlType, bytes: &[u8], q: &mut [i8; 256], scale: &mut [f32; 16], offset: &mut [f32; 16]) {
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
        _ => unreachable!("int8_shape has no such type"),
    }
}

/// The bytes of one block as its struct.
#[inline(always)]
fn one<B: Block>(bytes: &[u8]) -> &B {
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
fn k4_scales(d: Half, dmin: Half, scales: &[u8; 12], scale: &mut [f32; 16], offset: &mut [f32; 16]) {
    for g in 0..8 {
        let (s, m) = scale_min_k4(scales, g);
        (scale[g], offset[g]) = (d.get() * f32::from(s), -(dmin.get() * f32::from(m)));
    }
}

/// Four times 32 bytes: low nibbles are one group of 32 elements, high ones the next.
#[inline(always)]
fn k4_nibbles(bytes: &[u8; 128], q: &mut [i8; 256]) {
    for (b, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<64>().0) {
        for i in 0..32 {
            q[i] = (b[i] & 15) as i8;
            q[i + 32] = (b[i] >> 4) as i8;
        }
    }
}

/// Twice 32 bytes of four 2-bit planes: each plane is 32 elements.
#[inline(always)]
fn crumbs(bytes: &[u8; 64], q: &mut [i8; 256]) {
    for (b, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<128>().0) {
        for (plane, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for i in 0..32 {
                q[i] = (b[i] >> (2 * plane) & 3) as i8;
            }
        }
    }
}
