//! The image stage: one or several pictures, sampled and masked again until every code is settled.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::engine::Sampling;
use super::request::ImageOptions;
use super::{Change, Engine, Slot, Step};
use crate::error::Result;
use crate::memory::{Charge, try_collect, try_with_capacity};
use crate::model::SequenceRequest;
use crate::prompt::Vocabulary;
use crate::sampler::image::{Rule, Sampled, Temperature, cut_off, keep_masked, score};
use crate::sampler::{Draw, Noise, Philox, Stage};

/// What stands around the codes of a picture: soi before, eoi behind.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub soi: u32,
    pub eoi: u32,
    pub mask: u32,
}

impl Frame {
    /// # Errors
    /// `InvalidArgument` for a vocabulary that has no such tokens.
    pub fn of(vocabulary: &Vocabulary) -> Result<Self> {
        let soi = vocabulary.need("soi", vocabulary.soi)?;
        let eoi = vocabulary.need("eoi", vocabulary.eoi)?;
        Ok(Frame { soi, eoi, mask: vocabulary.mask })
    }

    /// Positions that `tokens` codes take with what stands around them.
    pub fn len(tokens: usize) -> usize {
        tokens.saturating_add(2)
    }

    /// `prompt`, then a picture of masks.
    pub fn masked(self, prompt: &[u32], tokens: usize) -> Result<Vec<u32>> {
        let mut ids = try_with_capacity(prompt.len().saturating_add(Self::len(tokens)), CANVAS)?;
        ids.extend_from_slice(prompt);
        ids.push(self.soi);
        ids.resize(ids.len() + tokens, self.mask);
        ids.push(self.eoi);
        Ok(ids)
    }
}

/// A picture in the making.
struct Picture {
    /// the prompt with the picture; known codes and masks
    ids: Vec<u32>,
    /// the unconditional prompt with the same picture; empty without guidance
    unconditional: Vec<u32>,
    /// the codes that were sampled last; empty before the first step
    codes: Vec<u32>,
    slots: Vec<Slot>,
    /// raster indices of the masked positions, and where these stand in the two sequences
    unknown: Vec<usize>,
    rows: Vec<usize>,
    unconditional_rows: Vec<usize>,
}

impl Picture {
    fn new(ids: Vec<u32>, unconditional: Vec<u32>, tokens: usize) -> Result<Self> {
        let guided = if unconditional.is_empty() { 0 } else { tokens };
        let mut slots = try_with_capacity(tokens, CANVAS)?;
        slots.resize(tokens, Slot::Masked);
        Ok(Picture {
            ids,
            unconditional,
            codes: try_with_capacity(tokens, CANVAS)?,
            slots,
            unknown: try_collect(0..tokens, CANVAS)?,
            rows: try_with_capacity(tokens, CANVAS)?,
            unconditional_rows: try_with_capacity(guided, CANVAS)?,
        })
    }

    /// Bytes that a picture takes whose sequences are `lengths` long.
    fn bytes(lengths: [usize; 2], tokens: usize) -> usize {
        let ids = lengths[0].saturating_add(lengths[1]).saturating_mul(size_of::<u32>());
        let rows = if lengths[1] > 0 { 3 } else { 2 };
        let position = size_of::<u32>() + size_of::<Slot>() + rows * size_of::<usize>();
        ids.saturating_add(tokens.saturating_mul(position))
    }
}

pub(crate) struct ImageStage {
    width: usize,
    height: usize,
    /// image codes as ids
    vocab: Range<u32>,
    options: ImageOptions,
    pictures: Vec<Picture>,
    /// where raster index 0 stands in the two sequences
    first: usize,
    unconditional_first: usize,
    step: usize,
    done: bool,
    temperature: Temperature,
    buffers: Buffers,
    /// all of this as the context counts it
    _charge: Charge,
}

const LOGITS: &str = "the logits of the pictures";
const CANVAS: &str = "the canvas of a picture";

struct Buffers {
    draws: Vec<Draw>,
    sampling: Sampling,
    scores: Vec<f32>,
    sorted: Vec<f32>,
}

impl Buffers {
    fn new(logits: usize, rows: usize, tokens: usize) -> Result<Self> {
        Ok(Buffers {
            draws: try_with_capacity(rows, "the order of draws")?,
            sampling: Sampling {
                logits: try_with_capacity(logits, LOGITS)?,
                sampled: try_with_capacity(rows, "the sampled codes")?,
            },
            scores: try_with_capacity(tokens, "the scores of a picture")?,
            sorted: try_with_capacity(tokens, "the scores of a picture")?,
        })
    }

    /// Bytes that `new` takes.
    fn bytes(logits: usize, rows: usize, tokens: usize) -> usize {
        let row = size_of::<Draw>() + size_of::<Sampled>();
        let floats = logits.saturating_add(tokens.saturating_mul(2));
        floats.saturating_mul(size_of::<f32>()).saturating_add(rows.saturating_mul(row))
    }
}

impl ImageStage {
    /// Bytes that it takes for `count` pictures of `tokens` of `codes` codes, with sequences of these lengths, the second 0
    /// without guidance. Saturates: sizes come from a request that nobody checked.
    pub fn bytes(lengths: [usize; 2], (tokens, codes): (usize, usize), count: usize) -> usize {
        let rows = tokens.saturating_mul(count);
        let logits = rows.saturating_mul(codes).saturating_mul(if lengths[1] > 0 { 2 } else { 1 });
        let picture = Picture::bytes(lengths, tokens).saturating_add(size_of::<Picture>());
        Buffers::bytes(logits, rows, tokens).saturating_add(picture.saturating_mul(count))
    }

    /// `count` pictures of `width` x `height` tokens. Lengths and options have been checked.
    pub(super) fn new(
        engine: &dyn Engine,
        prompt: &[u32],
        unconditional: &[u32],
        (width, height): (usize, usize),
        count: usize,
        options: ImageOptions,
    ) -> Result<Self> {
        let frame = Frame::of(engine.vocabulary())?;
        let vocab = engine.vocabulary().image_ids();
        let tokens = width * height;
        let guided = options.guidance > 0.0;
        let rows = tokens.saturating_mul(count);
        let passes = if guided { 2 } else { 1 };
        let length = |prompt: &[u32]| prompt.len().saturating_add(Frame::len(tokens));
        let lengths = [length(prompt), if guided { length(unconditional) } else { 0 }];
        let charge = engine.take(ImageStage::bytes(lengths, (tokens, vocab.len()), count), LOGITS)?;
        let logits = rows.saturating_mul(vocab.len()).saturating_mul(passes);
        let buffers = Buffers::new(logits, rows, tokens)?;
        let mut pictures = try_with_capacity(count, CANVAS)?;
        for _ in 0..count {
            let unconditional = if guided { frame.masked(unconditional, tokens)? } else { Vec::new() };
            pictures.push(Picture::new(frame.masked(prompt, tokens)?, unconditional, tokens)?);
        }
        Ok(ImageStage {
            width,
            height,
            vocab,
            pictures,
            first: prompt.len() + 1,
            unconditional_first: unconditional.len() + 1,
            step: 0,
            done: false,
            temperature: Temperature::new(options.temperature),
            buffers,
            _charge: charge,
            options,
        })
    }

    /// Each picture's prompt, for a description that has been thought out to be put in its place.
    pub fn prompts(&mut self) -> impl Iterator<Item = &mut [u32]> {
        let len = self.prompt_len();
        self.pictures.iter_mut().map(move |picture| &mut picture.ids[..len])
    }

    /// Ids before `<|soi|>`.
    pub fn prompt_len(&self) -> usize {
        self.first - 1
    }
    pub fn is_done(&self) -> bool {
        self.done
    }
    pub fn total_steps(&self) -> usize {
        self.options.steps
    }
    pub fn count(&self) -> usize {
        self.pictures.len()
    }
    /// Width and height in tokens.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }
    pub fn ids(&self, picture: usize) -> Option<&[u32]> {
        self.pictures.get(picture).map(|p| p.ids.as_slice())
    }
    pub fn slots(&self, picture: usize) -> Option<&[Slot]> {
        self.pictures.get(picture).map(|p| p.slots.as_slice())
    }
    pub fn codes(&self, picture: usize) -> Option<&[u32]> {
        self.pictures.get(picture).map(|p| p.codes.as_slice())
    }

    /// One step of every picture. Nothing has changed if it fails.
    pub fn step(&mut self, engine: &dyn Engine, cancel: &AtomicBool, noise: Option<&dyn Noise>) -> Result<Step> {
        if self.done {
            return Ok(self.report(Vec::new()));
        }
        self.list_unknown();
        self.sample_codes(engine, cancel, noise)?;
        let mut changed = try_with_capacity(self.buffers.draws.len(), CANVAS)?;
        self.settle(noise, &mut changed);
        self.step += 1;
        self.done = self.step == self.options.steps || self.pictures.iter().all(|p| p.unknown.is_empty());
        Ok(self.report(changed))
    }

    fn report(&self, changed: Vec<Change>) -> Step {
        let (index, total) = (self.step, self.options.steps);
        Step { stage: Stage::Image, index, total, changed, prefix: 0, done: self.done }
    }

    fn list_unknown(&mut self) {
        let (first, unconditional_first, step) = (self.first, self.unconditional_first, self.step);
        self.buffers.draws.clear();
        for (sequence, picture) in self.pictures.iter_mut().enumerate() {
            let Picture { unknown, rows, unconditional_rows, .. } = picture;
            rows.clear();
            rows.extend(unknown.iter().map(|i| first + i));
            unconditional_rows.clear();
            unconditional_rows.extend(unknown.iter().map(|i| unconditional_first + i));
            let draw = |&position: &usize| Draw { stage: Stage::Image, sequence, step, position };
            self.buffers.draws.extend(unknown.iter().map(draw));
        }
    }

    /// A code for all unknown positions, picture after picture.
    ///
    /// From whole rows of logits, unlike text: a code is drawn where the sum of probabilities up to it passes a share of the
    /// sum of all, both of probabilities that were rounded to f32 after the sum was known, so every row is gone through three
    /// times.
    fn sample_codes(&mut self, engine: &dyn Engine, cancel: &AtomicBool, noise: Option<&dyn Noise>) -> Result<()> {
        let Buffers { draws, sampling, .. } = &mut self.buffers;
        // Before the first step all pictures are the same masks behind the same prompt: one stands for all.
        let distinct = if self.step == 0 { &self.pictures[..1] } else { &self.pictures[..] };
        let copies = self.pictures.len() / distinct.len();
        let pending = || distinct.iter().filter(|p| !p.unknown.is_empty());
        let request = |ids, rows| SequenceRequest { ids, rows, vocab: self.vocab.clone() };
        let mut batch = try_with_capacity(2 * distinct.len(), "a batch of pictures")?;
        batch.extend(pending().map(|p| request(&p.ids, &p.rows)));
        if self.options.guidance > 0.0 {
            batch.extend(pending().map(|p| request(&p.unconditional, &p.unconditional_rows)));
        }
        let philox = Philox::new(self.options.seed);
        let rule = Rule {
            guidance: self.options.guidance,
            confidence: self.options.confidence,
            noise: noise.unwrap_or(&philox),
        };
        engine.sample(cancel, &batch, copies, draws, rule, sampling)
    }

    /// Takes over what was sampled, and masks the least confident again. `changed` has room for what is decided.
    fn settle(&mut self, noise: Option<&dyn Noise>, changed: &mut Vec<Change>) {
        let philox = Philox::new(self.options.seed);
        let noise = noise.unwrap_or(&philox);
        let (step, steps) = (self.step, self.options.steps);
        let temperature = self.temperature.at(step, steps);
        let last = step + 1 == steps;
        let tokens = self.width * self.height;
        let Buffers { draws, sampling, scores, sorted } = &mut self.buffers;
        let mut rest = draws.iter().zip(&sampling.sampled);
        for (sequence, picture) in self.pictures.iter_mut().enumerate() {
            if picture.unknown.is_empty() {
                continue;
            }
            picture.codes.resize(tokens, 0);
            scores.clear();
            for (draw, sampled) in rest.by_ref().take(picture.unknown.len()) {
                picture.codes[draw.position] = sampled.code;
                scores.push(score(sampled.confidence, temperature, noise.gumbel_uniform(*draw)));
            }
            let keep = keep_masked(self.options.schedule, tokens, picture.unknown.len(), step, steps);
            sorted.clone_from(scores);
            let cut = cut_off(sorted, keep);
            let mut scores = scores.iter();
            let Picture { ids, unconditional, codes, slots, unknown, .. } = picture;
            unknown.retain(|&position| {
                let masked = scores.next().is_some_and(|&score| score < cut);
                let id = self.vocab.start + codes[position];
                if !masked || last {
                    slots[position] = Slot::Token(id);
                    changed.push(Change { sequence, position, id });
                }
                if !masked {
                    ids[self.first + position] = id;
                    if let Some(slot) = unconditional.get_mut(self.unconditional_first + position) {
                        *slot = id;
                    }
                }
                masked
            });
        }
    }
}
