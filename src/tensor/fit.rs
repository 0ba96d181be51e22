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
    /// `a < b ? 0 : v`
    fn zero_if_less(self, a: Self::V, b: Self::V, v: Self::V) -> Self::V;

    /// Sum of the lanes: halves folded onto each other.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut a = [0.0; LANES];
        self.store(v, &mut a);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                a[i] += a[i + half];
            }
            half /= 2;
        }
        a[0]
    }
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
    fn zero_if_less(self, a: Self::V, b: Self::V, v: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { 0.0 } else { v[i] })
    }
}

/// What a value divided by its scale can become.
pub(super) trait Levels {
    const LOW: f32;
    const HIGH: f32;
    /// The levels next to `v`; NaN, which a value 0 on a vanishing scale may give, becomes the lowest.
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

/// The levels of MXFP4.
pub(super) struct Fp4;

impl Levels for Fp4 {
    const LOW: f32 = -12.0;
    const HIGH: f32 = 12.0;
    #[inline(always)]
    fn nearest<S: Simd>(s: S, v: S::V) -> S::V {
        const LEVELS: [f32; 15] = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
        climb(s, s.max(v, s.splat(Self::LOW)), &LEVELS)
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
    /// Sums of w q x and w q q with the levels under `inverse`, one over the scale.
    #[inline(always)]
    pub fn moments<L: Levels>(&self, inverse: f32) -> (f32, f32) {
        let (s, inverse) = (self.s, self.s.splat(inverse));
        let (mut sqx, mut sqq) = (s.splat(0.0), s.splat(0.0));
        for (x, w) in vectors(self.x).iter().zip(vectors(self.w)) {
            let x = s.load(x);
            let q = L::nearest(s, s.mul(x, inverse));
            let wq = s.mul(s.load(w), q);
            sqx = s.add(sqx, s.mul(wq, x));
            sqq = s.add(sqq, s.mul(wq, q));
        }
        (s.sum(sqx), s.sum(sqq))
    }

    /// Weighted squared error under `scale`.
    #[inline(always)]
    pub fn error<L: Levels>(&self, scale: f32) -> f32 {
        let (s, inverse, scale) = (self.s, self.s.splat(inverse(scale)), self.s.splat(scale));
        let mut sum = s.splat(0.0);
        for (x, w) in vectors(self.x).iter().zip(vectors(self.w)) {
            let x = s.load(x);
            let e = s.sub(s.mul(scale, L::nearest(s, s.mul(x, inverse))), x);
            sum = s.add(sum, s.mul(s.mul(s.load(w), e), e));
        }
        s.sum(sum)
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
    /// parts of the lowest level: above 1 it is cut off.
    #[inline(always)]
    pub fn fit<L: Levels>(&self, ends: &[f32]) -> f32 {
        let (mut low, mut high) = (0.0f32, 0.0f32);
        for &x in self.x {
            low = if x < low { x } else { low };
            high = if x > high { x } else { high };
        }
        let largest = if -low > high { low } else { high };
        let unit = inverse(largest) * L::LOW;
        let (mut best, mut best_gain) = (0.0, 0.0);
        for end in ends {
            for inverse in [unit * end, -unit * end] {
                let (sqx, sqq) = self.moments::<L>(inverse);
                // With the best scale sqx / sqq the error is less than without levels by this much.
                let gain = sqx * sqx / sqq;
                if gain > best_gain {
                    (best, best_gain) = (sqx / sqq, gain);
                }
            }
        }
        for _ in 0..4 {
            let (sqx, sqq) = self.moments::<L>(inverse(best));
            let gain = sqx * sqx / sqq;
            let better = gain > best_gain * (1.0 + 1e-6);
            if !better {
                break;
            }
            (best, best_gain) = (sqx / sqq, gain);
        }
        best
    }
}

/// A scale and what it is counted from: x = scale q + offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub scale: f32,
    pub offset: f32,
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

    #[inline(always)]
    pub fn error(&self, line: Line) -> f32 {
        let s = self.s;
        let (inverse, scale, offset) = (s.splat(inverse(line.scale)), s.splat(line.scale), s.splat(line.offset));
        let mut sum = s.splat(0.0);
        for (x, w) in vectors(self.x).iter().zip(vectors(self.w)) {
            let x = s.sub(s.load(x), offset);
            let e = s.sub(s.mul(scale, self.level(s.mul(x, inverse))), x);
            sum = s.add(sum, s.mul(s.mul(s.load(w), e), e));
        }
        s.sum(sum)
    }

    /// Sums of w q, w q q and w q v for values v with the levels under a line.
    #[inline(always)]
    fn moments(&self, values: &[f32; N], offset: f32, inverse: f32) -> (f32, f32, f32) {
        let (s, offset, inverse) = (self.s, self.s.splat(offset), self.s.splat(inverse));
        let (mut sq, mut sqq, mut sqv) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        for (v, w) in vectors(values).iter().zip(vectors(self.w)) {
            let v = s.load(v);
            let q = self.level(s.mul(s.sub(v, offset), inverse));
            let wq = s.mul(s.load(w), q);
            sq = s.add(sq, wq);
            sqq = s.add(sqq, s.mul(wq, q));
            sqv = s.add(sqv, s.mul(wq, v));
        }
        (s.sum(sq), s.sum(sqq), s.sum(sqv))
    }

    /// Sums of w, w x, w q, w q q and w q x with the levels under a line.
    #[inline(always)]
    pub fn sums(&self, line: Line) -> [f32; 5] {
        let (sq, sqq, sqx) = self.moments(self.x, line.offset, inverse(line.scale));
        [self.sw, self.mean * self.sw, sq, sqq, sqx]
    }

    /// The best line for the levels under a guess (an offset from the mean and one over the scale), and by how much
    /// its error is below that of storing the mean. With `falling`, lines whose offset is above 0 are not allowed.
    #[inline(always)]
    fn least_squares(&self, offset: f32, inverse: f32, falling: bool) -> (Line, f32) {
        let (sq, sqq, sqy) = self.moments(&self.y, offset, inverse);
        let variance = sqq - sq * sq / self.sw;
        let scale = sqy / variance;
        let offset = self.mean - scale * sq / self.sw;
        let falls = offset <= 0.0;
        if falling && !falls {
            // the best scale without an offset
            let sqx = sqy + self.mean * sq;
            return (Line { scale: sqx / sqq, offset: 0.0 }, sqx * sqx / sqq - self.mean * self.mean * self.sw);
        }
        (Line { scale, offset }, sqy * sqy / variance)
    }

    /// The best line; no scale above the range is believed, which rounding errors of very unequal weights could give.
    /// `ends` are the tried places of the lowest and highest level, as parts of the range of values from its end
    /// inwards.
    #[inline(always)]
    pub fn fit(&self, ends: &[f32], falling: bool) -> Line {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for &x in self.x {
            low = if x < low { x } else { low };
            high = if x > high { x } else { high };
        }
        if falling {
            low = low.min(0.0);
        }
        let range = high - low;
        let mut best = Line { scale: 0.0, offset: low };
        if range <= 0.0 {
            return best;
        }
        let mut best_gain = f32::NEG_INFINITY;
        for a in ends {
            let low = low - self.mean + a * range;
            for b in ends {
                let inverse = inverse(range * (1.0 - a - b)) * self.top;
                let (line, gain) = self.least_squares(low, inverse, falling);
                if gain > best_gain && line.scale > 0.0 && line.scale <= range {
                    (best, best_gain) = (line, gain);
                }
            }
        }
        for _ in 0..4 {
            let (line, gain) = self.least_squares(best.offset - self.mean, inverse(best.scale), falling);
            let better = gain > best_gain * (1.0 + 1e-6) && line.scale > 0.0 && line.scale <= range;
            if !better {
                break;
            }
            (best, best_gain) = (line, gain);
        }
        best
    }

    /// The offset for another scale: the line through the same mean.
    #[inline(always)]
    pub fn through_mean(&self, line: Line, scale: f32) -> f32 {
        self.mean - scale * (self.mean - line.offset) * inverse(line.scale)
    }
}
