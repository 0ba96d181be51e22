//! States of an answer, which the sampler unmasks block by block.

use std::ops::Range;

use mmada::model::SequenceRequest;
use mmada::prompt::{chat, image_question};
use mmada::sampler::noise::{Draw, Philox, Stage};
use mmada::sampler::text::{Forbidden, Rule, choose, commits};
use mmada::tokenizer::Special;
use mmada::{Error, Message, Result, TextOptions};

use super::{Maker, State, masked_among, nearest};

/// States with about these mask ratios: of the given answer, or of the model's own.
pub(super) fn states(maker: &Maker, ratios: &[f64]) -> Result<Vec<State>> {
    let model = maker.context.model();
    let task = maker.sample.task;
    let mut options = model.text_options(task.thinks(), task.asks_about_picture());
    options.seed = maker.seed;
    let prompt = prompt(maker)?;
    // A prompt that leaves less room than the usual length gets a shorter answer.
    let room = model.config().context.saturating_sub(prompt.len()) / options.block_length * options.block_length;
    if room == 0 {
        let (what, limit) = (format!("a prompt of {} tokens", prompt.len()), model.config().context);
        return Err(Error::ContextOverflow { what, needed: prompt.len() + options.block_length, limit });
    }
    let options = of_length(&options, options.gen_length.min(room));
    match &maker.sample.answer {
        Some(answer) => {
            let answer = model.tokenizer()?.encode(answer, Special::Plain)?;
            let given = Given { maker, prompt: &prompt, answer: &answer, options: &options };
            ratios.iter().map(|&ratio| given.state(ratio)).collect()
        }
        None => own(maker, &prompt, &options, ratios),
    }
}

fn prompt(maker: &Maker) -> Result<Vec<u32>> {
    let (model, sample) = (maker.context.model(), maker.sample);
    let (tokenizer, vocabulary, template) = (model.tokenizer()?, model.vocabulary(), model.chat_template()?);
    let messages = [Message::user(&sample.prompt)];
    let thinking = sample.task.thinks();
    match &sample.picture {
        None => chat(tokenizer, vocabulary, template, &messages, thinking),
        Some(picture) => {
            let codes = maker.codes(picture)?;
            image_question(tokenizer, vocabulary, template, &codes, &messages, thinking)
        }
    }
}

/// The same options for an answer of `length`: blocks have as many tokens and steps as before.
fn of_length(options: &TextOptions, length: usize) -> TextOptions {
    let blocks = length / options.block_length;
    TextOptions { gen_length: length, steps: steps_per_block(options) * blocks, ..options.clone() }
}

fn steps_per_block(options: &TextOptions) -> usize {
    options.steps / (options.gen_length / options.block_length)
}

/// What the sampler had before it a moment before a step.
struct Moment {
    ids: Vec<u32>,
    masked: Vec<usize>,
    ratio: f64,
    commit: usize,
}

/// Lets the model answer, and picks states on the way. Masks get rarer than they ever were in an answer that ended
/// early only where it is taken as if it had been given.
fn own(maker: &Maker, prompt: &[u32], options: &TextOptions, ratios: &[f64]) -> Result<Vec<State>> {
    let vocabulary = maker.context.model().vocabulary();
    let mut generation = maker.context.text_from_ids(prompt.to_vec(), options.clone())?;
    let answer = prompt.len()..prompt.len() + options.gen_length;
    let mut moments: Vec<Moment> = Vec::new();
    loop {
        let ids = generation.sequence(0).unwrap_or_default().to_vec();
        let step = maker.step(&mut generation)?;
        if !step.changed.is_empty() {
            let block = (step.index - 1) / steps_per_block(options);
            let masked =
                masked_among(&ids, answer.start..answer.start + (block + 1) * options.block_length, vocabulary.mask);
            let ratio = mask_ratio(&ids[answer.clone()], vocabulary.mask);
            moments.push(Moment { ids, masked, ratio, commit: step.changed.len() });
        }
        if step.done {
            break;
        }
    }
    // An answer may end before all of its last block is decided: what follows the end is eos.
    let truth = |place: usize| match generation.sequence(0).and_then(|ids| ids.get(place)) {
        Some(&id) if id != vocabulary.mask => id,
        _ => vocabulary.eos,
    };
    let ids = generation.text()?.ids;
    let given = Given { maker, prompt, answer: &ids, options };
    let rarest = moments.iter().map(|moment| moment.ratio).fold(1.0, f64::min);
    let state = |&wanted: &f64| match nearest(&moments, wanted, |moment| moment.ratio) {
        Some(moment) if wanted >= rarest => Ok(State {
            truth: moment.masked.iter().map(|&place| truth(place)).collect(),
            ..given.blank(moment.ids.clone(), moment.masked.clone(), moment.ratio, moment.commit)
        }),
        _ => given.state(wanted),
    };
    ratios.iter().map(state).collect()
}

fn mask_ratio(answer: &[u32], mask: u32) -> f64 {
    answer.iter().filter(|&&id| id == mask).count() as f64 / answer.len().max(1) as f64
}

/// An answer that is known.
struct Given<'a> {
    maker: &'a Maker<'a>,
    prompt: &'a [u32],
    /// Without what ends it.
    answer: &'a [u32],
    /// Of the longest answer.
    options: &'a TextOptions,
}

impl Given<'_> {
    fn blank(&self, ids: Vec<u32>, masked: Vec<usize>, ratio: f64, commit: usize) -> State {
        State {
            task: self.maker.sample.task,
            ratio: ratio as f32,
            ids,
            masked,
            vocab: 0..self.maker.context.model().vocabulary().text,
            truth: Vec::new(),
            commit,
            unconditional: None,
            guidance: 0.0,
            sample: 0,
        }
    }

    /// What stands in `length` positions: the answer, the end of the turn, and eos in the rest.
    fn truth(&self, length: usize) -> Vec<u32> {
        let vocabulary = self.maker.context.model().vocabulary();
        let mut truth: Vec<u32> = self.answer.iter().copied().chain([vocabulary.eot]).take(length).collect();
        truth.resize(length, vocabulary.eos);
        truth
    }

    /// The state before the step whose mask ratio is nearest below the one wanted (or after fewer tokens than that,
    /// where a step commits several).
    fn state(&self, wanted: f64) -> Result<State> {
        let mask = self.maker.context.model().vocabulary().mask;
        let block_length = self.options.block_length;
        let steps = steps_per_block(self.options);
        let (length, done) = self.place(wanted);
        let (block, within) = (done / block_length, done % block_length);
        // The last step that begins with no more than `within` known tokens of its block.
        let known = |step: usize| (0..step).map(|s| commits(block_length, s, steps)).sum::<usize>();
        let step = (0..steps).rev().find(|&step| known(step) <= within && known(step) < block_length).unwrap_or(0);
        let count = known(step);

        let start = self.prompt.len();
        let options = of_length(self.options, length);
        let generation = self.maker.context.text_from_ids(self.prompt.to_vec(), options)?;
        let mut ids = generation.sequence(0).unwrap_or_default().to_vec();
        let truth = self.truth(length);
        let first = start + block * block_length;
        ids[start..first].copy_from_slice(&truth[..first - start]);
        let mut order = self.order(&ids, first..first + block_length, block * steps)?;
        // Nobody would look further once the answer's end and all before it are known.
        let end = start + self.answer.len();
        if (first..=end).all(|place| order[..count].contains(&place))
            && let Some(last) = order[..count].iter().rposition(|&place| place <= end)
        {
            order.swap(last, count);
        }
        for &place in &order[..count] {
            ids[place] = truth[place - start];
        }
        let masked = masked_among(&ids, first..first + block_length, mask);
        let ratio = mask_ratio(&ids[start..start + length], mask);
        let truth = masked.iter().map(|&place| truth[place - start]).collect();
        Ok(State { truth, ..self.blank(ids, masked, ratio, commits(block_length, step, steps)) })
    }

    /// The length of an answer of which the sampler sees this mask ratio, and how many tokens are known then. Answers
    /// have the usual length, but masks are never rare in one that ends early: then it is the longest one possible.
    fn place(&self, wanted: f64) -> (usize, usize) {
        let (block, longest) = (self.options.block_length, self.options.gen_length);
        // The block with the end is the last one that is looked at.
        let visited = (self.answer.len() + 1).div_ceil(block).saturating_mul(block).min(longest);
        let length = (visited as f64 / (1.0 - wanted)) as usize / block * block;
        let length = length.clamp(visited, longest);
        let masks = (wanted * length as f64).round() as usize;
        (length, length.saturating_sub(masks).min(visited - 1))
    }

    /// The positions of a block, all of it masked, in the order in which the sampler would decide them if it did so in
    /// this one step: those first that the model is most sure of.
    fn order(&self, ids: &[u32], block: Range<usize>, step: usize) -> Result<Vec<usize>> {
        let vocabulary = self.maker.context.model().vocabulary();
        let mut places: Vec<usize> = block.collect();
        let vocab = 0..vocabulary.text;
        let wanted = SequenceRequest { ids, rows: &places, vocab: vocab.clone() };
        let mut logits = self.maker.logits(&[wanted])?.pop().unwrap_or_default();
        let rule = Rule {
            temperature: self.options.temperature,
            remasking: self.options.remasking,
            cfg_scale: 0.0,
            forbidden: &Forbidden::new(std::iter::once(vocabulary.mask..vocabulary.mask + 1))?,
            noise: &Philox::new(self.maker.seed),
        };
        let mut confidence = Vec::with_capacity(places.len());
        for (place, row) in places.iter().zip(logits.chunks_exact_mut(vocab.len())) {
            let draw = Draw::new(Stage::Text, step, place - self.prompt.len());
            confidence.push(choose(row, vocab.start, draw, rule)?.confidence);
        }
        let first = places.first().copied().unwrap_or(0);
        places.sort_by(|a, b| confidence[b - first].total_cmp(&confidence[a - first]));
        Ok(places)
    }
}
