//! How likely an answer is: a Monte Carlo estimate of a masked diffusion model's bound on its log-likelihood
//! (LLaDA, arXiv 2502.09992, equation 6 and algorithm 3).
//!
//! For l uniform in 1..=L, mask l of the answer's L tokens, chosen at random, and sum the log-probabilities that the
//! network gives to the masked tokens; L / l times that sum is an unbiased sample. Over all samples l is stratified:
//! one random beginning, then even steps through 1..=L, so that the samples together see few and many masks alike.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use super::Engine;
use super::request::{at_least_one, check_ids, check_length, not_negative};
use crate::error::{Error, Result};
use crate::memory::{try_reserve, try_resize, try_with_capacity};
use crate::model::{Logits, Parts, SequenceRequest};
use crate::parallel::Exec;
use crate::prompt::Vocabulary;
use crate::sampler::Philox;
use crate::sampler::choose::{Likelihood, SLICE};
use crate::sampler::text::guide;

/// An answer whose likelihood is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRequest {
    /// The ids before the answer; never masked. May be empty.
    pub prompt: Vec<u32>,
    /// The ids of the answer, at least one, none of them `[MASK]`.
    pub answer: Vec<u32>,
    /// How many random maskings are averaged. 128 is what the paper takes; one is enough for an answer of one token.
    /// Each takes a run of the network over prompt and answer.
    pub samples: usize,
    /// Of the maskings: the same seed gives the same score.
    pub seed: u64,
    /// Classifier-free guidance against the masked prompt, as in `TextOptions`; 0 is none. It doubles the work.
    pub cfg_scale: f64,
}

/// How likely an answer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The estimate of the bound on ln p(answer | prompt), in nats; at most 0.
    pub log_likelihood: f64,
    /// The same divided by the answer's tokens.
    pub per_token: f64,
    /// How many maskings were averaged.
    pub samples: usize,
}

/// More than anyone waits for; keeps products of sizes from overflowing.
const MAX_SAMPLES: usize = 1 << 20;
/// Samples run through the network together as long as they have no more tokens than this.
const BATCH_TOKENS: usize = 512;

/// See `Context::score`.
pub(crate) fn score(engine: &dyn Engine, cancel: &AtomicBool, request: &ScoreRequest) -> Result<Score> {
    check(engine, request)?;
    let estimate = Estimate::new(engine, request);
    let mut sum = 0.0;
    let mut buffers = Buffers::default();
    let mut first = 0;
    while first < request.samples {
        let count = estimate.batch(first);
        sum += estimate.run(cancel, first..first + count, &mut buffers)?;
        first += count;
    }
    let log_likelihood = sum / request.samples as f64;
    let per_token = log_likelihood / request.answer.len() as f64;
    Ok(Score { log_likelihood, per_token, samples: request.samples })
}

fn check(engine: &dyn Engine, request: &ScoreRequest) -> Result<()> {
    let ScoreRequest { prompt, answer, samples, cfg_scale, .. } = request;
    let vocabulary = engine.vocabulary();
    at_least_one("samples", *samples)?;
    if *samples > MAX_SAMPLES {
        return Err(Error::invalid(format!("samples is {samples}, the limit is {MAX_SAMPLES}")));
    }
    not_negative("cfg_scale", *cfg_scale)?;
    check_ids(vocabulary, prompt)?;
    check_ids(vocabulary, answer)?;
    if answer.is_empty() {
        return Err(Error::invalid("the answer is empty, there is nothing to score"));
    }
    if let Some(position) = answer.iter().position(|&id| id == vocabulary.mask) {
        return Err(Error::invalid(format!(
            "the answer holds [MASK] at position {position}, which is no token to score"
        )));
    }
    let what = || format!("a prompt of {} tokens with an answer of {}", prompt.len(), answer.len());
    check_length(engine, what, &[prompt.len(), answer.len()])
}

/// What all batches share.
struct Estimate<'a> {
    engine: &'a dyn Engine,
    request: &'a ScoreRequest,
    vocabulary: &'a Vocabulary,
    noise: Philox,
    /// Where the strata of mask counts begin, below the answer's length.
    offset: usize,
    /// Runs of the network per sample: with guidance a second one behind a masked prompt.
    passes: usize,
}

/// What a batch works in; grows to the largest.
#[derive(Default)]
struct Buffers {
    /// Prompt and masked answer of each sample, and behind them the same with a masked prompt.
    ids: Vec<u32>,
    /// The masked positions of each sample in its sequence, ascending, one sample after the other.
    rows: Vec<usize>,
    /// The answer's positions in the order in which they would be masked.
    order: Vec<(u64, usize)>,
    /// Of some ids at a time: [rows, ids], and behind them the unconditional ones.
    logits: Vec<f32>,
    /// Of each row's token.
    terms: Vec<Likelihood>,
}

impl<'a> Estimate<'a> {
    fn new(engine: &'a dyn Engine, request: &'a ScoreRequest) -> Self {
        let noise = Philox::new(request.seed);
        let offset = noise.below(request.answer.len());
        let passes = if request.cfg_scale > 0.0 { 2 } else { 1 };
        Estimate { engine, request, vocabulary: engine.vocabulary(), noise, offset, passes }
    }

    /// How many tokens of the answer sample `i` masks, 1 to all.
    fn masks(&self, i: usize) -> usize {
        let length = self.request.answer.len();
        1 + (self.offset + i * length / self.request.samples) % length
    }

    /// How many samples from `first` on run together; one at least.
    fn batch(&self, first: usize) -> usize {
        let length = self.request.prompt.len() + self.request.answer.len();
        (self.request.samples - first).min(BATCH_TOKENS / (length * self.passes)).max(1)
    }

    /// The sum of the samples.
    fn run(&self, cancel: &AtomicBool, samples: Range<usize>, buffers: &mut Buffers) -> Result<f64> {
        self.engine.ready()?;
        let (prompt, answer) = (&self.request.prompt, &self.request.answer);
        let (length, width) = (prompt.len() + answer.len(), SLICE.min(self.vocabulary.rows as usize));
        let rows: usize = samples.clone().map(|i| self.masks(i)).sum();
        let logits = rows.saturating_mul(width).saturating_mul(self.passes);
        let tokens = samples.len() * length * self.passes;
        let bytes = logits
            .saturating_mul(4)
            .saturating_add(tokens * 4 + rows * (8 + size_of::<Likelihood>()) + answer.len() * 16);
        let _charge = self.engine.take(bytes, WHAT)?;
        self.mask(samples.clone(), buffers)?;
        try_resize(&mut buffers.logits, logits, WHAT)?;
        buffers.logits.truncate(logits);

        let Buffers { ids, rows, logits, terms, .. } = buffers;
        let mut batch = try_with_capacity(samples.len() * self.passes, WHAT)?;
        let mut rest = &rows[..];
        for (ids, i) in ids.chunks_exact(length).zip(samples.clone().cycle()) {
            if rest.is_empty() {
                rest = rows; // the unconditional sequences have the same masks again
            }
            let (rows, later) = rest.split_at(self.masks(i));
            rest = later;
            batch.push(SequenceRequest { ids, rows, vocab: 0..self.vocabulary.rows });
        }
        terms.clear();
        try_reserve(terms, rows.len(), WHAT)?;
        terms.extend(rows.iter().map(|row| Likelihood::of(answer[row - prompt.len()])));
        let exec = self.engine.exec(cancel);
        let mut visit = |ids: Range<u32>, logits: &mut [f32]| {
            self.weigh(&exec, ids, logits, terms);
            Ok(())
        };
        self.engine.logits(cancel, &batch, Logits::Parts(Parts { buffer: logits, width, visit: &mut visit }))?;
        exec.check()?;
        let mut terms = terms.iter().zip(&rows[..]);
        let mut sum = 0.0;
        for i in samples {
            let (masks, mut sample) = (self.masks(i), 0.0);
            for (term, row) in terms.by_ref().take(masks) {
                sample += term.ln(row - prompt.len())?;
            }
            sum += sample * answer.len() as f64 / masks as f64;
        }
        Ok(sum)
    }

    /// Shows the likelihoods the logits of some ids: [rows, ids], and behind them the unconditional ones.
    fn weigh(&self, exec: &Exec, ids: Range<u32>, logits: &mut [f32], terms: &mut [Likelihood]) {
        let width = ids.len();
        let (own, free) = logits.split_at_mut(terms.len() * width);
        exec.run(|| {
            own.par_chunks_exact_mut(width).zip(terms).enumerate().for_each(|(row, (logits, term))| {
                if !free.is_empty() {
                    guide(logits, &free[row * width..][..width], self.request.cfg_scale);
                }
                term.update(exec.kernels, logits, ids.start);
            })
        });
    }

    /// Fills in the sequences and rows of some samples.
    fn mask(&self, samples: Range<usize>, buffers: &mut Buffers) -> Result<()> {
        let (prompt, answer) = (&self.request.prompt, &self.request.answer);
        let Buffers { ids, rows, order, .. } = buffers;
        let length = prompt.len() + answer.len();
        ids.clear();
        rows.clear();
        try_reserve(ids, samples.len() * length * self.passes, WHAT)?;
        try_reserve(rows, samples.clone().map(|i| self.masks(i)).sum(), WHAT)?;
        for i in samples {
            order.clear();
            try_reserve(order, answer.len(), WHAT)?;
            order.extend((0..answer.len()).map(|position| (self.noise.order_key(i, position), position)));
            let masks = self.masks(i);
            if masks < order.len() {
                order.select_nth_unstable(masks);
            }
            let from = rows.len();
            rows.extend(order[..masks].iter().map(|&(_, position)| prompt.len() + position));
            rows[from..].sort_unstable();
            let start = ids.len();
            ids.extend_from_slice(prompt);
            ids.extend_from_slice(answer);
            rows[from..].iter().for_each(|&row| ids[start + row] = self.vocabulary.mask);
        }
        if self.passes == 2 {
            let own = ids.len();
            ids.extend_from_within(..);
            ids[own..].chunks_exact_mut(length).for_each(|ids| ids[..prompt.len()].fill(self.vocabulary.mask));
        }
        Ok(())
    }
}

const WHAT: &str = "scoring an answer";
