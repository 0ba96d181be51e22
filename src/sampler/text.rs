//! Text sampling: which token each masked position would take, and which of the positions are committed.
//!
//! Semi-autoregressive denoising of LLaDA (arXiv 2502.09992): an answer is unmasked block by block, and within a
//! block the most confident positions first.

use std::cmp::Ordering;
use std::ops::Range;

pub use super::choose::{Candidate, Rule, choose};
use crate::error::Result;
use crate::memory::{try_collect, try_copy, try_with_capacity};

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

    /// The ids, as sorted ranges that neither touch nor overlap.
    pub fn ranges(&self) -> &[Range<u32>] {
        &self.ranges
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
    use crate::sampler::{Draw, Noise, Philox, Stage};

    fn at(position: usize) -> Draw {
        Draw::new(Stage::Text, 0, position)
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
