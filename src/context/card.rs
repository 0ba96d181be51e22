//! A context's graphics card: which one, how much of the model it has, and passes on it.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use super::{ContextOptions, Model};
use crate::backend::DeviceChoice;
use crate::error::{Error, Result};
use crate::kernels::cuda::{Gpu, cards, self_check};
use crate::model::{
    Compute, Cpu, Cuda, CudaState, CudaWeights, Logits, Observers, Offload, Run, SequenceRequest, State,
};

/// Weights and buffers on a card.
pub(super) struct Card {
    weights: Arc<CudaWeights>,
    state: Mutex<CudaState>,
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
    pub fn choose(model: &Model, options: &ContextOptions) -> Result<(Option<Card>, Option<String>)> {
        match options.device {
            DeviceChoice::Cpu => Ok((None, None)),
            DeviceChoice::Cuda(index) => match of_the_processor(options) {
                Some(what) => {
                    Err(Error::invalid(format!("{what} and device {}: only the cpu has that", options.device)))
                }
                None => Card::open(index, model, options).map(|card| (Some(card), None)),
            },
            DeviceChoice::Auto => {
                if let Some(what) = of_the_processor(options) {
                    return Ok((None, Some(format!("{what}: only the cpu has that"))));
                }
                let mut reason = "there is no graphics card".to_owned();
                for card in cards().map_err(|why| reason = why).unwrap_or_default() {
                    match Card::open(card.index, model, options) {
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
        let gpu = Gpu::open(index)?;
        let (transformer, c) = (model.transformer(), model.config());
        CudaWeights::check(c, model.file())?;
        self_check(&gpu)?;
        let first = match options.gpu_layers {
            Some(layers) => c.layers.saturating_sub(layers),
            None => {
                let room = gpu.free_memory()?.saturating_sub(SPARE);
                let buffers = CudaState::bytes(c, TOKENS.min(transformer.max_positions()));
                let fits = |&first: &usize| CudaWeights::bytes(transformer, first).saturating_add(buffers) <= room;
                // where nothing fits the attempt says what was missing
                (0..c.layers).find(fits).unwrap_or(c.layers)
            }
        };
        let weights = model.on_card(&gpu, first, options.progress.as_ref())?;
        let state = Mutex::new(CudaState::new(&gpu)?);
        Ok(Card { weights, state })
    }

    /// `cuda:0 (NVIDIA H100)`
    pub fn name(&self) -> String {
        self.weights.gpu().name()
    }

    /// The first of the layers that it has.
    pub fn first_layer(&self) -> usize {
        self.weights.first()
    }

    fn lock(&self) -> Result<MutexGuard<'_, CudaState>> {
        match self.state.try_lock() {
            Ok(state) => Ok(state),
            Err(TryLockError::WouldBlock) => Err(Error::Busy),
            // what a panic left is overwritten by the next pass
            Err(TryLockError::Poisoned(state)) => Ok(state.into_inner()),
        }
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
        let mut cuda = Cuda::new(&self.weights, &mut on_card, model.config(), exec);
        if self.first_layer() == 0 {
            return transformer.forward_on(&mut cuda, batch, logits, observers);
        }
        let cpu = Cpu::new(run, state, transformer);
        exec.run(|| transformer.forward_on(&mut Offload::new(cpu, cuda), batch, logits, observers))
    }
}

/// An option that a card does not have.
fn of_the_processor(options: &ContextOptions) -> Option<&'static str> {
    match options {
        _ if options.pack => Some("packed weights"),
        _ if options.compute == Compute::Exact => Some("exact arithmetic"),
        _ if options.instruction_set.is_some() => Some("an instruction set"),
        _ => None,
    }
}
