//! The layouts of the block types, as they lie in a file (ggml's `block_*` structs; all of them little-endian).
//!
//! A block holds the elements of one row that share scales: 32, or 256 in the "K" types, where a super-block's f16
//! scale `d` multiplies small integer scales of its sub-blocks. Every field is made of bytes, so that a block may
//! start at any address and a slice of file bytes can be viewed as blocks without copying.
//!
//! In the drawings `q[i]` is the quant of element `i`, the byte's high bits stand left, and `l` counts bytes.

#![allow(non_camel_case_types)] // BlockQ4_K: as everyone writes the type

use bytemuck::{Pod, Zeroable};

use super::GgmlType;

/// Elements in a super-block.
pub const QK_K: usize = 256;

/// An f16 at any address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Half([u8; 2]);

impl Half {
    /// Rounds to the nearest f16, ties to even; too large a value becomes infinite.
    pub fn new(v: f32) -> Self {
        Half(half::f16::from_f32(v).to_le_bytes())
    }
    /// Exact. Inlined and without a branch, because products read a scale for every few weights, and with no float that is
    /// subnormal on the way: scales of Q6_K mostly are as f16, and a processor may take a hundred cycles to multiply one.
    #[inline(always)]
    pub fn get(self) -> f32 {
        const REBIAS: u32 = (127 - 15) << 23;
        const SMALLEST: f32 = f32::from_bits((127 - 24) << 23); // 2^-24
        let bits = u32::from(u16::from_le_bytes(self.0));
        let magnitude = bits & 0x7fff;
        let moved = (magnitude << 13) + REBIAS;
        let special = moved + REBIAS; // infinite or NaN: its exponent becomes the largest
        let subnormal = (magnitude as i32 as f32 * SMALLEST).to_bits();
        let finite = if magnitude < 0x400 { subnormal } else { moved };
        let magnitude = if magnitude >= 0x7c00 { special } else { finite };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }
    pub fn from_bits(bits: u16) -> Self {
        Half(bits.to_le_bytes())
    }
    pub fn to_f16(self) -> half::f16 {
        half::f16::from_le_bytes(self.0)
    }
}

/// A block type's layout.
pub trait Block: Pod {
    const TYPE: GgmlType;
    /// Elements in a block.
    const LEN: usize;

    /// Views bytes as blocks; `None` unless they are whole blocks.
    fn view(bytes: &[u8]) -> Option<&[Self]> {
        bytemuck::try_cast_slice(bytes).ok()
    }
    fn view_mut(bytes: &mut [u8]) -> Option<&mut [Self]> {
        bytemuck::try_cast_slice_mut(bytes).ok()
    }
}

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident = $variant:ident, $len:expr, { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Block for $name {
            const TYPE: GgmlType = GgmlType::$variant;
            const LEN: usize = $len;
        }
    };
}

layout! {
    /// x = d (q - 8).
    /// ```text
    /// qs[l]: q[l + 16] q[l]      4 bits each, l = 0..16
    /// ```
    BlockQ4_0 = Q4_0, 32, { d: Half, qs: [u8; 16], }
}

layout! {
    /// x = d q + m; `qs` as in Q4_0.
    BlockQ4_1 = Q4_1, 32, { d: Half, m: Half, qs: [u8; 16], }
}

layout! {
    /// x = d (q - 16), q of 5 bits.
    /// ```text
    /// qs[l]: low 4 bits of q[l + 16] q[l]
    /// qh:    a u32 whose bit i is the fifth bit of q[i]
    /// ```
    BlockQ5_0 = Q5_0, 32, { d: Half, qh: [u8; 4], qs: [u8; 16], }
}

layout! {
    /// x = d q + m; `qh` and `qs` as in Q5_0.
    BlockQ5_1 = Q5_1, 32, { d: Half, m: Half, qh: [u8; 4], qs: [u8; 16], }
}

layout! {
    /// x = d q.
    BlockQ8_0 = Q8_0, 32, { d: Half, qs: [i8; 32], }
}

layout! {
    /// x = (d sc) q - dmin m, q of 2 bits; 16 sub-blocks s of 16 elements.
    /// ```text
    /// scales[s]: m sc            4 bits each
    /// qs[32 h + l]: q[128 h + 96 + l] q[128 h + 64 + l] q[128 h + 32 + l] q[128 h + l]   2 bits each, h = 0..2, l = 0..32
    /// ```
    BlockQ2_K = Q2_K, QK_K, { scales: [u8; 16], qs: [u8; 64], d: Half, dmin: Half, }
}

layout! {
    /// x = (d (sc - 32)) (q - 4), q of 3 bits; 16 sub-blocks s of 16 elements, sc of 6 bits.
    /// ```text
    /// hmask[l]:     bit j is the third bit of q[32 j + l], l = 0..32
    /// qs[32 h + l]: the low 2 bits, as in Q2_K
    /// scales[s]:     low 4 bits of sc[s + 8] sc[s],                              s = 0..8
    /// scales[8 + s]: high 2 bits of sc[s + 12] sc[s + 8] sc[s + 4] sc[s],        s = 0..4
    /// ```
    BlockQ3_K = Q3_K, QK_K, { hmask: [u8; 32], qs: [u8; 64], scales: [u8; 12], d: Half, }
}

layout! {
    /// x = (d sc) q - dmin m, q of 4 bits; 8 sub-blocks s of 32 elements, sc and m of 6 bits.
    /// ```text
    /// scales[s]:     high 2 bits of sc[s + 4], sc[s]      s = 0..4
    /// scales[4 + s]: high 2 bits of m[s + 4],  m[s]
    /// scales[8 + s]: low 4 bits of m[s + 4] sc[s + 4]
    /// qs[32 g + l]:  q[64 g + 32 + l] q[64 g + l]         g = 0..4, l = 0..32
    /// ```
    BlockQ4_K = Q4_K, QK_K, { d: Half, dmin: Half, scales: [u8; 12], qs: [u8; 128], }
}

layout! {
    /// As Q4_K with q of 5 bits.
    /// ```text
    /// qh[l]: bit s is the fifth bit of q[32 s + l]        l = 0..32
    /// ```
    BlockQ5_K = Q5_K, QK_K, { d: Half, dmin: Half, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128], }
}

layout! {
    /// x = (d sc) (q - 32), q of 6 bits; 16 sub-blocks of 16 elements.
    /// ```text
    /// ql[64 h + l]: low 4 bits of q[128 h + 64 + l] q[128 h + l]          h = 0..2, l = 0..64
    /// qh[32 h + l]: high 2 bits of q[128 h + 96 + l] q[128 h + 64 + l] q[128 h + 32 + l] q[128 h + l],  l = 0..32
    /// ```
    BlockQ6_K = Q6_K, QK_K, { ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: Half, }
}

layout! {
    /// x = d `IQ4_VALUES[q]`; `qs` as in Q4_0.
    BlockIQ4_NL = IQ4_NL, 32, { d: Half, qs: [u8; 16], }
}

layout! {
    /// x = (d (sc - 32)) `IQ4_VALUES[q]`; 8 sub-blocks s of 32 elements, sc of 6 bits.
    /// ```text
    /// scales_h:    a u16, bits 2 s and 2 s + 1 are the high 2 bits of sc[s]
    /// scales_l[k]: low 4 bits of sc[2 k + 1] sc[2 k]
    /// qs[16 s + l]: q[32 s + 16 + l] q[32 s + l]          l = 0..16
    /// ```
    BlockIQ4_XS = IQ4_XS, QK_K, { d: Half, scales_h: [u8; 2], scales_l: [u8; 4], qs: [u8; 128], }
}

layout! {
    /// x = (d (1/2 + sc) / 4) level, the levels of eight elements from a row of `grids::IQ2_XXS`; 8 sub-blocks s of
    /// 32 elements, sc of 4 bits.
    /// ```text
    /// qs[8 s + l]:     row of elements 32 s + 8 l ..         l = 0..4
    /// qs[8 s + 4 ..]:  a u32, bits 7 l .. 7 l + 7 the signs of seven of those elements (see `all_signs`), 28.. sc[s]
    /// ```
    BlockIQ2_XXS = IQ2_XXS, QK_K, { d: Half, qs: [u8; 64], }
}

layout! {
    /// x as in IQ2_XXS with `grids::IQ2_XS`; 16 sub-blocks s of 16 elements.
    /// ```text
    /// qs[2 l ..]: a u16: 7 signs (`all_signs`), 9 bits row of elements 8 l ..     l = 0..32
    /// scales[k]:  sc[2 k + 1] sc[2 k]                        4 bits each
    /// ```
    BlockIQ2_XS = IQ2_XS, QK_K, { d: Half, qs: [u8; 64], scales: [u8; 8], }
}

layout! {
    /// x as in IQ2_XS with `grids::IQ2_S`.
    /// ```text
    /// qs[l]:     low 8 bits of the row of elements 8 l ..    l = 0..32
    /// signs[l]:  bit i is the sign of element 8 l + i
    /// qh[k]:     high 2 bits of the rows of l = 4 k + 3, 4 k + 2, 4 k + 1, 4 k
    /// ```
    BlockIQ2_S = IQ2_S, QK_K, { d: Half, qs: [u8; 32], signs: [u8; 32], qh: [u8; 8], scales: [u8; 8], }
}

layout! {
    /// x = (d (1/2 + sc) / 2) level, the levels of four elements from a row of `grids::IQ3_XXS`; 8 sub-blocks s of 32.
    /// ```text
    /// qs[l]:          row of elements 4 l ..                 l = 0..64
    /// signs[4 s ..]:  a u32 of signs and sc[s], as in IQ2_XXS
    /// ```
    BlockIQ3_XXS = IQ3_XXS, QK_K, { d: Half, qs: [u8; 64], signs: [u8; 32], }
}

layout! {
    /// x = (d (1 + 2 sc)) level, the levels of four elements from a row of `grids::IQ3_S`; 8 sub-blocks s of 32.
    /// ```text
    /// qs[l]:     low 8 bits of the row of elements 4 l ..    l = 0..64
    /// qh[k]:     bit i is the ninth bit of the row of l = 8 k + i
    /// signs[l]:  as in IQ2_S
    /// scales[k]: sc[2 k + 1] sc[2 k]                         4 bits each
    /// ```
    BlockIQ3_S = IQ3_S, QK_K, { d: Half, qs: [u8; 64], qh: [u8; 8], signs: [u8; 32], scales: [u8; 4], }
}

layout! {
    /// x = (d (2 sc + 1)) (level + delta), the levels of eight elements from a row of `grids::IQ1`, delta 1/8 or -1/8;
    /// 8 sub-blocks s of 32.
    /// ```text
    /// qs[4 s + l]: low 8 bits of the row of elements 32 s + 8 l ..        l = 0..4
    /// qh[2 s ..]:  a u16: whether delta is negative, 3 bits sc[s], 3 high bits of the rows of l = 3, 2, 1, 0
    /// ```
    BlockIQ1_S = IQ1_S, QK_K, { d: Half, qs: [u8; 32], qh: [u8; 16], }
}

layout! {
    /// x as in IQ1_S; 16 sub-blocks s of 16, delta for every eight elements.
    /// ```text
    /// qs[l]:          low 8 bits of the row of elements 8 l ..             l = 0..32
    /// qh[k]:          whether delta is negative and 3 high bits of the row, of l = 2 k + 1 and of 2 k
    /// scales[2 k ..]: a u16: bits 4 k .. 4 k + 4 of the f16 d, sc[4 k + 3] sc[4 k + 2] sc[4 k + 1] sc[4 k] of 3 bits
    /// ```
    BlockIQ1_M = IQ1_M, QK_K, { qs: [u8; 32], qh: [u8; 16], scales: [u8; 8], }
}

layout! {
    /// x = d (q - 1), q of 0, 1, 2: base 3 digits. A byte b holds a fraction b / 256 whose first digits q are.
    /// ```text
    /// qs[l]:      q[l] q[32 + l] .. q[128 + l]                            l = 0..32
    /// qs[32 + l]: q[160 + l] q[176 + l] .. q[224 + l]                     l = 0..16
    /// qh[l]:      q[240 + l] q[244 + l] q[248 + l] q[252 + l]             l = 0..4
    /// ```
    BlockTQ1_0 = TQ1_0, QK_K, { qs: [u8; 48], qh: [u8; 4], d: Half, }
}

layout! {
    /// x = d (q - 1), q of 2 bits; `qs` as in Q2_K.
    BlockTQ2_0 = TQ2_0, QK_K, { qs: [u8; 64], d: Half, }
}

layout! {
    /// x = 2^(e - 128) `FP4_VALUES[q]` (OCP Microscaling formats, MXFP4); `qs` as in Q4_0.
    BlockMXFP4 = MXFP4, 32, { e: u8, qs: [u8; 16], }
}

layout! {
    /// x = (d / 2) `FP4_VALUES[q]`, d of 4 exponent and 3 fraction bits without a sign; 4 sub-blocks s of 16.
    /// ```text
    /// qs[8 s + l]: q[16 s + 8 + l] q[16 s + l]                4 bits each, l = 0..8
    /// ```
    BlockNVFP4 = NVFP4, 64, { d: [u8; 4], qs: [u8; 32], }
}

/// The sixteen levels of IQ4_NL and IQ4_XS (ggml's `kvalues_iq4nl`): finer near zero.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the sixteen values of a 4-bit float (sign, 2 exponent bits, 1 fraction bit).
pub const FP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The scale 2^(e - 128) of MXFP4; the two smallest are subnormal.
pub fn scale_mxfp4(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half the value of the scales of NVFP4, as gguf-py reads them: 0x7F is NaN in the format, 0 there, and the unused
/// sign bit does not count.
pub fn scale_nvfp4(d: u8) -> f32 {
    let (exponent, fraction) = (i32::from(d >> 3 & 15), f32::from(d & 7));
    match (d, exponent) {
        (0x7F, _) => 0.0,
        (_, 0) => fraction / 1024.0,
        _ => (1.0 + fraction / 8.0) * f32::from_bits(((exponent - 8 + 127) as u32) << 23),
    }
}

/// The eight signs of IQ2_XXS, IQ2_XS and IQ3_XXS from the seven that are stored: the number of negative ones is even.
pub fn all_signs(seven: u8) -> u8 {
    seven & 127 | ((seven & 127).count_ones() as u8 & 1) << 7
}

/// All eight scales and mins in the twelve bytes of Q4_K and Q5_K, four at a time.
#[inline(always)]
pub fn scales_mins_k4(scales: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    let part = |i: usize| u32::from_le_bytes([scales[i], scales[i + 1], scales[i + 2], scales[i + 3]]);
    let (a, b, c) = (part(0), part(4), part(8));
    let both = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    (both(a & SIX, c & FOUR | (a >> 6 & TWO) << 4), both(b & SIX, c >> 4 & FOUR | (b >> 6 & TWO) << 4))
}

/// The twelve bytes of eight scales and mins, all below 64.
pub fn pack_scale_min_k4(sc: &[u8; 8], m: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => sc[i] | sc[i + 4] >> 4 << 6,
        4..8 => m[i - 4] | m[i] >> 4 << 6,
        _ => sc[i - 4] & 15 | m[i - 4] << 4,
    })
}

/// All sixteen scales of Q3_K, -32 to 31, eight at a time.
#[inline(always)]
pub fn scales_q3_k(scales: &[u8; 12]) -> [i8; 16] {
    const FOUR: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    const TWO: u64 = 0x0303_0303_0303_0303;
    let [a, b, c, d, e, f, g, h, high @ ..] = *scales;
    let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let high = u64::from(u32::from_le_bytes(high));
    // the two high bits of scales 0..4 and 4..8, then of 8..12 and 12..16
    let (first, second) = (high | high >> 2 << 32, high >> 4 | high >> 6 << 32);
    let eight = |low: u64, high: u64| (low & FOUR | (high & TWO) << 4).to_le_bytes();
    let mut all = [0; 16];
    for (all, bits) in all.iter_mut().zip([eight(low, first), eight(low >> 4, second)].as_flattened()) {
        *all = *bits as i8 - 32;
    }
    all
}

/// The twelve bytes of sixteen scales of Q3_K, -32 to 31.
pub fn pack_scale_q3_k(sc: &[i8; 16]) -> [u8; 12] {
    let sc = sc.map(|s| (s + 32) as u8);
    std::array::from_fn(|i| match i {
        0..8 => sc[i] & 15 | (sc[i + 8] & 15) << 4,
        _ => (0..4).fold(0, |bits, j| bits | (sc[i - 8 + 4 * j] >> 4 & 3) << (2 * j)),
    })
}

/// `scales_h` and `scales_l` of eight scales of IQ4_XS, -32 to 31.
pub fn pack_scale_iq4_xs(sc: &[i8; 8]) -> ([u8; 2], [u8; 4]) {
    let sc = sc.map(|s| (s + 32) as u8);
    let high = sc.iter().enumerate().fold(0u16, |bits, (s, sc)| bits | u16::from(sc >> 4 & 3) << (2 * s));
    (high.to_le_bytes(), std::array::from_fn(|k| sc[2 * k] & 15 | (sc[2 * k + 1] & 15) << 4))
}

/// Scale of sub-block `s` (0..8) of IQ4_XS, -32 to 31.
#[inline(always)]
pub fn scale_iq4_xs(block: &BlockIQ4_XS, s: usize) -> i8 {
    let low = block.scales_l[s / 2] >> (4 * (s % 2)) & 15;
    let high = (u16::from_le_bytes(block.scales_h) >> (2 * s) & 3) as u8;
    (low | high << 4) as i8 - 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits<B: Block>() {
        assert_eq!((size_of::<B>(), align_of::<B>()), (B::TYPE.block_bytes(), 1), "{}", B::TYPE);
        assert_eq!(B::LEN, B::TYPE.block_len(), "{}", B::TYPE);
    }

    #[test]
    fn every_layout_has_the_size_that_the_type_table_says() {
        fits::<BlockQ4_0>();
        fits::<BlockQ4_1>();
        fits::<BlockQ5_0>();
        fits::<BlockQ5_1>();
        fits::<BlockQ8_0>();
        fits::<BlockQ2_K>();
        fits::<BlockQ3_K>();
        fits::<BlockQ4_K>();
        fits::<BlockQ5_K>();
        fits::<BlockQ6_K>();
        fits::<BlockIQ4_NL>();
        fits::<BlockIQ4_XS>();
        fits::<BlockIQ2_XXS>();
        fits::<BlockIQ2_XS>();
        fits::<BlockIQ2_S>();
        fits::<BlockIQ3_XXS>();
        fits::<BlockIQ3_S>();
        fits::<BlockIQ1_S>();
        fits::<BlockIQ1_M>();
        fits::<BlockTQ1_0>();
        fits::<BlockTQ2_0>();
        fits::<BlockMXFP4>();
        fits::<BlockNVFP4>();
    }

    #[test]
    fn packed_scales_and_mins_come_back() {
        let sc: [u8; 8] = std::array::from_fn(|i| (i * 37 + 11) as u8 % 64);
        let m: [u8; 8] = std::array::from_fn(|i| (i * 29 + 62) as u8 % 64);
        let packed = pack_scale_min_k4(&sc, &m);
        assert_eq!(scales_mins_k4(&packed), (sc, m));
        let sc: [i8; 16] = std::array::from_fn(|i| ((i * 37 + 11) % 64) as i8 - 32);
        let packed = pack_scale_q3_k(&sc);
        assert_eq!(scales_q3_k(&packed), sc);
        let sc: [i8; 8] = std::array::from_fn(|i| ((i * 41 + 3) % 64) as i8 - 32);
        let (scales_h, scales_l) = pack_scale_iq4_xs(&sc);
        let block = BlockIQ4_XS { d: Half::default(), scales_h, scales_l, qs: [0; 128] };
        assert_eq!(std::array::from_fn(|s| scale_iq4_xs(&block, s)), sc);
    }

    #[test]
    fn every_half_becomes_the_float_of_its_bits() {
        for bits in 0..=u16::MAX {
            let (got, half) = (Half::from_bits(bits).get(), half::f16::from_bits(bits));
            let expected = half.to_f32_const();
            assert!(got.to_bits() == expected.to_bits() || half.is_nan() && got.is_nan(), "{bits:#06x}: {got}");
        }
    }

    #[test]
    fn bytes_are_viewed_as_blocks_at_any_address_but_only_whole_ones() {
        let bytes: Vec<u8> = (0..18 * 3 + 1).map(|i| (i * 7) as u8).collect();
        let blocks = BlockQ4_0::view(&bytes[1..]).unwrap();
        assert_eq!(blocks.len(), 3);
        assert_eq!(blocks[2].qs[..], bytes[1 + 36 + 2..]);
        assert!(BlockQ4_0::view(&bytes).is_none());
    }
}
