//! The types with super-blocks: the K types and IQ4_XS. For every sub-block `fit` finds the best scale (and offset).
//! Those are stored as small whole numbers of a unit that all sub-blocks share, so the search goes on: for given units
//! every sub-block tries the whole numbers around its best ones with the levels that follow from them, for given
//! numbers and levels the units are a least squares problem; the two steps alternate until the error stays.

use super::block::*;
use super::fit::{Affine, Ends, Iq4, LANES, Levels, Line, Simd, Symmetric, Whole};
use super::groups::{Groups, Multiples, Ranges, ScaleMins};
use super::quantize::{Fallible, TooLarge, half};

/// No K type reaches this (`65504 * 128 * 32` is the most); below it no square overflows.
const LIMIT: f32 = 1e9;

/// How often the units are fitted again at most.
const ROUNDS: usize = 4;
/// How a search is done.
struct Search<'a, Ends> {
    /// See [`Symmetric::fit`] and [`super::fit::Affine::fit`].
    ends: &'a Ends,
    passes: usize,
    /// The whole numbers to either side that are tried at first.
    radius: i32,
}

/// The unit and scales of a super-block of `G` sub-blocks of `N` values `unit scale level`.
struct Scaled<const G: usize> {
    d: Half,
    sc: [i8; G],
}

impl<const G: usize> Scaled<G> {
    /// Scales are from `low` to `-low - 1`.
    #[inline(always)]
    fn fit<S: Simd, L: Levels, const N: usize>(
        s: S,
        x: &[f32; QK_K],
        w: &[f32; QK_K],
        low: f32,
        search: Search<'_, [f32; LANES]>,
    ) -> Fallible<Self> {
        if s.size(x) > LIMIT {
            return Err(TooLarge);
        }
        let groups = Groups::<S, G, N>::new(s, x, w);
        let mut scales = groups.scales::<L>(search.ends, search.passes);
        let largest = scales.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let mut best = Scaled { d: half(largest / low)?, sc: [0; G] };
        let (mut best_error, mut d) = (f32::INFINITY, best.d);
        for round in 0..ROUNDS {
            let radius = if round == 0 { search.radius } else { 1 };
            let Multiples { numbers, error } = groups.multiples::<L>(&scales, d.get(), radius, (low, -low - 1.0));
            let better = error < best_error;
            if !better {
                break;
            }
            best_error = error;
            best.d = d;
            for g in 0..G {
                best.sc[g] = numbers[g] as i8;
                scales[g] = d.get() * numbers[g];
            }
            // NaN and what cannot be stored end the search.
            match half(groups.unit::<L>(&numbers, d.get())) {
                Ok(next) if next != d => d = next,
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

    /// The levels q are `0..=top`, the scales and mins `0..=most`.
    #[inline(always)]
    fn fit<S: Simd, const N: usize>(
        s: S,
        x: &[f32; QK_K],
        w: &[f32; QK_K],
        top: f32,
        most: f32,
        search: Search<'_, Ends>,
    ) -> Fallible<Self> {
        if s.size(x) > LIMIT {
            return Err(TooLarge);
        }
        let groups = Ranges::<S, G, N>::new(s, x, w, top);
        let mut lines = groups.lines(search.ends, search.passes);
        let d = half(lines.iter().fold(0.0f32, |m, f| m.max(f.scale)) / most)?;
        let dmin = half(lines.iter().fold(0.0f32, |m, f| m.max(-f.offset)) / most)?;
        let mut best = Ranged { d, dmin, sc: [0; G], m: [0; G] };
        let (mut best_error, mut units) = (f32::INFINITY, (d, dmin));
        for round in 0..ROUNDS {
            let radius = if round == 0 { search.radius } else { 1 };
            let (d, dmin) = units;
            let chosen = groups.multiples(&lines, (d.get(), dmin.get()), radius, most);
            let better = chosen.error < best_error;
            if !better {
                break;
            }
            best_error = chosen.error;
            (best.d, best.dmin) = units;
            for (g, line) in lines.iter_mut().enumerate() {
                (best.sc[g], best.m[g]) = (chosen.scales[g] as u8, chosen.mins[g] as u8);
                *line = best.line(g);
            }
            match solve(&chosen, &groups.sums(&lines)) {
                Some(next) if next != units => units = next,
                _ => break,
            }
        }
        Ok(best)
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

/// The units for the numbers that were chosen, by the normal equations of `x = d (sc q) - dmin m` over a super-block:
/// `sums` see [`Ranges::sums`]. Only such that can be stored and are not negative.
#[inline(always)]
fn solve<const G: usize>(chosen: &ScaleMins<G>, sums: &[[f32; G]; 5]) -> Option<(Half, Half)> {
    let [sw, sx, sq, sqq, sqx] = sums;
    let (mut aa, mut am, mut mm, mut ax, mut mx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for g in 0..G {
        let (sc, m) = (chosen.scales[g], chosen.mins[g]);
        aa += sc * sc * sqq[g];
        am += sc * m * sq[g];
        mm += m * m * sw[g];
        ax += sc * sqx[g];
        mx += m * sx[g];
    }
    let det = aa * mm - am * am;
    let (d, dmin) = if det > 0.0 { ((ax * mm - am * mx) / det, (am * ax - aa * mx) / det) } else { (ax / aa, 0.0) };
    (d > 0.0 && dmin >= 0.0).then_some(())?;
    Some((half(d).ok()?, half(dmin).ok()?))
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
    let search = Search { ends: &ENDS2, passes: 1, radius: 1 };
    let fit = Ranged::<16>::fit::<S, 16>(s, x, w, 3.0, 15.0, search)?;
    let scales = std::array::from_fn(|g| fit.sc[g] | fit.m[g] << 4);
    Ok(BlockQ2_K { scales, qs: pack_two_bits(&fit.levels::<S, 16>(s, x, 3.0)), d: fit.d, dmin: fit.dmin })
}

#[inline(always)]
pub(super) fn q4_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ4_K> {
    let search = Search { ends: &ENDS4, passes: 2, radius: 2 };
    let fit = Ranged::<8>::fit::<S, 32>(s, x, w, 15.0, 63.0, search)?;
    let scales = pack_scale_min_k4(&fit.sc, &fit.m);
    Ok(BlockQ4_K { d: fit.d, dmin: fit.dmin, scales, qs: pack_nibbles(&fit.levels::<S, 32>(s, x, 15.0)) })
}

#[inline(always)]
pub(super) fn q5_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ5_K> {
    let search = Search { ends: &ENDS5, passes: 2, radius: 2 };
    let fit = Ranged::<8>::fit::<S, 32>(s, x, w, 31.0, 63.0, search)?;
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
    let search = Search { ends: &ENDS3, passes: 1, radius: 2 };
    let fit = Scaled::<16>::fit::<S, L, 16>(s, x, w, -32.0, search)?;
    let q = fit.levels::<S, L, 16>(s, x, 4.0);
    let hmask = std::array::from_fn(|l| (0..8).fold(0, |bits, j| bits | (q[j * 32 + l] >> 2) << j));
    Ok(BlockQ3_K { hmask, qs: pack_two_bits(&q), scales: pack_scale_q3_k(&fit.sc), d: fit.d })
}

#[inline(always)]
pub(super) fn q6_k<S: Simd>(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Fallible<BlockQ6_K> {
    type L = Whole<-32, 31>;
    let search = Search { ends: &ENDS6, passes: 2, radius: 3 };
    let fit = Scaled::<16>::fit::<S, L, 16>(s, x, w, -128.0, search)?;
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
    let search = Search { ends: &ENDS_IQ4, passes: 2, radius: 2 };
    let fit = Scaled::<8>::fit::<S, Iq4, 32>(s, x, w, -32.0, search)?;
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
