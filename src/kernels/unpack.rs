//! Weights from their GGUF blocks to panels (layouts: see `product`).

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::product::Scratch;
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

#[inline(always)]
fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// The values of ggml's IQ4_NL code book.
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The 6-bit scale and minimum `j` of a Q4_K or Q5_K block's 12 bytes (layout: `tensor::block`).
#[inline(always)]
fn k4_scale_min(s: &[u8], j: usize) -> (f32, f32) {
    let (sc, m) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4)
    };
    (f32::from(sc), f32::from(m))
}

/// One block as int8 with a scale (and offset) per group. Bit layouts are drawn in `tensor::block`.
#[inline(always)]
fn block_int8(dtype: GgmlType, b: &[u8], q: &mut [i8; 256], scale: &mut [f32; 16], offset: &mut [f32; 16]) {
    match dtype {
        GgmlType::Q8_0 => {
            scale[0] = half_at(b, 0);
            for (q, v) in q.iter_mut().zip(&b[2..34]) {
                *q = *v as i8;
            }
        }
        GgmlType::Q4_0 => {
            scale[0] = half_at(b, 0);
            for i in 0..16 {
                q[i] = (b[2 + i] & 15) as i8 - 8;
                q[i + 16] = (b[2 + i] >> 4) as i8 - 8;
            }
        }
        GgmlType::Q4_1 => {
            (scale[0], offset[0]) = (half_at(b, 0), half_at(b, 2));
            for i in 0..16 {
                q[i] = (b[4 + i] & 15) as i8;
                q[i + 16] = (b[4 + i] >> 4) as i8;
            }
        }
        GgmlType::Q5_0 | GgmlType::Q5_1 => {
            let one = dtype == GgmlType::Q5_1;
            let at = if one { 4 } else { 2 };
            scale[0] = half_at(b, 0);
            offset[0] = if one { half_at(b, 2) } else { 0.0 };
            let centre = if one { 0 } else { 16 };
            let high = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            for i in 0..16 {
                let v = b[at + 4 + i];
                q[i] = ((v & 15) | ((high >> i) as u8 & 1) << 4) as i8 - centre;
                q[i + 16] = ((v >> 4) | ((high >> (i + 16)) as u8 & 1) << 4) as i8 - centre;
            }
        }
        GgmlType::IQ4_NL => {
            scale[0] = half_at(b, 0);
            for i in 0..16 {
                q[i] = IQ4_NL[usize::from(b[2 + i] & 15)];
                q[i + 16] = IQ4_NL[usize::from(b[2 + i] >> 4)];
            }
        }
        GgmlType::IQ4_XS => {
            let d = half_at(b, 0);
            let high = u16::from_le_bytes([b[2], b[3]]);
            for g in 0..8 {
                let low = (b[4 + g / 2] >> (4 * (g % 2))) & 15;
                let s = i32::from(low) | i32::from((high >> (2 * g)) & 3) << 4;
                scale[g] = d * (s - 32) as f32;
                for i in 0..16 {
                    let v = b[8 + g * 16 + i];
                    q[g * 32 + i] = IQ4_NL[usize::from(v & 15)];
                    q[g * 32 + i + 16] = IQ4_NL[usize::from(v >> 4)];
                }
            }
        }
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let (d, dmin) = (half_at(b, 0), half_at(b, 2));
            let five = dtype == GgmlType::Q5_K;
            let (high, low) = if five { (&b[16..48], &b[48..176]) } else { (&b[..0], &b[16..144]) };
            for g in 0..8 {
                let (s, m) = k4_scale_min(&b[4..16], g);
                (scale[g], offset[g]) = (d * s, -(dmin * m));
                for i in 0..32 {
                    let v = (low[g / 2 * 32 + i] >> (4 * (g % 2))) & 15;
                    q[g * 32 + i] = if five { v | ((high[i] >> g) & 1) << 4 } else { v } as i8;
                }
            }
        }
        GgmlType::Q6_K => {
            let d = half_at(b, 208);
            for g in 0..16 {
                scale[g] = d * f32::from(b[192 + g] as i8);
            }
            for half in 0..2 {
                let (low, high) = (&b[half * 64..][..64], &b[128 + half * 32..][..32]);
                let q = &mut q[half * 128..][..128];
                for i in 0..32 {
                    q[i] = ((low[i] & 15) | (high[i] & 3) << 4) as i8 - 32;
                    q[i + 32] = ((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4) as i8 - 32;
                    q[i + 64] = ((low[i] >> 4) | (high[i] >> 4 & 3) << 4) as i8 - 32;
                    q[i + 96] = ((low[i + 32] >> 4) | (high[i] >> 6) << 4) as i8 - 32;
                }
            }
        }
        GgmlType::Q3_K => {
            let (mask, low, s, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
            for g in 0..16 {
                let nibble = if g < 8 { s[g] & 15 } else { s[g - 8] >> 4 };
                let v = nibble | (s[8 + g % 4] >> (2 * (g / 4)) & 3) << 4;
                scale[g] = d * (f32::from(v) - 32.0);
            }
            for i in 0..256 {
                let (half, plane, at) = (i / 128, i % 128 / 32, i % 32);
                let v = (low[half * 32 + at] >> (2 * plane)) & 3;
                let set = (mask[at] >> (half * 4 + plane)) & 1;
                q[i] = v as i8 - if set == 1 { 0 } else { 4 };
            }
        }
        GgmlType::Q2_K => {
            let (s, low, d, dmin) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
            for g in 0..16 {
                (scale[g], offset[g]) = (d * f32::from(s[g] & 15), -(dmin * f32::from(s[g] >> 4)));
            }
            for (i, q) in q.iter_mut().enumerate() {
                let (half, plane, at) = (i / 128, i % 128 / 32, i % 32);
                *q = ((low[half * 32 + at] >> (2 * plane)) & 3) as i8;
            }
        }
        _ => unreachable!("int8_shape has no such type"),
    }
}
