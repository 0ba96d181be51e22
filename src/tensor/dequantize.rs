//! Block types to f32: the reference that every kernel is compared with. The order of the float operations is that
//! of gguf-py's `quants.dequantize`, so that the results have the same bits.

use half::slice::HalfFloatSliceExt;

use super::GgmlType;
use super::block::*;
use super::dequantize_iq as iq;
use crate::error::{Error, Result};

/// Whether `dequantize` knows the type.
pub fn can_dequantize(dtype: GgmlType) -> bool {
    decode(dtype, &[], &mut [])
}

/// The f32 values of `out.len()` consecutive elements stored in `bytes`: any whole number of blocks.
///
/// # Errors
/// `Unsupported` for types without a decoder; `InvalidArgument` if `bytes` is not exactly as long as the type
/// needs for `out.len()` elements.
pub fn dequantize(dtype: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check(dtype, bytes, out.len())?;
    decode(dtype, bytes, out);
    Ok(())
}

/// An error unless `bytes` can be decoded to `elements` values.
pub(crate) fn check(dtype: GgmlType, bytes: &[u8], elements: usize) -> Result<()> {
    if !can_dequantize(dtype) {
        return Err(Error::unsupported(format_args!("tensor type {dtype}"), "this version cannot decode it"));
    }
    if dtype.row_bytes(elements) != Some(bytes.len()) {
        let given = bytes.len();
        return Err(Error::invalid(format_args!("{elements} elements of type {dtype} do not take {given} bytes")));
    }
    Ok(())
}

/// Decodes block after block with the function. A macro because a function that is passed as a value would be compiled
/// without the caller's instruction set.
macro_rules! blocks {
    ($bytes:expr, $out:expr, $decode:path) => {{
        for (block, out) in Block::view($bytes).unwrap_or_default().iter().zip($out.as_chunks_mut().0) {
            $decode(block, out);
        }
        true
    }};
}

/// Decodes bytes that passed `check`; false for types without a decoder. All of it is inlined, so that a caller with
/// vector instructions gets it compiled for them; no operation depends on the instructions.
#[inline(always)]
pub(crate) fn decode(dtype: GgmlType, bytes: &[u8], out: &mut [f32]) -> bool {
    match dtype {
        GgmlType::F32 => each(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => halves(bytes, out),
        GgmlType::BF16 => each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        GgmlType::Q4_0 => blocks!(bytes, out, q4_0),
        GgmlType::Q4_1 => blocks!(bytes, out, q4_1),
        GgmlType::Q5_0 => blocks!(bytes, out, q5_0),
        GgmlType::Q5_1 => blocks!(bytes, out, q5_1),
        GgmlType::Q8_0 => blocks!(bytes, out, q8_0),
        GgmlType::Q2_K => blocks!(bytes, out, q2_k),
        GgmlType::Q3_K => blocks!(bytes, out, q3_k),
        GgmlType::Q4_K => blocks!(bytes, out, q4_k),
        GgmlType::Q5_K => blocks!(bytes, out, q5_k),
        GgmlType::Q6_K => blocks!(bytes, out, q6_k),
        GgmlType::IQ4_NL => blocks!(bytes, out, iq4_nl),
        GgmlType::IQ4_XS => blocks!(bytes, out, iq4_xs),
        GgmlType::IQ2_XXS => blocks!(bytes, out, iq::iq2_xxs),
        GgmlType::IQ2_XS => blocks!(bytes, out, iq::iq2_xs),
        GgmlType::IQ2_S => blocks!(bytes, out, iq::iq2_s),
        GgmlType::IQ3_XXS => blocks!(bytes, out, iq::iq3_xxs),
        GgmlType::IQ3_S => blocks!(bytes, out, iq::iq3_s),
        GgmlType::IQ1_S => blocks!(bytes, out, iq::iq1_s),
        GgmlType::IQ1_M => blocks!(bytes, out, iq::iq1_m),
        GgmlType::TQ1_0 => blocks!(bytes, out, tq1_0),
        GgmlType::TQ2_0 => blocks!(bytes, out, tq2_0),
        GgmlType::MXFP4 => blocks!(bytes, out, mxfp4),
        GgmlType::NVFP4 => blocks!(bytes, out, nvfp4),
        // Q8_1 and Q8_K hold activations, the others no weights.
        GgmlType::Q8_1 | GgmlType::Q8_K => false,
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 => false,
    }
}

#[inline(always)]
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) -> bool {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = decode(*bytes);
    }
    true
}

/// F16, many at a time: `half` has the processor's instruction for that.
fn halves(bytes: &[u8], out: &mut [f32]) -> bool {
    const LEN: usize = 256;
    let mut halves = [half::f16::ZERO; LEN];
    for (out, bytes) in out.chunks_mut(LEN).zip(bytes.chunks(2 * LEN)) {
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = half::f16::from_le_bytes(*bytes);
        }
        halves[..out.len()].convert_to_f32_slice(out);
    }
    true
}

/// Quant `i` of the 32 that are stored as two nibbles per byte, the second half of the block in the high ones.
#[inline(always)]
fn nibble(qs: &[u8], i: usize) -> u8 {
    qs[i % 16] >> (4 * (i / 16)) & 15
}

/// The fifth bit of quant `i`, in place.
#[inline(always)]
fn fifth_bit(qh: [u8; 4], i: usize) -> u8 {
    ((u32::from_le_bytes(qh) >> i & 1) << 4) as u8
}

#[inline(always)]
fn q4_0(b: &BlockQ4_0, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b.qs, i) as i8 - 8);
    }
}

#[inline(always)]
fn q4_1(b: &BlockQ4_1, out: &mut [f32; 32]) {
    let (d, m) = (b.d.get(), b.m.get());
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b.qs, i)) + m;
    }
}

#[inline(always)]
fn q5_0(b: &BlockQ5_0, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from((nibble(&b.qs, i) | fifth_bit(b.qh, i)) as i8 - 16);
    }
}

#[inline(always)]
fn q5_1(b: &BlockQ5_1, out: &mut [f32; 32]) {
    let (d, m) = (b.d.get(), b.m.get());
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b.qs, i) | fifth_bit(b.qh, i)) + m;
    }
}

#[inline(always)]
fn q8_0(b: &BlockQ8_0, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (x, &q) in out.iter_mut().zip(&b.qs) {
        *x = d * f32::from(q);
    }
}

/// Quant `i` of 256 that are stored four to a byte, 32 elements apart.
#[inline(always)]
fn two_bits(qs: &[u8; 64], i: usize) -> u8 {
    qs[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3
}

#[inline(always)]
fn q2_k(b: &BlockQ2_K, out: &mut [f32; 256]) {
    let (d, dmin) = (b.d.get(), b.dmin.get());
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(b.scales[s] & 15);
        let min = dmin * f32::from(b.scales[s] >> 4);
        for (l, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(two_bits(&b.qs, s * 16 + l)) - min;
        }
    }
}

#[inline(always)]
fn q3_k(b: &BlockQ3_K, out: &mut [f32; 256]) {
    let d = b.d.get();
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scale_q3_k(&b.scales, s));
        for (l, x) in out.iter_mut().enumerate() {
            let i = s * 16 + l;
            let third = b.hmask[i % 32] >> (i / 32) & 1;
            *x = scale * f32::from((two_bits(&b.qs, i) | third << 2) as i8 - 4);
        }
    }
}

#[inline(always)]
fn q4_k(b: &BlockQ4_K, out: &mut [f32; 256]) {
    let (d, dmin) = (b.d.get(), b.dmin.get());
    let (sc, m) = scales_mins_k4(&b.scales);
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(sc[s]), dmin * f32::from(m[s]));
        for (l, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(b.qs[s / 2 * 32 + l] >> (4 * (s % 2)) & 15) - min;
        }
    }
}

#[inline(always)]
fn q5_k(b: &BlockQ5_K, out: &mut [f32; 256]) {
    let (d, dmin) = (b.d.get(), b.dmin.get());
    let (sc, m) = scales_mins_k4(&b.scales);
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(sc[s]), dmin * f32::from(m[s]));
        for (l, x) in out.iter_mut().enumerate() {
            let q = b.qs[s / 2 * 32 + l] >> (4 * (s % 2)) & 15 | (b.qh[l] >> s & 1) << 4;
            *x = scale * f32::from(q) - min;
        }
    }
}

#[inline(always)]
fn q6_k(b: &BlockQ6_K, out: &mut [f32; 256]) {
    let d = b.d.get();
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(b.scales[s]);
        for (l, x) in out.iter_mut().enumerate() {
            let i = s * 16 + l;
            let low = b.ql[i / 128 * 64 + i % 64] >> (4 * (i / 64 % 2)) & 15;
            *x = scale * f32::from((low | two_bits(&b.qh, i) << 4) as i8 - 32);
        }
    }
}

#[inline(always)]
fn iq4_nl(b: &BlockIQ4_NL, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(IQ4_VALUES[nibble(&b.qs, i) as usize]);
    }
}

#[inline(always)]
fn iq4_xs(b: &BlockIQ4_XS, out: &mut [f32; 256]) {
    let d = b.d.get();
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scale_iq4_xs(b, s));
        for (l, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(IQ4_VALUES[nibble(&b.qs[s * 16..], l) as usize]);
        }
    }
}

/// The next base 3 digit of the fraction `b / 256`.
#[inline(always)]
fn digit(b: u8, at: usize) -> u8 {
    let rest = b.wrapping_mul([1, 3, 9, 27, 81][at]);
    ((u16::from(rest) * 3) >> 8) as u8
}

#[inline(always)]
fn tq1_0(b: &BlockTQ1_0, out: &mut [f32; 256]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        let q = match i {
            0..160 => digit(b.qs[i % 32], i / 32),
            160..240 => digit(b.qs[32 + i % 16], (i - 160) / 16),
            _ => digit(b.qh[i % 4], (i - 240) / 4),
        };
        *x = d * f32::from(q as i8 - 1);
    }
}

#[inline(always)]
fn tq2_0(b: &BlockTQ2_0, out: &mut [f32; 256]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(two_bits(&b.qs, i) as i8 - 1);
    }
}

#[inline(always)]
fn mxfp4(b: &BlockMXFP4, out: &mut [f32; 32]) {
    let d = scale_mxfp4(b.e);
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(FP4_VALUES[nibble(&b.qs, i) as usize]);
    }
}

#[inline(always)]
fn nvfp4(b: &BlockNVFP4, out: &mut [f32; 64]) {
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = scale_nvfp4(b.d[s]);
        for (l, x) in out.iter_mut().enumerate() {
            *x = d * f32::from(FP4_VALUES[usize::from(b.qs[s * 8 + l % 8] >> (4 * (l / 8)) & 15)]);
        }
    }
}
