//! f32 to the types that models are stored in. The simple types round as ggml's reference does, bit for bit; the
//! K types search for the scales with the least weighted squared error (`quantize_k`).

use super::GgmlType;
use super::block::*;
use super::quantize_k;
use crate::error::{Error, Result};

/// Why a block cannot be encoded; `quantize` adds the type.
#[derive(Debug, PartialEq)]
pub(super) struct TooLarge;

/// Whether `quantize` knows the type.
pub fn can_quantize(dtype: GgmlType) -> bool {
    encoder(dtype).is_some()
}

/// Stores `x` as `dtype` in `out`: any whole number of blocks.
///
/// # Errors
/// `Unsupported` for types without an encoder; `InvalidArgument` if `out` is not exactly as long as the type needs,
/// for NaN and infinity in block types, and for values that the type cannot hold (they never become infinite).
pub fn quantize(dtype: GgmlType, x: &[f32], out: &mut [u8]) -> Result<()> {
    let Some(encode) = encoder(dtype) else {
        return Err(Error::unsupported(format_args!("tensor type {dtype}"), "this version cannot encode it"));
    };
    if dtype.row_bytes(x.len()) != Some(out.len()) {
        let (elements, given) = (x.len(), out.len());
        return Err(Error::invalid(format_args!("{elements} elements of type {dtype} do not take {given} bytes")));
    }
    if dtype.block_len() > 1
        && let Some((i, v)) = x.iter().enumerate().find(|(_, v)| !v.is_finite())
    {
        return Err(Error::invalid(format_args!("element {i} is {v}, which {dtype} cannot hold")));
    }
    encode(x, out).map_err(|TooLarge| {
        let largest = x.iter().filter(|v| v.is_finite()).fold(0.0, |m: f32, v| m.max(v.abs()));
        Error::invalid(format_args!("values as large as {largest:e} do not fit {dtype}"))
    })
}

/// Encodes finite values (any values for the float types) into bytes whose length was checked.
type Encoder = fn(&[f32], &mut [u8]) -> std::result::Result<(), TooLarge>;

fn encoder(dtype: GgmlType) -> Option<Encoder> {
    Some(match dtype {
        GgmlType::F32 => |x, out| each(x, out, |v| Ok(v.to_le_bytes())),
        GgmlType::F16 => |x, out| each(x, out, f16),
        GgmlType::BF16 => |x, out| each(x, out, bf16),
        GgmlType::Q4_0 => |x, out| blocks(x, out, q4_0),
        GgmlType::Q4_1 => |x, out| blocks(x, out, q4_1),
        GgmlType::Q5_0 => |x, out| blocks(x, out, q5_0),
        GgmlType::Q5_1 => |x, out| blocks(x, out, q5_1),
        GgmlType::Q8_0 => |x, out| blocks(x, out, q8_0),
        GgmlType::Q4_K => |x, out| blocks(x, out, quantize_k::q4_k),
        GgmlType::Q5_K => |x, out| blocks(x, out, quantize_k::q5_k),
        GgmlType::Q6_K => |x, out| blocks(x, out, quantize_k::q6_k),
        _ => return None,
    })
}

fn each<const N: usize>(
    x: &[f32],
    out: &mut [u8],
    encode: impl Fn(f32) -> std::result::Result<[u8; N], TooLarge>,
) -> std::result::Result<(), TooLarge> {
    for (&v, out) in x.iter().zip(out.as_chunks_mut().0) {
        *out = encode(v)?;
    }
    Ok(())
}

fn blocks<B: Block, const LEN: usize>(
    x: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN]) -> std::result::Result<B, TooLarge>,
) -> std::result::Result<(), TooLarge> {
    const { assert!(LEN == B::LEN) };
    let out = B::view_mut(out).unwrap_or_default();
    for (x, out) in x.as_chunks().0.iter().zip(out) {
        *out = encode(x)?;
    }
    Ok(())
}

fn f16(v: f32) -> std::result::Result<[u8; 2], TooLarge> {
    let f = half::f16::from_f32(v);
    if f.is_infinite() && v.is_finite() { Err(TooLarge) } else { Ok(f.to_le_bytes()) }
}

fn bf16(v: f32) -> std::result::Result<[u8; 2], TooLarge> {
    let f = half::bf16::from_f32(v);
    if f.is_infinite() && v.is_finite() { Err(TooLarge) } else { Ok(f.to_le_bytes()) }
}

/// A scale as it is stored.
pub(super) fn half(v: f32) -> std::result::Result<Half, TooLarge> {
    let stored = Half::new(v);
    if stored.get().is_finite() { Ok(stored) } else { Err(TooLarge) }
}

/// What to multiply with before rounding. ggml divides by the scale before it was rounded to f16, which is followed
/// here for equal bits; but below f16's normal numbers the two scales differ grossly, and the stored one counts.
fn inverse(d: f32, stored: Half) -> f32 {
    let f = stored.to_f16();
    if f == half::f16::ZERO {
        0.0
    } else if f.is_normal() {
        1.0 / d
    } else {
        1.0 / f.to_f32()
    }
}

/// Two quants per byte, element l + 16 in the high nibble.
fn pack_nibbles(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|l| q[l] & 15 | q[l + 16] << 4)
}

fn pack_fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    q.iter().enumerate().fold(0u32, |bits, (i, &q)| bits | u32::from(q >> 4) << i).to_le_bytes()
}

/// The scale that puts the value of the largest magnitude, with its sign, on the lowest level `-levels / 2`, and the
/// quants, counted from that level.
fn symmetric(x: &[f32; 32], levels: u8) -> std::result::Result<(Half, [u8; 32]), TooLarge> {
    let largest = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let zero = f32::from(levels / 2);
    let d = largest / -zero;
    let stored = half(d)?;
    let inverse = inverse(d, stored);
    // The cast truncates and saturates.
    Ok((stored, x.map(|v| ((v * inverse + (zero + 0.5)) as u8).min(levels - 1))))
}

/// Scale, min and quants with the smallest value on level 0 and the largest on the highest.
fn ranged(x: &[f32; 32], levels: u8) -> std::result::Result<(Half, Half, [u8; 32]), TooLarge> {
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    let d = (max - min) / f32::from(levels - 1);
    let (stored, stored_min) = (half(d)?, half(min)?);
    let inverse = inverse(d, stored);
    Ok((stored, stored_min, x.map(|v| (((v - min) * inverse + 0.5) as u8).min(levels - 1))))
}

fn q4_0(x: &[f32; 32]) -> std::result::Result<BlockQ4_0, TooLarge> {
    let (d, q) = symmetric(x, 16)?;
    Ok(BlockQ4_0 { d, qs: pack_nibbles(&q) })
}

fn q4_1(x: &[f32; 32]) -> std::result::Result<BlockQ4_1, TooLarge> {
    let (d, m, q) = ranged(x, 16)?;
    Ok(BlockQ4_1 { d, m, qs: pack_nibbles(&q) })
}

fn q5_0(x: &[f32; 32]) -> std::result::Result<BlockQ5_0, TooLarge> {
    let (d, q) = symmetric(x, 32)?;
    Ok(BlockQ5_0 { d, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) })
}

fn q5_1(x: &[f32; 32]) -> std::result::Result<BlockQ5_1, TooLarge> {
    let (d, m, q) = ranged(x, 32)?;
    Ok(BlockQ5_1 { d, m, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) })
}

fn q8_0(x: &[f32; 32]) -> std::result::Result<BlockQ8_0, TooLarge> {
    let d = x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    let stored = half(d)?;
    let inverse = inverse(d, stored);
    // `round` goes away from zero at ties, the cast saturates; -128 is not used.
    Ok(BlockQ8_0 { d: stored, qs: x.map(|v| ((v * inverse).round() as i8).max(-127)) })
}
