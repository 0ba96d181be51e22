//! The types with super-blocks: the K types and IQ4_XS. For every sub-block `fit` finds the best scale (and offset).
//! Those are stored as small whole numbers of a unit that all sub-blocks share, so the search goes on: for given units
//! every sub-block tries the whole numbers around its best ones with the levels that follow from them, for given
//! numbers and levels the units are a least squares problem; the two steps alternate until the error stays.

use super::block::*;
use super::fit::{Affine, Ends, Iq4, LANES, Levels, Line, Simd, Symmetric, Whole, inverse, least};
use super::quantize::{Fallible, TooLarge, half};

/// No K type reaches this (`65504 * 128 * 32` is the most); below it no square overflows.
const LIMIT: f32 = 1e9;

/// How often the units are fitted again at most.
const ROUNDS: usize = 4;

/// The range of stored scales or mins that is tried around `v` units.
#[inline(always)]
fn around(v: f32, radius: i32, low: i32, high: i32) -> std::ops::RangeInclusive<i32> {
    // The cast saturates, NaN becomes 0.
    let at = (v.round() as i32).clamp(low, high);
    (at - radius).max(low)..=(at + radius).min(high)
}

/// The unit and scales of a super-block of `G` sub-blocks of `N` values `unit scale level`.
struct Scaled<const G: usize> {
    d: Half,
    sc: [i8; G],
}

impl<const G: usize> Scaled<G> {
    /// Scales are from `low` to `-low - 1`; `ends` see [`Symmetric::fit`].
    #[inline(always)]
    fn fit<S: Simd, L: Levels, const N: usize>(
        s: S,
        x: &[f32; QK_K],
        w: &[f32; QK_K],
        low: i32,
        radius: i32,
        ends: &[f32; LANES],
    ) -> Fallible<Self> {
        const { assert!(G * N == QK_K) };
        if s.size(x) > LIMIT {
            return Err(TooLarge);
        }
        let (x, w) = (x.as_chunks::<N>().0, w.as_chunks::<N>().0);
        let mut scales = [0.0; G];
        for g in 0..G {
            scales[g] = Symmetric { s, x: &x[g], w: &w[g] }.fit::<L>(ends, 2);
        }
        let largest = scales.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let mut best = Scaled { d: half(largest / low as f32)?, sc: [0; G] };
        let (mut best_error, mut d) = (f32::INFINITY, best.d);
        for round in 0..ROUNDS {
            let radius = if round == 0 { radius } else { 1 };
            let (mut sc, mut error) = ([0; G], 0.0);
            // Sums for the best unit: of w (sc q) x and w (sc q)^2.
            let (mut sax, mut saa) = (0.0, 0.0);
            for g in 0..G {
                let group = Symmetric { s, x: &x[g], w: &w[g] };
                let center = scales[g] * inverse(d.get());
                let (mut numbers, mut tried, mut count) = ([0; LANES], [0.0; LANES], 0);
                for at in around(center, radius, low, -low - 1) {
                    (numbers[count], tried[count]) = (at, d.get() * at as f32);
                    count += 1;
                }
                let errors = group.errors::<L>(&tried[..count]);
                let at = least(&errors);
                sc[g] = numbers[at] as i8;
                let scale = f32::from(sc[g]);
                let (sqx, sqq) = group.moments::<L>(inverse(d.get() * scale));
                sax += scale * sqx;
                saa += scale * scale * sqq;
                error += errors[at];
                scales[g] = d.get() * scale;
            }
            let better = error < best_error;
            if !better {
                break;
            }
            (best, best_error) = (Scaled { d, sc }, error);
            match half(sax / saa) {
                Ok(next) if saa > 0.0 && next != d => d = next,
                _ => break,
            }
        }
        Ok(best)
    }

    /// The levels, counted from `zero`.
    #[inline(always)]
    fn levels<S: Simd, L: Levels, const N: usize>(&self, s: S, x: &[f32; QK_K], zero: f32) -> [u8; QK_K] {
        let mut q = [0; QK_K];
        for (g, q) in q.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            let x = &x.as_chunks::<N>().0[g];
            let levels = Symmetric { s, x, w: x }.levels::<L>(self.d.get() * f32::from(self.sc[g]));
            for (q, v) in q.iter_mut().zip(levels) {
                *q = (v + zero) as i32 as u8;
            }
        }
        q
    }
}

/// The units, scales and mins of a super-block of `G` sub-blocks of `N` values `d sc q - dmin m`.
struct Ranged<const G: usize> {
    d: Half,
    dmin: Half,
    sc: [u8; G],
    m: [u8; G],
}

impl<const G: usize> Ranged<G> {
    #[inline(always)]
    fn line(&self, g: usize) -> Line {
        Line { scale: self.d.get() * f32::from(self.sc[g]), offset: -(self.dmin.get() * f32::from(self.m[g])) }
    }

    /// The levels q are `0..=top`, the scales and mins `0..=most`; `ends` see [`Affine::fit`].
    #[inline(always)]
    fn fit<S: Simd, const N: usize>(
        s: S,
        x: &[f32; QK_K],
        w: &[f32; QK_K],
        top: f32,
        most: i32,
        radius: i32,
        ends: &Ends,
    ) -> Fallible<Self> {
        const { assert!(G * N == QK_K) };
        if s.size(x) > LIMIT {
            return Err(TooLarge);
        }
        // Loops rather than closures: those would be compiled without the instruction set.
        let (x, w) = (x.as_chunks::<N>().0, w.as_chunks::<N>().0);
        let mut groups = [Affine::new(s, &x[0], &w[0], top); G];
        for g in 1..G {
            groups[g] = Affine::new(s, &x[g], &w[g], top);
        }
        let mut lines = [Line { scale: 0.0, offset: 0.0 }; G];
        for (line, group) in lines.iter_mut().zip(&groups) {
            *line = group.fit(ends, true, 2);
        }
        let d = half(lines.iter().fold(0.0f32, |m, f| m.max(f.scale)) / most as f32)?;
        let dmin = half(lines.iter().fold(0.0f32, |m, f| m.max(-f.offset)) / most as f32)?;
        let mut best = Ranged { d, dmin, sc: [0; G], m: [0; G] };
        let mut best_error = f32::INFINITY;
        let mut next = Ranged { d, dmin, sc: [0; G], m: [0; G] };
        for round in 0..ROUNDS {
            let radius = if round == 0 { radius } else { 1 };
            let mut error = 0.0;
            let mut units = Units::default();
            for (g, group) in groups.iter().enumerate() {
                error += next.round(g, group, lines[g], most, radius);
                lines[g] = next.line(g);
                units.add(group, lines[g], next.sc[g], next.m[g]);
            }
            let better = error < best_error;
            if !better {
                break;
            }
            (best, best_error) = (Ranged { ..next }, error);
            match units.solve() {
                Some((d, dmin)) if (d, dmin) != (best.d, best.dmin) => (next.d, next.dmin) = (d, dmin),
                _ => break,
            }
        }
        Ok(best)
    }

    /// Chooses scale and min of sub-block `g` near a line; its error.
    #[inline(always)]
    fn round<S: Simd, const N: usize>(
        &mut self,
        g: usize,
        group: &Affine<'_, S, N>,
        near: Line,
        most: i32,
        radius: i32,
    ) -> f32 {
        let (per_d, per_dmin) = (inverse(self.d.get()), inverse(self.dmin.get()));
        let (mut numbers, mut scales, mut offsets) = ([(0, 0); LANES], [0.0; LANES], [0.0; LANES]);
        let mut count = 0;
        for sc in around(near.scale * per_d, radius, 0, most) {
            let scale = self.d.get() * sc as f32;
            for m in around(-group.through_mean(near, scale) * per_dmin, 1, 0, most) {
                (numbers[count], scales[count]) = ((sc as u8, m as u8), scale);
                offsets[count] = -(self.dmin.get() * m as f32);
                count += 1;
            }
        }
        // The lanes beyond the last repeat it.
        for i in count..LANES {
            (numbers[i], scales[i], offsets[i]) = (numbers[count - 1], scales[count - 1], offsets[count - 1]);
        }
        let errors = group.errors(&scales, &offsets);
        let at = least(&errors);
        (self.sc[g], self.m[g]) = numbers[at];
        errors[at]
    }

    #[inline(always)]
    fn levels<S: Simd, const N: usize>(&self, s: S, x: &[f32; QK_K], top: f32) -> [u8; QK_K] {
        let mut q = [0; QK_K];
        for (g, q) in q.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            let levels = Affine::new(s, &x.as_chunks().0[g], &[1.0; N], top).levels(self.line(g));
            for (q, v) in q.iter_mut().zip(levels) {
                *q = v as i32 as u8;
            }
        }
        q
    }
}

/// The normal equations of `x = d (sc q) - dmin m` over a super-block.
#[derive(Default)]
struct Units {
    aa: f32,
    am: f32,
    mm: f32,
    ax: f32,
    mx: f32,
}

impl Units {
    #[inline(always)]
    fn add<S: Simd, const N: usize>(&mut self, group: &Affine<'_, S, N>, line: Line, sc: u8, m: u8) {
        let (sc, m) = (f32::from(sc), f32::from(m));
        let [sw, sx, sq, sqq, sqx] = group.sums(line);
        self.aa += sc * sc * sqq;
        self.am += sc * m * sq;
        self.mm += m * m * sw;
        self.ax += sc * sqx;
        self.mx += m * sx;
    }

    /// Units that can be stored and are not negative.
    #[inline(always)]
    fn solve(&self) -> Option<(Half, Half)> {
        let det = self.aa * self.mm - self.am * self.am;
        let (d, dmin) = if det > 0.0 {
            ((self.ax * self.mm - self.am * self.mx) / det, (self.am * self.ax - self.aa * self.mx) / det)
        } else {
            (self.ax / self.aa, 0.0)
        };
        (d > 0.0 && dmin >= 0.0).then_some(())?;
        Some((half(d).ok()?, half(dmin).ok()?))
    }
}

/// Two quants of four bits per byte, 32 elements apart, in groups of 64.
#[inline(always)]
fn pack_nibbles(q: &[u8; QK_K]) -> [u8; 128] {
    std::array::from_fn(|l| {
        let at = l / 32 * 64 + l % 32;
        q[at] & 15 | q[at + 32] << 4
    })
}

/// Four times two bits per byte, 32 elements apart, in groups of 128.
#[inline(always)]
fn pack_two_bits(q: &[u8; QK_K]) -> [u8; 64] {
    std::array::from_fn(|i| {
        let at = i / 32 * 128 + i % 32;
        (0..4).fold(0, |bits, j| bits | (q[at + 32 * j] & 3) << (2 * j))
    })
}

/// Places of the ends for 2, 4 and 5 bits.
const ENDS2: Ends = Ends::pairs([0.0, 0.08, 0.17, 0.27], [0.0, 0.08, 0.17, 0.27]);
pub(super) const ENDS4: Ends = Ends::pairs([-0.02, 0.0, 0.05, 0.11], [-0.02, 0.0, 0.05, 0.11]);
pub(super) const ENDS5: Ends = Ends::pairs([-0.01, 0.0, 0.025, 0.06], [-0.01, 0.0, 0.025, 0.06]);

#[inline(always)]
pub(super) fn q2_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ2_K> {
    let fit = Ranged::<16>::fit::<S, 16>(s, x, w, 3.0, 15, 1, &ENDS2)?;
    let scales = std::array::from_fn(|g| fit.sc[g] | fit.m[g] << 4);
    Ok(BlockQ2_K { scales, qs: pack_two_bits(&fit.levels::<S, 16>(s, x, 3.0)), d: fit.d, dmin: fit.dmin })
}

#[inline(always)]
pub(super) fn q4_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ4_K> {
    let fit = Ranged::<8>::fit::<S, 32>(s, x, w, 15.0, 63, 2, &ENDS4)?;
    let scales = pack_scale_min_k4(&fit.sc, &fit.m);
    Ok(BlockQ4_K { d: fit.d, dmin: fit.dmin, scales, qs: pack_nibbles(&fit.levels::<S, 32>(s, x, 15.0)) })
}

#[inline(always)]
pub(super) fn q5_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ5_K> {
    let fit = Ranged::<8>::fit::<S, 32>(s, x, w, 31.0, 63, 2, &ENDS5)?;
    let q = fit.levels::<S, 32>(s, x, 31.0);
    let scales = pack_scale_min_k4(&fit.sc, &fit.m);
    let qh = std::array::from_fn(|l| (0..8).fold(0, |bits, s| bits | (q[s * 32 + l] >> 4) << s));
    Ok(BlockQ5_K { d: fit.d, dmin: fit.dmin, scales, qh, qs: pack_nibbles(&q) })
}

/// Places of the end for 3 bits and for those of IQ4_XS; see [`Symmetric::fit`].
const ENDS3: [f32; LANES] =
    [0.7, 0.77, 0.84, 0.92, 1.0, 1.07, 1.15, 1.25, 1.4, -0.7, -0.78, -0.87, -0.96, -1.06, -1.18, -1.33];
pub(super) const ENDS_IQ4: [f32; LANES] =
    [0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08, 1.14, 1.22, 1.35, -0.85, -0.91, -0.97, -1.03, -1.12, -1.27];
/// And for 6 bits.
const ENDS6: [f32; LANES] =
    [0.965, 0.975, 0.985, 0.993, 1.0, 1.007, 1.015, 1.025, 1.04, 1.06, -0.97, -0.985, -0.995, -1.005, -1.015, -1.03];

#[inline(always)]
pub(super) fn q3_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ3_K> {
    type L = Whole<-4, 3>;
    let fit = Scaled::<16>::fit::<S, L, 16>(s, x, w, -32, 2, &ENDS3)?;
    let q = fit.levels::<S, L, 16>(s, x, 4.0);
    let hmask = std::array::from_fn(|l| (0..8).fold(0, |bits, j| bits | (q[j * 32 + l] >> 2) << j));
    Ok(BlockQ3_K { hmask, qs: pack_two_bits(&q), scales: pack_scale_q3_k(&fit.sc), d: fit.d })
}

#[inline(always)]
pub(super) fn q6_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ6_K> {
    type L = Whole<-32, 31>;
    let fit = Scaled::<16>::fit::<S, L, 16>(s, x, w, -128, 3, &ENDS6)?;
    let q = fit.levels::<S, L, 16>(s, x, 32.0);
    let ql = std::array::from_fn(|i| {
        let at = i / 64 * 128 + i % 64;
        q[at] & 15 | q[at + 64] << 4
    });
    let qh = pack_two_bits(&q.map(|q| q >> 4));
    Ok(BlockQ6_K { ql, qh, scales: fit.sc, d: fit.d })
}

#[inline(always)]
pub(super) fn iq4_xs<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockIQ4_XS> {
    let fit = Scaled::<8>::fit::<S, Iq4, 32>(s, x, w, -32, 2, &ENDS_IQ4)?;
    let q = fit.levels::<S, Iq4, 32>(s, x, 0.0).map(iq4_index);
    let (scales_h, scales_l) = pack_scale_iq4_xs(&fit.sc);
    let nibbles = q.as_chunks::<32>().0;
    let qs = std::array::from_fn(|i| nibbles[i / 16][i % 16] | nibbles[i / 16][i % 16 + 16] << 4);
    Ok(BlockIQ4_XS { d: fit.d, scales_h, scales_l, qs })
}

/// The number of a level of IQ4, which is given as the bits of an i8.
#[inline(always)]
pub(super) fn iq4_index(level: u8) -> u8 {
    IQ4_VALUES.partition_point(|&v| v < level as i8) as u8
}
