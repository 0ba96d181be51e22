//! The IQ types with codebooks: a sub-block's elements are looked up eight (or four) at a time in a table of rows of
//! levels (`grids`), then scaled. The order of the float operations is that of gguf-py, as in `dequantize`.

use super::block::*;
use super::grids;

/// Eight elements of IQ2: `scale` times the levels of a row, negative where `signs` says so.
fn iq2_row(row: u16, signs: u8, scale: f32, out: &mut [f32]) {
    for (i, x) in out.iter_mut().enumerate() {
        let level = f32::from(grids::LEVELS_IQ2[usize::from(row >> (2 * i) & 3)]);
        *x = signed(scale * level, signs, i);
    }
}

/// Four elements of IQ3; `signs` has theirs in the low bits.
fn iq3_row(row: u16, levels: &[u8; 8], signs: u8, scale: f32, out: &mut [f32]) {
    for (i, x) in out.iter_mut().enumerate() {
        let level = f32::from(levels[usize::from(row >> (4 * i) & 7)]);
        *x = signed(scale * level, signs, i);
    }
}

/// Eight elements of IQ1.
fn iq1_row(row: u16, negative: bool, scale: f32, out: &mut [f32]) {
    let delta = if negative { -0.125 } else { 0.125 };
    for (i, x) in out.iter_mut().enumerate() {
        *x = scale * (f32::from(grids::LEVELS_IQ1[usize::from(row >> (2 * i) & 3)]) + delta);
    }
}

fn signed(v: f32, signs: u8, i: usize) -> f32 {
    if signs >> i & 1 == 0 { v } else { -v }
}

/// The 4-bit scale `s` of two per byte.
fn scale4(scales: &[u8], s: usize) -> u8 {
    scales[s / 2] >> (4 * (s % 2)) & 15
}

/// The scale 1/2 + sc of IQ2 and IQ3_XXS in units of `d * unit`.
fn half_scale(d: f32, sc: u8, unit: f32) -> f32 {
    d * (0.5 + f32::from(sc)) * unit
}

pub(super) fn iq2_xxs(b: &BlockIQ2_XXS, out: &mut [f32; 256]) {
    for (qs, out) in b.qs.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let (rows, signs) = (&qs[..4], u32::from_le_bytes([qs[4], qs[5], qs[6], qs[7]]));
        let scale = half_scale(b.d.get(), (signs >> 28) as u8, 0.25);
        for (l, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            iq2_row(grids::IQ2_XXS[usize::from(rows[l])], all_signs((signs >> (7 * l)) as u8), scale, out);
        }
    }
}

pub(super) fn iq2_xs(b: &BlockIQ2_XS, out: &mut [f32; 256]) {
    for (l, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let q = u16::from_le_bytes([b.qs[2 * l], b.qs[2 * l + 1]]);
        let scale = half_scale(b.d.get(), scale4(&b.scales, l / 2), 0.25);
        iq2_row(grids::IQ2_XS[usize::from(q & 511)], all_signs((q >> 9) as u8), scale, out);
    }
}

pub(super) fn iq2_s(b: &BlockIQ2_S, out: &mut [f32; 256]) {
    for (l, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let row = usize::from(b.qs[l]) | usize::from(b.qh[l / 4] >> (2 * (l % 4)) & 3) << 8;
        let scale = half_scale(b.d.get(), scale4(&b.scales, l / 2), 0.25);
        iq2_row(grids::IQ2_S[row], b.signs[l], scale, out);
    }
}

pub(super) fn iq3_xxs(b: &BlockIQ3_XXS, out: &mut [f32; 256]) {
    for (s, signs) in b.signs.as_chunks::<4>().0.iter().enumerate() {
        let signs = u32::from_le_bytes(*signs);
        let scale = half_scale(b.d.get(), (signs >> 28) as u8, 0.5);
        for l in 0..8 {
            let row = grids::IQ3_XXS[usize::from(b.qs[s * 8 + l])];
            let signs = all_signs((signs >> (7 * (l / 2))) as u8) >> (4 * (l % 2));
            iq3_row(row, &grids::LEVELS_IQ3_XXS, signs, scale, &mut out[s * 32 + l * 4..][..4]);
        }
    }
}

pub(super) fn iq3_s(b: &BlockIQ3_S, out: &mut [f32; 256]) {
    for (l, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let row = usize::from(b.qs[l]) | usize::from(b.qh[l / 8] >> (l % 8) & 1) << 8;
        let scale = b.d.get() * f32::from(1 + 2 * scale4(&b.scales, l / 8));
        iq3_row(grids::IQ3_S[row], &grids::LEVELS_IQ3_S, b.signs[l / 2] >> (4 * (l % 2)), scale, out);
    }
}

pub(super) fn iq1_s(b: &BlockIQ1_S, out: &mut [f32; 256]) {
    for (l, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = u16::from_le_bytes([b.qh[l / 4 * 2], b.qh[l / 4 * 2 + 1]]);
        let row = usize::from(b.qs[l]) | usize::from(high >> (3 * (l % 4)) & 7) << 8;
        let scale = b.d.get() * f32::from(2 * (high >> 12 & 7) + 1);
        iq1_row(grids::IQ1[row], high >> 15 == 1, scale, out);
    }
}

pub(super) fn iq1_m(b: &BlockIQ1_M, out: &mut [f32; 256]) {
    let scales: [u16; 4] = std::array::from_fn(|k| u16::from_le_bytes([b.scales[2 * k], b.scales[2 * k + 1]]));
    let d = scales.iter().enumerate().fold(0, |bits, (k, v)| bits | v >> 12 << (4 * k));
    let d = half::f16::from_bits(d).to_f32();
    for (l, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = b.qh[l / 2] >> (4 * (l % 2));
        let row = usize::from(b.qs[l]) | usize::from(high & 7) << 8;
        let scale = d * f32::from(2 * (scales[l / 8] >> (3 * (l / 2 % 4)) & 7) + 1);
        iq1_row(grids::IQ1[row], high >> 3 & 1 == 1, scale, out);
    }
}
