//! The scale (and offset) under which a group of values is stored with the least weighted squared error.
//!
//! A scale decides the levels of the values by rounding; for given levels weighted least squares gives the best scale
//! in closed form, and how much error it saves. So the search tries many roundings, each in one pass over the group,
//! takes the one that saves most, and repeats rounding and least squares from there until nothing is gained.
//!
//! Weights are positive. They are the importances of the columns, or all 1: what is minimized is what is measured.

/// Nearest whole number for |v| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. Unlike `round` and casts it
/// is an instruction in every vector unit, and these functions spend their time with it.
#[inline(always)]
pub(super) fn nearest(v: f32) -> f32 {
    const SHIFT: f32 = 12582912.0;
    (v + SHIFT) - SHIFT
}

/// `v` in `low..=high`; NaN, which a value 0 on a vanishing scale may give, becomes `low`. In this form it is two
/// instructions; `f32::clamp` and `max` are more because they treat NaN otherwise.
#[inline(always)]
fn within(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// What a value divided by its scale can become.
pub(super) trait Levels {
    const LOW: f32;
    const HIGH: f32;
    /// The level next to `v`.
    fn nearest(v: f32) -> f32;
}

/// The whole numbers from LOW to HIGH.
pub(super) struct Whole<const LOW: i8, const HIGH: i8>;

impl<const LOW: i8, const HIGH: i8> Levels for Whole<LOW, HIGH> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;
    #[inline(always)]
    fn nearest(v: f32) -> f32 {
        nearest(within(v, Self::LOW, Self::HIGH))
    }
}

/// For levels that are not evenly spaced: entry `k` is the level next to the values in `low + (k - 1) / 2` to
/// `low + k / 2`. Exact where the levels are whole numbers, because their midpoints are such multiples of 1/2.
pub(super) const fn level_table<const N: usize>(levels: &[i8; 16], low: i32) -> [f32; N] {
    let mut table = [0.0; N];
    let mut k = 0;
    while k < N {
        // in quarters: the middle of the interval
        let v = 4 * low + 2 * k as i32 - 1;
        let (mut best, mut i) = (0, 0);
        while i < 16 {
            if (v - 4 * levels[i] as i32).abs() < (v - 4 * levels[best] as i32).abs() {
                best = i;
            }
            i += 1;
        }
        table[k] = levels[best] as f32;
        k += 1;
    }
    table
}

/// The entry of a `level_table` for `v`, which lies in `low..=low + (N - 1) / 2`.
#[inline(always)]
pub(super) fn look_up<const N: usize>(table: &[f32; N], v: f32, low: f32) -> f32 {
    const { assert!(N.is_power_of_two()) };
    // As in `nearest`: after the addition of 2^23 the last bits are the number, 2 (v - low) rounded up.
    let at = 2.0 * (v - low) + 0.5 + 8388608.0;
    table[at.to_bits() as usize & (N - 1)]
}

/// The levels of IQ4_NL and IQ4_XS.
pub(super) struct Iq4;

impl Levels for Iq4 {
    const LOW: f32 = -127.0;
    const HIGH: f32 = 113.0;
    #[inline(always)]
    fn nearest(v: f32) -> f32 {
        static TABLE: [f32; 512] = level_table(&super::block::IQ4_VALUES, -127);
        look_up(&TABLE, within(v, Self::LOW, Self::HIGH), Self::LOW)
    }
}

/// The levels of MXFP4.
pub(super) struct Fp4;

impl Levels for Fp4 {
    const LOW: f32 = -12.0;
    const HIGH: f32 = 12.0;
    #[inline(always)]
    fn nearest(v: f32) -> f32 {
        static TABLE: [f32; 64] = level_table(&super::block::FP4_VALUES, -12);
        look_up(&TABLE, within(v, Self::LOW, Self::HIGH), Self::LOW)
    }
}

/// Sums of `N` vectors of terms, term by term in the order that vector units like.
#[inline(always)]
fn sums<const T: usize, const N: usize>(terms: impl Fn(usize) -> [f32; T]) -> [f32; T] {
    let mut lanes = [[0.0f32; 8]; T];
    for chunk in 0..N / 8 {
        for lane in 0..8 {
            let terms = terms(chunk * 8 + lane);
            for t in 0..T {
                lanes[t][lane] += terms[t];
            }
        }
    }
    lanes.map(|l| (l[0] + l[4]) + (l[1] + l[5]) + ((l[2] + l[6]) + (l[3] + l[7])))
}

/// 1 / v, or 0 where there is no such number: a scale of 0 or next to it makes every level that of 0.
#[inline(always)]
pub(super) fn inverse(v: f32) -> f32 {
    let inverse = 1.0 / v;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Values that are to be `scale * level`.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<'a, const N: usize> {
    pub x: &'a [f32; N],
    pub w: &'a [f32; N],
}

impl<const N: usize> Symmetric<'_, N> {
    /// Sums of w q x and w q q with the levels under `inverse`, one over the scale.
    #[inline(always)]
    pub fn moments<L: Levels>(&self, inverse: f32) -> (f32, f32) {
        let [sqx, sqq] = sums::<2, N>(|i| {
            let q = L::nearest(self.x[i] * inverse);
            let wq = self.w[i] * q;
            [wq * self.x[i], wq * q]
        });
        (sqx, sqq)
    }

    /// Weighted squared error under `scale`.
    #[inline(always)]
    pub fn error<L: Levels>(&self, scale: f32) -> f32 {
        let inverse = inverse(scale);
        let [e] = sums::<1, N>(|i| {
            let e = scale * L::nearest(self.x[i] * inverse) - self.x[i];
            [self.w[i] * e * e]
        });
        e
    }

    /// The levels under `scale`.
    #[inline(always)]
    pub fn levels<L: Levels>(&self, scale: f32) -> [f32; N] {
        let inverse = inverse(scale);
        self.x.map(|x| L::nearest(x * inverse))
    }

    /// The best scale, of either sign. `ends` are the tried places of the value with the largest magnitude, as
    /// parts of the lowest level: above 1 it is cut off.
    #[inline(always)]
    pub fn fit<L: Levels>(&self, ends: &[f32]) -> f32 {
        let largest = self.x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let (mut best, mut best_gain) = (0.0, 0.0);
        let unit = inverse(largest) * L::LOW;
        let mut attempt = |inverse: f32| {
            let (sqx, sqq) = self.moments::<L>(inverse);
            // With the best scale sqx / sqq the error is less than without levels by this much.
            let gain = sqx * sqx / sqq;
            if gain > best_gain {
                (best, best_gain) = (sqx / sqq, gain);
                return true;
            }
            false
        };
        for end in ends {
            attempt(unit * end);
            attempt(-unit * end);
        }
        for _ in 0..4 {
            let inverse = inverse(best);
            let (sqx, sqq) = self.moments::<L>(inverse);
            let gain = sqx * sqx / sqq;
            if gain <= best_gain * (1.0 + 1e-6) || gain.is_nan() {
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
pub(super) struct Affine<'a, const N: usize> {
    pub x: &'a [f32; N],
    pub w: &'a [f32; N],
    top: f32,
    /// x less its weighted mean, so that differences of sums of squares stay exact.
    y: [f32; N],
    mean: f32,
    /// Sum of w.
    sw: f32,
}

impl<'a, const N: usize> Affine<'a, N> {
    #[inline(always)]
    pub fn new(x: &'a [f32; N], w: &'a [f32; N], top: f32) -> Self {
        let [sw, sx] = sums::<2, N>(|i| [w[i], w[i] * x[i]]);
        let mean = sx / sw;
        Affine { x, w, top, y: x.map(|x| x - mean), mean, sw }
    }

    #[inline(always)]
    fn level(&self, v: f32) -> f32 {
        nearest(within(v, 0.0, self.top))
    }

    #[inline(always)]
    pub fn levels(&self, line: Line) -> [f32; N] {
        let inverse = inverse(line.scale);
        self.x.map(|x| self.level((x - line.offset) * inverse))
    }

    #[inline(always)]
    pub fn error(&self, line: Line) -> f32 {
        let inverse = inverse(line.scale);
        let [e] = sums::<1, N>(|i| {
            let e = line.scale * self.level((self.x[i] - line.offset) * inverse) + line.offset - self.x[i];
            [self.w[i] * e * e]
        });
        e
    }

    /// The best line for the levels under a guess (an offset from the mean and one over the scale), and by how much
    /// its error is below that of storing the mean. With `falling`, lines whose offset is above 0 are not allowed.
    #[inline(always)]
    fn least_squares(&self, offset: f32, inverse: f32, falling: bool) -> (Line, f32) {
        let [sq, sqq, sqy] = sums::<3, N>(|i| {
            let q = self.level((self.y[i] - offset) * inverse);
            let wq = self.w[i] * q;
            [wq, wq * q, wq * self.y[i]]
        });
        let variance = sqq - sq * sq / self.sw;
        let scale = sqy / variance;
        let offset = self.mean - scale * sq / self.sw;
        if falling && !(offset <= 0.0) {
            // the best scale without an offset
            let sqx = sqy + self.mean * sq;
            return (Line { scale: sqx / sqq, offset: 0.0 }, sqx * sqx / sqq - self.mean * self.mean * self.sw);
        }
        (Line { scale, offset }, sqy * sqy / variance)
    }

    /// The best line. `ends` are the tried places of the lowest and highest level, as parts of the range of values
    /// from its end inwards.
    #[inline(always)]
    pub fn fit(&self, ends: &[f32], falling: bool) -> Line {
        let (mut low, high) = self.x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
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
                if gain > best_gain && line.scale > 0.0 {
                    (best, best_gain) = (line, gain);
                }
            }
        }
        for _ in 0..4 {
            let (line, gain) = self.least_squares(best.offset - self.mean, inverse(best.scale), falling);
            if !(gain > best_gain * (1.0 + 1e-6) && line.scale > 0.0) {
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

    /// Sums of w, w x, w q, w q q and w q x with the levels under a line.
    #[inline(always)]
    pub fn sums(&self, line: Line) -> [f32; 5] {
        let inverse = inverse(line.scale);
        sums::<5, N>(|i| {
            let q = self.level((self.x[i] - line.offset) * inverse);
            let (w, x) = (self.w[i], self.x[i]);
            [w, w * x, w * q, w * q * q, w * q * x]
        })
    }
}
