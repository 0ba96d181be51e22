//! The scale (and offset) under which a group of values is stored with the least weighted squared error.
//!
//! A scale decides the levels of the values by rounding; for given levels weighted least squares gives the best scale
//! in closed form, and how much error it saves. So the search tries many roundings, each in one pass over the group,
//! takes the one that saves most, and repeats rounding and least squares from there until nothing is gained.
//!
//! Weights are positive. They are the importances of the columns, or all 1: what is minimized is what is measured.
//!
//! Passes are written for vectors of 16 floats (`Simd`), which `kernels` provides with the instructions of the
//! processor; `Plain` needs none. All give the same bits: no operation is fused, and sums have one order.

/// Lanes of a vector. Groups are one or two vectors.
pub(crate) const LANES: usize = 16;

/// Vectors of 16 floats. Methods are lane-wise and never fused.
pub(crate) trait Simd: Copy {
    type V: Copy;
    fn splat(self, v: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest whole number, ties to even; |a| < 2^22.
    fn round(self, a: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? 0 : v`
    fn zero_if_less(self, a: Self::V, b: Self::V, v: Self::V) -> Self::V;
    /// `a < b ? x : y`
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;

    /// [`inverse`] of every lane.
    #[inline(always)]
    fn inverse(self, v: Self::V) -> Self::V {
        let inverse = self.div(self.splat(1.0), v);
        let size = self.max(inverse, self.sub(self.splat(0.0), inverse));
        self.zero_if_less(self.splat(f32::MAX), size, inverse)
    }

    /// The lanes as an array.
    #[inline(always)]
    fn lanes(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes
    }

    /// Smallest and largest of some values and `start`.
    #[inline(always)]
    fn range(self, x: &[f32], start: (f32, f32)) -> (f32, f32) {
        let (mut low, mut high) = (self.splat(start.0), self.splat(start.1));
        for x in x.as_chunks().0 {
            let x = self.load(x);
            (low, high) = (self.min(x, low), self.max(x, high));
        }
        let low = fold(self.lanes(low), |a, b| if b < a { b } else { a });
        (low, fold(self.lanes(high), |a, b| if b > a { b } else { a }))
    }

    /// The largest magnitude.
    #[inline(always)]
    fn size(self, x: &[f32]) -> f32 {
        let (low, high) = self.range(x, (0.0, 0.0));
        if -low > high { -low } else { high }
    }

    /// Sum of the lanes: halves folded onto each other.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        fold(self.lanes(v), |a, b| a + b)
    }
}

/// Halves are folded onto each other.
#[inline(always)]
pub(crate) fn fold(mut a: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            a[i] = f(a[i], a[i + half]);
        }
        half /= 2;
    }
    a[0]
}

/// Where the first of the smallest is. Without branches: which trial wins cannot be predicted.
#[inline(always)]
pub(super) fn least(a: &[f32; LANES]) -> usize {
    let smallest = fold(*a, |a, b| if b < a { b } else { a });
    let mut at = 0;
    for i in (0..LANES).rev() {
        at = if a[i] == smallest { i } else { at };
    }
    at
}

/// Vectors without instructions of their own.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

macro_rules! lanes {
    (|$i:ident| $value:expr) => {{
        let mut out = [0.0; LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

impl Simd for Plain {
    type V = [f32; LANES];
    #[inline(always)]
    fn splat(self, v: f32) -> Self::V {
        [v; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no bits for a fraction; `round_ties_even` would be a function call per lane.
        const SHIFT: f32 = 12582912.0;
        lanes!(|i| (a[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn zero_if_less(self, a: Self::V, b: Self::V, v: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
}

/// What a value divided by its scale can become.
pub(super) trait Levels {
    const LOW: f32;
    const HIGH: f32;
    /// Whether finding a level takes many instructions: then trials are better done one by one.
    const SLOW: bool = false;
    /// The levels next to `v`; NaN, which a value 0 on a vanishing scale may give, becomes an end.
    fn nearest<S: Simd>(s: S, v: S::V) -> S::V;
}

/// The whole numbers from LOW to HIGH.
pub(super) struct Whole<const LOW: i8, const HIGH: i8>;

impl<const LOW: i8, const HIGH: i8> Levels for Whole<LOW, HIGH> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;
    #[inline(always)]
    fn nearest<S: Simd>(s: S, v: S::V) -> S::V {
        s.round(s.min(s.max(v, s.splat(Self::LOW)), s.splat(Self::HIGH)))
    }
}

/// For levels that are not evenly spaced: the sum of the steps whose middle is not above `v`.
#[inline(always)]
fn climb<S: Simd, const N: usize>(s: S, v: S::V, levels: &[f32; N]) -> S::V {
    let mut level = s.splat(levels[0]);
    for i in 1..N {
        let (below, above) = (levels[i - 1], levels[i]);
        level = s.add(level, s.zero_if_less(v, s.splat((below + above) * 0.5), s.splat(above - below)));
    }
    level
}

/// The levels of IQ4_NL and IQ4_XS.
pub(super) struct Iq4;

impl Levels for Iq4 {
    const LOW: f32 = -127.0;
    const HIGH: f32 = 113.0;
    const SLOW: bool = true;
    #[inline(always)]
    fn nearest<S: Simd>(s: S, v: S::V) -> S::V {
        const LEVELS: [f32; 16] = {
            let (mut levels, mut i) = ([0.0; 16], 0);
            while i < 16 {
                levels[i] = super::block::IQ4_VALUES[i] as f32;
                i += 1;
            }
            levels
        };
        // `climb` would take NaN for a large number
        climb(s, s.max(v, s.splat(Self::LOW)), &LEVELS)
    }
}

/// The magnitudes of the levels of MXFP4, for the magnitudes of values.
pub(super) struct Fp4;

impl Levels for Fp4 {
    const LOW: f32 = 0.0;
    const HIGH: f32 = 12.0;
    const SLOW: bool = true;
    #[inline(always)]
    fn nearest<S: Simd>(s: S, v: S::V) -> S::V {
        // Adding 1.5 * 2^23 steps rounds to a whole number of them: 1 apart up to 4, 2 apart up to 8, then 4 apart.
        const SHIFT: f32 = 12582912.0;
        let v = s.min(v, s.splat(Self::HIGH));
        let large = s.if_less(v, s.splat(8.0), s.splat(2.0 * SHIFT), s.splat(4.0 * SHIFT));
        let shift = s.if_less(v, s.splat(4.0), s.splat(SHIFT), large);
        s.sub(s.add(v, shift), shift)
    }
}

/// 1 / v, or 0 where there is no such number: a scale of 0 or next to it makes every level that of 0.
#[inline(always)]
pub(super) fn inverse(v: f32) -> f32 {
    let inverse = 1.0 / v;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Vectors of a group.
#[inline(always)]
fn vectors<const N: usize>(x: &[f32; N]) -> &[[f32; LANES]] {
    x.as_chunks().0
}

/// Values that are to be `scale * level`.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<'a, S, const N: usize> {
    pub s: S,
    pub x: &'a [f32; N],
    pub w: &'a [f32; N],
}

impl<S: Simd, const N: usize> Symmetric<'_, S, N> {
    /// Sums of w q x and w q q with the levels under sixteen `inverse`s, one over a scale in each lane: no sums across
    /// lanes, which would cost more than the rest.
    #[inline(always)]
    fn trials<L: Levels>(&self, inverse: S::V) -> (S::V, S::V) {
        let s = self.s;
        let (mut sqx, mut sqq) = (s.splat(0.0), s.splat(0.0));
        for (&x, &w) in self.x.iter().zip(self.w) {
            let x = s.splat(x);
            let q = L::nearest(s, s.mul(x, inverse));
            let wq = s.mul(s.splat(w), q);
            sqx = s.add(sqx, s.mul(wq, x));
            sqq = s.add(sqq, s.mul(wq, q));
        }
        (sqx, sqq)
    }

    /// Weighted squared errors under some scales, sixteen at most; infinite for the lanes beyond them.
    #[inline(always)]
    pub fn errors<L: Levels>(&self, scales: &[f32]) -> [f32; LANES] {
        let s = self.s;
        let mut errors = [f32::INFINITY; LANES];
        if L::SLOW {
            for (error, &scale) in errors.iter_mut().zip(scales) {
                let (inverse, scale, mut sum) = (s.splat(inverse(scale)), s.splat(scale), s.splat(0.0));
                for (x, w) in vectors(self.x).iter().zip(vectors(self.w)) {
                    let x = s.load(x);
                    let e = s.sub(s.mul(scale, L::nearest(s, s.mul(x, inverse))), x);
                    sum = s.add(sum, s.mul(s.mul(s.load(w), e), e));
                }
                *error = s.sum(sum);
            }
            return errors;
        }
        let mut lanes = [0.0; LANES];
        lanes[..scales.len()].copy_from_slice(scales);
        let (scale, mut sum) = (s.load(&lanes), s.splat(0.0));
        let inverse = s.inverse(scale);
        for (&x, &w) in self.x.iter().zip(self.w) {
            let x = s.splat(x);
            let e = s.sub(s.mul(scale, L::nearest(s, s.mul(x, inverse))), x);
            sum = s.add(sum, s.mul(s.mul(s.splat(w), e), e));
        }
        errors[..scales.len()].copy_from_slice(&s.lanes(sum)[..scales.len()]);
        errors
    }

    /// The levels under `scale`.
    #[inline(always)]
    pub fn levels<L: Levels>(&self, scale: f32) -> [f32; N] {
        let (s, inverse) = (self.s, self.s.splat(inverse(scale)));
        let mut q = *self.x;
        for q in q.as_chunks_mut().0 {
            s.store(L::nearest(s, s.mul(s.load(q), inverse)), q);
        }
        q
    }

    /// The best scale, of either sign. `ends` are the tried places of the value with the largest magnitude, as
    /// parts of the lowest level: above 1 it is cut off, below 0 the sign is the other one. In every pass each trial
    /// goes to the best scale of its levels.
    #[inline(always)]
    pub fn fit<L: Levels>(&self, ends: &[f32; LANES], passes: usize) -> f32 {
        let s = self.s;
        let (low, high) = s.range(self.x, (0.0, 0.0));
        let largest = if -low > high { low } else { high };
        let mut inverse = s.mul(s.splat(inverse(largest) * L::LOW), s.load(ends));
        // Of each lane; with the best scale the error is less than without levels by the gain.
        let zero = s.splat(0.0);
        let (mut best, mut best_gain) = (zero, zero);
        for _ in 0..passes {
            let (sqx, sqq) = self.trials::<L>(inverse);
            let scale = s.div(sqx, sqq);
            let gain = s.mul(sqx, scale);
            best = s.if_less(best_gain, gain, scale, best);
            // NaN is no gain
            best_gain = s.max(gain, best_gain);
            inverse = s.inverse(scale);
        }
        s.lanes(best)[least(&s.lanes(s.sub(zero, best_gain)))]
    }
}

/// A scale and what it is counted from: x = scale q + offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub scale: f32,
    pub offset: f32,
}

/// Sixteen places of the lowest and the highest level.
pub(super) struct Ends {
    pub low: [f32; LANES],
    pub high: [f32; LANES],
}

impl Ends {
    /// Every pair of four.
    pub(super) const fn pairs(low: [f32; 4], high: [f32; 4]) -> Ends {
        let mut ends = Ends { low: [0.0; LANES], high: [0.0; LANES] };
        let mut i = 0;
        while i < LANES {
            (ends.low[i], ends.high[i]) = (low[i / 4], high[i % 4]);
            i += 1;
        }
        ends
    }
}

/// Values that are to be `scale q + offset`, q in `0..=top`.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a, S, const N: usize> {
    s: S,
    x: &'a [f32; N],
    w: &'a [f32; N],
    top: f32,
    /// x less its weighted mean, so that differences of sums of squares stay exact.
    y: [f32; N],
    mean: f32,
    /// Sum of w.
    sw: f32,
}

impl<'a, S: Simd, const N: usize> Affine<'a, S, N> {
    #[inline(always)]
    pub fn new(s: S, x: &'a [f32; N], w: &'a [f32; N], top: f32) -> Self {
        let (mut sw, mut sx) = (s.splat(0.0), s.splat(0.0));
        for (x, w) in vectors(x).iter().zip(vectors(w)) {
            let w = s.load(w);
            sw = s.add(sw, w);
            sx = s.add(sx, s.mul(w, s.load(x)));
        }
        let sw = s.sum(sw);
        let mean = s.sum(sx) / sw;
        let mut y = *x;
        for y in y.as_chunks_mut().0 {
            s.store(s.sub(s.load(y), s.splat(mean)), y);
        }
        Affine { s, x, w, top, y, mean, sw }
    }

    /// The levels of values that were divided by their scale.
    #[inline(always)]
    fn level(&self, v: S::V) -> S::V {
        let s = self.s;
        s.round(s.min(s.max(v, s.splat(0.0)), s.splat(self.top)))
    }

    #[inline(always)]
    pub fn levels(&self, line: Line) -> [f32; N] {
        let (s, inverse, offset) = (self.s, self.s.splat(inverse(line.scale)), self.s.splat(line.offset));
        let mut q = *self.x;
        for q in q.as_chunks_mut().0 {
            s.store(self.level(s.mul(s.sub(s.load(q), offset), inverse)), q);
        }
        q
    }

    /// Weighted squared errors under sixteen lines, given as scales and offsets.
    #[inline(always)]
    pub fn errors(&self, scales: &[f32; LANES], offsets: &[f32; LANES]) -> [f32; LANES] {
        let s = self.s;
        let (scale, offset, mut sum) = (s.load(scales), s.load(offsets), s.splat(0.0));
        let inverse = s.inverse(scale);
        for (&x, &w) in self.x.iter().zip(self.w) {
            let x = s.sub(s.splat(x), offset);
            let e = s.sub(s.mul(scale, self.level(s.mul(x, inverse))), x);
            sum = s.add(sum, s.mul(s.mul(s.splat(w), e), e));
        }
        s.lanes(sum)
    }

    /// The best lines for the levels under sixteen guesses (offsets from the mean, and one over the scale), as scales
    /// and offsets from the mean, and by how much their errors are below that of storing the mean.
    #[inline(always)]
    fn trials(&self, offset: S::V, inverse: S::V) -> (S::V, S::V, S::V) {
        let s = self.s;
        let (mut sq, mut sqq, mut sqy) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        for (&y, &w) in self.y.iter().zip(self.w) {
            let y = s.splat(y);
            let q = self.level(s.mul(s.sub(y, offset), inverse));
            let wq = s.mul(s.splat(w), q);
            sq = s.add(sq, wq);
            sqq = s.add(sqq, s.mul(wq, q));
            sqy = s.add(sqy, s.mul(wq, y));
        }
        let mean_q = s.mul(sq, s.splat(1.0 / self.sw));
        let scale = s.div(sqy, s.sub(sqq, s.mul(sq, mean_q)));
        (scale, s.sub(s.splat(0.0), s.mul(scale, mean_q)), s.mul(sqy, scale))
    }

    /// The best line; no scale above the range is believed, which rounding errors of very unequal weights could give.
    /// `ends` are the tried places of the lowest and highest level, as parts of the range of values from its ends
    /// inwards. In every pass each trial goes to the best line of its levels.
    #[inline(always)]
    pub fn fit(&self, ends: &Ends, passes: usize) -> Line {
        let s = self.s;
        let (low, high) = s.range(self.x, (f32::INFINITY, f32::NEG_INFINITY));
        let range = high - low;
        if range <= 0.0 {
            return Line { scale: 0.0, offset: low };
        }
        // Of each lane, offsets from the mean.
        let (none, range) = (s.splat(f32::NEG_INFINITY), s.splat(range));
        let start = s.splat(low - self.mean);
        let (mut best_scale, mut best_offset, mut best_gain) = (s.splat(0.0), start, none);
        let (a, b) = (s.load(&ends.low), s.load(&ends.high));
        let mut offset = s.add(start, s.mul(a, range));
        let part = s.sub(s.sub(s.splat(1.0), a), b);
        let mut inverse = s.mul(s.inverse(s.mul(part, range)), s.splat(self.top));
        for _ in 0..passes {
            let (scale, from_mean, gain) = self.trials(offset, inverse);
            let gain = s.if_less(s.splat(0.0), scale, s.if_less(range, scale, none, gain), none);
            best_scale = s.if_less(best_gain, gain, scale, best_scale);
            best_offset = s.if_less(best_gain, gain, from_mean, best_offset);
            best_gain = s.max(gain, best_gain);
            (offset, inverse) = (from_mean, s.inverse(scale));
        }
        let at = least(&s.lanes(s.sub(s.splat(0.0), best_gain)));
        Line { scale: s.lanes(best_scale)[at], offset: self.mean + s.lanes(best_offset)[at] }
    }

    /// The offset for another scale: the line through the same mean.
    #[inline(always)]
    pub fn through_mean(&self, line: Line, scale: f32) -> f32 {
        self.mean - scale * (self.mean - line.offset) * inverse(line.scale)
    }
}
