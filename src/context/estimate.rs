//! What a request will take, before it begins.

use std::time::Instant;

use super::{Context, Model};
use crate::error::Result;
use crate::generate::{ImageOptions, ImageStage, TextOptions, TextStage};
use crate::kernels::attention::Scratch;
use crate::kernels::{Activations, Arithmetic, Bf16Rows, Epilogue, Int8Rows, matmul};
use crate::memory::{try_collect, try_vec};
use crate::model::{Compute, Room, SequenceRequest, State};

/// Memory and work of a request. Both are bounds: an answer may end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes of the model file, mapped: shared with other processes, and given back under pressure.
    pub weights_bytes: usize,
    /// Bytes of buffers that the context allocates for the request.
    pub scratch_bytes: usize,
    /// Multiply-adds of all steps together.
    pub multiply_adds: u64,
    /// Tokens that run through the network, over all steps.
    pub tokens: u64,
}

impl Model {
    /// What answering takes after a prompt of `prompt` tokens.
    pub fn estimate_text(&self, prompt: usize, options: &TextOptions) -> Estimate {
        let length = prompt.saturating_add(options.gen_length);
        let passes = if options.cfg_scale > 0.0 { 2 } else { 1 };
        let rows = options.block_length.saturating_mul(passes);
        let stage = TextStage::bytes(self.vocabulary(), length, options);
        self.estimate(&[(length, passes)], options.steps, (rows, self.vocabulary().text as usize), stage)
    }

    /// What drawing `count` pictures of `width` x `height` pixels takes after a prompt of `prompt` tokens (with
    /// thinking: without the description's steps, see [`Model::estimate_text`]). Without decoding.
    pub fn estimate_draw(&self, prompt: usize, size: (usize, usize), count: usize, options: &ImageOptions) -> Estimate {
        let side = self.downsampling().unwrap_or(1);
        let tokens = (size.0 / side).saturating_mul(size.1 / side);
        // the picture stands between <|soi|> and <|eoi|>; the prompt without text is <|t2i|><bos><eos>
        let own = (prompt.saturating_add(tokens).saturating_add(2), count);
        let unconditional = (tokens.saturating_add(3 + 2), if options.guidance > 0.0 { count } else { 0 });
        let rows = count.saturating_add(unconditional.1).saturating_mul(tokens);
        let codes = self.vocabulary().codes as usize;
        let lengths = [own.0, if unconditional.1 > 0 { unconditional.0 } else { 0 }];
        let stage = ImageStage::bytes(lengths, (tokens, codes), count);
        self.estimate(&[own, unconditional], options.steps, (rows, codes), stage)
    }

    /// Of sequences given as (tokens, how many of them), with the logits of `vocab` ids in some rows, and `stage` bytes for what
    /// is done with them. Saturates: sizes come from a request that nobody checked.
    fn estimate(
        &self,
        sequences: &[(usize, usize)],
        steps: usize,
        (rows, vocab): (usize, usize),
        stage: usize,
    ) -> Estimate {
        let c = self.config();
        let sum = |term: &dyn Fn(u64) -> u64| {
            let terms = sequences.iter().map(|&(n, count)| term(n as u64).saturating_mul(count as u64));
            terms.fold(0, u64::saturating_add)
        };
        let all = |of: &dyn Fn(usize) -> usize| {
            let terms = sequences.iter().map(|&(n, count)| of(n).saturating_mul(count));
            terms.fold(0, usize::saturating_add)
        };
        // in bfloat16, which takes more
        let room = Room { tokens: all(&|n| n), keys: all(&Scratch::padded), bf16: true };
        let layers = sum(&|n| n.saturating_mul(c.multiply_adds_per_token(usize::try_from(n).unwrap_or(usize::MAX))));
        let output = (rows as u64).saturating_mul(vocab as u64 * c.d_model as u64);
        Estimate {
            weights_bytes: self.bytes().len(),
            scratch_bytes: State::bytes(c, room).saturating_add(stage),
            multiply_adds: layers.saturating_add(output).saturating_mul(steps as u64),
            tokens: (room.tokens as u64).saturating_mul(steps as u64),
        }
    }
}

/// Tokens of a measurement.
const TOKENS: usize = 64;

impl Context {
    /// Seconds that `estimate` takes on this context's threads: its multiply-adds over the speed of a product with
    /// the model's first MLP matrix, measured now (some milliseconds on a small model, up to a second on a large one).
    /// Where layers are on a graphics card, over the speed of a pass through all of them.
    ///
    /// # Errors
    /// `OutOfMemory`; `Busy` and `Device` with a graphics card.
    pub fn seconds(&self, estimate: &Estimate) -> Result<f64> {
        self.ready()?;
        let (work, seconds) = if self.gpu_layers() > 0 { self.time_pass()? } else { self.time_product()? };
        Ok(estimate.multiply_adds as f64 * seconds / work)
    }

    /// The multiply-adds of a pass over some tokens, and the seconds it takes.
    fn time_pass(&self) -> Result<(f64, f64)> {
        let tokens = TOKENS.min(self.model().transformer().max_positions());
        let ids = try_vec(tokens, "a measurement")?;
        let batch = [SequenceRequest { ids: &ids, rows: &[0], vocab: 0..1 }];
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            self.logits(&batch)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok((tokens as f64 * self.model().config().multiply_adds_per_token(tokens) as f64, best))
    }

    /// The multiply-adds of a product, and the seconds it takes.
    fn time_product(&self) -> Result<(f64, f64)> {
        let model = self.model();
        let exec = self.exec();
        let operand = self.inner.run_with(&exec).operand(&model.transformer().weights.layers[0].up);
        let w = operand.matrix();
        let x: Vec<f32> = try_collect((0..TOKENS * w.cols()).map(|i| (i % 17) as f32 - 8.0), "a measurement")?;
        let mut y = try_vec(TOKENS * w.rows(), "a measurement")?;
        let (mut int8, mut bf16) = (Int8Rows::default(), Bf16Rows::default());
        let arithmetic = exec.kernels.arithmetic(w.dtype(), self.compute() == Compute::Fast);
        let mut best = f64::INFINITY;
        for _ in 0..4 {
            let start = Instant::now();
            let activations = match arithmetic {
                Arithmetic::Int8(scales) => {
                    int8.quantize(&exec, &x, w.cols(), scales)?;
                    Activations::Int8(&int8)
                }
                Arithmetic::Bf16 => {
                    bf16.round(&exec, &x, w.cols())?;
                    Activations::Bf16(&bf16)
                }
                Arithmetic::F32 => Activations::F32 { x: &x, k: w.cols() },
            };
            matmul(&exec, operand, activations, &mut y, w.rows(), Epilogue::Store)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(((TOKENS * w.rows()) as f64 * w.cols() as f64, best))
    }
}
