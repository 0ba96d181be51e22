//! From a request to its result, one step at a time.
//!
//! A [`Generation`] is pulled by its caller: every [`Generation::step`] runs the network once over everything and
//! says what changed. Progress bars, previews, streams and callbacks are built on that.
//!
//! ```text
//! request -> prompt -> ids -> [ logits -> sampler -> ids ] x steps -> text, codes -> picture
//! ```

mod defaults;
mod engine;
mod image;
mod request;
mod score;
mod text;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::image::RgbImage;

pub use self::defaults::{Defaults, ImageDefaults, TextDefaults};
pub(crate) use self::engine::{Choosing, Engine, Sampling, choose_from_logits, sample_from_logits};
use self::image::Frame;
pub(crate) use self::image::ImageStage;
pub use self::request::{DrawFromIds, DrawRequest, ImageOptions, TextOptions, TextRequest};
use self::request::{at_least_one, check_ids, check_length, token_size};
pub(crate) use self::score::score;
pub use self::score::{Score, ScoreRequest};
use self::text::Question;
pub(crate) use self::text::TextStage;
use crate::context::LogLevel;
use crate::error::{Error, Result};
use crate::memory::{try_copy, try_reserve, try_vec};
use crate::prompt;
use crate::sampler::{Noise, Stage};

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Text comes first where a picture is thought out before it is drawn.
    pub stage: Stage,
    /// Steps of this stage that are done, and how many there are at most.
    pub index: usize,
    pub total: usize,
    /// The positions that were decided for good by this step.
    pub changed: Vec<Change>,
    /// Text: how many tokens of the answer stand before its first mask; these will not change. 0 for pictures.
    pub prefix: usize,
    /// Whether the generation is complete.
    pub done: bool,
}

/// A position that has been decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which picture; 0 for text.
    pub sequence: usize,
    /// The position in the answer, or the raster index in the picture.
    pub position: usize,
    /// The token; of a picture the image code plus the vocabulary's offset.
    pub id: u32,
}

/// A position of an answer or a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Masked,
    Token(u32),
}

/// An answer, or the part of it that stands so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As the model wrote it, without special tokens: with thinking, `<think>...</think>answer`.
    pub raw: String,
    /// What stands between the tags, if there are any.
    pub thinking: Option<String>,
    /// What is not thinking.
    pub answer: String,
    /// The tokens before the one that ended the answer.
    pub ids: Vec<u32>,
}

/// Stops a generation, or another long call, from any thread. Clones stop the same.
///
/// Cancelling stores to one atomic and does nothing else: it may be done in a signal handler.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// One that has not been cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// The step that is running fails with [`Error::Cancelled`] within one layer of the network, and so does every
    /// later one. Other generations of the same context go on.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A flag of the caller's: true is cancelled.
impl From<Arc<AtomicBool>> for Canceller {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Canceller(flag)
    }
}

/// An answer or pictures in the making.
///
/// A context has one set of buffers: a step takes them for its duration and fails with [`Error::Busy`] if another
/// thread holds them. Several generations may take turns on one context, and a failed step changes nothing: it can
/// be tried again.
pub struct Generation {
    engine: Arc<dyn Engine>,
    text: Option<TextStage>,
    image: Option<ImageStage>,
    noise: Option<Box<dyn Noise>>,
    canceller: Canceller,
    warnings: Vec<String>,
}

impl Generation {
    pub(crate) fn text_request(engine: Arc<dyn Engine>, request: TextRequest) -> Result<Self> {
        engine.ready()?;
        let TextRequest { messages, image, squash, thinking, options } = request;
        options.check()?;
        let (tokenizer, vocabulary, template) = (engine.tokenizer()?, engine.vocabulary(), engine.chat_template()?);
        let (prompt, question) = match image {
            None => (prompt::chat(tokenizer, vocabulary, template, &messages, thinking)?, None),
            Some(picture) => {
                if engine.downsampling().is_none() || vocabulary.codes == 0 {
                    let reason = "the model has no image tokenizer, so it cannot be asked about a picture";
                    return Err(Error::unsupported(engine.file(), reason));
                }
                // The codes themselves are filled in by the first step. How many there are is the file's claim.
                let count = engine.question_codes();
                let what = || format!("a question about a picture of {count} tokens");
                check_length(&*engine, what, &[count, options.gen_length])?;
                let codes = try_vec(count, "the picture of a question")?;
                let prompt = prompt::image_question(tokenizer, vocabulary, template, &codes, &messages, thinking)?;
                let start = 1 + prompt.iter().position(|&id| Some(id) == vocabulary.soi).unwrap_or(0);
                let place = start..start + codes.len();
                (prompt, Some(Question { picture, squash, place }))
            }
        };
        Self::answer(engine, prompt, question, options)
    }

    pub(crate) fn text_from_ids(engine: Arc<dyn Engine>, prompt: Vec<u32>, options: TextOptions) -> Result<Self> {
        engine.ready()?;
        options.check()?;
        check_ids(engine.vocabulary(), &prompt)?;
        Self::answer(engine, prompt, None, options)
    }

    fn answer(
        engine: Arc<dyn Engine>,
        prompt: Vec<u32>,
        question: Option<Question>,
        options: TextOptions,
    ) -> Result<Self> {
        let what = || format!("a prompt of {} tokens with an answer of {}", prompt.len(), options.gen_length);
        check_length(&*engine, what, &[prompt.len(), options.gen_length])?;
        let text = TextStage::new(&*engine, prompt, &[], question, options)?;
        Ok(Self::with_stages(engine, Some(text), None))
    }

    pub(crate) fn draw_request(engine: Arc<dyn Engine>, request: DrawRequest) -> Result<Self> {
        engine.ready()?;
        let DrawRequest { prompt: wish, think, width, height, count, text, image } = request;
        image.check()?;
        token_size(&*engine, width, height)?;
        let (tokenizer, vocabulary) = (engine.tokenizer()?, engine.vocabulary());
        let unconditional = match image.guidance > 0.0 {
            true => prompt::draw(tokenizer, vocabulary, "", image.max_text_len)?.ids,
            false => Vec::new(),
        };
        if think {
            let prompt = prompt::reasoned(tokenizer, vocabulary, &wish)?;
            let draw = DrawFromIds { prompt, unconditional, width, height, count, image };
            return Self::reasoned(engine, draw, text);
        }
        let prompt = prompt::draw(tokenizer, vocabulary, &wish, image.max_text_len)?;
        let warning = prompt.truncated.then(|| {
            let limit = image.max_text_len;
            format!("the prompt is longer than the {limit} tokens that the model was trained for: its end was left out")
        });
        let draw = DrawFromIds { prompt: prompt.ids, unconditional, width, height, count, image };
        let mut generation = Self::draw_from_ids(engine, draw)?;
        if let Some(warning) = warning {
            generation.engine.log(LogLevel::Warn, &|| warning.clone());
            generation.warnings.push(warning);
        }
        Ok(generation)
    }

    pub(crate) fn draw_from_ids(engine: Arc<dyn Engine>, draw: DrawFromIds) -> Result<Self> {
        engine.ready()?;
        let image = Self::image_stage(&*engine, &draw)?;
        Ok(Self::with_stages(engine, None, Some(image)))
    }

    /// A description, then its picture. `draw.prompt` reaches up to the description.
    fn reasoned(engine: Arc<dyn Engine>, mut draw: DrawFromIds, options: TextOptions) -> Result<Self> {
        options.check()?;
        if options.cfg_scale > 0.0 {
            return Err(Error::invalid("a description is written without guidance: its cfg_scale must be 0"));
        }
        let vocabulary = engine.vocabulary();
        let prompt = try_copy(&draw.prompt, "the prompt of a picture")?;
        // bos to the last eos are text_len ids; <|r2i|> stands before them.
        let text_len = draw.image.text_len;
        let used = prompt.len() - 1;
        if text_len.checked_sub(used).is_none_or(|room| room < options.gen_length) {
            let gen_length = options.gen_length;
            return Err(Error::invalid(format!(
                "a prompt of {used} tokens and a description of {gen_length} do not fit in the {text_len} tokens before a picture (text_len)"
            )));
        }
        check_length(&*engine, || format!("a text of {text_len} tokens before a picture"), &[text_len, 1])?;
        let length = text_len + 1;
        try_reserve(&mut draw.prompt, length.saturating_sub(prompt.len()), "the prompt of a picture")?;
        draw.prompt.resize(length, vocabulary.eos);
        let image = Self::image_stage(&*engine, &draw)?;
        let (width, height) = image.size();
        let tail = &draw.prompt[prompt.len() + options.gen_length..];
        let behind = Frame::of(vocabulary)?.masked(tail, width * height)?;
        let text = TextStage::new(&*engine, prompt, &behind, None, options)?;
        Ok(Self::with_stages(engine, Some(text), Some(image)))
    }

    fn image_stage(engine: &dyn Engine, draw: &DrawFromIds) -> Result<ImageStage> {
        let DrawFromIds { prompt, unconditional, width, height, count, image } = draw;
        image.check()?;
        at_least_one("count", *count)?;
        let (columns, rows) = token_size(engine, *width, *height)?;
        let vocabulary = engine.vocabulary();
        check_ids(vocabulary, prompt)?;
        check_ids(vocabulary, unconditional)?;
        let tokens = columns.saturating_mul(rows);
        let text = if image.guidance > 0.0 { prompt.len().max(unconditional.len()) } else { prompt.len() };
        let what = || format!("a picture of {width}x{height} pixels ({tokens} tokens) with a prompt of {text} tokens");
        check_length(engine, what, &[text, Frame::len(tokens)])?;
        ImageStage::new(engine, prompt, unconditional, (columns, rows), *count, image.clone())
    }

    fn with_stages(engine: Arc<dyn Engine>, text: Option<TextStage>, image: Option<ImageStage>) -> Self {
        let generation =
            Generation { engine, text, image, noise: None, canceller: Canceller::default(), warnings: Vec::new() };
        generation.engine.log(LogLevel::Info, &|| {
            let steps = generation.total_steps();
            format!("{} is begun: {}, at most {steps} steps", generation.name(), generation.sizes())
        });
        generation
    }

    /// What it makes, for the log.
    fn name(&self) -> &'static str {
        match (&self.text, &self.image) {
            (_, None) => "an answer",
            (None, Some(_)) => "a drawing",
            (Some(_), Some(_)) => "a drawing with thinking",
        }
    }

    /// How much it makes of what, for the log.
    fn sizes(&self) -> String {
        let text = self.text.as_ref().map(|text| {
            let (prompt, length) = text.lengths();
            format!("{length} tokens of text after a prompt of {prompt}")
        });
        let image = self.image.as_ref().map(|image| {
            let ((width, height), count, prompt) = (image.size(), image.count(), image.prompt_len());
            format!("{count} pictures of {width}x{height} tokens after a prompt of {prompt}")
        });
        text.into_iter().chain(image).collect::<Vec<_>>().join(", then ")
    }

    /// Draws all random numbers from `noise` instead of the options' seeds: to repeat a recorded run. To be called
    /// before the first step.
    pub fn with_noise(mut self, noise: Box<dyn Noise>) -> Self {
        self.noise = Some(noise);
        self
    }

    /// Runs one step, and says what it changed. After the last one it reports that again, with no change.
    ///
    /// # Errors
    /// `Cancelled`, `Busy`, or what the network or the image tokenizer failed with. Nothing has changed then.
    pub fn step(&mut self) -> Result<Step> {
        let was_done = self.is_done();
        if self.canceller.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.engine.ready()?;
        let step = self.take_step()?;
        self.engine.log(LogLevel::Debug, &|| {
            let (stage, changed) = (step.stage.name(), step.changed.len());
            format!("{stage}: step {} of {} decided {changed} positions", step.index, step.total)
        });
        if step.done && !was_done {
            self.engine.log(LogLevel::Info, &|| format!("{} is complete", self.name()));
        }
        Ok(step)
    }

    fn take_step(&mut self) -> Result<Step> {
        let cancel = &*self.canceller.0;
        let (engine, noise) = (&*self.engine, self.noise.as_deref());
        match (&mut self.text, &mut self.image) {
            (Some(text), image) if image.is_none() || !text.is_done() => {
                let mut step = text.step(engine, cancel, noise)?;
                if let (Some(image), true) = (image, step.done) {
                    image.prompts().for_each(|prompt| text.describe(engine.vocabulary(), prompt));
                    step.done = false;
                }
                Ok(step)
            }
            (_, Some(image)) => image.step(engine, cancel, noise),
            (_, None) => Err(Error::Internal("a generation has nothing to generate".to_owned())),
        }
    }

    /// Whether every stage is complete.
    pub fn is_done(&self) -> bool {
        self.text.as_ref().is_none_or(TextStage::is_done) && self.image.as_ref().is_none_or(ImageStage::is_done)
    }

    /// Steps of all stages together; an answer that ends early takes fewer.
    pub fn total_steps(&self) -> usize {
        let text = self.text.as_ref().map_or(0, TextStage::total_steps);
        text.saturating_add(self.image.as_ref().map_or(0, ImageStage::total_steps))
    }

    /// The answer, or a reasoned drawing's description as written; while it is being made, what stands before its
    /// first mask.
    ///
    /// # Errors
    /// `InvalidArgument` if a picture is drawn without thinking.
    pub fn text(&self) -> Result<Answer> {
        match &self.text {
            Some(text) => text.answer(&*self.engine),
            None => Err(Error::invalid("a drawing without thinking has no text")),
        }
    }

    /// The description that a reasoned drawing is drawn from: what was thought, or all of the text if the model set
    /// no tags. `None` for anything but a reasoned drawing.
    pub fn description(&self) -> Result<Option<String>> {
        if self.text.is_none() || self.image.is_none() {
            return Ok(None);
        }
        let Answer { thinking, answer, .. } = self.text()?; // whichever is returned was allocated with care there
        Ok(Some(thinking.unwrap_or(answer)))
    }

    /// Whether there is text: an answer, or a description before a picture.
    pub fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// How many pictures are drawn; 0 for an answer.
    pub fn pictures(&self) -> usize {
        self.image.as_ref().map_or(0, ImageStage::count)
    }

    /// Width and height of the pictures in tokens, `None` for an answer.
    pub fn picture_tokens(&self) -> Option<(usize, usize)> {
        self.image.as_ref().map(ImageStage::size)
    }

    /// The codes that picture `index` has now, in raster order; positions that are still masked have the code that
    /// was sampled last.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such picture, or no step of it has been taken.
    pub fn codes(&self, index: usize) -> Result<&[u32]> {
        match self.image.as_ref().and_then(|image| image.codes(index)) {
            Some([]) => Err(Error::invalid("no step of the picture has been taken yet")),
            Some(codes) => Ok(codes),
            None => Err(Error::invalid(format!(
                "there is no picture {index}, there are {}, counted from 0",
                self.pictures()
            ))),
        }
    }

    /// Picture `index` as pixels: the result or, midway, a preview of it.
    ///
    /// # Errors
    /// As [`Generation::codes`]; `Busy`, `Cancelled`, `OutOfMemory`.
    pub fn image(&self, index: usize) -> Result<RgbImage> {
        let codes = self.codes(index)?;
        let (width, height) = self.picture_tokens().unwrap_or_default();
        self.engine.decode_image(&self.canceller.0, codes, width, height)
    }

    /// The positions of the answer (or description), masked or not; of the first picture where there is no text.
    pub fn canvas(&self) -> &[Slot] {
        match (&self.text, &self.image) {
            (Some(text), _) => text.slots(),
            (None, Some(image)) => image.slots(0).unwrap_or_default(),
            (None, None) => &[],
        }
    }

    /// The positions of picture `index` in raster order, masked or not.
    pub fn picture_canvas(&self, index: usize) -> Option<&[Slot]> {
        self.image.as_ref()?.slots(index)
    }

    /// The whole sequence of ids, prompt and masks included, as the next step would give it to the network: of the
    /// text as long as that is being written (or nothing else is), then of picture `index`. After the last step of
    /// a picture, those positions are masked that one more step would have sampled again.
    pub fn sequence(&self, index: usize) -> Option<&[u32]> {
        match (&self.text, &self.image) {
            (Some(text), image) if image.is_none() || !text.is_done() => (index == 0).then(|| text.ids()),
            (_, image) => image.as_ref()?.ids(index),
        }
    }

    pub(crate) fn with_canceller(self, canceller: Canceller) -> Self {
        Generation { canceller, ..self }
    }

    /// Cancels this generation, from any thread.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// What the caller should tell the user, each a sentence: a prompt that was cut.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
