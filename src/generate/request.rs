//! What a caller asks for, and whether it can be.

use ::image::RgbImage;

use super::Engine;
use super::defaults::Defaults;
use crate::error::{Error, Result};
use crate::memory::try_copy;
use crate::prompt::{Message, Vocabulary};
use crate::sampler::text::Forbidden;
use crate::sampler::{Confidence, Remasking, Schedule};

/// A chat, perhaps about a picture, that is to be answered.
#[derive(Clone, Debug)]
pub struct TextRequest {
    /// The turns so far; the last one is usually the user's.
    pub messages: Vec<Message>,
    /// The picture that the chat is about, of any size.
    pub image: Option<RgbImage>,
    /// Resize the picture to a square (for diagrams and documents) instead of cropping it to one.
    pub squash: bool,
    /// Ask the model to think first; the answer then comes back in two parts.
    pub thinking: bool,
    pub options: TextOptions,
}

/// How text is sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct TextOptions {
    /// Tokens of the answer: a multiple of `block_length`.
    pub gen_length: usize,
    /// Denoising steps over the whole answer: a multiple of the number of blocks.
    pub steps: usize,
    /// Tokens that are unmasked together, block after block.
    pub block_length: usize,
    /// 0 takes the most probable token; above, Gumbel noise of this scale is added to the logits.
    pub temperature: f64,
    /// Classifier-free guidance against the answer to a masked prompt; 0 is none. It doubles the work.
    pub cfg_scale: f64,
    /// Which candidates are committed first.
    pub remasking: Remasking,
    /// Of the random numbers: the same seed gives the same answer.
    pub seed: u64,
    /// The generation ends, and the answer is cut, before the first of these texts.
    pub stop: Vec<String>,
    /// Ids that must not be chosen.
    pub forbid: Vec<u32>,
    /// If given, only these ids may be chosen.
    pub allow_only: Option<Vec<u32>>,
    /// Tokens of the answer that are given beforehand, as (position in the answer, id): they are never masked or chosen,
    /// and no step reports them as changed. The steps of a block share what is masked in it. `forbid` and `allow_only`
    /// do not look at them.
    pub pinned: Vec<(usize, u32)>,
    /// Sample as the reference implementation does: image codes, `[MASK]` and unused rows of the vocabulary may be
    /// chosen, and the generation does not end with the answer. For comparing, not for use.
    pub unrestricted: bool,
}

impl TextOptions {
    /// Lengths of 0, and everything that has no default of its own in a model file.
    pub(super) fn bare() -> Self {
        TextOptions {
            gen_length: 0,
            steps: 0,
            block_length: 0,
            temperature: 0.0,
            cfg_scale: 0.0,
            remasking: Remasking::LowConfidence,
            seed: 0,
            stop: Vec::new(),
            forbid: Vec::new(),
            allow_only: None,
            pinned: Vec::new(),
            unrestricted: false,
        }
    }

    /// Blocks of the answer.
    pub(super) fn blocks(&self) -> usize {
        self.gen_length / self.block_length
    }

    /// An error unless the answer divides into blocks, the steps into blocks, and the scales are possible.
    pub(super) fn check_numbers(&self) -> Result<()> {
        let TextOptions { gen_length, steps, block_length, .. } = *self;
        for (name, value) in [("gen_length", gen_length), ("steps", steps), ("block_length", block_length)] {
            at_least_one(name, value)?;
        }
        if !gen_length.is_multiple_of(block_length) {
            return Err(Error::invalid(format!(
                "gen_length {gen_length} is not a multiple of block_length {block_length}"
            )));
        }
        let blocks = self.blocks();
        if !steps.is_multiple_of(blocks) {
            return Err(Error::invalid(format!(
                "steps {steps} is not a multiple of the {blocks} blocks (gen_length {gen_length} / block_length {block_length})"
            )));
        }
        not_negative("temperature", self.temperature)?;
        not_negative("cfg_scale", self.cfg_scale)
    }

    /// The ids that must not be chosen, of those below `end`. An error if none remains.
    pub(super) fn forbidden(&self, vocabulary: &Vocabulary, end: u32) -> Result<Forbidden> {
        let rows = vocabulary.rows;
        let given = self.forbid.iter().map(|id| ("forbid", id));
        let allowed = self.allow_only.iter().flatten().map(|id| ("allow_only", id));
        if let Some((list, id)) = given.chain(allowed).find(|&(_, &id)| id >= rows) {
            return Err(Error::invalid(format!("{list} holds the id {id}, but the vocabulary has {rows} ids")));
        }
        let mut forbidden = Forbidden::new(self.forbid.iter().map(|&id| id..id + 1))?;
        if let Some(allowed) = &self.allow_only {
            forbidden = forbidden.and(Forbidden::all_but(allowed, rows)?)?;
        }
        if !self.unrestricted {
            let never = [vocabulary.mask..vocabulary.mask + 1, vocabulary.image_ids(), vocabulary.text..rows];
            forbidden = forbidden.and(Forbidden::new(never)?)?;
        }
        match forbidden.left(0..end) {
            0 => Err(Error::invalid("forbid and allow_only leave no token to choose from")),
            _ => Ok(forbidden),
        }
    }

    /// The pinned tokens by position. An error for a position outside the answer or given twice, and for an id that is
    /// none or is `[MASK]`.
    pub(super) fn pinned(&self, vocabulary: &Vocabulary) -> Result<Vec<(usize, u32)>> {
        let mut pinned = try_copy(&self.pinned, "the pinned tokens")?;
        pinned.sort_unstable();
        for (i, &(position, id)) in pinned.iter().enumerate() {
            let (length, rows) = (self.gen_length, vocabulary.rows);
            let reason = match id {
                _ if position >= length => format!("but the answer has {length} positions, counted from 0"),
                id if id >= rows => format!("but the vocabulary has {rows} ids"),
                id if id == vocabulary.mask => "which is [MASK]: leave the position out instead".to_owned(),
                _ if i > 0 && pinned[i - 1].0 == position => "and another one at the same position".to_owned(),
                _ => continue,
            };
            return Err(Error::invalid(format!("pinned holds the id {id} at position {position}, {reason}")));
        }
        Ok(pinned)
    }

    /// An error for numbers that cannot be, or a stop text that is empty.
    pub(super) fn check(&self) -> Result<()> {
        self.check_numbers()?;
        match self.stop.iter().any(String::is_empty) {
            true => Err(Error::invalid("a stop text is empty")),
            false => Ok(()),
        }
    }
}

impl Default for TextOptions {
    /// Those of the 8B checkpoints; `Model::text_options` gives a model's own.
    fn default() -> Self {
        Defaults::default().text_options(false, false)
    }
}

/// A picture to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawRequest {
    /// What is to be seen.
    pub prompt: String,
    /// Think out a detailed description first, then draw that.
    pub think: bool,
    /// Size in pixels, each a multiple of the image tokenizer's downsampling.
    pub width: usize,
    pub height: usize,
    /// How many pictures, drawn together: picture i is the one that the seed plus i draws alone.
    pub count: usize,
    /// How the description is sampled (with `think`).
    pub text: TextOptions,
    /// How the picture is sampled.
    pub image: ImageOptions,
}

/// How pictures are sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageOptions {
    pub steps: usize,
    /// Classifier-free guidance against an empty prompt; 0 is none and halves the work.
    pub guidance: f32,
    /// Of the noise in the order in which positions become known; it falls to 0 with the steps.
    pub temperature: f32,
    /// How many positions stay masked after every step.
    pub schedule: Schedule,
    /// Which sampled codes are kept.
    pub confidence: Confidence,
    /// Of the first picture's random numbers.
    pub seed: u64,
    /// A longer prompt is cut to this many tokens, two leading special tokens included. Not used with `think`.
    pub max_text_len: usize,
    /// With `think`: tokens of prompt and description together, from bos to the last eos before the picture.
    pub text_len: usize,
}

impl ImageOptions {
    /// One step, and everything that has no default of its own in a model file.
    pub(super) fn bare() -> Self {
        ImageOptions {
            steps: 1,
            guidance: 0.0,
            temperature: 0.0,
            schedule: Schedule::Cosine,
            confidence: Confidence::Probability,
            seed: 0,
            max_text_len: 2,
            text_len: 1,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        at_least_one("steps", self.steps)?;
        not_negative("guidance", f64::from(self.guidance))?;
        not_negative("temperature", f64::from(self.temperature))?;
        self.schedule.check()
    }
}

impl Default for ImageOptions {
    /// Those of the 8B checkpoints; `Model::draw_options` gives a model's own.
    fn default() -> Self {
        Defaults::default().draw_options(false).1
    }
}

/// A picture to draw from prompts that are ids already: for those who tokenize themselves, and to repeat a run.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawFromIds {
    /// All ids before `<|soi|>`.
    pub prompt: Vec<u32>,
    /// The same of the unconditional prompt; not looked at without guidance.
    pub unconditional: Vec<u32>,
    /// Size in pixels.
    pub width: usize,
    pub height: usize,
    pub count: usize,
    pub image: ImageOptions,
}

/// The size of a picture in tokens, (width, height).
pub(super) fn token_size(engine: &dyn Engine, width: usize, height: usize) -> Result<(usize, usize)> {
    let file = engine.file();
    let Some(side) = engine.downsampling().filter(|_| engine.vocabulary().codes > 0) else {
        return Err(Error::unsupported(file, "the model has no image tokenizer, so it cannot draw"));
    };
    if width == 0 || height == 0 || !width.is_multiple_of(side) || !height.is_multiple_of(side) {
        return Err(Error::invalid(format!(
            "a picture of {width}x{height} pixels is not possible: width and height must be multiples of {side}"
        )));
    }
    Ok((width / side, height / side))
}

/// An error unless every id is below the number of rows of the vocabulary.
pub(super) fn check_ids(vocabulary: &Vocabulary, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|&&id| id >= vocabulary.rows) {
        Some(id) => {
            Err(Error::invalid(format!("the prompt holds the id {id}, but the vocabulary has {} ids", vocabulary.rows)))
        }
        None => Ok(()),
    }
}

/// An error unless the parts of a sequence fit in the context together.
pub(super) fn check_length(engine: &dyn Engine, what: impl FnOnce() -> String, parts: &[usize]) -> Result<()> {
    let (needed, limit) = (parts.iter().fold(0, |sum: usize, &n| sum.saturating_add(n)), engine.context_length());
    if needed > limit {
        return Err(Error::ContextOverflow { what: what(), needed, limit });
    }
    Ok(())
}

pub(super) fn at_least_one(name: &str, value: usize) -> Result<()> {
    match value {
        0 => Err(Error::invalid(format!("{name} is 0, it must be at least 1"))),
        _ => Ok(()),
    }
}

pub(super) fn not_negative(name: &str, value: f64) -> Result<()> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::invalid(format!("{name} is {value}, it must be a finite number of at least 0"))),
    }
}
