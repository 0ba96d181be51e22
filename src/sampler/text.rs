//! Text sampling: which token each masked position would take, and which of the positions are committed.
//!
//! Semi-autoregressive denoising of LLaDA (arXiv 2502.09992): an answer is unmasked block by block, and within a
//! block the most confident positions first.

use std::cmp::Ordering;
use std::ops::Range;

use rayon::prelude::*;

use super::{Draw, LANES, Noise, exp, max, not_finite};
use crate::error::{Error, Result};
use crate::memory::{try_collect, try_copy, try_resize, try_with_capacity};
use crate::parallel::Exec;

/// What makes a position worth committing early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Remasking {
    /// The probability of its candidate: positions of low confidence stay masked.
    #[default]
    LowConfidence,
    /// Chance.
    Random,
}

/// How many of a block's `masked` positions are committed at step `step` (from 0) of the block's `steps`: equal
/// shares, the remainder going to the first steps.
pub fn commits(masked: usize, step: usize, steps: usize) -> usize {
    masked / steps + usize::from(step < masked % steps)
}

/// Classifier-free guidance: `cond = uncond + (scale + 1) (cond - uncond)`, element by element.
pub fn guide(cond: &mut [f32], uncond: &[f32], scale: f64) {
    let factor = (scale + 1.0) as f32;
    for (c, &u) in cond.iter_mut().zip(uncond) {
        *c = u + factor * (*c - u);
    }
}

/// What memory for lists of ids is asked for.
const WHAT: &str = "the list of tokens that must not be chosen";

/// Ids that must not be chosen, as sorted ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forbidden {
    ranges: Vec<Range<u32>>,
}

impl Forbidden {
    /// Forbids every id of `ranges`, in any order and overlapping as they may.
    ///
    /// # Errors
    /// `OutOfMemory`, here and below.
    pub fn new(ranges: impl IntoIterator<Item = Range<u32>>) -> Result<Self> {
        let mut sorted = try_collect(ranges.into_iter().filter(|range| !range.is_empty()), WHAT)?;
        sorted.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u32>> = try_with_capacity(sorted.len(), WHAT)?;
        for range in sorted {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        Ok(Forbidden { ranges })
    }

    /// Forbids what is between the `allowed` ids, before and after them, up to `end`.
    pub fn all_but(allowed: &[u32], end: u32) -> Result<Self> {
        let mut sorted = try_copy(allowed, WHAT)?;
        sorted.sort_unstable();
        let starts = std::iter::once(0).chain(sorted.iter().map(|id| id.saturating_add(1)));
        let ends = sorted.iter().copied().chain(std::iter::once(end));
        Self::new(starts.zip(ends).map(|(start, stop)| start..stop.min(end)))
    }

    /// Forbids what either of the two forbids.
    pub fn and(self, other: Self) -> Result<Self> {
        Self::new(self.ranges.into_iter().chain(other.ranges))
    }

    pub fn contains(&self, id: u32) -> bool {
        let after = self.ranges.partition_point(|range| range.start <= id);
        after > 0 && self.ranges[after - 1].contains(&id)
    }

    /// How many of the ids of `vocab` remain.
    pub fn left(&self, vocab: Range<u32>) -> usize {
        let cut = |range: &Range<u32>| range.end.min(vocab.end).saturating_sub(range.start.max(vocab.start)) as usize;
        vocab.len() - self.ranges.iter().map(cut).sum::<usize>()
    }

    /// Sets the logits of forbidden ids to -infinity, `row[0]` being the logit of id `first`.
    pub fn apply(&self, row: &mut [f32], first: u32) {
        let len = row.len();
        let place = |id: u32| (id.saturating_sub(first) as usize).min(len);
        for range in &self.ranges {
            row[place(range.start)..place(range.end)].fill(f32::NEG_INFINITY);
        }
    }
}

/// How candidates are chosen and weighed.
#[derive(Clone, Copy)]
pub struct Rule<'a> {
    /// 0 takes the most probable token; above, Gumbel noise of this scale is added to the logits.
    pub temperature: f64,
    pub remasking: Remasking,
    /// Of classifier-free guidance; 0 where there is none.
    pub cfg_scale: f64,
    pub forbidden: &'a Forbidden,
    pub noise: &'a dyn Noise,
}

/// The token that a masked position would take, and how sure that is.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Candidate {
    pub id: u32,
    /// The token's probability without noise, or a uniform number under [`Remasking::Random`].
    pub confidence: f64,
}

/// The candidates of `draws.len()` positions, in parallel over the positions, appended to `out`.
///
/// `logits` is row-major [draws, vocab], and is overwritten; `unconditional` has the same shape, or is empty
/// where nothing guides. An error if a row has no choice left or holds NaN or infinity.
pub fn candidates(
    exec: &Exec<'_>,
    logits: &mut [f32],
    unconditional: &[f32],
    vocab: Range<u32>,
    draws: &[Draw],
    rule: Rule<'_>,
    out: &mut Vec<Candidate>,
) -> Result<()> {
    let (width, from) = (vocab.len(), out.len());
    let guided = !unconditional.is_empty();
    if width == 0 || logits.len() != draws.len() * width || (guided && unconditional.len() != logits.len()) {
        let (rows, got, free) = (draws.len(), logits.len(), unconditional.len());
        return Err(Error::Internal(format!("{rows} rows of {width} logits were due, got {got} and {free}")));
    }
    try_resize(out, from + draws.len(), "the candidates of a step")?;
    exec.run(|| {
        let rows = logits.par_chunks_mut(width).zip(draws).zip(&mut out[from..]);
        rows.enumerate().try_for_each(|(i, ((row, draw), candidate))| {
            if guided {
                guide(row, &unconditional[i * width..][..width], rule.cfg_scale);
            }
            *candidate = choose(row, vocab.start, *draw, rule)?;
            Ok(())
        })
    })
}

/// The candidate of one position, `row[0]` being the (guided) logit of id `first`.
pub fn choose(row: &mut [f32], first: u32, draw: Draw, rule: Rule<'_>) -> Result<Candidate> {
    rule.forbidden.apply(row, first);
    let top = max(row);
    if top == f32::NEG_INFINITY {
        return Err(Error::invalid(format!("no token is left to choose from at position {}", draw.position)));
    }
    if !top.is_finite() {
        return Err(not_finite(draw.position));
    }
    let choice = match rule.temperature {
        0.0 => row.iter().position(|&l| l == top),
        temperature => noisy_argmax(row, first, draw, temperature, rule.noise),
    };
    let choice = choice.ok_or_else(|| not_finite(draw.position))?;
    let confidence = match rule.remasking {
        Remasking::LowConfidence => exp(f64::from(row[choice]) - f64::from(top)) / sum_of_exp(row, top),
        Remasking::Random => f64::from(rule.noise.order_uniform(draw)),
    };
    Ok(Candidate { id: first + choice as u32, confidence })
}

/// ln of the probability of element `at`, which is inside the row. An error if the row holds NaN or infinity.
pub fn log_probability(row: &[f32], at: usize, position: usize) -> Result<f64> {
    let top = max(row);
    let value = row.get(at).copied().unwrap_or(f32::NAN);
    if !top.is_finite() || !value.is_finite() {
        return Err(not_finite(position));
    }
    Ok(f64::from(value) - f64::from(top) - sum_of_exp(row, top).ln())
}

/// The lowest index with the largest `exp(l) / (-ln u)^temperature`, compared as `l - temperature ln(-ln u)`,
/// which no logit overflows. `None` if there is none.
///
/// Two logarithms for each of 126k ids would cost more than all else here, and nearly all are spared: as
/// -ln u >= 1 - u, the noise `-ln(-ln u)` is at most `-ln(1 - u)`, which the binary exponent of 1 - u bounds
/// without a logarithm; where that bound cannot beat the best so far, neither can the exact value (each
/// operation rounds monotonically).
fn noisy_argmax(row: &[f32], first: u32, draw: Draw, temperature: f64, noise: &dyn Noise) -> Option<usize> {
    const CHUNK: usize = 512;
    let mut uniforms = [0.0f64; CHUNK];
    let (mut best, mut choice) = (f64::NEG_INFINITY, None);
    for (c, chunk) in row.chunks(CHUNK).enumerate() {
        let uniforms = &mut uniforms[..chunk.len()];
        noise.token_uniforms(draw, first + (c * CHUNK) as u32, uniforms);
        for (i, (&logit, &u)) in chunk.iter().zip(uniforms.iter()).enumerate() {
            let logit = f64::from(logit);
            if logit + temperature * gumbel_bound(u) <= best {
                continue;
            }
            let score = logit - temperature * (-u.ln()).ln();
            if score > best {
                (best, choice) = (score, Some(c * CHUNK + i));
            }
        }
    }
    choice
}

/// An upper bound of `-ln(-ln u)`, within ln 2 of it where u is near 1: with 2^-k <= 1 - u, it is k ln 2 and a
/// little for the rounding of the exact value.
#[inline(always)]
fn gumbel_bound(u: f64) -> f64 {
    let exponent = ((1.0 - u).to_bits() >> 52) & 0x7ff;
    (1023.0 - exponent as f64) * std::f64::consts::LN_2 + 1e-6
}

/// The sum of `exp(l - top)` in f64, by a fixed number of partial sums.
fn sum_of_exp(row: &[f32], top: f32) -> f64 {
    let top = f64::from(top);
    let mut sums = [0.0f64; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] += exp(f64::from(chunk[i]) - top);
        }
    }
    for (sum, &l) in sums.iter_mut().zip(tail) {
        *sum += exp(f64::from(l) - top);
    }
    sums.iter().sum()
}

/// The places in `candidates` of the `count` most confident, in ascending order, into `chosen`. Of equals, the
/// first win.
pub fn most_confident(candidates: &[Candidate], count: usize, chosen: &mut Vec<usize>) {
    chosen.clear();
    chosen.extend(0..candidates.len()); // within the room that the caller made
    if count < candidates.len() {
        let by_confidence = |a: &usize, b: &usize| -> Ordering {
            candidates[*b].confidence.total_cmp(&candidates[*a].confidence).then(a.cmp(b))
        };
        if count > 0 {
            chosen.select_nth_unstable_by(count - 1, by_confidence);
        }
        chosen.truncate(count);
        chosen.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernels;
    use crate::parallel::Threads;
    use crate::sampler::{Philox, Stage};

    static NONE: Forbidden = Forbidden { ranges: Vec::new() };

    fn rule<'a>(temperature: f64, remasking: Remasking, forbidden: &'a Forbidden, noise: &'a dyn Noise) -> Rule<'a> {
        Rule { temperature, remasking, cfg_scale: 0.0, forbidden, noise }
    }

    fn at(position: usize) -> Draw {
        Draw::new(Stage::Text, 0, position)
    }

    /// Normal numbers by Box and Muller, times `scale`.
    fn logits(seed: u64, len: usize, scale: f64) -> Vec<f32> {
        let noise = Philox::new(seed);
        (0..len)
            .map(|i| {
                let (u, v) = (noise.categorical_uniform(at(2 * i)), noise.categorical_uniform(at(2 * i + 1)));
                ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos() * scale) as f32
            })
            .collect()
    }

    #[test]
    fn commits_are_even_shares_that_sum_to_the_masks() {
        assert_eq!((0..5).map(|i| commits(8, i, 5)).collect::<Vec<_>>(), [2, 2, 2, 1, 1]);
        assert_eq!((0..4).map(|i| commits(3, i, 4)).collect::<Vec<_>>(), [1, 1, 1, 0]);
        for masked in 0..40 {
            for steps in 1..40 {
                assert_eq!((0..steps).map(|i| commits(masked, i, steps)).sum::<usize>(), masked);
            }
        }
    }

    #[test]
    fn guidance_extrapolates_from_the_unconditional_logits() {
        let mut cond = vec![1.0, -2.0, 0.5];
        guide(&mut cond, &[0.5, 0.0, 0.5], 1.5);
        assert_eq!(cond, [1.75, -5.0, 0.5]);
    }

    #[test]
    fn without_noise_the_largest_logit_wins_with_its_probability() {
        let philox = Philox::new(0);
        let mut row = [1.0f32.ln(), 5.0f32.ln(), 2.0f32.ln()];
        let got = choose(&mut row, 100, at(0), rule(0.0, Remasking::LowConfidence, &NONE, &philox)).unwrap();
        assert_eq!(got.id, 101);
        assert!((got.confidence - 5.0 / 8.0).abs() < 1e-7);
    }

    #[test]
    fn confidence_is_over_what_is_not_forbidden() {
        let philox = Philox::new(0);
        let forbidden = Forbidden::new(std::iter::once(101..102)).unwrap();
        let mut row = [1.0f32.ln(), 5.0f32.ln(), 3.0f32.ln()];
        let got = choose(&mut row, 100, at(0), rule(0.0, Remasking::LowConfidence, &forbidden, &philox)).unwrap();
        assert_eq!(got.id, 102);
        assert!((got.confidence - 0.75).abs() < 1e-7);
    }

    #[test]
    fn equal_logits_go_to_the_lowest_id_and_share_the_probability() {
        let philox = Philox::new(0);
        for value in [0.0, -1e30, 3e38, 88.0] {
            let mut row = vec![value; 77];
            let got = choose(&mut row, 5, at(0), rule(0.0, Remasking::LowConfidence, &NONE, &philox)).unwrap();
            assert_eq!(got.id, 5);
            assert!((got.confidence * 77.0 - 1.0).abs() < 1e-13);
        }
    }

    #[test]
    fn huge_logits_do_not_overflow_with_or_without_noise() {
        let philox = Philox::new(3);
        for temperature in [0.0, 0.5, 2.0] {
            let mut row = vec![-3e38, 1e4, 3e38, 2e38, f32::MIN_POSITIVE];
            let got = choose(&mut row, 0, at(0), rule(temperature, Remasking::LowConfidence, &NONE, &philox)).unwrap();
            assert_eq!(got, Candidate { id: 2, confidence: 1.0 });
        }
    }

    #[test]
    fn damaged_logits_and_empty_choices_are_errors() {
        let philox = Philox::new(3);
        for temperature in [0.0, 1.0] {
            for remasking in [Remasking::LowConfidence, Remasking::Random] {
                for bad in [f32::NAN, f32::INFINITY] {
                    let mut row = vec![0.0, bad, 1.0];
                    let error = choose(&mut row, 0, at(9), rule(temperature, remasking, &NONE, &philox)).unwrap_err();
                    assert!(error.to_string().contains("position 9"), "{error}");
                }
                let all = Forbidden::new(std::iter::once(0..3)).unwrap();
                assert!(choose(&mut [0.0, 1.0, 2.0], 0, at(9), rule(temperature, remasking, &all, &philox)).is_err());
            }
        }
        let mut row = vec![0.0, f32::NAN, 1.0]; // a forbidden id's logit does not matter
        let forbidden = Forbidden::new(std::iter::once(1..2)).unwrap();
        assert!(choose(&mut row, 0, at(9), rule(0.0, Remasking::LowConfidence, &forbidden, &philox)).is_ok());
    }

    #[test]
    fn the_noisy_candidate_is_the_one_that_the_formula_gives() {
        let philox = Philox::new(21);
        for (case, temperature) in [0.05, 0.3, 1.0, 2.5, 40.0].into_iter().cycle().take(60).enumerate() {
            let row = logits(case as u64, 1 + case * 37, 3.0);
            let scores = row
                .iter()
                .zip(7..)
                .map(|(&l, id)| f64::from(l).exp() / (-philox.token_uniform(at(case), id).ln()).powf(temperature));
            let want = scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i + 7).unwrap();
            let rule = rule(temperature, Remasking::LowConfidence, &NONE, &philox);
            let got = choose(&mut row.clone(), 7, at(case), rule).unwrap();
            assert_eq!(got.id as usize, want);
            let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            assert!((got.confidence - f64::from(row[want - 7]).exp() / sum).abs() < 1e-12);
        }
    }

    #[test]
    fn the_bound_of_the_noise_holds_everywhere() {
        let philox = Philox::new(8);
        let random = (0..50_000).map(|i| philox.categorical_uniform(at(i)));
        let edges = (1..54).flat_map(|k| {
            let u = 1.0 - 0.5f64.powi(k);
            [u, f64::from_bits(u.to_bits() - 1), f64::from_bits(u.to_bits() + 1).min(1.0), 0.5f64.powi(k)]
        });
        for u in random.chain(edges).filter(|u| *u > 0.0 && *u < 1.0) {
            assert!(gumbel_bound(u) >= -(-u.ln()).ln(), "u = {u}");
        }
    }

    #[test]
    fn noise_samples_from_the_softmax_at_temperature_one() {
        let philox = Philox::new(4);
        let row = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let mut counts = [0; 3];
        for position in 0..20_000 {
            let rule = rule(1.0, Remasking::Random, &NONE, &philox);
            counts[choose(&mut row.clone(), 0, at(position), rule).unwrap().id as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip([0.1, 0.6, 0.3]) {
            assert!((f64::from(count) / 20_000.0 - p).abs() < 0.02, "{counts:?}"); // over five standard errors
        }
    }

    #[test]
    fn rows_are_chosen_alike_alone_and_together_whatever_the_threads() {
        let philox = Philox::new(31);
        let (rows, width) = (13, 1001);
        let all = logits(1, rows * width, 2.0);
        let free = logits(2, rows * width, 2.0);
        let draws: Vec<Draw> = (0..rows).map(|r| Draw::new(Stage::Text, 2, 3 * r)).collect();
        let forbidden = Forbidden::new([500..700, 1000..1003]).unwrap();
        let rule = Rule { cfg_scale: 0.7, ..rule(0.8, Remasking::LowConfidence, &forbidden, &philox) };
        let alone: Vec<Candidate> = (0..rows)
            .map(|r| {
                let mut row = all[r * width..][..width].to_vec();
                guide(&mut row, &free[r * width..][..width], 0.7);
                choose(&mut row, 2, draws[r], rule).unwrap()
            })
            .collect();
        for count in [1, 3] {
            let threads = Threads::new(count).unwrap();
            let exec = Exec::new(&threads, Kernels::best(), None);
            let mut together = vec![Candidate::default()];
            candidates(&exec, &mut all.clone(), &free, 2..2 + width as u32, &draws, rule, &mut together).unwrap();
            assert_eq!(together[1..], alone);
        }
    }

    #[test]
    fn the_most_confident_are_chosen_and_of_equals_the_first() {
        let with = |confidences: &[f64]| -> Vec<Candidate> {
            confidences.iter().map(|&confidence| Candidate { id: 0, confidence }).collect()
        };
        let mut chosen = Vec::new();
        let candidates = with(&[0.5, 0.9, 0.5, 0.1, 0.5]);
        for (count, want) in [(0, vec![]), (1, vec![1]), (2, vec![0, 1]), (3, vec![0, 1, 2]), (9, vec![0, 1, 2, 3, 4])]
        {
            most_confident(&candidates, count, &mut chosen);
            assert_eq!(chosen, want);
        }
        let random: Vec<f64> = (0..99).map(|i| Philox::new(1).categorical_uniform(at(i))).collect();
        for count in 0..=99 {
            most_confident(&with(&random), count, &mut chosen);
            assert_eq!(chosen.len(), count);
            let least = chosen.iter().map(|&i| random[i]).fold(1.0, f64::min);
            let rest = (0..99).filter(|i| !chosen.contains(i)).map(|i| random[i]).fold(0.0, f64::max);
            assert!(rest <= least);
        }
    }

    #[test]
    fn forbidden_ranges_are_merged_counted_and_found() {
        let forbidden = Forbidden::new([30..31, 5..9, 8..12, 12..13, 40..40]).unwrap();
        assert_eq!(forbidden.ranges, [5..13, 30..31]);
        let inside: Vec<u32> = (0..50).filter(|&id| forbidden.contains(id)).collect();
        assert_eq!(inside, (5..13).chain(30..31).collect::<Vec<_>>());
        assert_eq!(forbidden.left(0..50), 41);
        assert_eq!(forbidden.left(10..31), 17);
        let mut row = vec![0.0; 20];
        forbidden.apply(&mut row, 10);
        let out: Vec<usize> = (0..20).filter(|&i| row[i] == f32::NEG_INFINITY).collect();
        assert_eq!(out, [0, 1, 2]);
        forbidden.apply(&mut row, 29);
        assert_eq!(row[1], f32::NEG_INFINITY);
    }

    #[test]
    fn allowing_some_forbids_all_others() {
        let forbidden = Forbidden::all_but(&[7, 3, 3, 4, 200], 20).unwrap();
        assert_eq!((0..20).filter(|&id| !forbidden.contains(id)).collect::<Vec<_>>(), [3, 4, 7]);
        assert_eq!(forbidden.left(0..20), 3);
        let both = forbidden.and(Forbidden::new(std::iter::once(4..6)).unwrap()).unwrap();
        assert_eq!((0..20).filter(|&id| !both.contains(id)).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(Forbidden::all_but(&[], 20).unwrap().left(0..20), 0);
        assert_eq!(Forbidden::all_but(&[u32::MAX, 0], u32::MAX).unwrap().left(0..10), 1);
    }
}
