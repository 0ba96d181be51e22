//! Block types to f32: the reference that every kernel is compared with. The order of the float operations is that
//! of gguf-py's `quants.dequantize`, so that the results have the same bits.

use super::GgmlType;
use super::block::*;
use super::dequantize_iq as iq;
use crate::error::{Error, Result};

/// Whether `dequantize` knows the type.
pub fn can_dequantize(dtype: GgmlType) -> bool {
    decoder(dtype).is_some()
}

/// The f32 values of `out.len()` consecutive elements stored in `bytes`: any whole number of blocks.
///
/// # Errors
/// `Unsupported` for types without a decoder; `InvalidArgument` if `bytes` is not exactly as long as the type
/// needs for `out.len()` elements.
pub fn dequantize(dtype: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let Some(decode) = decoder(dtype) else {
        return Err(Error::unsupported(format_args!("tensor type {dtype}"), "this version cannot decode it"));
    };
    if dtype.row_bytes(out.len()) != Some(bytes.len()) {
        let (elements, given) = (out.len(), bytes.len());
        return Err(Error::invalid(format_args!("{elements} elements of type {dtype} do not take {given} bytes")));
    }
    decode(bytes, out);
    Ok(())
}

/// Decodes bytes whose length was checked.
type Decoder = fn(&[u8], &mut [f32]);

fn decoder(dtype: GgmlType) -> Option<Decoder> {
    Some(match dtype {
        GgmlType::F32 => |bytes, out| each(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => |bytes, out| each(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
        GgmlType::BF16 => |bytes, out| each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        GgmlType::Q4_0 => |bytes, out| blocks(bytes, out, q4_0),
        GgmlType::Q4_1 => |bytes, out| blocks(bytes, out, q4_1),
        GgmlType::Q5_0 => |bytes, out| blocks(bytes, out, q5_0),
        GgmlType::Q5_1 => |bytes, out| blocks(bytes, out, q5_1),
        GgmlType::Q8_0 => |bytes, out| blocks(bytes, out, q8_0),
        GgmlType::Q2_K => |bytes, out| blocks(bytes, out, q2_k),
        GgmlType::Q3_K => |bytes, out| blocks(bytes, out, q3_k),
        GgmlType::Q4_K => |bytes, out| blocks(bytes, out, q4_k),
        GgmlType::Q5_K => |bytes, out| blocks(bytes, out, q5_k),
        GgmlType::Q6_K => |bytes, out| blocks(bytes, out, q6_k),
        GgmlType::IQ4_NL => |bytes, out| blocks(bytes, out, iq4_nl),
        GgmlType::IQ4_XS => |bytes, out| blocks(bytes, out, iq4_xs),
        GgmlType::IQ2_XXS => |bytes, out| blocks(bytes, out, iq::iq2_xxs),
        GgmlType::IQ2_XS => |bytes, out| blocks(bytes, out, iq::iq2_xs),
        GgmlType::IQ2_S => |bytes, out| blocks(bytes, out, iq::iq2_s),
        GgmlType::IQ3_XXS => |bytes, out| blocks(bytes, out, iq::iq3_xxs),
        GgmlType::IQ3_S => |bytes, out| blocks(bytes, out, iq::iq3_s),
        GgmlType::IQ1_S => |bytes, out| blocks(bytes, out, iq::iq1_s),
        GgmlType::IQ1_M => |bytes, out| blocks(bytes, out, iq::iq1_m),
        GgmlType::TQ1_0 => |bytes, out| blocks(bytes, out, tq1_0),
        GgmlType::TQ2_0 => |bytes, out| blocks(bytes, out, tq2_0),
        GgmlType::MXFP4 => |bytes, out| blocks(bytes, out, mxfp4),
        GgmlType::NVFP4 => |bytes, out| blocks(bytes, out, nvfp4),
        // Q8_1 and Q8_K hold activations, the others no weights.
        GgmlType::Q8_1 | GgmlType::Q8_K => return None,
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 => return None,
    })
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = decode(*bytes);
    }
}

fn blocks<B: Block, const LEN: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&B, &mut [f32; LEN])) {
    const { assert!(LEN == B::LEN) };
    let blocks = B::view(bytes).unwrap_or_default();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

/// Quant `i` of the 32 that are stored as two nibbles per byte, the second half of the block in the high ones.
fn nibble(qs: &[u8], i: usize) -> u8 {
    qs[i % 16] >> (4 * (i / 16)) & 15
}

/// The fifth bit of quant `i`, in place.
fn fifth_bit(qh: [u8; 4], i: usize) -> u8 {
    ((u32::from_le_bytes(qh) >> i & 1) << 4) as u8
}

fn q4_0(b: &BlockQ4_0, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b.qs, i) as i8 - 8);
    }
}

fn q4_1(b: &BlockQ4_1, out: &mut [f32; 32]) {
    let (d, m) = (b.d.get(), b.m.get());
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b.qs, i)) + m;
    }
}

fn q5_0(b: &BlockQ5_0, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from((nibble(&b.qs, i) | fifth_bit(b.qh, i)) as i8 - 16);
    }
}

fn q5_1(b: &BlockQ5_1, out: &mut [f32; 32]) {
    let (d, m) = (b.d.get(), b.m.get());
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(nibble(&b.qs, i) | fifth_bit(b.qh, i)) + m;
    }
}

fn q8_0(b: &BlockQ8_0, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (x, &q) in out.iter_mut().zip(&b.qs) {
        *x = d * f32::from(q);
    }
}

/// Quant `i` of 256 that are stored four to a byte, 32 elements apart.
fn two_bits(qs: &[u8; 64], i: usize) -> u8 {
    qs[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3
}

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

fn q4_k(b: &BlockQ4_K, out: &mut [f32; 256]) {
    let (d, dmin) = (b.d.get(), b.dmin.get());
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sc, m) = scale_min_k4(&b.scales, s);
        let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
        for (l, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(b.qs[s / 2 * 32 + l] >> (4 * (s % 2)) & 15) - min;
        }
    }
}

fn q5_k(b: &BlockQ5_K, out: &mut [f32; 256]) {
    let (d, dmin) = (b.d.get(), b.dmin.get());
    for (s, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sc, m) = scale_min_k4(&b.scales, s);
        let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
        for (l, x) in out.iter_mut().enumerate() {
            let q = b.qs[s / 2 * 32 + l] >> (4 * (s % 2)) & 15 | (b.qh[l] >> s & 1) << 4;
            *x = scale * f32::from(q) - min;
        }
    }
}

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

fn iq4_nl(b: &BlockIQ4_NL, out: &mut [f32; 32]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(IQ4_VALUES[nibble(&b.qs, i) as usize]);
    }
}

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
fn digit(b: u8, at: usize) -> u8 {
    let rest = b.wrapping_mul([1, 3, 9, 27, 81][at]);
    ((u16::from(rest) * 3) >> 8) as u8
}

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

fn tq2_0(b: &BlockTQ2_0, out: &mut [f32; 256]) {
    let d = b.d.get();
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(two_bits(&b.qs, i) as i8 - 1);
    }
}

fn mxfp4(b: &BlockMXFP4, out: &mut [f32; 32]) {
    let d = scale_mxfp4(b.e);
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * f32::from(FP4_VALUES[nibble(&b.qs, i) as usize]);
    }
}

fn nvfp4(b: &BlockNVFP4, out: &mut [f32; 64]) {
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = scale_nvfp4(b.d[s]);
        for (l, x) in out.iter_mut().enumerate() {
            *x = d * f32::from(FP4_VALUES[usize::from(b.qs[s * 8 + l % 8] >> (4 * (l / 8)) & 15)]);
        }
    }
}
