//! What is asked of a generation.

use std::ffi::c_char;
use std::ptr;

use super::arguments::{StructOut, Versioned, flag, read_or, slice, string, unknown, vec};
use super::boundary::guard;
use super::error::{Failure, mmada_error, mmada_status};
use super::handle;
use super::image::mmada_image;
use super::model::{mmada_model, reserved};
use crate::context::Model;
use crate::generate::{ImageOptions, TextOptions};
use crate::image::RgbImage;
use crate::memory::{try_collect, try_with_capacity};
use crate::prompt::{Message, Role};
use crate::sampler::{Confidence, Remasking, Schedule};

/// Who says a message.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_role {
    MMADA_ROLE_SYSTEM = 0,
    MMADA_ROLE_USER = 1,
    MMADA_ROLE_ASSISTANT = 2,
}

/// Which candidates of a step are kept.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_remasking {
    /// The most probable ones: positions of low confidence stay masked.
    MMADA_REMASKING_LOW_CONFIDENCE = 0,
    /// Chance decides.
    MMADA_REMASKING_RANDOM = 1,
}

/// How many positions of a picture stay masked after every step.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_schedule {
    MMADA_SCHEDULE_COSINE = 0,
    MMADA_SCHEDULE_LINEAR = 1,
    /// 1 - r to the power of `schedule_power`, r being the share of the steps that is done.
    MMADA_SCHEDULE_POWER = 2,
    MMADA_SCHEDULE_SIGMOID = 3,
}

/// What makes a sampled image code worth keeping.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_confidence {
    /// Its probability.
    MMADA_CONFIDENCE_PROBABILITY = 0,
    /// How far the position's best code is ahead of its second best.
    MMADA_CONFIDENCE_MARGIN = 1,
}

/// One turn of a chat. This struct never grows. Everything that it points to is copied by the function it is given to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_message {
    /// UTF-8; white space at both ends is dropped. What looks like a special token is ordinary text.
    pub content: *const c_char,
    /// In bytes, or MMADA_NUL_TERMINATED.
    pub content_length: usize,
    /// NULL, or the picture that the chat is about. Only one message of a chat may have one, and the model sees it
    /// before the whole chat, whichever that message is.
    pub image: *const mmada_image,
    /// An mmada_role.
    pub role: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// A text in an array. This struct never grows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_string {
    /// UTF-8.
    pub data: *const c_char,
    /// In bytes, or MMADA_NUL_TERMINATED.
    pub length: usize,
}

/// A position of an answer that is given from the start. This struct never grows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_pin {
    /// Counted from 0 at the beginning of the answer.
    pub position: usize,
    /// The token that stands there.
    pub id: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// How text is sampled. Initialize with `mmada_text_options_init`. Everything that it points to is copied by the
/// function it is given to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_text_options {
    /// sizeof(mmada_text_options)
    pub struct_size: usize,
    /// Tokens of the answer: a multiple of `block_length`.
    pub gen_length: usize,
    /// Denoising steps over the whole answer: a multiple of the number of blocks, gen_length / block_length.
    pub steps: usize,
    /// Tokens that are unmasked together, block after block.
    pub block_length: usize,
    /// 0 takes the most probable token; above, Gumbel noise of this scale is added to the logits.
    pub temperature: f64,
    /// Classifier-free guidance against the answer to a masked prompt; 0 is none. It doubles the work.
    pub cfg_scale: f64,
    /// Of the random numbers: the same seed gives the same answer, with any number of threads.
    pub seed: u64,
    /// `stop_count` texts, none of them empty; the generation ends, and the answer is cut, before the first of them.
    pub stop: *const mmada_string,
    pub stop_count: usize,
    /// `forbid_count` ids that must not be chosen.
    pub forbid: *const u32,
    pub forbid_count: usize,
    /// NULL, or the `allow_only_count` ids that alone may be chosen.
    pub allow_only: *const u32,
    pub allow_only_count: usize,
    /// An mmada_remasking.
    pub remasking: u32,
    /// 1: ask the model to think first; thinking and answer then come back apart.
    pub thinking: u32,
    /// A picture that is no square is cropped to one (0) or resized to one (1: for diagrams and documents).
    pub squash: u32,
    /// Must be 0.
    pub reserved: u32,
    /// `pinned_count` positions of the answer that are given, such as the frame of a form that is to be filled in. They
    /// are never masked or chosen, no step reports them, and `forbid` and `allow_only` do not look at them.
    pub pinned: *const mmada_pin,
    pub pinned_count: usize,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_text_options {
    const NAME: &'static str = "mmada_text_options";
    const FIRST_SIZE: usize = 120; // up to `reserved`
}

/// How pictures are sampled. Initialize with `mmada_image_options_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_image_options {
    /// sizeof(mmada_image_options)
    pub struct_size: usize,
    /// Size in pixels, each a multiple of the model's `image_downsampling`.
    pub width: usize,
    pub height: usize,
    /// How many pictures, drawn together: picture i is the one that the seed plus i draws alone.
    pub count: usize,
    pub steps: usize,
    /// A longer prompt is cut to this many tokens, two leading special tokens included. Not used with `thinking`.
    pub max_text_length: usize,
    /// With `thinking`: tokens of prompt and description together.
    pub text_length: usize,
    /// Of the first picture's random numbers.
    pub seed: u64,
    /// Classifier-free guidance against an empty prompt; 0 is none and halves the work.
    pub guidance: f32,
    /// Of the noise in the order in which positions become known; it falls to 0 with the steps.
    pub temperature: f32,
    /// Above 0; used with MMADA_SCHEDULE_POWER only.
    pub schedule_power: f32,
    /// An mmada_schedule.
    pub schedule: u32,
    /// An mmada_confidence.
    pub confidence: u32,
    /// 1: think out a detailed description first, then draw that.
    pub thinking: u32,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_image_options {
    const NAME: &'static str = "mmada_image_options";
    const FIRST_SIZE: usize = 88;
}

/// Fills `*options`, which has `struct_size` bytes (pass sizeof), with what the model's file recommends for a text:
/// with thinking or without (0 or 1), about a picture or not (0 or 1). `options->thinking` is set to `thinking`.
/// `model` may be NULL for the values of the published 8B checkpoints.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_text_options_init(
    options: *mut mmada_text_options,
    struct_size: usize,
    model: *const mmada_model,
    thinking: u32,
    about_image: u32,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = StructOut::uninitialized(options, struct_size)?;
            let model = handle::optional(model)?;
            out.put(text_defaults(model, flag(thinking, "thinking")?, flag(about_image, "about_image")?));
            Ok(())
        })
    }
}

/// Fills `*options`, which has `struct_size` bytes (pass sizeof), with what the model's file recommends for drawing: one
/// picture of the size that the model was trained on, with thinking first or without (0 or 1). `options->thinking` is
/// set to `thinking`. `model` may be NULL for the values of the published 8B checkpoints, at 512x512 pixels.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_options_init(
    options: *mut mmada_image_options,
    struct_size: usize,
    model: *const mmada_model,
    thinking: u32,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = StructOut::uninitialized(options, struct_size)?;
            out.put(image_defaults(handle::optional(model)?, flag(thinking, "thinking")?));
            Ok(())
        })
    }
}

/// Fills `*options`, which has `struct_size` bytes (pass sizeof), with what the model's file recommends for the
/// description that is thought out before a picture is drawn. `model` may be NULL as above.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_description_options_init(
    options: *mut mmada_text_options,
    struct_size: usize,
    model: *const mmada_model,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = StructOut::uninitialized(options, struct_size)?;
            let model = handle::optional(model)?;
            out.put(from_text(&model.map_or_else(Default::default, |m| m.draw_options(true).0), true));
            Ok(())
        })
    }
}

/// A text's options, read.
pub struct Text {
    pub options: TextOptions,
    pub thinking: bool,
    pub squash: bool,
}

/// The options that a struct of the caller holds; the model's own for NULL.
///
/// # Safety
/// `from` is NULL or a struct of some version, and so is what it points to.
pub unsafe fn text(from: *const mmada_text_options, model: &Model, about_image: bool) -> Result<Text, Failure> {
    // SAFETY: the caller's promise is the same
    unsafe { read_or(from, text_defaults(Some(model), false, about_image)).and_then(|given| to_text(&given)) }
}

/// [`text`] for the description before a picture.
///
/// # Safety
/// As [`text`].
pub unsafe fn description(from: *const mmada_text_options, model: &Model) -> Result<TextOptions, Failure> {
    let defaults = from_text(&model.draw_options(true).0, true);
    // SAFETY: the caller's promise is the same
    unsafe { Ok(read_or(from, defaults).and_then(|given| to_text(&given))?.options) }
}

/// A picture's options, read.
pub struct Drawing {
    pub options: ImageOptions,
    pub width: usize,
    pub height: usize,
    pub count: usize,
    pub thinking: bool,
}

/// The options that a struct of the caller holds; the model's own for NULL.
///
/// # Safety
/// `from` is NULL or a struct of some version.
pub unsafe fn image(from: *const mmada_image_options, model: &Model) -> Result<Drawing, Failure> {
    // SAFETY: the caller's promise is the same
    let given = unsafe { read_or(from, image_defaults(Some(model), false))? };
    Ok(Drawing {
        width: given.width,
        height: given.height,
        count: given.count,
        thinking: flag(given.thinking, "thinking")?,
        options: ImageOptions {
            steps: given.steps,
            guidance: given.guidance,
            temperature: given.temperature,
            schedule: schedule(given.schedule, given.schedule_power)?,
            confidence: match given.confidence {
                v if v == mmada_confidence::MMADA_CONFIDENCE_PROBABILITY as u32 => Confidence::Probability,
                v if v == mmada_confidence::MMADA_CONFIDENCE_MARGIN as u32 => Confidence::Margin,
                v => return Err(unknown("confidence", v, "which is no mmada_confidence")),
            },
            seed: given.seed,
            max_text_len: given.max_text_length,
            text_len: given.text_length,
        },
    })
}

/// A chat and the picture that it is about.
///
/// # Safety
/// `from` is NULL or points to `count` messages.
pub unsafe fn messages(
    from: *const mmada_message,
    count: usize,
) -> Result<(Vec<Message>, Option<&'static RgbImage>), Failure> {
    // SAFETY: the caller's promise
    let given = unsafe { slice(from, count, "the messages")? };
    let (mut messages, mut image) = (try_with_capacity(count, "the messages")?, None);
    // SAFETY: handles and texts in the messages are the header's
    unsafe {
        for (i, message) in given.iter().enumerate() {
            reserved(message.reserved)?;
            let role = match message.role {
                v if v == mmada_role::MMADA_ROLE_SYSTEM as u32 => Role::System,
                v if v == mmada_role::MMADA_ROLE_USER as u32 => Role::User,
                v if v == mmada_role::MMADA_ROLE_ASSISTANT as u32 => Role::Assistant,
                v => return Err(unknown(&format!("the role of message {i}"), v, "which is no mmada_role")),
            };
            let what = format!("the content of message {i}");
            messages.push(Message::new(role, string(message.content, message.content_length, &what)?));
            let picture = handle::optional(message.image)?;
            if image.is_some() && picture.is_some() {
                let sentence = "a chat can be about one picture, but two messages have one";
                return Err(Failure::new(mmada_status::MMADA_UNSUPPORTED, sentence));
            }
            image = image.or(picture);
        }
    }
    Ok((messages, image))
}

fn text_defaults(model: Option<&Model>, thinking: bool, about_image: bool) -> mmada_text_options {
    from_text(&model.map_or_else(Default::default, |m| m.text_options(thinking, about_image)), thinking)
}

fn from_text(o: &TextOptions, thinking: bool) -> mmada_text_options {
    mmada_text_options {
        struct_size: size_of::<mmada_text_options>(),
        gen_length: o.gen_length,
        steps: o.steps,
        block_length: o.block_length,
        temperature: o.temperature,
        cfg_scale: o.cfg_scale,
        seed: o.seed,
        stop: ptr::null(),
        stop_count: 0,
        forbid: ptr::null(),
        forbid_count: 0,
        allow_only: ptr::null(),
        allow_only_count: 0,
        pinned: ptr::null(),
        pinned_count: 0,
        remasking: match o.remasking {
            Remasking::LowConfidence => mmada_remasking::MMADA_REMASKING_LOW_CONFIDENCE as u32,
            Remasking::Random => mmada_remasking::MMADA_REMASKING_RANDOM as u32,
        },
        thinking: thinking.into(),
        squash: 0,
        reserved: 0,
    }
}

/// # Safety
/// What it points to is there.
unsafe fn to_text(given: &mmada_text_options) -> Result<Text, Failure> {
    reserved(given.reserved)?;
    // SAFETY: the caller's promise
    let (stop, forbid, allow_only, pinned) = unsafe {
        let texts = slice(given.stop, given.stop_count, "the stop texts")?;
        let mut stop = try_with_capacity(texts.len(), "the stop texts")?;
        for text in texts {
            stop.push(string(text.data, text.length, "a stop text")?);
        }
        let forbid = vec(given.forbid, given.forbid_count, "forbid")?;
        let allow_only = match given.allow_only.is_null() && given.allow_only_count == 0 {
            true => None,
            false => Some(vec(given.allow_only, given.allow_only_count, "allow_only")?),
        };
        (stop, forbid, allow_only, slice(given.pinned, given.pinned_count, "the pinned positions")?)
    };
    for pin in pinned {
        reserved(pin.reserved)?;
    }
    Ok(Text {
        thinking: flag(given.thinking, "thinking")?,
        squash: flag(given.squash, "squash")?,
        options: TextOptions {
            gen_length: given.gen_length,
            steps: given.steps,
            block_length: given.block_length,
            temperature: given.temperature,
            cfg_scale: given.cfg_scale,
            remasking: match given.remasking {
                v if v == mmada_remasking::MMADA_REMASKING_LOW_CONFIDENCE as u32 => Remasking::LowConfidence,
                v if v == mmada_remasking::MMADA_REMASKING_RANDOM as u32 => Remasking::Random,
                v => return Err(unknown("remasking", v, "which is no mmada_remasking")),
            },
            seed: given.seed,
            stop,
            forbid,
            allow_only,
            pinned: try_collect(pinned.iter().map(|pin| (pin.position, pin.id)), "the pinned positions")?,
            ..TextOptions::default()
        },
    })
}

/// Pixels of a side where no model says one: those of the published checkpoints.
const PUBLISHED_SIZE: usize = 512;

fn image_defaults(model: Option<&Model>, thinking: bool) -> mmada_image_options {
    let o = model.map_or_else(Default::default, |m| m.draw_options(thinking).1);
    let size = model.map_or(PUBLISHED_SIZE, Model::image_size);
    let (schedule, schedule_power) = match o.schedule {
        Schedule::Cosine => (mmada_schedule::MMADA_SCHEDULE_COSINE, 0.0),
        Schedule::Linear => (mmada_schedule::MMADA_SCHEDULE_LINEAR, 0.0),
        Schedule::Pow(power) => (mmada_schedule::MMADA_SCHEDULE_POWER, power),
        Schedule::Sigmoid => (mmada_schedule::MMADA_SCHEDULE_SIGMOID, 0.0),
    };
    mmada_image_options {
        struct_size: size_of::<mmada_image_options>(),
        width: size,
        height: size,
        count: 1,
        steps: o.steps,
        max_text_length: o.max_text_len,
        text_length: o.text_len,
        seed: o.seed,
        guidance: o.guidance,
        temperature: o.temperature,
        schedule_power,
        schedule: schedule as u32,
        confidence: match o.confidence {
            Confidence::Probability => mmada_confidence::MMADA_CONFIDENCE_PROBABILITY as u32,
            Confidence::Margin => mmada_confidence::MMADA_CONFIDENCE_MARGIN as u32,
        },
        thinking: thinking.into(),
    }
}

fn schedule(number: u32, power: f32) -> Result<Schedule, Failure> {
    Ok(match number {
        v if v == mmada_schedule::MMADA_SCHEDULE_COSINE as u32 => Schedule::Cosine,
        v if v == mmada_schedule::MMADA_SCHEDULE_LINEAR as u32 => Schedule::Linear,
        v if v == mmada_schedule::MMADA_SCHEDULE_POWER as u32 => Schedule::Pow(power),
        v if v == mmada_schedule::MMADA_SCHEDULE_SIGMOID as u32 => Schedule::Sigmoid,
        v => return Err(unknown("schedule", v, "which is no mmada_schedule")),
    })
}
