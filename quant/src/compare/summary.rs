//! Numbers of many positions: collected state by state, and what is told of them.

use super::metrics::{Committed, Position, quantile};

/// The quarters that mask ratios are told by; a ratio of exactly 1/4 is in the first.
pub const RATIOS: usize = 4;

/// Which of the quarters a mask ratio belongs to.
pub fn quarter(ratio: f32) -> usize {
    let place = (ratio * RATIOS as f32).ceil() as usize; // a cast of what is not a number is 0
    place.clamp(1, RATIOS) - 1
}

/// What was seen at the masked positions of some states.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    states: u64,
    kl: Vec<f64>,
    agreeing: u64,
    committed: Committed,
    truths: u64,
    surprise_reference: f64,
    surprise: f64,
}

impl Tally {
    /// Adds a state.
    pub fn add(&mut self, positions: &[Position], committed: Committed) {
        self.states += 1;
        for position in positions {
            self.kl.push(position.kl);
            self.agreeing += u64::from(position.agrees());
            if let Some((reference, model)) = position.surprise {
                self.truths += 1;
                self.surprise_reference += reference;
                self.surprise += model;
            }
        }
        self.count(committed);
    }

    fn count(&mut self, committed: Committed) {
        self.committed.count += committed.count;
        self.committed.shared += committed.shared;
        self.committed.equal += committed.equal;
    }

    /// Both together.
    pub fn merge(&mut self, other: &Tally) {
        self.states += other.states;
        self.kl.extend_from_slice(&other.kl);
        self.agreeing += other.agreeing;
        self.count(other.committed);
        self.truths += other.truths;
        self.surprise_reference += other.surprise_reference;
        self.surprise += other.surprise;
    }

    pub fn is_empty(&self) -> bool {
        self.kl.is_empty()
    }

    pub fn summary(&self) -> Summary {
        let mut kl = self.kl.clone();
        kl.sort_unstable_by(f64::total_cmp);
        let share = |part: u64, of: u64| if of == 0 { None } else { Some(part as f64 / of as f64) };
        let per_truth = |sum: f64| if self.truths == 0 { None } else { Some(sum / self.truths as f64) };
        Summary {
            states: self.states,
            positions: kl.len() as u64,
            kl_mean: self.kl.iter().sum::<f64>() / kl.len().max(1) as f64,
            kl_median: quantile(&kl, 0.5),
            kl_99: quantile(&kl, 0.99),
            kl_max: kl.last().copied().unwrap_or(f64::NAN),
            top1: share(self.agreeing, kl.len() as u64).unwrap_or(f64::NAN),
            committed_set: share(self.committed.shared, self.committed.count),
            committed_ids: share(self.committed.equal, self.committed.count),
            truth_nats_reference: per_truth(self.surprise_reference),
            truth_nats: per_truth(self.surprise),
        }
    }
}

/// How far a model is from the reference, over some masked positions. Shares are from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub states: u64,
    /// Masked positions of these.
    pub positions: u64,
    /// KL(reference || model) in nats: mean, median, 99th percentile and maximum over the positions.
    pub kl_mean: f64,
    pub kl_median: f64,
    pub kl_99: f64,
    pub kl_max: f64,
    /// Positions where both find the same token most probable.
    pub top1: f64,
    /// Of the positions that the reference commits next, those that the model commits next as well; `None` where
    /// nothing is committed.
    pub committed_set: Option<f64>,
    /// Likewise, and with the same token.
    pub committed_ids: Option<f64>,
    /// -ln of the true tokens' probabilities, mean over the positions; `None` without a truth.
    pub truth_nats_reference: Option<f64>,
    pub truth_nats: Option<f64>,
}

#[cfg(test)]
mod tests {
    use mmada::sampler::text::Candidate;

    use super::*;

    fn position(kl: f64, ids: (u32, u32), surprise: Option<(f64, f64)>) -> Position {
        let candidate = |id| Candidate { id, confidence: 0.5 };
        Position { kl, reference: candidate(ids.0), model: candidate(ids.1), surprise }
    }

    #[test]
    fn quarters_end_with_their_upper_bound() {
        for (ratio, want) in
            [(0.01, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.74, 2), (0.751, 3), (1.0, 3), (0.0, 0), (9.0, 3)]
        {
            assert_eq!(quarter(ratio), want, "{ratio}");
        }
        assert_eq!(quarter(f32::NAN), 0);
    }

    #[test]
    fn two_states_together_are_what_both_would_be_in_one() {
        let first = [position(0.5, (1, 1), Some((1.0, 2.0))), position(0.1, (1, 2), None)];
        let second = [position(0.3, (7, 7), Some((3.0, 5.0)))];
        let (a, b) = (Committed { count: 2, shared: 1, equal: 1 }, Committed { count: 1, shared: 1, equal: 0 });
        let mut together = Tally::default();
        together.add(&first, a);
        together.add(&second, b);
        let (mut merged, mut other) = (Tally::default(), Tally::default());
        merged.add(&first, a);
        other.add(&second, b);
        merged.merge(&other);
        let summary = together.summary();
        assert_eq!(summary, merged.summary());
        assert_eq!((summary.states, summary.positions), (2, 3));
        assert!((summary.kl_mean - 0.3).abs() < 1e-12 && (summary.kl_median - 0.3).abs() < 1e-12);
        assert!((summary.kl_99 - 0.496).abs() < 1e-12 && summary.kl_max == 0.5);
        assert!((summary.top1 - 2.0 / 3.0).abs() < 1e-12);
        assert!((summary.committed_set.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert!((summary.committed_ids.unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!((summary.truth_nats_reference, summary.truth_nats), (Some(2.0), Some(3.5)));
    }

    #[test]
    fn shares_of_nothing_are_not_told() {
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        tally.add(&[position(0.0, (3, 3), None)], Committed::default());
        let summary = tally.summary();
        assert_eq!((summary.committed_set, summary.committed_ids, summary.truth_nats), (None, None, None));
        assert_eq!((summary.top1, summary.kl_mean), (1.0, 0.0));
    }
}
