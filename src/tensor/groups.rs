//! The search of `fit` for all groups of a super-block at once: every lane of a vector is a group of its own, so that
//! nothing is summed across lanes and nothing is decided by branches. Where there are fewer groups than lanes, each
//! group has several lanes, which try different scales.

use super::block::QK_K;
use super::fit::{Ends, LANES, Levels, Line, Simd};

/// A super-block of `G` groups of `N` values, with their weights: group g is in the lanes g, g + G, ...
pub(super) struct Groups<S, const G: usize, const N: usize> {
    s: S,
    x: [[f32; LANES]; N],
    w: [[f32; LANES]; N],
}

/// Values that are the same for the lanes of a group.
#[inline(always)]
fn spread<const G: usize>(values: &[f32; G]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for l in 0..LANES {
        lanes[l] = values[l % G];
    }
    lanes
}

/// What the lanes try in step `step`, of `values` that every group tries.
#[inline(always)]
fn dealt<const G: usize>(values: &[f32; LANES], step: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for l in 0..LANES {
        lanes[l] = values[step * (LANES / G) + l / G];
    }
    lanes
}

/// The lane of each group where `v` is least.
#[inline(always)]
fn least<const G: usize>(v: &[f32; LANES]) -> [usize; G] {
    let mut at = [0; G];
    for g in 0..G {
        at[g] = g;
        for l in (g + G..LANES).step_by(G) {
            at[g] = if v[l] < v[at[g]] { l } else { at[g] };
        }
    }
    at
}

#[inline(always)]
fn pick<const G: usize>(at: &[usize; G], v: &[f32; LANES]) -> [f32; G] {
    let mut picked = [0.0; G];
    for g in 0..G {
        picked[g] = v[at[g]];
    }
    picked
}

/// The whole numbers around those of the lanes that are tried in step `step`: `radius` to either side.
#[inline(always)]
fn offsets<const G: usize>(radius: i32, step: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (l, lane) in lanes.iter_mut().enumerate() {
        // The lanes beyond the last repeat it.
        *lane = ((step * (LANES / G) + l / G) as i32 - radius).min(radius) as f32;
    }
    lanes
}

/// The whole number next to `v` in a range; NaN becomes an end.
#[inline(always)]
fn whole<S: Simd>(s: S, v: S::V, low: f32, high: f32) -> S::V {
    s.round(clamp(s, v, low, high))
}

#[inline(always)]
fn clamp<S: Simd>(s: S, v: S::V, low: f32, high: f32) -> S::V {
    s.min(s.max(v, s.splat(low)), s.splat(high))
}

/// What was chosen for each group.
pub(super) struct Multiples<const G: usize> {
    pub numbers: [f32; G],
    /// Of all groups.
    pub error: f32,
}

impl<S: Simd, const G: usize, const N: usize> Groups<S, G, N> {
    #[inline(always)]
    pub fn new(s: S, x: &[f32; QK_K], w: &[f32; QK_K]) -> Self {
        const { assert!(G * N == QK_K && LANES.is_multiple_of(G)) };
        let (x_groups, w_groups) = (x.as_chunks::<N>().0, w.as_chunks::<N>().0);
        let (mut x, mut w) = ([[0.0; LANES]; N], [[0.0; LANES]; N]);
        for i in 0..N {
            for l in 0..LANES {
                x[i][l] = x_groups[l % G][i];
                w[i][l] = w_groups[l % G][i];
            }
        }
        Groups { s, x, w }
    }

    /// Smallest and largest of every group.
    #[inline(always)]
    fn range(&self) -> (S::V, S::V) {
        let s = self.s;
        let first = s.load(&self.x[0]);
        let (mut low, mut high) = (first, first);
        for x in &self.x {
            let x = s.load(x);
            (low, high) = (s.min(x, low), s.max(x, high));
        }
        (low, high)
    }

    /// Sums of w q x and w q q with the levels under `inverse`, one over the scale.
    #[inline(always)]
    fn trial<L: Levels>(&self, inverse: S::V) -> (S::V, S::V) {
        let s = self.s;
        let (mut sqx, mut sqq) = (s.splat(0.0), s.splat(0.0));
        for (x, w) in self.x.iter().zip(&self.w) {
            let x = s.load(x);
            let q = L::nearest(s, s.mul(x, inverse));
            let wq = s.mul(s.load(w), q);
            sqx = s.add(sqx, s.mul(wq, x));
            sqq = s.add(sqq, s.mul(wq, q));
        }
        (sqx, sqq)
    }

    /// [`super::fit::Symmetric::fit`] of every group.
    #[inline(always)]
    pub fn scales<L: Levels>(&self, ends: &[f32; LANES], passes: usize) -> [f32; G] {
        let s = self.s;
        let (zero, (low, high)) = (s.splat(0.0), self.range());
        let below = s.sub(zero, low);
        let largest = s.if_less(high, below, low, high);
        let first = s.mul(s.inverse(largest), s.splat(L::LOW));
        let (mut best, mut best_gain) = (zero, zero);
        for step in 0..G {
            let mut inverse = s.mul(first, s.load(&dealt::<G>(ends, step)));
            for _ in 0..passes {
                let (sqx, sqq) = self.trial::<L>(inverse);
                let scale = s.div(sqx, sqq);
                let gain = s.mul(sqx, scale);
                best = s.if_less(best_gain, gain, scale, best);
                // NaN is no gain
                best_gain = s.max(gain, best_gain);
                inverse = s.inverse(scale);
            }
        }
        pick(&least::<G>(&s.lanes(s.sub(zero, best_gain))), &s.lanes(best))
    }

    /// For every group the best scale that is a multiple of `unit`, of those around `scales`.
    #[inline(always)]
    pub fn multiples<L: Levels>(
        &self,
        scales: &[f32; G],
        unit: f32,
        radius: i32,
        (low, high): (f32, f32),
    ) -> Multiples<G> {
        let s = self.s;
        let per_unit = s.inverse(s.splat(unit));
        let center = whole(s, s.mul(s.load(&spread(scales)), per_unit), low, high);
        let (mut best, mut best_error) = (center, s.splat(f32::INFINITY));
        for step in 0..(2 * radius as usize + 1).div_ceil(LANES / G) {
            let number = clamp(s, s.add(center, s.load(&offsets::<G>(radius, step))), low, high);
            let scale = s.mul(number, s.splat(unit));
            let (inverse, mut error) = (s.inverse(scale), s.splat(0.0));
            for (x, w) in self.x.iter().zip(&self.w) {
                let x = s.load(x);
                let e = s.sub(s.mul(scale, L::nearest(s, s.mul(x, inverse))), x);
                error = s.add(error, s.mul(s.mul(s.load(w), e), e));
            }
            best = s.if_less(error, best_error, number, best);
            best_error = s.min(error, best_error);
        }
        let errors = s.lanes(best_error);
        let at = least::<G>(&errors);
        Multiples { numbers: pick(&at, &s.lanes(best)), error: pick::<G>(&at, &errors).iter().sum() }
    }

    /// The best unit for the levels under `unit` and the multiples of it that were chosen.
    #[inline(always)]
    pub fn unit<L: Levels>(&self, numbers: &[f32; G], unit: f32) -> f32 {
        let s = self.s;
        let (sqx, sqq) = self.trial::<L>(s.inverse(s.mul(s.load(&spread(numbers)), s.splat(unit))));
        let (sqx, sqq) = (s.lanes(sqx), s.lanes(sqq));
        let (mut sax, mut saa) = (0.0, 0.0);
        for g in 0..G {
            sax += numbers[g] * sqx[g];
            saa += numbers[g] * numbers[g] * sqq[g];
        }
        sax / saa
    }
}

/// Groups whose values are to be `scale q + offset`, q in `0..=top`, with offsets that are not above 0.
pub(super) struct Ranges<S: Simd, const G: usize, const N: usize> {
    groups: Groups<S, G, N>,
    top: f32,
    /// x less its weighted mean, so that differences of sums of squares stay exact.
    y: [[f32; LANES]; N],
    mean: S::V,
    /// Sum of w.
    sw: S::V,
}

/// Lines of all lanes.
#[derive(Clone, Copy)]
struct Lines<V> {
    scale: V,
    /// From the mean.
    offset: V,
}

/// Scales and offsets.
#[inline(always)]
fn parts<const G: usize>(lines: &[Line; G]) -> ([f32; G], [f32; G]) {
    let (mut scales, mut offsets) = ([0.0; G], [0.0; G]);
    for g in 0..G {
        (scales[g], offsets[g]) = (lines[g].scale, lines[g].offset);
    }
    (scales, offsets)
}

/// What was chosen for each group: `scale` units of the scales, `min` of the offsets.
pub(super) struct ScaleMins<const G: usize> {
    pub scales: [f32; G],
    pub mins: [f32; G],
    /// Of all groups.
    pub error: f32,
}

impl<S: Simd, const G: usize, const N: usize> Ranges<S, G, N> {
    #[inline(always)]
    pub fn new(s: S, x: &[f32; QK_K], w: &[f32; QK_K], top: f32) -> Self {
        let groups = Groups::new(s, x, w);
        let (mut sw, mut sx) = (s.splat(0.0), s.splat(0.0));
        for (x, w) in groups.x.iter().zip(&groups.w) {
            let w = s.load(w);
            sw = s.add(sw, w);
            sx = s.add(sx, s.mul(w, s.load(x)));
        }
        let mean = s.div(sx, sw);
        let mut y = groups.x;
        for y in &mut y {
            s.store(s.sub(s.load(y), mean), y);
        }
        Ranges { groups, top, y, mean, sw }
    }

    /// The best lines for the levels under a guess in every lane, and by how much their errors are below that of
    /// storing the mean.
    #[inline(always)]
    fn trial(&self, offset: S::V, inverse: S::V) -> (Lines<S::V>, S::V) {
        let s = self.groups.s;
        let (mut sq, mut sqq, mut sqy) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        for (y, w) in self.y.iter().zip(&self.groups.w) {
            let y = s.load(y);
            let q = whole(s, s.mul(s.sub(y, offset), inverse), 0.0, self.top);
            let wq = s.mul(s.load(w), q);
            sq = s.add(sq, wq);
            sqq = s.add(sqq, s.mul(wq, q));
            sqy = s.add(sqy, s.mul(wq, y));
        }
        let zero = s.splat(0.0);
        let mean_q = s.div(sq, self.sw);
        // What is left where all levels are the same is no number but rounding errors.
        let (apart, tiny) = (s.sub(sqq, s.mul(sq, mean_q)), s.mul(sqq, s.splat(1e-6)));
        let scale = s.div(s.zero_if_less(apart, tiny, sqy), s.zero_if_less(apart, tiny, apart));
        let gain = s.mul(sqy, scale);
        // The best scale without an offset, for where it would be above 0.
        let sqx = s.add(sqy, s.mul(self.mean, sq));
        let alone = s.div(sqx, sqq);
        let alone_gain = s.sub(s.mul(sqx, alone), s.mul(s.mul(self.mean, self.mean), self.sw));
        let least = s.sub(zero, self.mean);
        // NaN, where all levels are the same, counts as above 0.
        let offset = s.min(s.sub(zero, s.mul(scale, mean_q)), s.splat(f32::INFINITY));
        let line = Lines { scale: s.if_less(least, offset, alone, scale), offset: s.min(offset, least) };
        (line, s.if_less(least, offset, alone_gain, gain))
    }

    /// [`super::fit::Affine::fit`] of every group.
    #[inline(always)]
    pub fn lines(&self, ends: &Ends, passes: usize) -> [Line; G] {
        let s = self.groups.s;
        let (zero, none) = (s.splat(0.0), s.splat(f32::NEG_INFINITY));
        let (low, high) = self.groups.range();
        let low = s.min(low, zero);
        let range = s.sub(high, low);
        let start = s.sub(low, self.mean);
        let (mut best, mut best_gain) = (Lines { scale: zero, offset: start }, none);
        for step in 0..G {
            let (a, b) = (s.load(&dealt::<G>(&ends.low, step)), s.load(&dealt::<G>(&ends.high, step)));
            let part = s.sub(s.sub(s.splat(1.0), a), b);
            let mut inverse = s.mul(s.inverse(s.mul(part, range)), s.splat(self.top));
            let mut offset = s.add(start, s.mul(a, range));
            for _ in 0..passes {
                let (line, gain) = self.trial(offset, inverse);
                // No scale above the range is believed, which rounding errors of very unequal weights could give.
                let gain = s.if_less(zero, line.scale, s.if_less(range, line.scale, none, gain), none);
                best.scale = s.if_less(best_gain, gain, line.scale, best.scale);
                best.offset = s.if_less(best_gain, gain, line.offset, best.offset);
                best_gain = s.max(gain, best_gain);
                (offset, inverse) = (line.offset, s.inverse(line.scale));
            }
        }
        let at = least::<G>(&s.lanes(s.sub(zero, best_gain)));
        let (scale, offset) = (pick(&at, &s.lanes(best.scale)), pick(&at, &s.lanes(s.add(self.mean, best.offset))));
        let mut lines = [Line { scale: 0.0, offset: 0.0 }; G];
        for g in 0..G {
            lines[g] = Line { scale: scale[g], offset: offset[g] };
        }
        lines
    }

    /// For every group the best line whose scale is a multiple of `d` and whose offset one of `-dmin`, both up to
    /// `most`, of those around `lines`: `radius` to either side of the scale, and the offsets next to the line through
    /// the same mean.
    #[inline(always)]
    pub fn multiples(&self, lines: &[Line; G], (d, dmin): (f32, f32), radius: i32, most: f32) -> ScaleMins<G> {
        let s = self.groups.s;
        let (scales, line_offsets) = parts(lines);
        let line_scale = s.load(&spread(&scales));
        let center = whole(s, s.mul(line_scale, s.inverse(s.splat(d))), 0.0, most);
        // From the offset to the mean, in units of the scale.
        let height = s.mul(s.sub(self.mean, s.load(&spread(&line_offsets))), s.inverse(line_scale));
        let per_min = s.inverse(s.splat(dmin));
        let (mut best_scale, mut best_min, mut best_error) = (center, center, s.splat(f32::INFINITY));
        for step in 0..(2 * radius as usize + 1).div_ceil(LANES / G) {
            let number = clamp(s, s.add(center, s.load(&offsets::<G>(radius, step))), 0.0, most);
            let scale = s.mul(number, s.splat(d));
            let (inverse, through) = (s.inverse(scale), s.sub(s.mul(scale, height), self.mean));
            let near = whole(s, s.mul(through, per_min), 0.0, most);
            for more in [-1.0, 0.0, 1.0] {
                let min = clamp(s, s.add(near, s.splat(more)), 0.0, most);
                let (offset, mut error) = (s.mul(min, s.splat(dmin)), s.splat(0.0));
                for (x, w) in self.groups.x.iter().zip(&self.groups.w) {
                    let x = s.add(s.load(x), offset);
                    let e = s.sub(s.mul(scale, whole(s, s.mul(x, inverse), 0.0, self.top)), x);
                    error = s.add(error, s.mul(s.mul(s.load(w), e), e));
                }
                best_scale = s.if_less(error, best_error, number, best_scale);
                best_min = s.if_less(error, best_error, min, best_min);
                best_error = s.min(error, best_error);
            }
        }
        let errors = s.lanes(best_error);
        let at = least::<G>(&errors);
        let (scales, mins) = (pick(&at, &s.lanes(best_scale)), pick(&at, &s.lanes(best_min)));
        ScaleMins { scales, mins, error: pick::<G>(&at, &errors).iter().sum() }
    }

    /// Sums of w, w x, w q, w q q and w q x of every group with the levels under a line.
    #[inline(always)]
    pub fn sums(&self, lines: &[Line; G]) -> [[f32; G]; 5] {
        let s = self.groups.s;
        let (scales, offsets) = parts(lines);
        let (inverse, offset) = (s.inverse(s.load(&spread(&scales))), s.load(&spread(&offsets)));
        let (mut sq, mut sqq, mut sqx) = (s.splat(0.0), s.splat(0.0), s.splat(0.0));
        for (x, w) in self.groups.x.iter().zip(&self.groups.w) {
            let x = s.load(x);
            let q = whole(s, s.mul(s.sub(x, offset), inverse), 0.0, self.top);
            let wq = s.mul(s.load(w), q);
            sq = s.add(sq, wq);
            sqq = s.add(sqq, s.mul(wq, q));
            sqx = s.add(sqx, s.mul(wq, x));
        }
        let mut sums = [[0.0; G]; 5];
        for (sums, v) in sums.iter_mut().zip([self.sw, s.mul(self.mean, self.sw), sq, sqq, sqx]) {
            sums.copy_from_slice(&s.lanes(v)[..G]);
        }
        sums
    }
}
