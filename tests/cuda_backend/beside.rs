//! Generations on a card, each step of which the processor takes too, from the same canvas: where the two differ, the
//! processor's own numbers say how near they were to each other.

use mmada::kernels::Kernels;
use mmada::parallel::{Exec, Threads};
use mmada::sampler::image::{Rule, Sampled, Temperature, cut_off, guide, keep_masked, sample, score};
use mmada::sampler::{Draw, Noise, Philox, Stage};
use mmada::{Context, DrawFromIds, ImageOptions, SequenceRequest, TextOptions};

/// What a card decided, and how far the processor was from the same where it decided something else.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub steps: usize,
    /// Tokens that were chosen or codes that were sampled, and those of them that are not the processor's.
    pub decided: usize,
    pub others: usize,
    /// How far those were from being the processor's: tokens by the difference of two logits, in root mean squares of the
    /// row; codes by the share of all probability that lies between what was drawn and the code.
    pub furthest: f64,
    /// Positions that only one of the two left masked, and how far their confidences were from those that were kept (of
    /// logarithms).
    pub moved: usize,
    pub moved_furthest: f64,
}

impl Counts {
    pub fn add(&mut self, other: Counts) {
        self.steps += other.steps;
        self.decided += other.decided;
        self.others += other.others;
        self.furthest = self.furthest.max(other.furthest);
        self.moved += other.moved;
        self.moved_furthest = self.moved_furthest.max(other.moved_furthest);
    }
}

/// An answer of one block, without noise and guidance.
pub fn text(card: &Context, cpu: &Context, prompt: Vec<u32>, options: TextOptions) -> Counts {
    assert!(options.temperature == 0.0 && options.cfg_scale == 0.0 && options.block_length == options.gen_length);
    let (first, vocabulary) = (prompt.len(), card.model().vocabulary());
    let mut generation = card.text_from_ids(prompt, options).unwrap();
    let mut counts = Counts::default();
    loop {
        let canvas = generation.sequence(0).unwrap().to_vec();
        let step = generation.step().unwrap();
        let rows: Vec<usize> = (first..canvas.len()).filter(|&i| canvas[i] == vocabulary.mask).collect();
        let request = SequenceRequest { ids: &canvas, rows: &rows, vocab: 0..vocabulary.text };
        let mut logits = cpu.logits(&[request]).unwrap().remove(0);
        let logits: Vec<&mut [f32]> = logits.chunks_exact_mut(vocabulary.text as usize).collect();
        let candidates: Vec<Token> = logits.into_iter().map(|row| Token::of(row, vocabulary.mask)).collect();
        let mut confidences: Vec<f64> = candidates.iter().map(|token| token.confidence).collect();
        confidences.sort_by(|a, b| b.total_cmp(a));
        counts.steps += 1;
        for change in &step.changed {
            let token = &candidates[rows.iter().position(|row| *row == first + change.position).unwrap()];
            counts.decided += 1;
            counts.others += usize::from(change.id != token.id);
            counts.furthest = counts.furthest.max(token.shortfall(change.id));
            let least = confidences[step.changed.len() - 1];
            counts.moved += usize::from(token.confidence < least);
            counts.moved_furthest = counts.moved_furthest.max(least - token.confidence);
        }
        if step.done {
            return counts;
        }
    }
}

/// What the processor would choose for a row.
struct Token {
    id: u32,
    /// The logarithm of its probability.
    confidence: f64,
    logits: Vec<f32>,
    size: f64,
}

impl Token {
    fn of(row: &mut [f32], never: u32) -> Token {
        let size = (row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64).sqrt();
        row[never as usize] = f32::NEG_INFINITY;
        let id = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let sum: f64 = row.iter().map(|v| f64::from(v - row[id]).exp()).sum();
        Token { id: id as u32, confidence: -sum.ln(), logits: row.to_vec(), size }
    }

    /// By how much the logit of `id` is below the largest.
    fn shortfall(&self, id: u32) -> f64 {
        f64::from(self.logits[self.id as usize] - self.logits[id as usize]) / self.size
    }
}

/// A picture of `side` x `side` codes.
pub fn drawing(card: &Context, cpu: &Context, prompt: Vec<u32>, side: usize, image: ImageOptions) -> Counts {
    let vocabulary = card.model().vocabulary();
    let (pixels, tokens) = (side * card.model().downsampling().unwrap(), side * side);
    let unconditional = vec![vocabulary.t2i.unwrap(), vocabulary.bos, vocabulary.eos];
    let request = DrawFromIds {
        prompt: prompt.clone(),
        unconditional: unconditional.clone(),
        width: pixels,
        height: pixels,
        count: 1,
        image: image.clone(),
    };
    let mut generation = card.draw_from_ids(request).unwrap();
    let (noise, mut temperature) = (Philox::new(image.seed), Temperature::new(image.temperature));
    let mut counts = Counts::default();
    for step in 0.. {
        let canvas = generation.sequence(0).unwrap().to_vec();
        let picture = &canvas[prompt.len() + 1..][..tokens];
        let unknown: Vec<usize> = (0..tokens).filter(|&i| picture[i] == vocabulary.mask).collect();
        let draws: Vec<Draw> = unknown.iter().map(|&i| Draw::new(Stage::Image, step, i)).collect();
        let taken = generation.step().unwrap();
        let free = [unconditional.as_slice(), &canvas[prompt.len()..]].concat();
        let expected = codes(cpu, (&canvas, prompt.len()), (&free, unconditional.len()), &draws, &image);
        counts.steps += 1;
        let mut scores = Vec::new();
        for (row, draw) in expected.iter().zip(&draws) {
            let code = generation.codes(0).unwrap()[draw.position];
            counts.decided += 1;
            counts.others += usize::from(code != row.sampled.code);
            counts.furthest = counts.furthest.max(row.distance(code, noise.categorical_uniform(*draw)));
            scores.push((row.probabilities[code as usize], draw));
        }
        let temperature = temperature.at(step, image.steps);
        let scores: Vec<f32> =
            scores.into_iter().map(|(p, draw)| score(p, temperature, noise.gumbel_uniform(*draw))).collect();
        let keep = keep_masked(image.schedule, tokens, unknown.len(), step, image.steps);
        let cut = cut_off(&mut scores.clone(), keep);
        for (score, position) in scores.iter().zip(&unknown) {
            let is_kept = taken.changed.iter().any(|change| change.position == *position);
            if is_kept != (*score >= cut) && !taken.done {
                counts.moved += 1;
                counts.moved_furthest = counts.moved_furthest.max(f64::from((score - cut).abs()));
            }
        }
        if taken.done {
            break;
        }
    }
    counts
}

/// What the processor samples for a position.
struct Code {
    sampled: Sampled,
    probabilities: Vec<f32>,
}

impl Code {
    /// How far `u` is from the part of all probability that belongs to `code`.
    fn distance(&self, code: u32, u: f64) -> f64 {
        let sum = |codes: &[f32]| codes.iter().map(|p| f64::from(*p)).sum::<f64>();
        let (all, before) = (sum(&self.probabilities), sum(&self.probabilities[..code as usize]));
        let until = before + f64::from(self.probabilities[code as usize]);
        (before / all - u).max(u - until / all).max(0.0)
    }
}

/// The processor's codes for `draws`, from a canvas and one without the prompt, each with the length of what is before the
/// picture.
fn codes(
    cpu: &Context,
    (ids, before): (&[u32], usize),
    (free, free_before): (&[u32], usize),
    draws: &[Draw],
    image: &ImageOptions,
) -> Vec<Code> {
    let vocab = cpu.model().vocabulary().image_ids();
    let rows = |before: usize| draws.iter().map(|draw| before + 1 + draw.position).collect::<Vec<_>>();
    let (own, others) = (rows(before), rows(free_before));
    let logits = cpu
        .logits(&[
            SequenceRequest { ids, rows: &own, vocab: vocab.clone() },
            SequenceRequest { ids: free, rows: &others, vocab: vocab.clone() },
        ])
        .unwrap();
    let [mut own, free] = <[Vec<f32>; 2]>::try_from(logits).unwrap();
    guide(&mut own, &free, image.guidance);
    let noise = Philox::new(image.seed);
    let rule = Rule { guidance: 0.0, confidence: image.confidence, noise: &noise };
    let threads = Threads::new(2).unwrap();
    let exec = Exec::new(&threads, Kernels::best(), None);
    let mut sampled = Vec::new();
    sample(&exec, &mut own, &[], vocab.len(), draws, rule, &mut sampled).unwrap();
    // what were logits are probabilities now
    let rows = own.chunks_exact(vocab.len());
    sampled.into_iter().zip(rows).map(|(sampled, row)| Code { sampled, probabilities: row.to_vec() }).collect()
}
