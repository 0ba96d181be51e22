//! Scores against their definition: log-probabilities computed from logits of maskings that are written out.

use std::path::Path;
use std::sync::OnceLock;

use mmada::{Canceller, Context, ContextOptions, Error, Model, Score, ScoreRequest, SequenceRequest};

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mmada-shapes.gguf")).unwrap())
}

fn context(threads: usize) -> Context {
    Context::new(model(), ContextOptions { threads, ..Default::default() }).unwrap()
}

/// ln p of each masked token of the answer, given the others: the log of a softmax over the whole vocabulary.
fn log_probabilities(context: &Context, request: &ScoreRequest, masked: &[usize]) -> Vec<f64> {
    let (mask, vocab) = (model().vocabulary().mask, 0..model().vocabulary().rows);
    let prompt = request.prompt.len();
    let mut ids = [&request.prompt[..], &request.answer].concat();
    masked.iter().for_each(|i| ids[prompt + i] = mask);
    let mut free = ids.clone();
    free[..prompt].fill(mask);
    let rows: Vec<usize> = masked.iter().map(|i| prompt + i).collect();
    let of = |ids: &[u32]| {
        let logits = context.logits(&[SequenceRequest { ids, rows: &rows, vocab: vocab.clone() }]).unwrap();
        logits.concat()
    };
    let (mut own, free) = (of(&ids), of(&free));
    if request.cfg_scale > 0.0 {
        let factor = request.cfg_scale as f32 + 1.0;
        own.iter_mut().zip(&free).for_each(|(own, &free)| *own = free + factor * (*own - free));
    }
    let row = |(row, &i): (&[f32], &usize)| {
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        f64::from(row[request.answer[i] as usize]) - sum.ln()
    };
    own.chunks_exact(vocab.len()).zip(masked).map(row).collect()
}

/// The answer's samples if exactly the positions in `masked` are masked.
fn sample(context: &Context, request: &ScoreRequest, masked: &[usize]) -> f64 {
    let sum: f64 = log_probabilities(context, request, masked).iter().sum();
    sum * request.answer.len() as f64 / masked.len() as f64
}

fn close(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-9 * want.abs(), "{got} for {want}");
}

#[test]
fn an_answer_of_one_token_has_its_log_probability_whatever_the_samples() {
    let context = context(2);
    for (samples, seed, cfg_scale) in [(1, 0, 0.0), (7, 9, 0.0), (3, 2, 1.5)] {
        let request = ScoreRequest { prompt: (3..20).collect(), answer: vec![77], samples, seed, cfg_scale };
        let got = context.score(&request).unwrap();
        let want = log_probabilities(&context, &request, &[0])[0];
        close(got.log_likelihood, want);
        assert!(got.log_likelihood < 0.0);
        assert_eq!(got, Score { log_likelihood: got.log_likelihood, per_token: got.log_likelihood, samples });
    }
}

#[test]
fn an_answer_of_two_tokens_is_one_of_the_mixtures_that_chance_allows() {
    let context = context(2);
    for cfg_scale in [0.0, 0.7] {
        let samples = 200;
        let request = ScoreRequest { prompt: vec![4, 90, 17], answer: vec![31, 250], samples, seed: 5, cfg_scale };
        let got = context.score(&request).unwrap();
        let both = sample(&context, &request, &[0, 1]);
        let (first, second) = (sample(&context, &request, &[0]), sample(&context, &request, &[1]));
        assert!((first - second).abs() > 0.1, "tokens of the same probability prove nothing");
        // half of the samples mask one token: `n` of them the first
        let n = (got.log_likelihood * 2.0 - both - second) / (first - second) * 100.0;
        assert!((n - n.round()).abs() < 1e-6, "{n} samples of 100 mask the first token");
        assert!((25.0..75.0).contains(&n), "{n} of 100 is five standard errors from half");
        close(got.per_token, got.log_likelihood / 2.0);
    }
}

#[test]
fn the_mean_over_seeds_is_the_mean_over_all_maskings() {
    let context = context(2);
    let answer = vec![12, 300, 45, 8];
    let request = |seed, samples| ScoreRequest {
        prompt: (50..60).collect(),
        answer: answer.clone(),
        samples,
        seed,
        cfg_scale: 0.0,
    };
    // every number of masks counts alike, and all sets of that many
    let mut exact = 0.0;
    for l in 1..=4u32 {
        let sets: Vec<u32> = (1..16u32).filter(|set| set.count_ones() == l).collect();
        let of = |set: &u32| {
            let masked: Vec<usize> = (0..4).filter(|i| set >> i & 1 == 1).collect();
            sample(&context, &request(0, 1), &masked)
        };
        exact += sets.iter().map(of).sum::<f64>() / sets.len() as f64 / 4.0;
    }
    let scores: Vec<f64> = (0..60).map(|seed| context.score(&request(seed, 9)).unwrap().log_likelihood).collect();
    let mean = scores.iter().sum::<f64>() / 60.0;
    let variance = scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / 59.0;
    let error = (variance / 60.0).sqrt();
    assert!(error > 0.0 && error < 0.05 * exact.abs(), "a standard error of {error} for {exact}");
    assert!((mean - exact).abs() < 5.0 * error, "{mean} for {exact} with a standard error of {error}");
    // stratified: with as many samples as tokens, each number of masks comes once; their spread is less than of single ones
    let single: Vec<f64> = (0..60).map(|seed| context.score(&request(seed, 1)).unwrap().log_likelihood).collect();
    assert!(single.iter().any(|s| (s - mean).abs() > 2.0 * variance.sqrt()));
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_threads_and_another_seed_others() {
    let request = |seed| ScoreRequest {
        prompt: (3..40).collect(),
        answer: (60..91).collect(),
        samples: 23,
        seed,
        cfg_scale: 0.5,
    };
    let (one, four) = (context(1), context(4));
    let score = one.score(&request(u64::MAX)).unwrap();
    assert_eq!(score, four.score(&request(u64::MAX)).unwrap());
    assert_eq!(score, four.score_with(&request(u64::MAX), &Canceller::new()).unwrap());
    assert_ne!(score, four.score(&request(1)).unwrap());
}

#[test]
fn a_likely_answer_scores_better_than_an_unlikely_one() {
    let context = context(2);
    let prompt = context.prompt_ids(&[mmada::Message::user("What is 17 + 25?")], false).unwrap();
    let tokenizer = model().tokenizer().unwrap();
    let score = |text: &str| {
        let mut answer = tokenizer.encode(text, mmada::tokenizer::Special::Plain).unwrap();
        answer.push(model().vocabulary().eot);
        let request = ScoreRequest { prompt: prompt.clone(), answer, samples: 64, seed: 0, cfg_scale: 0.0 };
        context.score(&request).unwrap().per_token
    };
    let (right, wrong) = (score("42"), score("93"));
    assert!(right > wrong + 1.0, "{right} for the right answer, {wrong} for a wrong one");
}

#[test]
fn what_cannot_be_scored_is_refused_with_a_reason() {
    let context = context(1);
    let good = ScoreRequest { prompt: vec![3], answer: vec![4, 5], samples: 2, seed: 0, cfg_scale: 0.0 };
    let (mask, rows) = (model().vocabulary().mask, model().vocabulary().rows);
    let length = model().config().context;
    let cases = [
        (ScoreRequest { answer: vec![], ..good.clone() }, "the answer is empty"),
        (ScoreRequest { answer: vec![4, mask], ..good.clone() }, "[MASK] at position 1"),
        (ScoreRequest { answer: vec![rows], ..good.clone() }, "the vocabulary has"),
        (ScoreRequest { prompt: vec![rows], ..good.clone() }, "the vocabulary has"),
        (ScoreRequest { samples: 0, ..good.clone() }, "samples is 0"),
        (ScoreRequest { samples: usize::MAX, ..good.clone() }, "the limit is"),
        (ScoreRequest { cfg_scale: f64::NAN, ..good.clone() }, "cfg_scale is NaN"),
        (ScoreRequest { prompt: vec![1; length], ..good.clone() }, "but the model's context is"),
    ];
    for (request, reason) in cases {
        let error = context.score(&request).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let cancelled = Canceller::new();
    cancelled.cancel();
    assert!(matches!(context.score_with(&good, &cancelled), Err(Error::Cancelled)));
    let empty = ScoreRequest { prompt: vec![], cfg_scale: 1.0, ..good };
    assert!(context.score(&empty).unwrap().log_likelihood < 0.0);
}
