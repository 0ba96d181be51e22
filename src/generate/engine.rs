//! What a generation needs of a context, and no more: the seam at which tests put a model of their own.

use std::sync::atomic::AtomicBool;

use ::image::RgbImage;

use crate::context::LogLevel;
use crate::error::Result;
use crate::memory::Charge;
use crate::model::{Logits, SequenceRequest};
use crate::parallel::Exec;
use crate::prompt::{ChatTemplate, Vocabulary};
use crate::tokenizer::Tokenizer;

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
    /// The `question_codes` codes of a picture of any size, in raster order. `squash`: resize to a square instead
    /// of cropping to one.
    fn encode_image(&self, cancel: &AtomicBool, picture: &RgbImage, squash: bool) -> Result<Vec<u32>>;
    /// The picture of `width * height` codes in raster order.
    fn decode_image(&self, cancel: &AtomicBool, codes: &[u32], width: usize, height: usize) -> Result<RgbImage>;
}
