//! What a generation needs of a context, and no more: the seam at which tests put a model of their own.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use ::image::RgbImage;

use crate::context::LogLevel;
use crate::error::Result;
use crate::memory::{Charge, try_resize};
use crate::model::{Logits, Parts, SequenceRequest};
use crate::parallel::Exec;
use crate::prompt::{ChatTemplate, Vocabulary};
use crate::sampler::choose::{self, Candidate, Choice, SLICE, consider};
use crate::sampler::{Draw, image};
use crate::tokenizer::Tokenizer;

/// What the choice of tokens is computed in, with room for every masked row, and the candidates that come of it.
#[derive(Default)]
pub(crate) struct Choosing {
    /// of some ids at a time: [rows, ids], and behind them the unconditional ones
    pub logits: Vec<f32>,
    pub choices: Vec<Choice>,
    /// one for each draw
    pub candidates: Vec<Candidate>,
}

/// What codes are sampled in, and those that come of it.
#[derive(Default)]
pub(crate) struct Sampling {
    /// [draws, codes], and behind them the unconditional ones
    pub logits: Vec<f32>,
    /// one for each draw
    pub sampled: Vec<image::Sampled>,
}

/// A model with the means to run it. Calls that need the network's buffers fail with `Busy` while another call
/// uses them; they stop with `Cancelled` soon after `cancel` is set.
pub(crate) trait Engine: Send + Sync {
    /// An error where nothing can be run any more: in a forked process, or over a model file that was cut off.
    fn ready(&self) -> Result<()> {
        Ok(())
    }
    /// Counts bytes of buffers against the limit of the context, before they are allocated.
    fn take(&self, bytes: usize, what: &str) -> Result<Charge> {
        let _ = (bytes, what);
        Ok(Charge::default())
    }
    /// Tells the logger, if there is one; the message is made only then.
    fn log(&self, level: LogLevel, message: &dyn Fn() -> String) {
        let _ = (level, message);
    }
    /// The model's file, to name in errors.
    fn file(&self) -> &str;
    fn vocabulary(&self) -> &Vocabulary;
    /// The most positions a sequence may have.
    fn context_length(&self) -> usize;
    fn tokenizer(&self) -> Result<&Tokenizer>;
    fn chat_template(&self) -> Result<&ChatTemplate>;
    /// Pixels per image token along a side, or `None` without an image tokenizer.
    fn downsampling(&self) -> Option<usize>;
    /// How many codes the picture of a question has.
    fn question_codes(&self) -> usize;
    fn exec<'a>(&'a self, cancel: &'a AtomicBool) -> Exec<'a>;
    /// The logits of all sequences, to be kept or looked at.
    fn logits(&self, cancel: &AtomicBool, batch: &[SequenceRequest<'_>], out: Logits<'_>) -> Result<()>;
    /// The candidate of each of `draws`, which are the wanted rows of the first sequence; those of a second sequence, if there
    /// is one, are unconditional.
    fn choose(
        &self,
        cancel: &AtomicBool,
        batch: &[SequenceRequest<'_>],
        draws: &[Draw],
        rule: choose::Rule<'_>,
        room: &mut Choosing,
    ) -> Result<()> {
        choose_from_logits(self, cancel, batch, draws, rule, room)
    }
    /// A code for each of `draws`: `copies` times the wanted rows of a batch, whose second half is unconditional where
    /// something guides.
    fn sample(
        &self,
        cancel: &AtomicBool,
        batch: &[SequenceRequest<'_>],
        copies: usize,
        draws: &[Draw],
        rule: image::Rule<'_>,
        room: &mut Sampling,
    ) -> Result<()> {
        sample_from_logits(self, cancel, batch, copies, draws, rule, room)
    }
    /// The `question_codes` codes of a picture of any size, in raster order. `squash`: resize to a square instead
    /// of cropping to one.
    fn encode_image(&self, cancel: &AtomicBool, picture: &RgbImage, squash: bool) -> Result<Vec<u32>>;
    /// The picture of `width * height` codes in raster order.
    fn decode_image(&self, cancel: &AtomicBool, codes: &[u32], width: usize, height: usize) -> Result<RgbImage>;
}

/// [`Engine::choose`] on the processor.
pub(crate) fn choose_from_logits<E: Engine + ?Sized>(
    engine: &E,
    cancel: &AtomicBool,
    batch: &[SequenceRequest<'_>],
    draws: &[Draw],
    rule: choose::Rule<'_>,
    room: &mut Choosing,
) -> Result<()> {
    let exec = engine.exec(cancel);
    let Choosing { logits, choices, candidates } = room;
    choices.clear();
    choices.resize(draws.len(), Choice::default()); // there is room
    let width = SLICE.min(batch.first().map_or(0, |s| s.vocab.len())).max(1);
    try_resize(logits, batch.len() * draws.len() * width, "the logits of a block of text")?;
    let mut visit = |ids: Range<u32>, logits: &mut [f32]| {
        let (own, unconditional) = logits.split_at_mut(draws.len() * ids.len());
        consider(&exec, own, unconditional, ids, draws, rule, choices)
    };
    engine.logits(cancel, batch, Logits::Parts(Parts { buffer: logits, width, visit: &mut visit }))?;
    exec.check()?;
    candidates.clear();
    for (choice, draw) in choices.iter().zip(draws) {
        candidates.push(choice.candidate(*draw, rule)?);
    }
    Ok(())
}

/// [`Engine::sample`] on the processor.
pub(crate) fn sample_from_logits<E: Engine + ?Sized>(
    engine: &E,
    cancel: &AtomicBool,
    batch: &[SequenceRequest<'_>],
    copies: usize,
    draws: &[Draw],
    rule: image::Rule<'_>,
    room: &mut Sampling,
) -> Result<()> {
    let Sampling { logits, sampled } = room;
    let codes = batch.first().map_or(0, |s| s.vocab.len());
    let own = draws.len() / copies * codes;
    let passes = if rule.guidance > 0.0 { 2 } else { 1 };
    logits.resize(passes * own, 0.0); // there is room
    engine.logits(cancel, batch, Logits::All(logits))?;
    // [c, u] becomes [c, c, ..., u, u, ...], from the end on.
    logits.resize(passes * copies * own, 0.0);
    for to in (copies..passes * copies).rev() {
        logits.copy_within(own..2 * own, to * own);
    }
    for to in 1..copies {
        logits.copy_within(..own, to * own);
    }
    let (conditional, unconditional) = logits.split_at_mut(copies * own);
    let exec = engine.exec(cancel);
    exec.check()?;
    sampled.clear();
    image::sample(&exec, conditional, unconditional, codes, draws, rule, sampled)
}
