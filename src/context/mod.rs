//! What is opened once and what works on it: a [`Model`] is a checked file, a [`Context`] has the threads and
//! buffers to run it, and a [`Generation`] is one request on its way.

#[cfg(feature = "cuda")]
mod card;
mod estimate;
mod logger;
mod model;
mod shared;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

#[cfg(feature = "cuda")]
use card::Card;
pub use estimate::Estimate;
pub use logger::{LogLevel, Logger};
pub use model::{Model, OpenOptions};

use crate::backend::DeviceChoice;
use crate::error::{Error, Result};
use crate::generate::{
    self, Canceller, Choosing, DrawFromIds, DrawRequest, Engine, Generation, Sampling, Score, ScoreRequest,
    TextOptions, TextRequest,
};
use crate::image::{self, Fit, RgbImage};
use crate::kernels::Kernels;
use crate::memory::{Budget, Charge, try_collect, try_copy, try_vec};
pub use crate::mmap::Progress;
use crate::model::{Compute, InputObserver, Logits, Observers, PACKED, PackedWeights, Run, SequenceRequest, State};
use crate::parallel::{Exec, Threads};
use crate::prompt::{ChatTemplate, Message, Vocabulary};
use crate::sampler::{self, Draw, choose};
use crate::tokenizer::Tokenizer;
use crate::vq::{Encoded, ImageTokenizer};

/// How a context runs its model.
#[derive(Clone, Default)]
pub struct ContextOptions {
    /// Threads of the context's own pool; 0 for one per core. Results do not depend on it.
    pub threads: usize,
    /// How exact products are.
    pub compute: Compute,
    /// An instruction set by name (`portable`, `avx2`, `avx2-vnni`, `avx512`, `amx`, `neon`, `neon-dotprod`,
    /// `neon-i8mm`) instead of the best that the processor has. The library looks at no environment variable for it; the
    /// program `mmada` does.
    pub instruction_set: Option<String>,
    /// Bytes of buffers that the context and its generations may have at a time; a request that needs more fails with
    /// [`Error::OutOfMemory`]. The mapped model, the tokenizer, and small things are not counted. `None`: no limit.
    pub memory_limit: Option<usize>,
    /// Keeps the weights unpacked in memory, as this context's products want them: several times as fast where few
    /// tokens run at a time (up to some 64), for 1 to 2 bytes a weight ([`Context::packed_bytes`]). Making the context
    /// takes the time to read the whole file. Answers are the same to the last bit. Contexts of one model with the same
    /// arithmetic and instruction set share the copy; the limit of each counts all of it.
    pub pack: bool,
    /// The processor or a graphics card. `Auto` is the processor where `instruction_set`, `pack` or `Compute::Exact` ask for
    /// something that only it has, or where no card can be used, which the logger is told.
    pub device: DeviceChoice,
    /// How many of the network's blocks run on the graphics card, the last ones and the output; the others run on the
    /// processor, threads and all. `None`: as many as there is memory for. Not looked at where everything runs on the
    /// processor.
    pub gpu_layers: Option<usize>,
    /// Told how much of the weights has been copied to a graphics card, in bytes, and how much there is; after every 16 MiB
    /// or so. If it returns false, making the context fails with [`Error::Cancelled`].
    pub progress: Option<Progress>,
    /// Who is told what happens; nobody by default.
    pub logger: Option<Logger>,
}

impl fmt::Debug for ContextOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ContextOptions { threads, compute, instruction_set, memory_limit, pack, device, gpu_layers, .. } = self;
        f.debug_struct("ContextOptions")
            .field("threads", threads)
            .field("compute", compute)
            .field("instruction_set", instruction_set)
            .field("memory_limit", memory_limit)
            .field("pack", pack)
            .field("device", device)
            .field("gpu_layers", gpu_layers)
            .finish_non_exhaustive()
    }
}

/// Threads and buffers to run a model. Cloning gives another handle to the same context. One call at a time uses
/// the buffers: a second one meanwhile fails with [`Error::Busy`]; generations of one context may take turns step
/// by step.
///
/// A context belongs to the process that made it. In a process forked from that, everything that would run fails with
/// [`Error::Forked`] and dropping it is harmless; a new context of the same model works. On the processor, that is: NVIDIA's
/// driver does not start in a child of a process that has used it.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
    /// Of all that is done through this handle.
    canceller: Option<Canceller>,
}

struct Inner {
    model: Model,
    threads: Threads,
    kernels: &'static Kernels,
    compute: Compute,
    budget: Budget,
    packed: Option<Pack>,
    #[cfg(feature = "cuda")]
    card: Option<Card>,
    logger: Option<Logger>,
    state: Mutex<State>,
}

/// Weights in memory.
struct Pack {
    weights: Arc<PackedWeights>,
    _charge: Charge,
}

impl Context {
    /// Starts the threads, and packs the weights if that is asked for; buffers are made when the first request needs
    /// them.
    ///
    /// # Errors
    /// `InvalidArgument` for an instruction set that the processor does not have, or more than 1024 threads;
    /// `Internal` if the system starts no more threads; `OutOfMemory` if packed weights do not fit.
    pub fn new(model: &Model, options: ContextOptions) -> Result<Self> {
        let kernels = match &options.instruction_set {
            None => Kernels::best(),
            Some(name) => Kernels::named(name)?,
        };
        let (threads, compute) = (Threads::new(options.threads)?, options.compute);
        let budget = Budget::new(options.memory_limit);
        #[cfg(feature = "cuda")]
        let (card, on_cpu) = Card::for_options(model, &options)?;
        #[cfg(not(feature = "cuda"))]
        let on_cpu = without_cards(options.device)?;
        let packed = match options.pack {
            true => {
                let _charge = budget.take(packed_bytes(model, kernels, compute), PACKED)?;
                Some(Pack { weights: model.packed(&Exec::new(&threads, kernels, None), compute)?, _charge })
            }
            false => None,
        };
        let inner = Inner {
            model: model.clone(),
            threads,
            kernels,
            compute,
            budget,
            packed,
            #[cfg(feature = "cuda")]
            card,
            logger: options.logger,
            state: Mutex::default(),
        };
        if let Some(reason) = on_cpu {
            inner.log(LogLevel::Warn, &|| format!("{}: running on the cpu: {reason}", model.file()));
        }
        inner.log(LogLevel::Info, &|| {
            let (count, isa) = (inner.threads.count(), inner.kernels.name());
            let limit = options.memory_limit.map_or("no memory limit".to_owned(), |n| format!("at most {n} bytes"));
            let packed = if options.pack { " and packed weights" } else { "" };
            let file = model.file();
            let on = match inner.gpu_layers() {
                0 => String::new(),
                layers => format!(" and {layers} layers on {}", inner.device()),
            };
            format!("{file}: a context of {count} threads with {isa} and {limit}{packed}{on}")
        });
        Ok(Context { inner: Arc::new(inner), canceller: None })
    }

    /// Lets `canceller` stop whatever is done through this handle, also what takes no canceller of its own: a call that
    /// is running fails with [`Error::Cancelled`] within one layer of the network (on a graphics card, one pass through all
    /// of them), and every later one does too.
    /// Generations that are begun here have this canceller instead of one each.
    pub fn with_canceller(self, canceller: Canceller) -> Self {
        Context { canceller: Some(canceller), ..self }
    }

    /// The model that it runs.
    pub fn model(&self) -> &Model {
        &self.inner.model
    }

    /// Threads of its pool.
    pub fn threads(&self) -> usize {
        self.inner.threads.count()
    }

    /// The instruction set in use.
    pub fn instruction_set(&self) -> &'static str {
        self.inner.kernels.name()
    }

    /// What it runs on: `cpu`, or a graphics card with its name.
    pub fn device(&self) -> String {
        self.inner.device()
    }

    /// How many of the network's blocks run on a graphics card; 0 on the processor.
    pub fn gpu_layers(&self) -> usize {
        self.inner.gpu_layers()
    }

    /// The arithmetic of its products.
    pub fn compute(&self) -> Compute {
        self.inner.compute
    }

    /// Bytes of buffers that the context and its generations have now, as `ContextOptions::memory_limit` counts them.
    pub fn memory_used(&self) -> usize {
        self.inner.budget.used()
    }

    /// Bytes that its weights take when they are packed ([`ContextOptions::pack`]), whether or not they are.
    pub fn packed_bytes(&self) -> usize {
        packed_bytes(self.model(), self.inner.kernels, self.compute())
    }

    /// Whether its weights are packed.
    pub fn is_packed(&self) -> bool {
        self.inner.packed.is_some()
    }

    /// [`Model::prompt_ids`] of its model.
    ///
    /// # Errors
    /// As that function.
    pub fn prompt_ids(&self, messages: &[Message], thinking: bool) -> Result<Vec<u32>> {
        self.model().prompt_ids(messages, thinking)
    }

    /// Begins an answer. Checks the request; the steps, the first of which encodes the picture, are the caller's to
    /// take.
    ///
    /// # Errors
    /// `InvalidArgument` for options that cannot be; `ContextOverflow` if prompt and answer do not fit in the model's
    /// context; `Unsupported` for a picture and a model without an image tokenizer; `Format` if the file's tokenizer
    /// or chat template is damaged; `OutOfMemory`.
    pub fn text(&self, request: TextRequest) -> Result<Generation> {
        self.begun(Generation::text_request(self.engine(), request))
    }

    /// Begins an answer to a prompt of ids, each below the vocabulary's number of rows.
    ///
    /// # Errors
    /// As [`Context::text`].
    pub fn text_from_ids(&self, prompt: Vec<u32>, options: TextOptions) -> Result<Generation> {
        self.begun(Generation::text_from_ids(self.engine(), prompt, options))
    }

    /// Begins a picture, or several.
    ///
    /// # Errors
    /// As [`Context::text`]; `InvalidArgument` also for a width or height that is no multiple of
    /// [`Model::downsampling`].
    pub fn draw(&self, request: DrawRequest) -> Result<Generation> {
        self.begun(Generation::draw_request(self.engine(), request))
    }

    /// Begins a picture from prompts of ids.
    ///
    /// # Errors
    /// As [`Context::draw`].
    pub fn draw_from_ids(&self, request: DrawFromIds) -> Result<Generation> {
        self.begun(Generation::draw_from_ids(self.engine(), request))
    }

    /// How likely an answer is after a prompt: [`ScoreRequest`] says what is averaged. Runs the network `samples` times,
    /// several samples together where they are short; the result depends neither on that nor on the threads.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty answer, masks in it, ids outside the vocabulary or no samples; `ContextOverflow`,
    /// `Busy`, `OutOfMemory`.
    pub fn score(&self, request: &ScoreRequest) -> Result<Score> {
        self.score_with(request, &self.canceller())
    }

    /// [`Context::score`] that another thread can stop.
    ///
    /// # Errors
    /// As that function; `Cancelled`.
    pub fn score_with(&self, request: &ScoreRequest, canceller: &Canceller) -> Result<Score> {
        generate::score(&*self.inner, canceller.flag(), request)
    }

    /// Logits of every sequence, row-major [rows, vocab]. The sequences do not see each other.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty sequence, or ids, rows or a range outside the model; `ContextOverflow`, `Busy`,
    /// `OutOfMemory`.
    pub fn logits(&self, batch: &[SequenceRequest]) -> Result<Vec<Vec<f32>>> {
        let total = batch.iter().fold(0usize, |sum, s| sum.saturating_add(s.logits()));
        let mut all = try_vec(total, "logits")?;
        self.logits_into(batch, &mut all, &self.canceller())?;
        let mut rest = &all[..];
        let mut parts = Vec::with_capacity(batch.len());
        for sequence in batch {
            let (part, later) = rest.split_at(sequence.logits());
            parts.push(try_copy(part, "logits")?);
            rest = later;
        }
        Ok(parts)
    }

    /// [`Context::logits`] into memory of the caller, one sequence after the other; another thread can stop it.
    ///
    /// # Errors
    /// As [`Context::logits`]; `InvalidArgument` if `out` is not as long as all logits together; `Cancelled`, after
    /// which `out` holds anything.
    pub fn logits_into(&self, batch: &[SequenceRequest], out: &mut [f32], canceller: &Canceller) -> Result<()> {
        let total = batch.iter().fold(0usize, |sum, s| sum.saturating_add(s.logits()));
        if out.len() != total {
            return Err(Error::invalid(format!("there is room for {} logits, {total} are asked for", out.len())));
        }
        self.inner.logits(canceller.flag(), batch, Logits::All(out))
    }

    /// The residual stream of a sequence: what enters each layer, then the output of the final norm. Each is
    /// row-major [ids.len(), d_model].
    ///
    /// # Errors
    /// As [`Context::logits`].
    pub fn hidden_states(&self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let mut states: Result<Vec<Vec<f32>>> = Ok(Vec::new());
        let mut keep = |_: usize, x: &[f32]| {
            if let Ok(list) = &mut states {
                match try_copy(x, "the states of a layer") {
                    Ok(copy) => list.push(copy),
                    Err(e) => states = Err(e),
                }
            }
        };
        let observers = Observers { layers: Some(&mut keep), inputs: None };
        let batch = [SequenceRequest { ids, rows: &[], vocab: 0..0 }];
        self.inner.forward(&self.exec(), &batch, Logits::All(&mut []), observers)?;
        states
    }

    /// Runs the network on a batch and shows what each of its matrices is multiplied with, in the order of products:
    /// statistics for quantizing. Logits are not computed, but the output head's input is shown for the wanted rows.
    ///
    /// # Errors
    /// As [`Context::logits`].
    pub fn observe_inputs(&self, batch: &[SequenceRequest], observe: InputObserver) -> Result<()> {
        let without = batch.iter().map(|s| SequenceRequest { vocab: 0..0, ..s.clone() });
        let batch = try_collect(without, "a batch of sequences")?;
        let observers = Observers { layers: None, inputs: Some(observe) };
        self.inner.forward(&self.exec(), &batch, Logits::All(&mut []), observers)
    }

    /// The codes of a picture, row by row. Its sides are multiples of [`Model::downsampling`].
    ///
    /// # Errors
    /// `InvalidArgument` for other sides, `Unsupported` without an image tokenizer, `OutOfMemory`; on a graphics card also
    /// `Device`, and `Busy` while another call uses it. Here and in the three functions below.
    pub fn encode_image(&self, picture: &RgbImage) -> Result<Vec<u32>> {
        self.inner.encode(&self.exec(), picture)
    }

    /// [`Context::encode_image`] of pixels in [-1, 1], [height, width, 3], with the latents that the codes are the
    /// signs of.
    pub fn encode_latent(&self, pixels: &[f32], height: usize, width: usize) -> Result<Encoded> {
        self.inner.encode_latent(&self.exec(), pixels, height, width)
    }

    /// The picture of `width * height` codes, given row by row; its sides in pixels are [`Model::downsampling`] times
    /// that.
    pub fn decode_image(&self, codes: &[u32], width: usize, height: usize) -> Result<RgbImage> {
        self.inner.decode(&self.exec(), codes, width, height)
    }

    /// [`Context::decode_image`] as the network leaves it: about [-1, 1], [height, width, 3] in pixels.
    pub fn decode_float(&self, codes: &[u32], width: usize, height: usize) -> Result<Vec<f32>> {
        self.inner.decode_float(&self.exec(), codes, width, height)
    }

    fn exec(&self) -> Exec<'_> {
        let cancel = self.canceller.as_ref().map(Canceller::flag);
        Exec::new(&self.inner.threads, self.inner.kernels, cancel).within(&self.inner.budget)
    }

    fn canceller(&self) -> Canceller {
        self.canceller.clone().unwrap_or_default()
    }

    fn begun(&self, generation: Result<Generation>) -> Result<Generation> {
        Ok(match &self.canceller {
            Some(canceller) => generation?.with_canceller(canceller.clone()),
            None => generation?,
        })
    }

    fn ready(&self) -> Result<()> {
        self.inner.ready()
    }

    /// Runs `work` in a thread of the context: for tests of what happens to its panics.
    #[cfg(all(debug_assertions, feature = "capi"))]
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.exec().run(work)
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.inner.clone()
    }
}

fn packed_bytes(model: &Model, kernels: &Kernels, compute: Compute) -> usize {
    PackedWeights::bytes(&model.transformer().weights, kernels, compute)
}

/// Why a choice other than the processor comes to nothing in a library that was built without CUDA.
#[cfg(not(feature = "cuda"))]
fn without_cards(device: DeviceChoice) -> Result<Option<String>> {
    const REASON: &str = "this library was built without CUDA";
    match device {
        DeviceChoice::Cpu => Ok(None),
        DeviceChoice::Auto => Ok(Some(REASON.to_owned())),
        DeviceChoice::Cuda(_) | DeviceChoice::CudaAmpere(_) => {
            Err(Error::invalid(format!("{device} cannot be used: {REASON}")))
        }
    }
}

impl Inner {
    /// What a forward pass of the model needs besides buffers.
    fn run_with<'a>(&'a self, exec: &'a Exec<'a>) -> Run<'a> {
        Run::new(exec, self.model.bytes(), self.compute).with_packed(self.packed.as_ref().map(|p| &*p.weights))
    }

    fn forward(&self, exec: &Exec, batch: &[SequenceRequest], logits: Logits, observers: Observers) -> Result<()> {
        let mut state = self.lock()?;
        let run = self.run_with(exec);
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            return card.forward(&self.model, &run, &mut state, batch, logits, observers);
        }
        self.model.transformer().forward(&run, &mut state, batch, logits, observers)
    }

    fn device(&self) -> String {
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            return card.name();
        }
        "cpu".to_owned()
    }

    fn gpu_layers(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            return self.model.config().layers - card.first_layer();
        }
        0
    }

    /// The buffers, where there is something to run with them.
    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        self.ready()?;
        match self.state.try_lock() {
            Ok(state) => Ok(state),
            Err(TryLockError::WouldBlock) => Err(Error::Busy),
            Err(TryLockError::Poisoned(state)) => {
                // a panic left half of it
                let mut state = state.into_inner();
                *state = State::default();
                Ok(state)
            }
        }
    }

    fn encode_latent(&self, exec: &Exec, pixels: &[f32], height: usize, width: usize) -> Result<Encoded> {
        let (images, bytes) = self.images()?;
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            return card
                .with_images(&self.model, |on_card| images.encode_on(on_card, exec, bytes, pixels, (height, width)));
        }
        images.encode_latent(exec, bytes, pixels, height, width, self.compute == Compute::Fast)
    }

    fn encode(&self, exec: &Exec, picture: &RgbImage) -> Result<Vec<u32>> {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        self.images()?; // before anything is made of the picture
        Ok(self.encode_latent(exec, &image::to_unit(picture)?, height, width)?.codes)
    }

    fn decode_float(&self, exec: &Exec, codes: &[u32], width: usize, height: usize) -> Result<Vec<f32>> {
        let (images, bytes) = self.images()?;
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            return card
                .with_images(&self.model, |on_card| images.decode_on(on_card, exec, bytes, codes, (height, width)));
        }
        images.decode_float(exec, bytes, codes, height, width, self.compute == Compute::Fast)
    }

    fn decode(&self, exec: &Exec, codes: &[u32], width: usize, height: usize) -> Result<RgbImage> {
        let (images, _) = self.images()?;
        images.picture(&self.decode_float(exec, codes, width, height)?, height, width)
    }

    fn images(&self) -> Result<(&ImageTokenizer, &[u8])> {
        self.ready()?;
        let images = self.model.images().ok_or_else(|| {
            Error::unsupported(self.model.file(), "the model has no image tokenizer, so it cannot see or draw pictures")
        })?;
        Ok((images, self.model.bytes()))
    }
}

impl Engine for Inner {
    fn ready(&self) -> Result<()> {
        self.threads.check()?;
        self.model.check_file()
    }
    fn take(&self, bytes: usize, what: &str) -> Result<Charge> {
        self.budget.take(bytes, what)
    }
    fn log(&self, level: LogLevel, message: &dyn Fn() -> String) {
        if let Some(logger) = &self.logger {
            logger.log(level, &message());
        }
    }
    fn file(&self) -> &str {
        self.model.file()
    }
    fn vocabulary(&self) -> &Vocabulary {
        self.model.vocabulary()
    }
    fn context_length(&self) -> usize {
        self.model.transformer().max_positions()
    }
    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.model.tokenizer()
    }
    fn chat_template(&self) -> Result<&ChatTemplate> {
        self.model.chat_template()
    }
    fn downsampling(&self) -> Option<usize> {
        self.model.downsampling()
    }
    fn question_codes(&self) -> usize {
        let side = self.model.downsampling().map_or(0, |d| self.model.image_size() / d);
        side * side
    }
    fn exec<'a>(&'a self, cancel: &'a AtomicBool) -> Exec<'a> {
        Exec::new(&self.threads, self.kernels, Some(cancel)).within(&self.budget)
    }
    fn logits(&self, cancel: &AtomicBool, batch: &[SequenceRequest], out: Logits) -> Result<()> {
        self.forward(&Engine::exec(self, cancel), batch, out, Observers::default())
    }
    fn choose(
        &self,
        cancel: &AtomicBool,
        batch: &[SequenceRequest],
        draws: &[Draw],
        rule: choose::Rule,
        room: &mut Choosing,
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card
            // it makes random numbers of one kind
            && let Some(seed) = if rule.temperature == 0.0 { Some(0) } else { rule.noise.philox() }
        {
            let (mut state, exec) = (self.lock()?, Engine::exec(self, cancel));
            let (model, run) = (&self.model, &self.run_with(&exec));
            let request = card::Request { model, run, state: &mut state, batch, draws, seed };
            return card.choose(request, rule, &mut room.candidates);
        }
        generate::choose_from_logits(self, cancel, batch, draws, rule, room)
    }
    fn sample(
        &self,
        cancel: &AtomicBool,
        batch: &[SequenceRequest],
        copies: usize,
        draws: &[Draw],
        rule: sampler::image::Rule,
        room: &mut Sampling,
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let (Some(card), Some(seed)) = (&self.card, rule.noise.philox()) {
            let (mut state, exec) = (self.lock()?, Engine::exec(self, cancel));
            let (model, run) = (&self.model, &self.run_with(&exec));
            let request = card::Request { model, run, state: &mut state, batch, draws, seed };
            return card.sample(request, rule, copies, &mut room.sampled);
        }
        generate::sample_from_logits(self, cancel, batch, copies, draws, rule, room)
    }
    fn encode_image(&self, cancel: &AtomicBool, picture: &RgbImage, squash: bool) -> Result<Vec<u32>> {
        self.images()?;
        let fit = if squash { Fit::Squash } else { Fit::Crop };
        self.encode(&Engine::exec(self, cancel), &image::fit(picture, self.model.image_size(), fit)?)
    }
    fn decode_image(&self, cancel: &AtomicBool, codes: &[u32], width: usize, height: usize) -> Result<RgbImage> {
        self.decode(&Engine::exec(self, cancel), codes, width, height)
    }
}
