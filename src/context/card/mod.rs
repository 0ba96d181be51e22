//! A context's graphics card: which one, how much of the model it has, and passes on it.

mod steps;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use self::steps::{Kind, Pass, Step, Steps, filled, filled_len};
use super::{ContextOptions, LogLevel, Model};
use crate::backend::DeviceChoice;
use crate::error::{Error, Result};
use crate::kernels::cuda::sampling::{Choosing, Sampling};
use crate::kernels::cuda::{Gpu, allow_hopper, cards, open_checked};
use crate::memory::{try_collect, try_with_capacity};
use crate::model::{
    Backend, Compute, Cpu, Cuda, CudaState, CudaWeights, Logits, Observers, Offload, Run, SequenceRequest, State,
};
use crate::sampler::choose::{self, Candidate};
use crate::sampler::{Confidence, Draw, Remasking, image};
use crate::vq::CudaImages;

/// Weights and buffers on a card.
pub(super) struct Card {
    weights: Arc<CudaWeights>,
    state: Mutex<CardState>,
}

struct CardState {
    /// Dropped first: graphs work on what is below.
    steps: Steps,
    pass: CudaState,
    /// of the image tokenizer, once a picture was encoded or decoded
    images: Option<CudaImages>,
}

impl CardState {
    fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Ok(CardState { steps: Steps::default(), pass: CudaState::new(gpu)?, images: None })
    }
}

impl Drop for CardState {
    fn drop(&mut self) {
        // a step that was ended by an error may have left copies on their way
        let _ = self.pass.wait();
    }
}

/// A pass whose output is on a card.
trait OnCard<'a>: Backend {
    fn cuda(&mut self) -> &mut Cuda<'a>;
}

impl<'a> OnCard<'a> for Cuda<'a> {
    fn cuda(&mut self) -> &mut Cuda<'a> {
        self
    }
}

impl<'a> OnCard<'a> for Offload<'a> {
    fn cuda(&mut self) -> &mut Cuda<'a> {
        Offload::cuda(self)
    }
}

/// Memory that is left to others, and to what the driver needs itself.
const SPARE: usize = 256 << 20;
/// Tokens of a batch that there will be room for beside the weights.
const TOKENS: usize = 4096;

impl Card {
    /// The card that the options ask for; `None` for the processor, and why.
    ///
    /// # Errors
    /// `InvalidArgument` for a card that cannot be used, or options that only the processor has; `Unsupported` for a model
    /// that the kernels are not for; `OutOfMemory`, `Device`; `Cancelled` by the progress function. With
    /// [`DeviceChoice::Auto`] none of them but the last.
    pub fn for_options(model: &Model, options: &ContextOptions) -> Result<(Option<Card>, Option<String>)> {
        match options.device {
            DeviceChoice::Cpu => Ok((None, None)),
            DeviceChoice::Cuda(index) | DeviceChoice::CudaAmpere(index) => {
                if let Some(what) = of_the_processor(options) {
                    return Err(Error::invalid(format!("{what} and device {}: only the cpu has that", options.device)));
                }
                if matches!(options.device, DeviceChoice::CudaAmpere(_)) {
                    allow_hopper(index, false);
                }
                Card::open(index, model, options).map(|card| (Some(card), None))
            }
            DeviceChoice::Auto => {
                if let Some(what) = of_the_processor(options) {
                    return Ok((None, Some(format!("{what}: only the cpu has that"))));
                }
                let mut reason = "there is no graphics card".to_owned();
                for card in cards().map_err(|why| reason = why).unwrap_or_default() {
                    match Card::open(card.index, model, options) {
                        Ok(card) if options.gpu_layers.is_none() && card.first_layer() == model.config().layers => {
                            reason = format!("{} has no memory for any of the layers", card.name());
                        }
                        Ok(card) => return Ok((Some(card), None)),
                        Err(Error::Cancelled) => return Err(Error::Cancelled),
                        Err(error) => reason = error.to_string(),
                    }
                }
                Ok((None, Some(reason)))
            }
        }
    }

    fn open(index: usize, model: &Model, options: &ContextOptions) -> Result<Card> {
        let (transformer, c) = (model.transformer(), model.config());
        CudaWeights::check(c, model.file())?;
        if let Some(images) = model.images() {
            CudaImages::check(images.config(), model.file())?;
        }
        let (gpu, sentence) = open_checked(index, c.head_dim)?;
        if let (Some(sentence), Some(logger)) = (sentence, &options.logger) {
            logger.log(LogLevel::Warn, &format!("{}: {sentence}", model.file()));
        }
        let first = match options.gpu_layers {
            Some(layers) => c.layers.saturating_sub(layers),
            None => {
                let room = gpu.free_memory()?.saturating_sub(SPARE);
                let tokens = TOKENS.min(transformer.max_positions());
                let buffers = CudaState::bytes(c, tokens).saturating_add(image_bytes(model));
                let fits = |&first: &usize| CudaWeights::bytes(transformer, first).saturating_add(buffers) <= room;
                // another context may have brought some: nothing of those is missing; where nothing fits the attempt says
                // what was missing
                let there = model.first_on_card(&gpu).filter(|_| buffers <= room);
                there.or_else(|| (0..c.layers).find(fits)).unwrap_or(c.layers)
            }
        };
        let weights = model.on_card(&gpu, first, options.progress.as_ref())?;
        Ok(Card { weights, state: Mutex::new(CardState::new(&gpu)?) })
    }

    /// `cuda:0 (NVIDIA H100)`
    pub fn name(&self) -> String {
        self.weights.gpu().name()
    }

    /// The first of the layers that it has.
    pub fn first_layer(&self) -> usize {
        self.weights.first()
    }

    fn lock(&self) -> Result<MutexGuard<'_, CardState>> {
        match self.state.try_lock() {
            Ok(state) => Ok(state),
            Err(TryLockError::WouldBlock) => Err(Error::Busy),
            Err(TryLockError::Poisoned(state)) => {
                // a panic left half of it, perhaps while work was recorded
                let mut state = state.into_inner();
                *state = CardState::new(self.weights.gpu())?;
                Ok(state)
            }
        }
    }

    /// Runs the model's image tokenizer.
    pub fn with_images<R>(&self, model: &Model, work: impl FnOnce(&mut CudaImages) -> Result<R>) -> Result<R> {
        let mut state = self.lock()?;
        if state.images.is_none() {
            let gpu = self.weights.gpu();
            state.images = Some(CudaImages::new(gpu, model.convs_on_card(gpu)?)?);
        }
        let images = state.images.as_mut();
        work(images.ok_or_else(|| Error::Internal("an image tokenizer that was just made".to_owned()))?)
    }

    /// [`Transformer::forward`](crate::model::Transformer::forward), with the first layers on the processor if the card does
    /// not have them.
    pub fn forward(
        &self,
        model: &Model,
        run: &Run,
        state: &mut State,
        batch: &[SequenceRequest],
        logits: Logits,
        observers: Observers,
    ) -> Result<()> {
        let mut on_card = self.lock()?;
        let (transformer, exec) = (model.transformer(), run.exec());
        let mut cuda = Cuda::new(&self.weights, &mut on_card.pass, model.config(), exec);
        let outcome = if self.first_layer() == 0 {
            transformer.forward_on(&mut cuda, batch, logits, observers)
        } else {
            let cpu = Cpu::new(run, state, transformer);
            exec.run(|| transformer.forward_on(&mut Offload::new(cpu, cuda), batch, logits, observers))
        };
        outcome.inspect_err(|error| self.suspect_hopper(error))
    }

    /// After an error that has ended the card's context: its own kernels, which may have done it, are not tried again in this
    /// process.
    fn suspect_hopper(&self, error: &Error) {
        let gpu = self.weights.gpu();
        if matches!(error, Error::Device { .. }) && gpu.uses_hopper() && gpu.is_lost() {
            allow_hopper(gpu.card().index, false);
        }
    }
}

/// What the image tokenizer takes on a card, at most, for a picture of the model's own size.
fn image_bytes(model: &Model) -> usize {
    let (Some(images), Some(side)) = (model.images(), model.downsampling()) else { return 0 };
    let codes = model.image_size() / side;
    let costs = [images.encode_cost(codes, codes), images.decode_cost(codes, codes)];
    let maps = usize::try_from(costs.map(|cost| cost.shared_bytes).into_iter().fold(0, u64::max)).unwrap_or(usize::MAX);
    let weights = model.header().tensors.iter().filter(|t| t.name.starts_with("vq.")).map(|t| t.range.len());
    // of 16 bits in the file, as a rule, and two terms of those on the card
    maps.saturating_add(weights.sum::<usize>().saturating_mul(2))
}

/// A batch to sample from, by whom it is asked for.
pub(super) struct Request<'a> {
    pub model: &'a Model,
    pub run: &'a Run<'a>,
    /// of the processor
    pub state: &'a mut State,
    pub batch: &'a [SequenceRequest<'a>],
    pub draws: &'a [Draw],
    /// of the random numbers
    pub seed: u64,
}

impl Card {
    /// The candidates of `draws`, see [`Engine::choose`](crate::generate::Engine::choose).
    pub fn choose(&self, request: Request, rule: choose::Rule, candidates: &mut Vec<Candidate>) -> Result<()> {
        let on_card = Choosing {
            cfg_scale: rule.cfg_scale,
            temperature: rule.temperature,
            sums: rule.remasking == Remasking::LowConfidence,
        };
        let forbidden = rule.forbidden.ranges();
        let kind = Kind::Choose { rule: on_card, ranges: forbidden.len() };
        let draws = request.draws;
        let (state, _) = self.step(request, kind, forbidden)?;
        candidates.clear();
        for ((id, probability), draw) in state.steps.candidates().zip(draws) {
            candidates.push(Candidate::from_card(id, probability, *draw, rule)?);
        }
        Ok(())
    }

    /// Codes for `draws`, see [`Engine::sample`](crate::generate::Engine::sample).
    pub fn sample(
        &self,
        request: Request,
        rule: image::Rule,
        copies: usize,
        sampled: &mut Vec<image::Sampled>,
    ) -> Result<()> {
        let (draws, batch) = (request.draws, request.batch);
        let margin = rule.confidence == Confidence::Margin;
        let kind = Kind::Sample { rule: Sampling { guidance: rule.guidance, margin }, copies };
        let (state, step) = self.step(request, kind, &[])?;
        sampled.clear();
        let draws = places(&step, batch, draws);
        for ((code, confidence), draw) in state.steps.codes().zip(draws) {
            if let Some(draw) = draw {
                sampled.push(image::Sampled::from_card(code, confidence, draw)?);
            }
        }
        Ok(())
    }

    /// Runs a step and waits for what comes of it.
    fn step(
        &self,
        request: Request,
        kind: Kind,
        forbidden: &[Range<u32>],
    ) -> Result<(MutexGuard<'_, CardState>, Step)> {
        let Request { model, run, state, batch, draws, seed } = request;
        let (transformer, exec) = (model.transformer(), run.exec());
        let mut rows = try_with_capacity(batch.len(), WHAT)?;
        let shortest = batch.iter().map(|s| s.ids.len()).min().unwrap_or(0);
        for s in batch {
            rows.push(filled(s.rows, filled_len(s.rows.len(), shortest))?);
        }
        let filled = batch.iter().zip(&rows).map(|(s, rows)| SequenceRequest { rows, ..s.clone() });
        let filled = try_collect(filled, WHAT)?;
        let step = Step::new(kind, &filled)?;
        transformer.check(&filled)?;
        let mut locked = self.lock()?;
        let CardState { steps, pass, .. } = &mut *locked;
        let mut cuda = Cuda::new(&self.weights, pass, model.config(), exec);
        cuda.stage(&filled, false)?;
        steps.reserve(self.weights.gpu(), &step, cuda.moves())?;
        steps.set_draws(seed, places(&step, batch, draws))?;
        steps.set_forbidden(forbidden)?;
        let pass = Pass { transformer, step: &step, batch: &filled };
        let outcome = if self.first_layer() == 0 {
            steps.run(&mut cuda, pass, true)
        } else {
            let mut both = Offload::new(Cpu::new(run, state, transformer), cuda);
            exec.run(|| steps.run(&mut both, pass, false))
        };
        outcome.inspect_err(|error| self.suspect_hopper(error))?;
        Ok((locked, step))
    }
}

/// The draw of every row of a step, and none for those that fill up: of every copy and sequence, the rows that were asked for
/// come first.
fn places<'a>(
    step: &'a Step,
    batch: &'a [SequenceRequest],
    draws: &'a [Draw],
) -> impl Iterator<Item = Option<Draw>> + 'a {
    let (own, copies) = step.own();
    let mut draws = draws.iter().copied();
    let sequences = (0..copies).flat_map(move |_| batch[..own].iter().zip(&step.sequences));
    let is_drawn = sequences.flat_map(|(s, (_, all))| (0..*all).map(|i| i < s.rows.len()));
    is_drawn.map(move |is_drawn| if is_drawn { draws.next() } else { None })
}

const WHAT: &str = "a step on a graphics card";

/// An option that a card does not have.
fn of_the_processor(options: &ContextOptions) -> Option<&'static str> {
    match options {
        _ if options.pack => Some("packed weights"),
        _ if options.compute == Compute::Exact => Some("exact arithmetic"),
        _ if options.instruction_set.is_some() => Some("an instruction set"),
        _ => None,
    }
}
