//! From logits to tokens where the logits are: what the sampler computes on the processor (`sampler::choose`,
//! `sampler::image`), with the same random numbers.

use super::memory::Part;
use super::operations::{check, rows_grid};
use super::queue::{Argument, Queue};
use crate::error::Result;

/// Words that say where the random numbers of a row come from: the key's two, the step and the position
/// (`sampler::Philox`).
pub const PLACE: usize = 4;

/// Bytes of what is known of a row's candidate after some of the ids (`ChoiceState` of sampling.cu).
pub const CHOICE: usize = 32;

/// How candidates of text are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choosing {
    /// Of classifier-free guidance.
    pub cfg_scale: f64,
    /// Of Gumbel noise; 0: the most probable token.
    pub temperature: f64,
    /// Whether probabilities are wanted.
    pub sums: bool,
}

/// Begins the choices of rows, [`CHOICE`] bytes each.
pub fn choose_begin(queue: &Queue, choices: Part<'_, u8>) -> Result<()> {
    let rows = choices.len() / CHOICE;
    check(choices.len() == rows * CHOICE, "choices")?;
    let mut arguments: [Argument; 2] = [choices.into(), (rows as i32).into()];
    // SAFETY: as many choices as there are rows
    unsafe { queue.launch("choose_begin", rows_grid(rows.div_ceil(256)), &mut arguments) }
}

/// Shows choices the logits of the ids `first, first + 1, ...`, which come next: [rows, ids], with unconditional ones of the
/// same shape where something guides. `forbidden` holds pairs of ids: from the first to before the second none is chosen.
pub fn choose_update(
    queue: &Queue,
    (logits, unconditional): (Part<'_, f32>, Option<Part<'_, f32>>),
    first: u32,
    forbidden: Part<'_, u32>,
    rule: Choosing,
    places: Part<'_, u32>,
    choices: Part<'_, u8>,
) -> Result<()> {
    let rows = choices.len() / CHOICE;
    let width = logits.len() / rows.max(1);
    let right = logits.len() == rows * width && unconditional.is_none_or(|free| free.len() == logits.len());
    let whole = choices.len() == rows * CHOICE && forbidden.len().is_multiple_of(2);
    check(right && whole && places.len() == rows * PLACE, "choices")?;
    let mut arguments: [Argument; 11] = [
        logits.into(),
        unconditional.into(),
        rule.cfg_scale.into(),
        (width as i32).into(),
        first.into(),
        forbidden.into(),
        ((forbidden.len() / 2) as i32).into(),
        rule.temperature.into(),
        i32::from(rule.sums).into(),
        places.into(),
        choices.into(),
    ];
    // SAFETY: rows of the sizes that were checked
    unsafe { queue.launch("choose_update", rows_grid(rows), &mut arguments) }
}

/// The candidates of rows whose choices have seen all ids: the token, or -1 where none is left and -2 where logits were not
/// finite; and its probability.
pub fn choose_end(queue: &Queue, choices: Part<'_, u8>, ids: Part<'_, i32>, confidence: Part<'_, f64>) -> Result<()> {
    let rows = choices.len() / CHOICE;
    check(choices.len() == rows * CHOICE && ids.len() == rows && confidence.len() == rows, "choices")?;
    let mut arguments: [Argument; 4] = [choices.into(), (rows as i32).into(), ids.into(), confidence.into()];
    // SAFETY: as many choices, ids and probabilities as there are rows
    unsafe { queue.launch("choose_end", rows_grid(rows.div_ceil(256)), &mut arguments) }
}

/// How codes are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Of classifier-free guidance; 0 where there is none.
    pub guidance: f32,
    /// Whether confidence is the margin between the best two.
    pub margin: bool,
}

/// Samples a code for each row of logits [rows, codes], guided away from unconditional ones of the same shape: the code, or
/// `u32::MAX` where logits were not finite; and its confidence. `probabilities` is memory of the same shape.
pub fn sample_codes(
    queue: &Queue,
    (logits, unconditional): (Part<'_, f32>, Option<Part<'_, f32>>),
    rule: Sampling,
    places: Part<'_, u32>,
    probabilities: Part<'_, f32>,
    codes: Part<'_, u32>,
    confidence: Part<'_, f32>,
) -> Result<()> {
    let rows = codes.len();
    let width = logits.len() / rows.max(1);
    let right = logits.len() == rows * width && unconditional.is_none_or(|free| free.len() == logits.len());
    let room = probabilities.len() == logits.len() && confidence.len() == rows;
    check(right && room && places.len() == rows * PLACE, "sampled codes")?;
    let mut arguments: [Argument; 9] = [
        logits.into(),
        unconditional.into(),
        rule.guidance.into(),
        (width as i32).into(),
        i32::from(rule.margin).into(),
        places.into(),
        probabilities.into(),
        codes.into(),
        confidence.into(),
    ];
    // SAFETY: rows of the sizes that were checked
    unsafe { queue.launch("sample_codes", rows_grid(rows), &mut arguments) }
}
