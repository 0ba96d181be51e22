//! What running a model takes, for `mmada info`: memory, work and time of a request with the file's defaults.

use std::path::Path;

use mmada::{Estimate, Model};
use serde_json::{Value as Json, json};

use crate::args::Common;
use crate::failure::Failure;
use crate::info::size;
use crate::output::Output;
use crate::session;

/// Tokens that a question or a description is taken to have.
const PROMPT: usize = 32;

/// What each kind of request takes on this machine.
pub struct Needs {
    requests: Vec<Need>,
    /// Bytes of packed weights, in what instruction set, and whether they are packed.
    packed: (usize, &'static str, bool),
}

struct Need {
    request: &'static str,
    estimate: Estimate,
    seconds: f64,
}

/// Opens the model at `path` and estimates an answer and, if it can see and draw, the answer to a question about a
/// picture and a drawing.
pub fn of(path: &Path, common: &Common, output: &Output) -> Result<Needs, Failure> {
    let model = Model::open(path)?;
    let context = session::context(&model, common, output)?;
    let mut estimates = vec![("answer", model.estimate_text(PROMPT, &model.text_options(false, false)))];
    if let (true, Some(downsampling)) = (model.has_images(), model.downsampling()) {
        let side = model.image_size();
        let codes = (side / downsampling).pow(2);
        let (_, image) = model.draw_options(false);
        estimates
            .push(("answer about a picture", model.estimate_text(PROMPT + codes, &model.text_options(false, true))));
        estimates.push(("drawing", model.estimate_draw(PROMPT, (side, side), 1, &image)));
    }
    let need = |(request, estimate)| Ok(Need { request, estimate, seconds: context.seconds(&estimate)? });
    let requests = estimates.into_iter().map(need).collect::<mmada::Result<_>>()?;
    Ok(Needs { requests, packed: (context.packed_bytes(), context.instruction_set(), context.is_packed()) })
}

impl Needs {
    pub fn text(&self) -> String {
        let mut text = format!(
            "\nneeds of a request of {PROMPT} tokens, with the file's defaults (time without the image tokenizer)\n"
        );
        for Need { request, estimate, seconds } in &self.requests {
            let (memory, work) = (size(estimate.scratch_bytes), estimate.multiply_adds as f64);
            text += &format!("  {request:22}  {memory} of memory, {work:.1e} multiply-adds, about {seconds:.1} s\n");
        }
        let (bytes, instruction_set, packed) = self.packed;
        let whether = if packed { "as in these times" } else { "not in these times" };
        text += &format!("  {:22}  {} of memory more for {instruction_set}, {whether}\n", "with --pack", size(bytes));
        text
    }

    /// The requests, and what packed weights take.
    pub fn json(&self) -> (Json, Json) {
        let entry = |need: &Need| {
            json!({
                "request": need.request,
                "prompt_tokens": PROMPT,
                "weights_bytes": need.estimate.weights_bytes,
                "scratch_bytes": need.estimate.scratch_bytes,
                "multiply_adds": need.estimate.multiply_adds,
                "seconds": need.seconds,
            })
        };
        let (bytes, _, packed) = self.packed;
        (self.requests.iter().map(entry).collect(), json!({ "bytes": bytes, "packed": packed }))
    }
}
