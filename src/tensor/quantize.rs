//! f32 to the types that models are stored in: `fit` searches for the scales with the least squared error, this file
//! and `quantize_k` store them. Q8_0 rounds as ggml's reference does, bit for bit: it is within a thousandth of the
//! best, and as fast as memory.

use half::slice::HalfFloatSliceExt;

use super::GgmlType;
use super::block::*;
use super::fit::{Affine, Ends, Fp4, Iq4, LANES, Levels, Line, Plain, Simd, Symmetric, Whole, least};
use super::quantize_k::{self, iq4_index};
use crate::error::{Error, Result};

/// Why a block cannot be encoded; `quantize` adds the type.
#[derive(Debug, PartialEq)]
pub(crate) struct TooLarge;

pub(super) type Fallible<T> = std::result::Result<T, TooLarge>;

/// Whether `quantize` knows the type.
pub fn can_quantize(dtype: GgmlType) -> bool {
    use GgmlType::*;
    let simple = matches!(dtype, F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL | MXFP4);
    simple || matches!(dtype, Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS)
}

/// Stores `x` as `dtype` in `out`: any whole number of blocks.
///
/// # Errors
/// `Unsupported` for types without an encoder; `InvalidArgument` if `out` is not exactly as long as the type needs,
/// for NaN and infinity in block types, and for values that the type cannot hold (they never become infinite).
pub fn quantize(dtype: GgmlType, x: &[f32], out: &mut [u8]) -> Result<()> {
    quantize_weighted(dtype, x, None, out)
}

/// [`quantize`] with how much each element's squared error counts: a weight per column of the row, on any scale, as
/// an importance matrix has them. Types that only round (F32, F16, BF16, Q8_0) need none.
///
/// # Errors
/// Those of `quantize`; `InvalidArgument` if there are not as many weights as elements, and for weights that are
/// negative, NaN or infinite.
pub fn quantize_weighted(dtype: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
    quantize_with(dtype, x, importance, out, |row| row.encode(Plain))
}

/// [`quantize_weighted`] where `encode` calls [`Row::encode`].
pub(crate) fn quantize_with(
    dtype: GgmlType,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl FnOnce(Row<'_>) -> Fallible<()>,
) -> Result<()> {
    if !can_quantize(dtype) {
        return Err(Error::unsupported(format_args!("tensor type {dtype}"), "this version cannot encode it"));
    }
    if dtype.row_bytes(x.len()) != Some(out.len()) {
        let (elements, given) = (x.len(), out.len());
        return Err(Error::invalid(format_args!("{elements} elements of type {dtype} do not take {given} bytes")));
    }
    // Without branches, as nearly every row is sound.
    if dtype.block_len() > 1
        && !x.iter().fold(true, |sound, v| sound & v.is_finite())
        && let Some((i, v)) = x.iter().enumerate().find(|(_, v)| !v.is_finite())
    {
        return Err(Error::invalid(format_args!("element {i} is {v}, which {dtype} cannot hold")));
    }
    let unit = importance.map(|weights| importance_unit(weights, x.len())).transpose()?;
    let unit = unit.unwrap_or(0.0);
    // Weights that are all 0, or all the same, say as much as none.
    let says = |weights: &&[f32]| unit.is_normal() && weights.iter().any(|v| *v != weights[0]);
    let weights = Weights { importance: importance.filter(says), unit };
    encode(Row { dtype, x, weights, out }).map_err(|TooLarge| {
        let largest = x.iter().filter(|v| v.is_finite()).fold(0.0, |m: f32, v| m.max(v.abs()));
        Error::invalid(format_args!("values as large as {largest:e} do not fit {dtype}"))
    })
}

/// What the weights are divided by: their mean, so that their scale does not matter.
fn importance_unit(weights: &[f32], elements: usize) -> Result<f32> {
    if weights.len() != elements {
        let given = weights.len();
        return Err(Error::invalid(format_args!("{given} importance weights were given for {elements} elements")));
    }
    // Without branches, and a sum in parts: this is done for every row.
    let sound = weights.iter().fold(true, |sound, v| sound & v.is_finite() & (*v >= 0.0));
    if !sound && let Some((i, v)) = weights.iter().enumerate().find(|(_, v)| !v.is_finite() || **v < 0.0) {
        return Err(Error::invalid(format_args!("the importance weight of element {i} is {v}")));
    }
    let (parts, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for part in parts {
        for (sum, &v) in sums.iter_mut().zip(part) {
            *sum += f64::from(v);
        }
    }
    let sum = sums.iter().sum::<f64>() + rest.iter().map(|&v| f64::from(v)).sum::<f64>();
    Ok((sum / elements.max(1) as f64) as f32)
}

/// The weights of a row's elements.
#[derive(Clone, Copy)]
struct Weights<'a> {
    importance: Option<&'a [f32]>,
    unit: f32,
}

impl Weights<'_> {
    /// Of the search for a scale. One is near the best where all weights are the same, and takes half the time.
    fn passes(&self) -> usize {
        if self.importance.is_some() { 2 } else { 1 }
    }

    /// Those of block `b`, divided by their mean over the row. No weight is 0: an element that was never seen still
    /// should be near its value where that costs nothing.
    #[inline(always)]
    fn of<const LEN: usize>(&self, b: usize) -> [f32; LEN] {
        const LEAST: f32 = 1.0 / 1024.0;
        match self.importance {
            None => [1.0; LEN],
            Some(v) => {
                let (mut weights, per_unit) = (v.as_chunks().0[b], 1.0 / self.unit);
                for w in &mut weights {
                    *w = (*w * per_unit).max(LEAST);
                }
                weights
            }
        }
    }
}

/// Encodes block after block with the function. A macro because a function that is passed as a value would be compiled
/// without the caller's instruction set.
macro_rules! blocks {
    ($simd:expr, $x:expr, $weights:expr, $out:expr, $encode:path $(, $more:expr)*) => {{
        for (b, (x, out)) in $x.as_chunks().0.iter().zip(Block::view_mut($out).unwrap_or_default()).enumerate() {
            *out = $encode($simd, x, &$weights.of(b) $(, $more)*)?;
        }
        Ok(())
    }};
}

/// A row that was checked: finite values (any for the float types), weights as many as those, bytes for them.
pub(crate) struct Row<'a> {
    dtype: GgmlType,
    x: &'a [f32],
    weights: Weights<'a>,
    out: &'a mut [u8],
}

impl Row<'_> {
    /// Encodes the row. All of it is inlined, so that a caller with vector instructions gets it compiled for them; the
    /// result is the same, no operation depends on the instructions.
    #[inline(always)]
    pub(crate) fn encode<S: Simd>(self, s: S) -> Fallible<()> {
        let Row { dtype, x, weights: w, out } = self;
        match dtype {
            GgmlType::F32 => each(x, out, f32::to_le_bytes),
            GgmlType::F16 => f16(x, out),
            GgmlType::BF16 => bf16(x, out),
            GgmlType::Q4_0 => blocks!(s, x, w, out, q4_0, w.passes()),
            GgmlType::Q4_1 => blocks!(s, x, w, out, q4_1, w.passes()),
            GgmlType::Q5_0 => blocks!(s, x, w, out, q5_0, w.passes()),
            GgmlType::Q5_1 => blocks!(s, x, w, out, q5_1, w.passes()),
            GgmlType::Q8_0 => blocks!(s, x, w, out, q8_0),
            GgmlType::Q2_K => blocks!(s, x, w, out, quantize_k::q2_k),
            GgmlType::Q3_K => blocks!(s, x, w, out, quantize_k::q3_k),
            GgmlType::Q4_K => blocks!(s, x, w, out, quantize_k::q4_k),
            GgmlType::Q5_K => blocks!(s, x, w, out, quantize_k::q5_k),
            GgmlType::Q6_K => blocks!(s, x, w, out, quantize_k::q6_k),
            GgmlType::IQ4_NL => blocks!(s, x, w, out, iq4_nl, w.passes()),
            GgmlType::IQ4_XS => blocks!(s, x, w, out, quantize_k::iq4_xs),
            GgmlType::MXFP4 => blocks!(s, x, w, out, mxfp4),
            _ => unreachable!("`can_quantize` has no such type"),
        }
    }
}

#[inline(always)]
fn each<const N: usize>(x: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) -> Fallible<()> {
    for (&v, out) in x.iter().zip(out.as_chunks_mut().0) {
        *out = encode(v);
    }
    Ok(())
}

/// F16, many at a time: `half` has the processor's instruction for that.
fn f16(x: &[f32], out: &mut [u8]) -> Fallible<()> {
    const LEN: usize = 256;
    let mut halves = [half::f16::ZERO; LEN];
    for (x, out) in x.chunks(LEN).zip(out.chunks_mut(2 * LEN)) {
        let halves = &mut halves[..x.len()];
        halves.convert_from_f32_slice(x);
        if halves.iter().zip(x).any(|(h, v)| h.is_infinite() && v.is_finite()) {
            return Err(TooLarge);
        }
        for (h, out) in halves.iter().zip(out.as_chunks_mut().0) {
            *out = h.to_le_bytes();
        }
    }
    Ok(())
}

#[inline(always)]
fn bf16(x: &[f32], out: &mut [u8]) -> Fallible<()> {
    // From here on rounding gives infinity.
    const LIMIT: f32 = f32::from_bits(0x7f7f_8000);
    if x.iter().fold(false, |large, v| large | (v.is_finite() & (v.abs() >= LIMIT))) {
        return Err(TooLarge);
    }
    each(x, out, |v| half::bf16::from_f32(v).to_le_bytes())
}

/// A scale as it is stored.
#[inline(always)]
pub(super) fn half(v: f32) -> Fallible<Half> {
    let stored = Half::new(v);
    if stored.get().is_finite() { Ok(stored) } else { Err(TooLarge) }
}

/// Levels as whole numbers from 0 on. A loop, as `map` would call a function of its own.
#[inline(always)]
fn whole(levels: &[f32; 32], lowest: f32) -> [u8; 32] {
    let mut q = [0; 32];
    for (q, level) in q.iter_mut().zip(levels) {
        *q = (level - lowest + SHIFT).to_bits() as u8;
    }
    q
}

/// Two quants per byte, element l + 16 in the high nibble.
#[inline(always)]
fn pack_nibbles(q: &[u8; 32]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (l, byte) in bytes.iter_mut().enumerate() {
        *byte = q[l] & 15 | q[l + 16] << 4;
    }
    bytes
}

#[inline(always)]
fn pack_fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    q.iter().enumerate().fold(0u32, |bits, (i, &q)| bits | u32::from(q >> 4) << i).to_le_bytes()
}

/// The f16 next to `v` and its two neighbours: where f16 is coarse (subnormal) the nearest need not be the best.
#[inline(always)]
fn halves(v: f32) -> Fallible<impl Iterator<Item = Half>> {
    let bits = half(v)?.to_f16().to_bits();
    let (sign, size) = (bits & 0x8000, bits & 0x7FFF);
    // 0x7BFF is the largest finite one.
    Ok([size, size.saturating_sub(1), (size + 1).min(0x7BFF)].into_iter().map(move |size| Half::from_bits(sign | size)))
}

/// Places of the largest value on the levels of Q4_0, Q5_0 and IQ4_NL.
const ENDS_Q4: [f32; LANES] =
    [0.84, 0.89, 0.94, 1.0, 1.04, 1.09, 1.15, 1.23, 1.33, 1.5, -0.87, -0.94, -1.0, -1.08, -1.18, -1.33];
const ENDS_Q5: [f32; LANES] =
    [0.94, 0.96, 0.98, 1.0, 1.015, 1.035, 1.06, 1.1, 1.17, 1.27, -0.95, -0.975, -1.0, -1.03, -1.07, -1.15];

/// Scale and levels of values that are `scale * level`.
#[inline(always)]
fn symmetric<S: Simd, L: Levels>(
    s: S,
    x: &[f32; 32],
    w: &[f32; 32],
    ends: &[f32; LANES],
    passes: usize,
) -> Fallible<(Half, [f32; 32])> {
    if s.size(x) > LIMIT {
        return Err(TooLarge);
    }
    let group = Symmetric { s, x, w };
    let scale = group.fit::<L>(ends, passes);
    let mut d = half(scale)?;
    // The nearest f16 is the best for the levels of the scale, but where they are far apart not for all levels.
    if !d.to_f16().is_normal() {
        let mut tried = [0.0; 3];
        for (tried, d) in tried.iter_mut().zip(halves(scale)?) {
            *tried = d.get();
        }
        d = half(tried[least(&group.errors::<L>(&tried))])?;
    }
    Ok((d, group.levels::<L>(d.get())))
}

/// Larger values overflow every f16 scale; the squares of these do not overflow.
const LIMIT: f32 = 1e8;

/// Scale, min and quants of values that are `d q + m`, q in `0..=top`.
#[inline(always)]
fn ranged<S: Simd>(
    s: S,
    x: &[f32; 32],
    w: &[f32; 32],
    top: f32,
    ends: &Ends,
    passes: usize,
) -> Fallible<(Half, Half, [f32; 32])> {
    if s.size(x) > LIMIT {
        return Err(TooLarge);
    }
    let group = Affine::new(s, x, w, top);
    let fit = group.fit(ends, passes);
    let mut d = half(fit.scale)?;
    let mut m = half(group.through_mean(fit, d.get()))?;
    // As in `symmetric`; a scale of 0 leaves the mean, which the min of the fit need not be.
    if !d.to_f16().is_normal() || !m.to_f16().is_normal() {
        let (mut scales, mut offsets, mut i) = ([d.get(); LANES], [m.get(); LANES], 0);
        for d in halves(fit.scale)? {
            for m in halves(group.through_mean(fit, d.get()))? {
                (scales[i], offsets[i]) = (d.get(), m.get());
                i += 1;
            }
        }
        let at = least(&group.errors(&scales, &offsets));
        (d, m) = (half(scales[at])?, half(offsets[at])?);
    }
    Ok((d, m, group.levels(Line { scale: d.get(), offset: m.get() })))
}

#[inline(always)]
fn q4_0<S: Simd>(s: S, x: &[f32; 32], w: &[f32; 32], passes: usize) -> Fallible<BlockQ4_0> {
    let (d, q) = symmetric::<S, Whole<-8, 7>>(s, x, w, &ENDS_Q4, passes)?;
    Ok(BlockQ4_0 { d, qs: pack_nibbles(&whole(&q, -8.0)) })
}

#[inline(always)]
fn q4_1<S: Simd>(s: S, x: &[f32; 32], w: &[f32; 32], passes: usize) -> Fallible<BlockQ4_1> {
    let (d, m, q) = ranged(s, x, w, 15.0, &quantize_k::ENDS4, passes)?;
    Ok(BlockQ4_1 { d, m, qs: pack_nibbles(&whole(&q, 0.0)) })
}

#[inline(always)]
fn q5_0<S: Simd>(s: S, x: &[f32; 32], w: &[f32; 32], passes: usize) -> Fallible<BlockQ5_0> {
    let (d, q) = symmetric::<S, Whole<-16, 15>>(s, x, w, &ENDS_Q5, passes)?;
    let q = whole(&q, -16.0);
    Ok(BlockQ5_0 { d, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) })
}

#[inline(always)]
fn q5_1<S: Simd>(s: S, x: &[f32; 32], w: &[f32; 32], passes: usize) -> Fallible<BlockQ5_1> {
    let (d, m, q) = ranged(s, x, w, 31.0, &quantize_k::ENDS5, passes)?;
    let q = whole(&q, 0.0);
    Ok(BlockQ5_1 { d, m, qh: pack_fifth_bits(&q), qs: pack_nibbles(&q) })
}

#[inline(always)]
fn iq4_nl<S: Simd>(s: S, x: &[f32; 32], w: &[f32; 32], passes: usize) -> Fallible<BlockIQ4_NL> {
    let (d, q) = symmetric::<S, Iq4>(s, x, w, &quantize_k::ENDS_IQ4, passes)?;
    Ok(BlockIQ4_NL { d, qs: pack_nibbles(&q.map(|q| iq4_index(q as i32 as u8))) })
}

/// The scale is a power of two: all that may be best are tried. The largest value is at most 12 on the smallest scale
/// that holds it, which is one of the upper two; one less cuts it off for the sake of the others.
#[inline(always)]
fn mxfp4<S: Simd>(s: S, x: &[f32; 32], w: &[f32; 32]) -> Fallible<BlockMXFP4> {
    let largest = s.size(x);
    // Beyond this the next level may be infinite.
    if largest > 2f32.powi(127) {
        return Err(TooLarge);
    }
    // Scaling to the largest value's power of two keeps the squares in range. Subnormal numbers are scaled as the
    // largest of them: every exponent that is tried then is the smallest that can be stored.
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    let (up, zero, mut sizes) = (s.splat(inverse_power(exponent)), s.splat(0.0), *x);
    for v in sizes.as_chunks_mut().0 {
        let x = s.mul(s.load(v), up);
        s.store(s.max(x, s.sub(zero, x)), v);
    }
    let group = Symmetric { s, x: &sizes, w };
    // In the place of exponents that cannot be stored the last that can is tried again.
    let (mut exponents, mut scales) = ([0; 3], [0.0; 3]);
    for i in 0..3 {
        exponents[i] = (exponent - 4 + i as i32).clamp(-128, 126);
        scales[i] = inverse_power(exponent - exponents[i]);
    }
    let best = least(&group.errors::<Fp4>(&scales));
    let numbers = fp4_numbers(s, x, &group.levels::<Fp4>(scales[best]));
    Ok(BlockMXFP4 { e: (exponents[best] + 128) as u8, qs: pack_nibbles(&numbers) })
}

/// 2^-exponent, -127..=127.
#[inline(always)]
fn inverse_power(exponent: i32) -> f32 {
    // 2^-127 is no normal number.
    if exponent < 127 { f32::from_bits(((127 - exponent) as u32) << 23) } else { f32::from_bits(1 << 22) }
}

/// The numbers of levels of MXFP4: those of the magnitudes 0 1 2 3 4 6 8 12, and the sign of the values.
#[inline(always)]
fn fp4_numbers<S: Simd>(s: S, x: &[f32; 32], sizes: &[f32; 32]) -> [u8; 32] {
    let (mut numbers, zero) = (*sizes, s.splat(0.0));
    for (v, x) in numbers.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        let size = s.load(v);
        let few = s.min(size, s.splat(5.0));
        let many = s.if_less(size, s.splat(10.0), s.splat(6.0), s.splat(7.0));
        let number = s.if_less(size, s.splat(7.0), few, many);
        // A 0 has no sign: its number is that of the positive.
        let sign = s.if_less(s.max(s.load(x), s.sub(zero, size)), zero, s.splat(8.0), zero);
        s.store(s.add(number, sign), v);
    }
    whole(&numbers, 0.0)
}

#[inline(always)]
fn q8_0<S: Simd>(s: S, x: &[f32; 32], _: &[f32; 32]) -> Fallible<BlockQ8_0> {
    let d = s.size(x) / 127.0;
    let stored = half(d)?;
    // ggml divides by the scale before it was rounded to f16, which is followed here for equal bits; but below f16's
    // normal numbers the two scales differ grossly, and the stored one counts.
    let inverse = match stored.to_f16() {
        f if f == half::f16::ZERO => 0.0,
        f if f.is_normal() => 1.0 / d,
        f => 1.0 / f.to_f32(),
    };
    // `x.round()`, halves away from zero, of magnitudes: rounded to even, then one more where a half was lost.
    let (zero, most) = (s.splat(0.0), s.splat(127.0));
    let mut qs = [0; 32];
    for (x, qs) in x.as_chunks().0.iter().zip(qs.as_chunks_mut::<LANES>().0) {
        let x = s.mul(s.load(x), s.splat(inverse));
        let size = s.max(x, s.sub(zero, x));
        let even = s.round(size);
        let lost = s.zero_if_less(s.sub(size, even), s.splat(0.5), s.splat(1.0));
        // -128 is not used
        let q = s.min(s.add(even, lost), most);
        let q = s.sub(s.zero_if_less(x, zero, s.add(q, q)), q);
        let mut floats = [0.0; LANES];
        s.store(s.add(q, s.splat(SHIFT)), &mut floats);
        for (q, f) in qs.iter_mut().zip(floats) {
            *q = f.to_bits() as i8;
        }
    }
    Ok(BlockQ8_0 { d: stored, qs })
}

/// 1.5 * 2^23: a float that a whole number was added to has that number in its lowest bits, without the care that a cast
/// takes of NaN and of numbers that are too large.
const SHIFT: f32 = 12582912.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_rounds_away_from_zero_at_halves_and_nowhere_else() {
        // The scale is 1, so that the values are the quants before they are rounded.
        for i in -253..=253 {
            let half = i as f32 * 0.5;
            let mut x = [0.0; 32];
            x[..5].copy_from_slice(&[half, half.next_up(), half.next_down(), half * 0.999, -127.0]);
            let block = q8_0(Plain, &x, &[1.0; 32]).unwrap();
            for (x, q) in x.iter().zip(block.qs) {
                assert_eq!(q, x.round() as i8, "{x:e}");
            }
        }
    }
}
