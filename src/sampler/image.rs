//! Image sampling: every step samples a code for each unknown position and masks the least confident again
//! (MaskGIT, arXiv 2202.04200, with classifier-free guidance).

use rayon::prelude::*;

use super::{Draw, LANES, Noise, Schedule, exp, max, not_finite};
use crate::error::{Error, Result};
use crate::memory::try_resize;
use crate::parallel::Exec;

/// What makes a sampled code worth keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Confidence {
    /// The probability of the sampled code.
    #[default]
    Probability,
    /// The probability of the position's best code less that of its second best, whatever was sampled.
    Margin,
}

/// Classifier-free guidance: `cond = (1 + scale) cond - scale uncond`, element by element.
pub fn guide(cond: &mut [f32], uncond: &[f32], scale: f32) {
    let factor = 1.0 + scale;
    for (c, &u) in cond.iter_mut().zip(uncond) {
        *c = factor * *c - scale * u;
    }
}

/// The code that a position takes, and how sure that is.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Sampled {
    pub code: u32,
    pub confidence: f32,
}

impl Sampled {
    /// What a graphics card has sampled: a code, or `u32::MAX` where logits were not finite.
    ///
    /// # Errors
    /// As [`sample`].
    #[cfg(feature = "cuda")]
    pub(crate) fn from_card(code: u32, confidence: f32, draw: Draw) -> Result<Self> {
        match code {
            u32::MAX => Err(not_finite(draw.position)),
            code => Ok(Sampled { code, confidence }),
        }
    }
}

/// How codes are sampled and weighed.
#[derive(Clone, Copy)]
pub struct Rule<'a> {
    /// Of classifier-free guidance; 0 where there is none.
    pub guidance: f32,
    pub confidence: Confidence,
    pub noise: &'a dyn Noise,
}

/// Samples a code for each of `draws.len()` positions, in parallel over the positions, appended to `out`.
///
/// `logits` is row-major [draws, codes], and is overwritten; `unconditional` has the same shape, or is empty
/// where nothing guides. An error if a row holds NaN or infinity.
pub fn sample(
    exec: &Exec<'_>,
    logits: &mut [f32],
    unconditional: &[f32],
    codes: usize,
    draws: &[Draw],
    rule: Rule<'_>,
    out: &mut Vec<Sampled>,
) -> Result<()> {
    let (rows, from) = (draws.len(), out.len());
    let guided = !unconditional.is_empty();
    if codes == 0 || logits.len() != rows * codes || (guided && unconditional.len() != logits.len()) {
        let (got, free) = (logits.len(), unconditional.len());
        return Err(Error::Internal(format!("{rows} rows of {codes} logits were due, got {got} and {free}")));
    }
    try_resize(out, from + rows, "the sampled codes")?;
    exec.run(|| {
        let rows = logits.par_chunks_mut(codes).zip(draws).zip(&mut out[from..]);
        rows.enumerate().try_for_each(|(i, ((row, draw), sampled))| {
            if guided {
                guide(row, &unconditional[i * codes..][..codes], rule.guidance);
            }
            softmax(row, draw.position)?;
            let code = inverse_cdf(row, rule.noise.categorical_uniform(*draw));
            let confidence = match rule.confidence {
                Confidence::Probability => row[code],
                Confidence::Margin => margin(row),
            };
            *sampled = Sampled { code: code as u32, confidence };
            Ok(())
        })
    })
}

/// Turns logits into f32 probabilities in place.
fn softmax(row: &mut [f32], position: usize) -> Result<()> {
    let top = max(row);
    if !top.is_finite() {
        return Err(not_finite(position));
    }
    let top = f64::from(top);
    let mut sums = [0.0f64; LANES];
    let (chunks, tail) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let e = exp(f64::from(chunk[i]) - top);
            sums[i] += e;
            chunk[i] = e as f32;
        }
    }
    for (sum, l) in sums.iter_mut().zip(tail) {
        let e = exp(f64::from(*l) - top);
        *sum += e;
        *l = e as f32;
    }
    let sum = sums.iter().sum::<f64>() as f32;
    row.iter_mut().for_each(|p| *p /= sum);
    Ok(())
}

/// The first code whose cumulative probability exceeds `u` times the total; both are f64 sums in code order.
fn inverse_cdf(probabilities: &[f32], u: f64) -> usize {
    let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
    let target = u * total;
    let mut cumulative = 0.0;
    let found = probabilities.iter().position(|&p| {
        cumulative += f64::from(p);
        cumulative > target
    });
    // Where the product rounds up to the total itself, the last code that is possible at all has been passed.
    found.or_else(|| probabilities.iter().rposition(|&p| p > 0.0)).unwrap_or(0)
}

/// The largest probability less the second largest; all of it where there is one code only.
fn margin(probabilities: &[f32]) -> f32 {
    let (mut first, mut second) = (0.0f32, 0.0f32);
    for &p in probabilities {
        second = second.max(p.min(first));
        first = first.max(p);
    }
    first - second
}

/// How many positions are masked again after step `step` (from 0) of `steps`, when `unknown` of the picture's
/// `tokens` were masked before it: what the schedule says, but fewer than before, and one at least.
pub fn keep_masked(schedule: Schedule, tokens: usize, unknown: usize, step: usize, steps: usize) -> usize {
    let scheduled = usize::try_from(schedule.masked(tokens, step, steps)).unwrap_or(0);
    scheduled.min(unknown.saturating_sub(1)).max(1)
}

/// The temperature of a picture's confidences: it shrinks at every step by the share of the steps that is left
/// then, T <- T (1 - r) with r = (t + 1) / steps, and so compounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature(f64);

impl Temperature {
    pub fn new(initial: f32) -> Self {
        Temperature(f64::from(initial))
    }

    /// The temperature of step `step`; to be called once for each step, from 0 on.
    pub fn at(&mut self, step: usize, steps: usize) -> f32 {
        self.0 *= 1.0 - (step as f64 + 1.0) / steps as f64;
        self.0 as f32
    }
}

/// ln(max(confidence, 1e-20)) + temperature * gumbel(u): what positions are ranked by.
pub fn score(confidence: f32, temperature: f32, u: f32) -> f32 {
    let ln = |x: f32| f64::from(x.max(1e-20)).ln() as f32;
    let gumbel = -ln(-ln(u));
    ln(confidence) + temperature * gumbel
}

/// The score from which on positions stay known: the `keep`-th smallest, counted from 0, of a picture's scores.
///
/// `unknown` holds the scores of the positions that were masked (it is reordered); those of known positions
/// count as infinite, so there are none to pass. Positions scoring below the cut-off are masked again.
pub fn cut_off(unknown: &mut [f32], keep: usize) -> f32 {
    if keep >= unknown.len() {
        return f32::INFINITY;
    }
    *unknown.select_nth_unstable_by(keep, f32::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernels;
    use crate::parallel::Threads;
    use crate::sampler::{Philox, Stage};

    fn at(position: usize) -> Draw {
        Draw::new(Stage::Image, 0, position)
    }

    fn logits(seed: u64, len: usize) -> Vec<f32> {
        (0..len).map(|i| Philox::new(seed).gumbel_uniform(at(i)) * 12.0 - 6.0).collect()
    }

    #[test]
    fn guidance_moves_away_from_the_unconditional_logits() {
        let mut cond = vec![1.0, -2.0, 0.5];
        guide(&mut cond, &[0.5, 0.0, 0.5], 3.0);
        assert_eq!(cond, [2.5, -8.0, 0.5]);
    }

    #[test]
    fn softmax_gives_probabilities_for_odd_sizes_and_extreme_logits() {
        for len in [1, 2, 15, 16, 17, 1000] {
            let row = logits(len as u64, len);
            let mut p = row.clone();
            softmax(&mut p, 0).unwrap();
            let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            for (&p, &l) in p.iter().zip(&row) {
                let want = f64::from(l).exp() / sum;
                assert!((f64::from(p) - want).abs() <= 2e-7 * want);
            }
        }
        let mut p = vec![3e38, -3e38, 3e38, f32::NEG_INFINITY];
        softmax(&mut p, 0).unwrap();
        assert_eq!(p, [0.5, 0.0, 0.5, 0.0]);
        for bad in [vec![0.0, f32::NAN], vec![f32::INFINITY, 0.0], vec![f32::NEG_INFINITY; 3]] {
            assert!(softmax(&mut bad.clone(), 4).unwrap_err().to_string().contains("position 4"));
        }
    }

    #[test]
    fn the_first_code_beyond_the_uniform_is_taken() {
        let p = [0.25, 0.0, 0.5, 0.25];
        for (u, want) in [(1e-9, 0), (0.2499, 0), (0.25, 2), (0.7499, 2), (0.75, 3), (1.0 - 1e-16, 3)] {
            assert_eq!(inverse_cdf(&p, u), want, "u = {u}");
        }
        assert_eq!(inverse_cdf(&[0.5, 0.5, 0.0], 1.0), 1); // beyond the end, but never an impossible code
    }

    #[test]
    fn codes_are_sampled_in_proportion_to_their_probability() {
        let threads = Threads::new(2).unwrap();
        let exec = Exec::new(&threads, Kernels::best(), None);
        let philox = Philox::new(6);
        let n = 20_000;
        let mut rows = [0.2f32, 0.7, 0.1].map(f32::ln).repeat(n);
        let draws: Vec<Draw> = (0..n).map(at).collect();
        let mut out = Vec::new();
        let rule = Rule { guidance: 0.0, confidence: Confidence::Probability, noise: &philox };
        sample(&exec, &mut rows, &[], 3, &draws, rule, &mut out).unwrap();
        for (code, p) in [0.2f32, 0.7, 0.1].into_iter().enumerate() {
            let taken: Vec<&Sampled> = out.iter().filter(|s| s.code == code as u32).collect();
            assert!((taken.len() as f32 / n as f32 - p).abs() < 0.02); // over five standard errors
            assert!(taken.iter().all(|s| (s.confidence - p).abs() < 1e-6));
        }
    }

    #[test]
    fn sampling_does_not_depend_on_the_batch_or_the_threads() {
        let philox = Philox::new(13);
        let (rows, codes) = (11, 257);
        let (cond, free) = (logits(1, rows * codes), logits(2, rows * codes));
        let draws: Vec<Draw> =
            (0..rows).map(|r| Draw { sequence: r % 2, ..Draw::new(Stage::Image, 3, r * r) }).collect();
        let rule = Rule { guidance: 2.0, confidence: Confidence::Margin, noise: &philox };
        let mut results = Vec::new();
        for count in [1, 4] {
            let threads = Threads::new(count).unwrap();
            let exec = Exec::new(&threads, Kernels::best(), None);
            let mut together = Vec::new();
            sample(&exec, &mut cond.clone(), &free, codes, &draws, rule, &mut together).unwrap();
            let mut alone = Vec::new();
            for r in (0..rows).rev() {
                let range = r * codes..(r + 1) * codes;
                let mut one = cond[range.clone()].to_vec();
                sample(&exec, &mut one, &free[range], codes, &draws[r..=r], rule, &mut alone).unwrap();
            }
            alone.reverse();
            assert_eq!(together, alone);
            results.push(together);
        }
        assert_eq!(results[0], results[1]);
    }

    #[test]
    fn the_margin_is_between_the_two_most_probable() {
        assert_eq!(margin(&[0.25, 0.5, 0.125, 0.125]), 0.25);
        assert_eq!(margin(&[0.5, 0.0, 0.5]), 0.0);
        assert_eq!(margin(&[1.0]), 1.0);
        assert_eq!(margin(&[0.125, 0.75, 0.125]), 0.625);
    }

    #[test]
    fn masks_follow_the_schedule_within_their_limits() {
        let mut unknown = 16;
        let mut counts = Vec::new();
        for step in 0..6 {
            unknown = keep_masked(Schedule::Cosine, 16, unknown, step, 6);
            counts.push(unknown);
        }
        assert_eq!(counts, [15, 13, 11, 7, 4, 1]);
        assert_eq!(keep_masked(Schedule::Cosine, 16, 3, 0, 6), 2); // fewer than before
        assert_eq!(keep_masked(Schedule::Cosine, 16, 1, 0, 6), 1); // one at least
        assert_eq!(keep_masked(Schedule::Linear, 1, 1, 0, 1), 1);
    }

    #[test]
    fn the_temperature_compounds() {
        let mut temperature = Temperature::new(2.0);
        let got: Vec<f32> = (0..4).map(|t| temperature.at(t, 4)).collect();
        assert_eq!(got, [1.5, 0.75, 0.1875, 0.0]);
    }

    #[test]
    fn scores_are_log_confidence_plus_gumbel_noise() {
        assert_eq!(score(1.0, 0.0, 0.3), 0.0);
        let u = 0.4f32;
        let want = 0.25f32.ln() - 0.5 * (-(u.ln())).ln();
        assert!((score(0.25, 0.5, u) - want).abs() < 1e-6);
        assert_eq!(score(0.0, 0.0, 0.5), 1e-20f32.ln());
        for u in [0.0, 1.0] {
            assert!(score(0.0, 1.0, u).is_finite()); // replayed draws may sit on the edge
        }
    }

    #[test]
    fn as_many_are_masked_again_as_asked_for_where_scores_differ() {
        let scores: Vec<f32> = (0..37).map(|i| score(0.5, 1.0, Philox::new(2).gumbel_uniform(at(i)))).collect();
        for keep in 1..=37 {
            let cut = cut_off(&mut scores.clone(), keep);
            assert_eq!(scores.iter().filter(|&&s| s < cut).count(), keep);
        }
        assert_eq!(cut_off(&mut [0.0, 0.0, 0.0], 2), 0.0); // ties at the cut-off stay known
        assert_eq!(cut_off(&mut [-1.0], 1), f32::INFINITY);
    }
}
