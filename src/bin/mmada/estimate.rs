//! What running a model takes, for `mmada info`: memory and arithmetic of the largest request that the file's
//! defaults make.

use std::path::Path;

use mmada::{ContextOptions, Estimate, Model};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::info::size;

/// The needs of a typical request.
pub struct Needs {
    estimate: Estimate,
    tokens: usize,
    sequences: usize,
}

/// Needs of one step over the longest sequence that drawing or answering with the defaults makes. With an image
/// tokenizer that is a picture and its prompt, twice, because guidance runs the sequence with an empty prompt too.
pub fn of(path: &Path) -> Result<Needs, Failure> {
    let model = Model::open(path)?;
    let (tokens, sequences) = if model.has_images() {
        let (_, image) = model.draw_options(false);
        let side = model.image_size() / model.downsampling().max(1);
        (image.max_text_len + 3 + side * side, if image.guidance > 0.0 { 2 } else { 1 })
    } else {
        (2 * model.text_options(false, false).gen_length, 1)
    };
    let tokens = tokens.min(model.config().context);
    let estimate = model.estimate(&ContextOptions::default(), tokens, sequences);
    Ok(Needs { estimate, tokens, sequences })
}

impl Needs {
    pub fn text(&self) -> String {
        let Needs { estimate, tokens, sequences } = self;
        format!(
            "\nneeds of a request of {sequences} x {tokens} tokens\n  weights  {} (mapped, not copied)\n  memory   {}\n  a step   {:.3e} multiply-adds\n",
            size(estimate.weights_bytes),
            size(estimate.scratch_bytes),
            estimate.multiply_adds_per_step as f64
        )
    }

    pub fn json(&self) -> Json {
        json!({
            "tokens": self.tokens,
            "sequences": self.sequences,
            "weights_bytes": self.estimate.weights_bytes,
            "scratch_bytes": self.estimate.scratch_bytes,
            "multiply_adds_per_step": self.estimate.multiply_adds_per_step,
        })
    }
}
