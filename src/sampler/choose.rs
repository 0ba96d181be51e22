//! The token that a masked position would take, from logits that come a part of the vocabulary after the other: rows
//! as long as the vocabulary are nowhere in memory.
//!
//! All that a choice needs are maxima and a sum. What is summed are whole parts of [`PART`] ids, each in one order, and
//! these are added in the order of ids: so the result has the same bits however many ids came together, on every
//! instruction set and with any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::text::{Forbidden, Remasking, guide};
use super::{Draw, LANES, Noise, exp, max, not_finite};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::kernels::isa::{Isa, Op};
use crate::parallel::Exec;

/// Ids that are reduced together. Logits come in multiples of it; only those of the last ids may be fewer.
pub const PART: usize = 1024;

/// Ids whose logits are best computed together: those of 32 positions are 512 KiB, which stay in the second cache.
pub const SLICE: usize = 4 * PART;

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

impl Candidate {
    /// What a graphics card has chosen: an id, -1 where no token is left, -2 where logits were not finite.
    ///
    /// # Errors
    /// As [`Choice::update`] and [`Choice::candidate`].
    #[cfg(feature = "cuda")]
    pub(crate) fn from_card(id: i32, probability: f64, draw: Draw, rule: Rule<'_>) -> Result<Self> {
        match u32::try_from(id) {
            Ok(id) => Ok(Candidate { id, confidence: rule.confidence(draw, || probability) }),
            Err(_) if id == -1 => Err(nothing_left(draw)),
            Err(_) => Err(not_finite(draw.position)),
        }
    }
}

impl Rule<'_> {
    fn confidence(&self, draw: Draw, probability: impl FnOnce() -> f64) -> f64 {
        match self.remasking {
            Remasking::LowConfidence => probability(),
            Remasking::Random => f64::from(self.noise.order_uniform(draw)),
        }
    }
}

fn nothing_left(draw: Draw) -> Error {
    Error::invalid(format!("no token is left to choose from at position {}", draw.position))
}

/// What is known of a position's candidate after some of the ids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    softmax: Softmax,
    /// the candidate among them, if any of them may be chosen
    best: Option<Best>,
}

#[derive(Clone, Copy, Debug)]
struct Best {
    id: u32,
    logit: f32,
    /// the logit with its noise
    score: f64,
}

impl Choice {
    /// Looks at the (guided) logits of the ids `first, first + 1, ...`, which come next; they are overwritten.
    ///
    /// # Errors
    /// `Internal` for NaN or infinity.
    pub fn update(
        &mut self,
        kernels: &Kernels,
        logits: &mut [f32],
        first: u32,
        draw: Draw,
        rule: Rule<'_>,
    ) -> Result<()> {
        rule.forbidden.apply(logits, first);
        for (part, first) in logits.chunks(PART).zip((first..).step_by(PART)) {
            let sums = rule.remasking == Remasking::LowConfidence;
            let top = kernels.run(Reduce { softmax: &mut self.softmax, part, sums });
            if top.is_nan() || top == f32::INFINITY {
                return Err(not_finite(draw.position));
            }
            match rule.temperature {
                0.0 => self.take_largest(part, first, top),
                temperature => self.take_noisy(part, first, draw, temperature, rule.noise),
            }
        }
        Ok(())
    }

    /// The candidate, when all ids have been looked at.
    ///
    /// # Errors
    /// `InvalidArgument` if none of them may be chosen.
    pub fn candidate(&self, draw: Draw, rule: Rule<'_>) -> Result<Candidate> {
        let Softmax { top, sum } = self.softmax;
        if top == f32::NEG_INFINITY {
            return Err(nothing_left(draw));
        }
        let Some(Best { id, logit, .. }) = self.best else { return Err(not_finite(draw.position)) };
        let confidence = rule.confidence(draw, || exp(f64::from(logit) - f64::from(top)) / sum);
        Ok(Candidate { id, confidence })
    }

    /// Takes the part's largest logit, `top`, if it is larger than those before.
    fn take_largest(&mut self, part: &[f32], first: u32, top: f32) {
        let score = f64::from(top);
        if score > self.best.map_or(f64::NEG_INFINITY, |best| best.score)
            && let Some(at) = part.iter().position(|&l| l == top)
        {
            self.best = Some(Best { id: first + at as u32, logit: top, score });
        }
    }

    /// Takes the lowest id with the largest `exp(l) / (-ln u)^temperature`, compared as `l - temperature ln(-ln u)`,
    /// which no logit overflows, if that is larger than those before.
    ///
    /// Two logarithms for each of 126k ids would cost more than all else here, and nearly all are spared: as
    /// -ln u >= 1 - u, the noise `-ln(-ln u)` is at most `-ln(1 - u)`, which the binary exponent of 1 - u bounds
    /// without a logarithm; where that bound cannot beat the best so far, neither can the exact value (each
    /// operation rounds monotonically).
    fn take_noisy(&mut self, part: &[f32], first: u32, draw: Draw, temperature: f64, noise: &dyn Noise) {
        let mut uniforms = [0.0f64; PART];
        let uniforms = &mut uniforms[..part.len()];
        noise.token_uniforms(draw, first, uniforms);
        let mut largest = self.best.map_or(f64::NEG_INFINITY, |best| best.score);
        for ((&logit, &u), id) in part.iter().zip(uniforms.iter()).zip(first..) {
            if f64::from(logit) + temperature * gumbel_bound(u) <= largest {
                continue;
            }
            let score = f64::from(logit) - temperature * (-u.ln()).ln();
            if score > largest {
                largest = score;
                self.best = Some(Best { id, logit, score });
            }
        }
    }
}

/// An upper bound of `-ln(-ln u)`, within ln 2 of it where u is near 1: with 2^-k <= 1 - u, it is k ln 2 and a
/// little for the rounding of the exact value.
#[inline(always)]
fn gumbel_bound(u: f64) -> f64 {
    let exponent = ((1.0 - u).to_bits() >> 52) & 0x7ff;
    (1023.0 - exponent as f64) * std::f64::consts::LN_2 + 1e-6
}

/// Shows `choices`, one for each of `draws`, the logits of `ids`, which come next: in parallel over the positions.
///
/// `logits` is row-major [draws, ids], and is overwritten; `unconditional` has the same shape, or is empty where
/// nothing guides.
///
/// # Errors
/// As [`Choice::update`].
pub fn consider(
    exec: &Exec<'_>,
    logits: &mut [f32],
    unconditional: &[f32],
    ids: Range<u32>,
    draws: &[Draw],
    rule: Rule<'_>,
    choices: &mut [Choice],
) -> Result<()> {
    let width = ids.len();
    let guided = !unconditional.is_empty();
    if width == 0 || logits.len() != draws.len() * width || (guided && unconditional.len() != logits.len()) {
        let (rows, got, free) = (draws.len(), logits.len(), unconditional.len());
        return Err(Error::Internal(format!("{rows} rows of {width} logits were due, got {got} and {free}")));
    }
    exec.run(|| {
        let rows = logits.par_chunks_mut(width).zip(draws).zip(choices);
        rows.enumerate().try_for_each(|(i, ((row, draw), choice))| {
            if guided {
                guide(row, &unconditional[i * width..][..width], rule.cfg_scale);
            }
            choice.update(exec.kernels, row, ids.start, *draw, rule)
        })
    })
}

/// The candidate of one position, `row[0]` being the (guided) logit of id `first`, and all others following.
///
/// # Errors
/// As [`Choice::update`] and [`Choice::candidate`].
pub fn choose(row: &mut [f32], first: u32, draw: Draw, rule: Rule<'_>) -> Result<Candidate> {
    let mut choice = Choice::default();
    choice.update(Kernels::best(), row, first, draw, rule)?;
    choice.candidate(draw, rule)
}

/// The logarithm of the probability of one id, in the making.
#[derive(Clone, Copy, Debug)]
pub struct Likelihood {
    softmax: Softmax,
    id: u32,
    logit: Option<f32>,
}

impl Likelihood {
    pub fn of(id: u32) -> Self {
        Likelihood { softmax: Softmax::default(), id, logit: None }
    }

    /// Looks at the logits of the ids `first, first + 1, ...`, which come next.
    pub fn update(&mut self, kernels: &Kernels, logits: &[f32], first: u32) {
        if let Some(&logit) = self.id.checked_sub(first).and_then(|at| logits.get(at as usize)) {
            self.logit = Some(logit);
        }
        for part in logits.chunks(PART) {
            kernels.run(Reduce { softmax: &mut self.softmax, part, sums: true });
        }
    }

    /// ln of the id's probability among all that have been looked at.
    ///
    /// # Errors
    /// `Internal` if there was NaN or infinity, or the id itself was not among them.
    pub fn ln(&self, position: usize) -> Result<f64> {
        let Softmax { top, sum } = self.softmax;
        match self.logit {
            Some(logit) if logit.is_finite() && top.is_finite() => Ok(f64::from(logit) - f64::from(top) - sum.ln()),
            _ => Err(not_finite(position)),
        }
    }
}

/// The largest of some logits, NaN if one is; and the sum of `exp(l - top)`, if it is asked for.
#[derive(Clone, Copy, Debug)]
struct Softmax {
    top: f32,
    sum: f64,
}

impl Default for Softmax {
    fn default() -> Self {
        Softmax { top: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// Adds a part to a softmax; gives the part's largest. Compiled for an instruction set, though there is nothing of it
/// to be seen: the loops over [`LANES`] become its vectors, with the same bits.
struct Reduce<'a> {
    softmax: &'a mut Softmax,
    part: &'a [f32],
    sums: bool,
}

impl Op for Reduce<'_> {
    type Output = f32;
    #[inline(always)]
    fn call<I: Isa>(self, _: I) -> f32 {
        let Reduce { softmax, part, sums } = self;
        let top = max(part);
        // a NaN stays: nothing is larger
        if top > softmax.top || top.is_nan() {
            softmax.sum *= exp(f64::from(softmax.top) - f64::from(top));
            softmax.top = top;
        }
        if sums && softmax.top != f32::NEG_INFINITY {
            softmax.sum += sum_of_exp(part, softmax.top);
        }
        top
    }
}

/// The sum of `exp(l - top)` in f64, by a fixed number of partial sums.
#[inline(always)]
fn sum_of_exp(part: &[f32], top: f32) -> f64 {
    let top = f64::from(top);
    let mut sums = [0.0f64; LANES];
    let (chunks, tail) = part.as_chunks::<LANES>();
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::parallel::Threads;
    use crate::sampler::{Philox, Stage};

    static NONE: LazyLock<Forbidden> = LazyLock::new(Forbidden::default);

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

    /// Columns `ids` of rows of `width`.
    fn columns(rows: &[f32], width: usize, ids: Range<usize>) -> Vec<f32> {
        rows.chunks(width).flat_map(|row| row[ids.clone()].iter().copied()).collect()
    }

    #[test]
    fn parts_of_rows_give_the_bits_of_whole_rows_on_every_instruction_set_with_any_threads() {
        let philox = Philox::new(31);
        let (rows, width) = (5, 3 * PART + 77);
        let all = logits(1, rows * width, 2.0);
        let free = logits(2, rows * width, 2.0);
        let draws: Vec<Draw> = (0..rows).map(|r| Draw::new(Stage::Text, 2, 3 * r)).collect();
        let forbidden = Forbidden::new([500..700, 1000..2700]).unwrap();
        for (temperature, remasking) in
            [(0.8, Remasking::LowConfidence), (0.0, Remasking::LowConfidence), (0.0, Remasking::Random)]
        {
            let rule = Rule { cfg_scale: 0.7, ..rule(temperature, remasking, &forbidden, &philox) };
            let alone: Vec<Candidate> = (0..rows)
                .map(|r| {
                    let mut row = all[r * width..][..width].to_vec();
                    guide(&mut row, &free[r * width..][..width], 0.7);
                    choose(&mut row, 2, draws[r], rule).unwrap()
                })
                .collect();
            for (kernels, step) in Kernels::available().iter().zip([PART, 2 * PART, 3 * PART, width].iter().cycle()) {
                for count in [1, 3] {
                    let threads = Threads::new(count).unwrap();
                    let exec = Exec::new(&threads, kernels, None);
                    let mut choices = vec![Choice::default(); rows];
                    for first in (0..width).step_by(*step) {
                        let ids = first..width.min(first + step);
                        let (mut own, free) = (columns(&all, width, ids.clone()), columns(&free, width, ids.clone()));
                        let ids = 2 + ids.start as u32..2 + ids.end as u32;
                        consider(&exec, &mut own, &free, ids, &draws, rule, &mut choices).unwrap();
                    }
                    let together = choices.iter().zip(&draws).map(|(c, d)| c.candidate(*d, rule).unwrap());
                    assert_eq!(together.collect::<Vec<_>>(), alone, "{} {count} {step}", kernels.name());
                }
            }
        }
    }

    #[test]
    fn the_likelihood_of_an_id_is_that_of_its_row() {
        let row = logits(7, 2 * PART + 300, 4.0);
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        for id in [0, PART - 1, PART, row.len() - 1] {
            for step in [PART, row.len()] {
                let mut likelihood = Likelihood::of(10 + id as u32);
                for (part, first) in row.chunks(step).zip((10..).step_by(step)) {
                    likelihood.update(Kernels::best(), part, first);
                }
                let want = f64::from(row[id]) - sum.ln();
                assert!((likelihood.ln(0).unwrap() - want).abs() < 1e-12 * want.abs(), "{id}");
            }
        }
    }

    #[test]
    fn damage_in_any_part_leaves_no_likelihood() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, PART + 5, 2 * PART + 1] {
                let mut row = logits(9, 2 * PART + 2, 1.0);
                row[at] = bad;
                let mut likelihood = Likelihood::of(40);
                likelihood.update(Kernels::best(), &row, 0);
                assert!(likelihood.ln(6).unwrap_err().to_string().contains("position 6"));
            }
        }
        let mut missing = Likelihood::of(900);
        missing.update(Kernels::best(), &logits(9, 800, 1.0), 0);
        assert!(missing.ln(6).is_err());
    }
}
