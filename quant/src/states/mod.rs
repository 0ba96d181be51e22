//! States of the sampler, as a model meets them while it writes and draws: what importance is measured on, and what
//! quantized models are compared on.
//!
//! A masked diffusion model never reads text from left to right. What it sees is a prompt followed by an answer of
//! which a part is known and the rest is `[MASK]`, or a picture likewise, and what it says counts at the masks that
//! the sampler looks at. Such states are made
//!
//! - of data ([`read_samples`]): the answer or picture is given, and so many of its tokens are masked again as a step
//!   of the sampler leaves, those last that the model is least sure of;
//! - of the model's own life ([`own_samples`]): it answers and draws, and states are taken on the way.
//!
//! Every sample gives a few states with mask ratios spread over (0, 1]. All of it depends on the model, the samples and
//! the seed alone.

mod data;
mod draw;
mod own;
mod text;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mmada::model::SequenceRequest;
use mmada::sampler::noise::{Draw, Noise, Philox, Stage};
use mmada::{Context, Error, Generation, Result, Step};

pub use data::read_samples;
pub use own::own_samples;

/// What a state is part of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Task {
    /// An answer to a text.
    Chat,
    /// The same with thinking.
    Think,
    /// An answer to a question about a picture.
    Question,
    /// The same with thinking.
    ThinkQuestion,
    /// A picture.
    Draw,
}

impl Task {
    pub const ALL: [Task; 5] = [Task::Chat, Task::Think, Task::Question, Task::ThinkQuestion, Task::Draw];

    /// As data files name it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Chat => "chat",
            Task::Think => "think",
            Task::Question => "question",
            Task::ThinkQuestion => "think-question",
            Task::Draw => "draw",
        }
    }

    pub fn from_name(name: &str) -> Option<Task> {
        Task::ALL.into_iter().find(|task| task.name() == name)
    }

    /// The model is asked to think first.
    pub fn thinks(self) -> bool {
        matches!(self, Task::Think | Task::ThinkQuestion)
    }

    /// A picture is asked about.
    pub fn asks_about_picture(self) -> bool {
        matches!(self, Task::Question | Task::ThinkQuestion)
    }
}

/// Where a picture comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Picture {
    File(PathBuf),
    /// Drawn by the model itself from this text.
    Drawn(String),
}

/// What states are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    pub task: Task,
    /// What the user says, or the text to draw.
    pub prompt: String,
    /// What the model should say; `None`: what it says itself.
    pub answer: Option<String>,
    /// The picture that is asked about or should be drawn; `None` with [`Task::Draw`]: what the model draws itself.
    pub picture: Option<Picture>,
    /// Where this comes from, for messages: file and line.
    pub origin: String,
}

impl Sample {
    /// The file that its picture is read from, if there is one.
    pub fn picture_file(&self) -> Option<&Path> {
        match &self.picture {
            Some(Picture::File(path)) => Some(path),
            _ => None,
        }
    }
}

/// One sequence that the network runs on, and where its logits are looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pass {
    pub ids: Vec<u32>,
    pub masked: Vec<usize>,
}

/// A state of the sampler: what the network is about to be run on.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    pub task: Task,
    /// Share of the answer's or picture's positions that are masked.
    pub ratio: f32,
    /// The whole sequence.
    pub ids: Vec<u32>,
    /// The positions whose logits the sampler looks at, ascending; all hold the mask token. Of an answer these are the
    /// masks of the current block (there may be more behind it), of a picture all masks.
    pub masked: Vec<usize>,
    /// The ids whose logits it looks at: text, or image codes. Text includes the mask token, which must not be chosen.
    pub vocab: Range<u32>,
    /// What should stand at `masked`, as ids.
    pub truth: Vec<u32>,
    /// How many of `masked` the sampler decides in its next step: at least one.
    pub commit: usize,
    /// A picture's other half of classifier-free guidance: the same codes behind the empty prompt. `None` for text, and
    /// where the model draws without guidance.
    pub unconditional: Option<Pass>,
    /// The scale of that guidance.
    pub guidance: f32,
    /// Number of the sample that it was made of.
    pub sample: usize,
}

impl State {
    /// What the network is run on: one sequence, or with guidance two. Together they are a batch of
    /// [`Context::logits`].
    pub fn requests(&self) -> Vec<SequenceRequest<'_>> {
        let own = SequenceRequest { ids: &self.ids, rows: &self.masked, vocab: self.vocab.clone() };
        let other = self.unconditional.as_ref();
        let other = other.map(|p| SequenceRequest { ids: &p.ids, rows: &p.masked, vocab: self.vocab.clone() });
        std::iter::once(own).chain(other).collect()
    }

    /// The logits as the sampler chooses by them, [masked, vocab]: guided, and the mask token at -infinity.
    ///
    /// # Errors
    /// As [`Context::logits`].
    pub fn logits(&self, context: &Context) -> Result<Vec<f32>> {
        let mut passes = context.logits(&self.requests())?.into_iter();
        let mut logits = passes.next().unwrap_or_default();
        if let Some(unconditional) = passes.next() {
            mmada::sampler::image::guide(&mut logits, &unconditional, self.guidance);
        }
        let mask = context.model().vocabulary().mask;
        if self.vocab.contains(&mask) {
            let column = (mask - self.vocab.start) as usize;
            logits.iter_mut().skip(column).step_by(self.vocab.len()).for_each(|logit| *logit = f32::NEG_INFINITY);
        }
        Ok(logits)
    }
}

/// How states are made.
#[derive(Clone, Debug)]
pub struct StateOptions {
    /// States of every sample.
    pub per_sample: usize,
    /// The same seed gives the same states.
    pub seed: u64,
    /// Set it to stop: looked at before the network runs, and while it does in a context that has it too.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for StateOptions {
    fn default() -> Self {
        StateOptions { per_sample: 4, seed: 0, cancel: None }
    }
}

impl StateOptions {
    /// `Cancelled` once the flag is set.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// The context, which the flag stops within a layer of the network.
pub(crate) fn cancelled_by(context: Context, cancel: &Option<Arc<AtomicBool>>) -> Context {
    match cancel {
        Some(flag) => context.with_canceller(flag.clone().into()),
        None => context,
    }
}

/// States of the samples in `files`, or of the model's own life if there is none. `progress` is told how many of how
/// many samples are done; an error of its own ends the work.
///
/// # Errors
/// As [`read_samples`] and [`sample_states`].
pub fn collect_states(
    context: &Context,
    files: &[PathBuf],
    options: &StateOptions,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<State>> {
    let samples = if files.is_empty() { own_samples(context.model()) } else { read_samples(files)? };
    let mut states = Vec::new();
    for (index, sample) in samples.iter().enumerate() {
        progress(index, samples.len())?;
        states.extend(sample_states(context, sample, index, options)?);
    }
    progress(samples.len(), samples.len())?;
    Ok(states)
}

/// The states of one sample, number `index` of all.
///
/// # Errors
/// `InvalidArgument` names the sample: no room for an answer in the model's context, a picture and a model that has no
/// image tokenizer, no state asked for. `Io` and `Image` name the picture. `Cancelled`. Else as the context's own calls.
pub fn sample_states(context: &Context, sample: &Sample, index: usize, options: &StateOptions) -> Result<Vec<State>> {
    if options.per_sample == 0 {
        return Err(Error::invalid("0 states of each sample were asked for"));
    }
    if (sample.task == Task::Draw || sample.picture.is_some()) && !context.model().has_images() {
        let file = context.model().file();
        return Err(Error::invalid(format!("{}: needs pictures, but {file} has no image tokenizer", sample.origin)));
    }
    let seed = options.seed.wrapping_add(index as u64);
    let maker = Maker { context, sample, seed, options };
    let ratios = ratios(options, index);
    let mut states = match sample.task {
        Task::Draw => draw::states(&maker, &ratios),
        _ => text::states(&maker, &ratios),
    }
    .map_err(|error| maker.named(error))?;
    states.iter_mut().for_each(|state| state.sample = index);
    Ok(states)
}

/// The mask ratios that a sample's states should have: one in each of `per_sample` equal parts of (0, 1), at the same
/// place in every part. From sample to sample that place moves on by the golden ratio's fraction, so that those of
/// any number of samples are spread evenly.
fn ratios(options: &StateOptions, index: usize) -> Vec<f64> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let parts = options.per_sample;
    let start = Philox::new(options.seed).categorical_uniform(Draw::new(Stage::Text, 0, 0));
    let place = (start + GOLDEN * index as f64).fract();
    (0..parts).map(|part| (part as f64 + place) / parts as f64).collect()
}

/// What a sample's states are made with.
struct Maker<'a> {
    context: &'a Context,
    sample: &'a Sample,
    /// Of all random numbers of this sample.
    seed: u64,
    options: &'a StateOptions,
}

impl Maker<'_> {
    /// One step of what the model generates.
    fn step(&self, generation: &mut Generation) -> Result<Step> {
        self.options.check()?;
        generation.step()
    }

    /// The logits of each sequence of a batch.
    fn logits(&self, batch: &[SequenceRequest]) -> Result<Vec<Vec<f32>>> {
        self.options.check()?;
        self.context.logits(batch)
    }

    /// Names the sample in errors that do not say what they are about.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::InvalidArgument(_) | Error::ContextOverflow { .. } => {
                Error::invalid(format!("{}: {error}", self.sample.origin))
            }
            error => error,
        }
    }

    /// The image codes of a picture, fitted to the size that the model was trained on.
    fn codes(&self, picture: &Picture) -> Result<Vec<u32>> {
        let model = self.context.model();
        let pixels = match picture {
            Picture::File(path) => mmada::image::open(path)?,
            Picture::Drawn(prompt) => draw::picture(self, prompt)?,
        };
        let fitted = mmada::image::fit(&pixels, model.image_size(), mmada::image::Fit::Crop)?;
        self.context.encode_image(&fitted)
    }
}

/// What is masked among `places`.
fn masked_among(ids: &[u32], places: impl IntoIterator<Item = usize>, mask: u32) -> Vec<usize> {
    places.into_iter().filter(|&place| ids.get(place) == Some(&mask)).collect()
}

/// The item whose ratio is nearest to the one wanted.
fn nearest<T>(items: &[T], wanted: f64, ratio: impl Fn(&T) -> f64) -> Option<&T> {
    let distance = |item: &&T| (ratio(item) - wanted).abs();
    items.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}
