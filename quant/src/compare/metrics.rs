//! How far the logits of two models are apart at one masked position, and at those of one sampler state.

use mmada::sampler::text::{Candidate, most_confident};

/// A row of logits as a distribution: what is needed to turn its logits into logarithms of probabilities, and the
/// choice that a sampler without noise makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// The index of the largest logit, the lowest of equals, as the sampler decides.
    pub best: usize,
    top: f64,
    /// sum exp(logit - top), and its logarithm
    sum: f64,
    ln_sum: f64,
}

impl Distribution {
    /// Of a row that may hold -infinity (forbidden ids) but no other number that is not finite. `None` where there is
    /// nothing to choose from.
    pub fn of(row: &[f32]) -> Option<Self> {
        let mut best = 0;
        for (i, &logit) in row.iter().enumerate() {
            if logit > row[best] {
                best = i;
            }
        }
        let top = f64::from(*row.get(best)?);
        if !top.is_finite() {
            return None;
        }
        // The largest term is e^0, so that the sum neither overflows nor vanishes.
        let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - top).exp()).sum();
        Some(Distribution { best, top, sum, ln_sum: sum.ln() })
    }

    /// ln of the probability of something with this logit.
    pub fn log_probability(&self, logit: f32) -> f64 {
        f64::from(logit) - self.top - self.ln_sum
    }

    /// The probability of the best choice: what the sampler ranks positions by.
    pub fn confidence(&self) -> f64 {
        1.0 / self.sum
    }
}

/// KL(p || q) = sum p (ln p - ln q) in nats, of two rows of logits of one length that forbid the same ids. Never
/// negative, and exactly 0 for equal rows.
pub fn kl_divergence(p_row: &[f32], p: &Distribution, q_row: &[f32], q: &Distribution) -> f64 {
    let terms = p_row.iter().zip(q_row).map(|(&a, &b)| {
        let log_p = p.log_probability(a);
        match log_p.exp() {
            0.0 => 0.0, // the limit of x ln x; also spares -infinity - -infinity
            probability => probability * (log_p - q.log_probability(b)),
        }
    });
    // Rounding may leave a sum of nearly nothing below zero.
    terms.sum::<f64>().max(0.0)
}

/// A masked position, seen by the reference and by the model that is compared to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// KL(reference || model) in nats.
    pub kl: f64,
    /// The choices without noise.
    pub reference: Candidate,
    pub model: Candidate,
    /// -ln of the probabilities of the true token, the reference's and the model's.
    pub surprise: Option<(f64, f64)>,
}

impl Position {
    /// `None` where a row leaves no choice. `truth` is an index in the rows.
    pub fn of(reference: &[f32], model: &[f32], truth: Option<usize>) -> Option<Self> {
        let (p, q) = (Distribution::of(reference)?, Distribution::of(model)?);
        let candidate = |d: &Distribution| Candidate { id: d.best as u32, confidence: d.confidence() };
        let surprise = truth.and_then(|at| {
            let (a, b) = (*reference.get(at)?, *model.get(at)?);
            Some((-p.log_probability(a), -q.log_probability(b)))
        });
        Some(Position {
            kl: kl_divergence(reference, &p, model, &q),
            reference: candidate(&p),
            model: candidate(&q),
            surprise: surprise.filter(|(a, b)| a.is_finite() && b.is_finite()),
        })
    }

    /// Both choose the same.
    pub fn agrees(&self) -> bool {
        self.reference.id == self.model.id
    }
}

/// What the sampler would commit next, in both models' opinion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// How many positions a step commits here.
    pub count: u64,
    /// Of these, those that both would commit, with whatever token.
    pub shared: u64,
    /// Of these, those that both would commit with the same token.
    pub equal: u64,
}

impl Committed {
    /// The `count` most confident positions of either model, of equals the first.
    pub fn of(positions: &[Position], count: usize) -> Self {
        let chosen = |candidates: Vec<Candidate>| {
            let mut chosen = Vec::new();
            most_confident(&candidates, count, &mut chosen);
            chosen
        };
        let ours = chosen(positions.iter().map(|p| p.model).collect());
        let theirs = chosen(positions.iter().map(|p| p.reference).collect());
        let shared = || theirs.iter().filter(|&at| ours.binary_search(at).is_ok());
        Committed {
            count: theirs.len() as u64,
            shared: shared().count() as u64,
            equal: shared().filter(|&&at| positions[at].agrees()).count() as u64,
        }
    }
}

/// The value below which a share of `at` (0 to 1) of the ascending numbers lie, interpolated linearly between
/// neighbours; NaN if there are none.
pub fn quantile(sorted: &[f64], at: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = at.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (place.floor() as usize, (place.ceil() as usize).min(last));
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ln(probabilities: &[f32], shift: f32) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + shift).collect()
    }

    fn kl(p: &[f32], q: &[f32]) -> f64 {
        kl_divergence(p, &Distribution::of(p).unwrap(), q, &Distribution::of(q).unwrap())
    }

    /// Logits of no pattern.
    fn row(seed: u64, len: usize) -> Vec<f32> {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 40) as f32 / (1u64 << 24) as f32 * 20.0 - 10.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn the_divergence_is_that_of_the_textbook() {
        let (p, q) = ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]);
        // 0.5 ln 2 + 0 - 0.25 ln 2
        let want = 0.25 * 2f64.ln();
        for (a, b) in [(0.0, 0.0), (3.0, -40.0), (-80.0, 80.0)] {
            assert!((kl(&ln(&p, a), &ln(&q, b)) - want).abs() < 1e-5, "{a} {b}");
        }
        // it is not symmetric
        let (p, q) = ([0.9, 0.1], [0.5, 0.5]);
        assert!((kl(&ln(&p, 0.0), &ln(&q, 0.0)) - (0.9 * 1.8f64.ln() + 0.1 * 0.2f64.ln())).abs() < 1e-6);
        assert!((kl(&ln(&q, 0.0), &ln(&p, 0.0)) - 0.5 * (0.5f64 / 0.9).ln() - 0.5 * 5f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn equal_rows_diverge_by_exactly_nothing_and_others_by_more() {
        for len in [1, 2, 77, 1031] {
            let p = row(len as u64, len);
            assert_eq!(kl(&p, &p), 0.0);
            if len > 1 {
                let mut q = p.clone();
                q[len / 2] += 0.01;
                let small = kl(&p, &q);
                q[len / 2] += 0.5;
                assert!(small > 0.0 && kl(&p, &q) > small);
            }
        }
    }

    #[test]
    fn huge_logits_and_forbidden_ids_do_no_harm() {
        assert_eq!(kl(&[3e38, -3e38, 3e38], &[3e38, -3e38, 3e38]), 0.0);
        let never = f32::NEG_INFINITY;
        assert_eq!(kl(&[1.0, never, 2.0], &[1.0, never, 2.0]), 0.0);
        assert!((kl(&[0.0, never, 0.0], &[0.0, never, 3f32.ln()]) - 0.5 * (4f64 / 3.0).ln()).abs() < 1e-6);
        assert!(Distribution::of(&[never, never]).is_none() && Distribution::of(&[]).is_none());
    }

    #[test]
    fn of_equal_logits_the_first_is_the_choice() {
        let d = Distribution::of(&[1.0, 7.0, 7.0, -2.0, 7.0]).unwrap();
        assert_eq!(d.best, 1);
        let d = Distribution::of(&[4.5; 8]).unwrap();
        assert_eq!((d.best, d.confidence()), (0, 0.125));
    }

    #[test]
    fn a_position_tells_choices_confidence_and_how_surprising_the_truth_is() {
        let (p, q) = (ln(&[0.5, 0.25, 0.25], 9.0), ln(&[0.2, 0.2, 0.6], 0.0));
        let position = Position::of(&p, &q, Some(2)).unwrap();
        assert_eq!((position.reference.id, position.model.id, position.agrees()), (0, 2, false));
        assert!((position.reference.confidence - 0.5).abs() < 1e-6 && (position.model.confidence - 0.6).abs() < 1e-6);
        let (reference, model) = position.surprise.unwrap();
        assert!((reference - 4f64.ln()).abs() < 1e-6 && (model + 0.6f64.ln()).abs() < 1e-6);
        assert_eq!(Position::of(&p, &q, Some(3)).unwrap().surprise, None);
        assert_eq!(Position::of(&p, &q, None).unwrap().surprise, None);
    }

    #[test]
    fn committed_sets_are_compared_by_place_and_by_token() {
        let position = |a: (u32, f64), b: (u32, f64)| Position {
            kl: 0.0,
            reference: Candidate { id: a.0, confidence: a.1 },
            model: Candidate { id: b.0, confidence: b.1 },
            surprise: None,
        };
        // the reference ranks 0 1 2 3, the model 2 1 3 0; at 1 they choose different tokens
        let positions = [
            position((5, 0.9), (5, 0.1)),
            position((6, 0.8), (7, 0.8)),
            position((8, 0.7), (8, 0.9)),
            position((9, 0.6), (9, 0.5)),
        ];
        let committed = |count| {
            let Committed { count, shared, equal } = Committed::of(&positions, count);
            (count, shared, equal)
        };
        assert_eq!(committed(0), (0, 0, 0));
        assert_eq!(committed(1), (1, 0, 0));
        assert_eq!(committed(2), (2, 1, 0));
        assert_eq!(committed(3), (3, 2, 1));
        assert_eq!(committed(4), (4, 4, 3));
        assert_eq!(committed(9), (4, 4, 3));
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let sorted = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (at, want) in [(0.0, 1.0), (0.5, 4.0), (0.25, 2.0), (0.9, 12.8), (1.0, 16.0), (7.0, 16.0)] {
            assert!((quantile(&sorted, at) - want).abs() < 1e-12, "{at}");
        }
        assert_eq!(quantile(&[3.5], 0.99), 3.5);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
