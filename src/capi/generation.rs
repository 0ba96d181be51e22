//! Generations: requests on their way, pulled step by step.

use std::ffi::c_char;
use std::ptr;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use super::arguments::{self, Out, StructOut, Versioned, init_zeroed, vec};
use super::boundary::guard;
use super::buffer::{Buffer, give_text, mmada_buffer};
use super::context::mmada_context;
use super::error::{Failure, mmada_error, mmada_status};
use super::handle::{self, Object};
use super::image::mmada_image;
use super::options::{self, mmada_image_options, mmada_message, mmada_text_options};
use crate::error::Error;
use crate::generate::{Canceller, DrawFromIds, DrawRequest, Generation, Slot, TextRequest};
use crate::image;
use crate::memory::{try_copy, try_with_capacity};
use crate::sampler::Stage;

/// An answer or pictures in the making. Owned by whoever began it; free it with `mmada_generation_free` at any time,
/// complete or not.
pub struct mmada_generation {
    _opaque: [u8; 0],
}

impl Object for mmada_generation {
    type Value = Pulled;
    const MAGIC: u64 = handle::magic(b"generation");
    const NAME: &'static str = "generation";
}

/// What the handle stands for. Steps write, everything else reads, and neither waits for the other.
pub struct Pulled {
    state: RwLock<State>,
    canceller: Canceller,
}

struct State {
    generation: Generation,
    /// Of the last step: what the caller's struct points to.
    changes: Vec<mmada_change>,
}

impl Pulled {
    /// With room for all that a step can change, so that no step is taken whose changes could not be told.
    fn new(generation: Generation) -> Result<Self, Failure> {
        let (columns, rows) = generation.picture_tokens().unwrap_or_default();
        let pictures = generation.pictures().saturating_mul(columns).saturating_mul(rows);
        let changes = try_with_capacity(generation.canvas().len().max(pictures), "the changes of a step")?;
        let canceller = generation.canceller();
        Ok(Pulled { state: RwLock::new(State { generation, changes }), canceller })
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, State>, Failure> {
        self.state.try_read().map_err(not_now)
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, State>, Failure> {
        self.state.try_write().map_err(not_now)
    }
}

fn not_now<T>(error: TryLockError<T>) -> Failure {
    match error {
        TryLockError::WouldBlock => {
            Failure::new(mmada_status::MMADA_BUSY, "the generation is busy with a call of another thread")
        }
        TryLockError::Poisoned(_) => Failure::panic("a call of this generation failed before, so it cannot go on"),
    }
}

/// What a step is about.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_stage {
    /// An answer, or the description that is thought out before a picture.
    MMADA_STAGE_TEXT = 0,
    /// Pictures.
    MMADA_STAGE_IMAGE = 1,
}

/// A position that has been decided. This struct never grows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct mmada_change {
    /// Which picture; 0 for text.
    pub sequence: usize,
    /// The position in the answer, or the place in the picture, row by row.
    pub position: usize,
    /// The token; of a picture the image code plus the model's `image_offset`.
    pub id: u32,
    /// 0.
    pub reserved: u32,
}

/// What a step did. Set `struct_size`, or initialize with `mmada_step_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_step {
    /// sizeof(mmada_step)
    pub struct_size: usize,
    /// Steps of this stage that are done, and how many there are at most.
    pub index: usize,
    pub total: usize,
    /// Text: how many tokens of the answer stand before its first mask; these will not change. 0 for pictures.
    pub prefix: usize,
    /// The positions that this step decided for good, `change_count` of them. Borrowed: valid until the generation's
    /// next step or its end.
    pub changes: *const mmada_change,
    pub change_count: usize,
    /// An mmada_stage.
    pub stage: u32,
    /// 1 if the generation is complete.
    pub done: u32,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_step {
    const NAME: &'static str = "mmada_step";
    const FIRST_SIZE: usize = 56;
}

/// Fills `*step`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_step_init(step: *mut mmada_step, struct_size: usize) -> mmada_status {
    // SAFETY: the header asks for room of `struct_size` bytes; zeros are a struct of numbers and a null pointer
    unsafe { init_zeroed(step, struct_size) }
}

/// Begins an answer to a chat of `message_count` messages, which are copied, as is everything else here. `options` may be
/// NULL for what the model's file recommends, without thinking. Nothing is computed before the first step.
///
/// Owned by the caller on success: `*generation`, to be freed with `mmada_generation_free`. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for options that cannot be or no messages, MMADA_CONTEXT_OVERFLOW if prompt and
/// answer do not fit, MMADA_UNSUPPORTED for a picture that the model cannot see or a second one, MMADA_BAD_FORMAT if the
/// file's tokenizer or chat template is damaged, MMADA_OUT_OF_MEMORY, MMADA_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_begin_text(
    context: *const mmada_context,
    options: *const mmada_text_options,
    messages: *const mmada_message,
    message_count: usize,
    generation: *mut *mut mmada_generation,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(generation, "the generation")?;
            let context = handle::get(context)?;
            let (messages, picture) = options::messages(messages, message_count)?;
            let text = options::text(options, context.model(), picture.is_some())?;
            let image = picture.map(image::copy).transpose()?;
            let (thinking, squash, options) = (text.thinking, text.squash, text.options);
            out.give(Pulled::new(context.text(TextRequest { messages, image, squash, thinking, options })?)?);
            Ok(())
        })
    }
}

/// Begins an answer to a prompt of ids, each below the model's `vocabulary`: for callers who build prompts themselves
/// (`mmada_model_prompt_ids`, `mmada_model_tokenize`). The options' `thinking` must be 0: it would shape the prompt.
///
/// Otherwise as `mmada_context_begin_text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_begin_text_ids(
    context: *const mmada_context,
    options: *const mmada_text_options,
    prompt: *const u32,
    prompt_count: usize,
    generation: *mut *mut mmada_generation,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(generation, "the generation")?;
            let context = handle::get(context)?;
            let prompt = vec(prompt, prompt_count, "the prompt")?;
            let text = options::text(options, context.model(), false)?;
            no_thinking(text.thinking)?;
            out.give(Pulled::new(context.text_from_ids(prompt, text.options)?)?);
            Ok(())
        })
    }
}

/// Begins a picture, or several, of what `prompt` says. `options` may be NULL for what the model's file recommends: one
/// picture, without thinking. `description` says how the description is sampled that is thought out first: NULL for what
/// the file recommends, and always NULL without `options->thinking`. Nothing is computed before the first step.
///
/// Owned by the caller on success: `*generation`, to be freed with `mmada_generation_free`. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for options that cannot be, MMADA_CONTEXT_OVERFLOW if prompt and picture do not fit,
/// MMADA_UNSUPPORTED for a model that cannot draw, MMADA_BAD_FORMAT if the file's tokenizer is damaged,
/// MMADA_OUT_OF_MEMORY, MMADA_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_begin_image(
    context: *const mmada_context,
    options: *const mmada_image_options,
    description: *const mmada_text_options,
    prompt: *const c_char,
    prompt_length: usize,
    generation: *mut *mut mmada_generation,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(generation, "the generation")?;
            let context = handle::get(context)?;
            let prompt = arguments::string(prompt, prompt_length, "the prompt")?;
            let drawing = options::image(options, context.model())?;
            if !drawing.thinking && !description.is_null() {
                return Err(Error::invalid("options for a description were given, but thinking is 0").into());
            }
            out.give(Pulled::new(context.draw(DrawRequest {
                prompt,
                think: drawing.thinking,
                width: drawing.width,
                height: drawing.height,
                count: drawing.count,
                text: options::description(description, context.model())?,
                image: drawing.options,
            })?)?);
            Ok(())
        })
    }
}

/// Begins a picture, or several, from prompts that are ids already: `prompt` is everything before the picture,
/// `unconditional` the same of the empty prompt, which is not looked at without guidance. The options' `thinking` must
/// be 0.
///
/// Otherwise as `mmada_context_begin_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_begin_image_ids(
    context: *const mmada_context,
    options: *const mmada_image_options,
    prompt: *const u32,
    prompt_count: usize,
    unconditional: *const u32,
    unconditional_count: usize,
    generation: *mut *mut mmada_generation,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(generation, "the generation")?;
            let context = handle::get(context)?;
            let prompt = vec(prompt, prompt_count, "the prompt")?;
            let unconditional = vec(unconditional, unconditional_count, "the unconditional prompt")?;
            let drawing = options::image(options, context.model())?;
            no_thinking(drawing.thinking)?;
            out.give(Pulled::new(context.draw_from_ids(DrawFromIds {
                prompt,
                unconditional,
                width: drawing.width,
                height: drawing.height,
                count: drawing.count,
                image: drawing.options,
            })?)?);
            Ok(())
        })
    }
}

fn no_thinking(thinking: bool) -> Result<(), Failure> {
    match thinking {
        true => Err(Error::invalid("thinking is 1, but the prompt is ids already, which it cannot shape").into()),
        false => Ok(()),
    }
}

/// Runs one step, and fills `*step`, which may be NULL, with what it did. A step that failed changed nothing and can be
/// tried again, except after MMADA_CANCELLED and MMADA_PANIC, which last.
///
/// Threads: any; uses the context's buffers.
/// Fails with MMADA_DONE if the generation is complete, MMADA_BUSY if another thread is using it or its context,
/// MMADA_CANCELLED, MMADA_OUT_OF_MEMORY, MMADA_FORKED, MMADA_BAD_FORMAT for a mapped file that was cut off.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_step(
    generation: *mut mmada_generation,
    step: *mut mmada_step,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let pulled = handle::get(generation.cast_const())?;
            let out = if step.is_null() { None } else { Some(StructOut::new(step)?) };
            let mut state = pulled.write()?;
            let State { generation, changes } = &mut *state;
            if generation.is_done() {
                return Err(Failure::new(mmada_status::MMADA_DONE, "the generation is complete, it has no more steps"));
            }
            let done = generation.step()?;
            changes.clear();
            changes.extend(done.changed.iter().map(|change| mmada_change {
                sequence: change.sequence,
                position: change.position,
                id: change.id,
                reserved: 0,
            }));
            if let Some(out) = out {
                out.put(mmada_step {
                    struct_size: 0,
                    index: done.index,
                    total: done.total,
                    prefix: done.prefix,
                    changes: if changes.is_empty() { ptr::null() } else { changes.as_ptr() },
                    change_count: changes.len(),
                    stage: match done.stage {
                        Stage::Text => mmada_stage::MMADA_STAGE_TEXT as u32,
                        Stage::Image => mmada_stage::MMADA_STAGE_IMAGE as u32,
                    },
                    done: done.done.into(),
                });
            }
            Ok(())
        })
    }
}

/// Cancels a generation: the step that is running fails with MMADA_CANCELLED within one layer of the network, and so does
/// every later one. Results so far can still be had, except pictures, which would have to be computed. The context and
/// its other generations go on.
/// Threads: any, and signal handlers: it stores to one atomic and does nothing else. The generation must not be freed
/// meanwhile. Returns MMADA_NULL_POINTER or MMADA_INVALID_HANDLE for what is no generation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_cancel(generation: *const mmada_generation) -> mmada_status {
    // SAFETY: NULL or a handle, as for every function of the interface
    match unsafe { handle::peek(generation) } {
        Ok(pulled) => {
            pulled.canceller.cancel();
            mmada_status::MMADA_OK
        }
        Err(status) => status,
    }
}

/// Frees a generation, complete or not. NULL is harmless. Threads: any, once no call uses it: cancel it and wait for its
/// step to return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_free(generation: *mut mmada_generation) {
    // SAFETY: NULL or a handle, as for every function of the interface
    unsafe { handle::free(generation) }
}

/// What a generation is. Set `struct_size`, or initialize with `mmada_generation_info_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_generation_info {
    /// sizeof(mmada_generation_info)
    pub struct_size: usize,
    /// Steps of all stages together; an answer that ends early takes fewer.
    pub total_steps: usize,
    /// How many pictures are drawn; 0 for an answer.
    pub image_count: usize,
    /// Width and height of the pictures in image codes; 0 for an answer.
    pub image_columns: usize,
    pub image_rows: usize,
    /// 1 if every stage is complete.
    pub done: u32,
    /// 1 if there is text: an answer, or a description before a picture.
    pub has_text: u32,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_generation_info {
    const NAME: &'static str = "mmada_generation_info";
    const FIRST_SIZE: usize = 48;
}

/// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_info_init(
    info: *mut mmada_generation_info,
    struct_size: usize,
) -> mmada_status {
    // SAFETY: the header asks for room of `struct_size` bytes; zeros are a struct of numbers
    unsafe { init_zeroed(info, struct_size) }
}

/// Fills `*info` with what the generation is and how far it has come.
/// Threads: any; MMADA_BUSY while another thread runs a step of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_get_info(
    generation: *const mmada_generation,
    info: *mut mmada_generation_info,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let state = handle::get(generation)?.read()?;
            let out = StructOut::new(info)?;
            let generation = &state.generation;
            let (image_columns, image_rows) = generation.picture_tokens().unwrap_or_default();
            out.put(mmada_generation_info {
                struct_size: 0,
                total_steps: generation.total_steps(),
                image_count: generation.pictures(),
                image_columns,
                image_rows,
                done: generation.is_done().into(),
                has_text: generation.has_text().into(),
            });
            Ok(())
        })
    }
}

/// The answer as the model wrote it, without special tokens (with thinking: <think>...</think>answer), or a drawing's
/// description. While it is being made, what stands before its first mask: that part will not change any more.
///
/// Owned by the caller on success: `*text`. Threads: any; MMADA_BUSY while another thread runs a step of it.
/// Fails with MMADA_INVALID_ARGUMENT for a drawing without thinking.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_text(
    generation: *const mmada_generation,
    text: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(text, "the text")?;
            let state = handle::get(generation)?.read()?;
            out.give(Buffer::text(state.generation.text()?.raw)?);
            Ok(())
        })
    }
}

/// What the model thought: the part between the tags. NULL if it set none.
///
/// Otherwise as `mmada_generation_text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_thinking(
    generation: *const mmada_generation,
    thinking: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(thinking, "the thinking")?;
            let state = handle::get(generation)?.read()?;
            give_text(out, state.generation.text()?.thinking)
        })
    }
}

/// The answer without the thinking.
///
/// Otherwise as `mmada_generation_text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_answer(
    generation: *const mmada_generation,
    answer: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(answer, "the answer")?;
            let state = handle::get(generation)?.read()?;
            out.give(Buffer::text(state.generation.text()?.answer)?);
            Ok(())
        })
    }
}

/// The ids of the text, up to the token that ended it or to the first mask.
///
/// Owned by the caller on success: `*ids`, a buffer of ids. Otherwise as `mmada_generation_text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_ids(
    generation: *const mmada_generation,
    ids: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(ids, "the ids")?;
            let state = handle::get(generation)?.read()?;
            out.give(Buffer::Ids(state.generation.text()?.ids));
            Ok(())
        })
    }
}

/// The description that a picture with thinking is drawn from: what was thought, or all of the text if the model set no
/// tags. NULL for anything else.
///
/// Owned by the caller on success: `*description`. Threads: any; MMADA_BUSY while another thread runs a step of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_description(
    generation: *const mmada_generation,
    description: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(description, "the description")?;
            let state = handle::get(generation)?.read()?;
            give_text(out, state.generation.description()?)
        })
    }
}

/// What a user should be told, a sentence a line: a prompt that was cut. NULL if there is nothing.
///
/// Owned by the caller on success: `*warnings`. Threads: any; MMADA_BUSY while another thread runs a step of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_warnings(
    generation: *const mmada_generation,
    warnings: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(warnings, "the warnings")?;
            let state = handle::get(generation)?.read()?;
            let warnings = state.generation.warnings();
            give_text(out, (!warnings.is_empty()).then(|| warnings.join("\n")))
        })
    }
}

/// The codes that picture `index` has now, row by row; positions that are still masked have the code that was sampled
/// last. A code plus the model's `image_offset` is an id.
///
/// Owned by the caller on success: `*codes`, a buffer of ids. Threads: any; MMADA_BUSY while another thread runs a step.
/// Fails with MMADA_INVALID_ARGUMENT if there is no such picture, or no step of it has been taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_codes(
    generation: *const mmada_generation,
    index: usize,
    codes: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(codes, "the codes")?;
            let state = handle::get(generation)?.read()?;
            out.give(Buffer::Ids(try_copy(state.generation.codes(index)?, "the codes of a picture")?));
            Ok(())
        })
    }
}

/// Picture `index` in pixels: the result or, midway, a preview of it. Computed by every call.
///
/// Owned by the caller on success: `*image`. Threads: any; MMADA_BUSY while another thread runs a step.
/// Fails with MMADA_INVALID_ARGUMENT if there is no such picture, or no step of it has been taken, MMADA_CANCELLED,
/// MMADA_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_image(
    generation: *const mmada_generation,
    index: usize,
    image: *mut *mut mmada_image,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(image, "the image")?;
            let state = handle::get(generation)?.read()?;
            out.give(state.generation.image(index)?);
            Ok(())
        })
    }
}

/// The positions of the text (of the first picture where there is no text): their ids, MMADA_MASKED where nothing has
/// been decided. For showing how an answer comes about.
///
/// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any; MMADA_BUSY while another thread runs a step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_canvas(
    generation: *const mmada_generation,
    ids: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(ids, "the ids")?;
            let state = handle::get(generation)?.read()?;
            out.give(canvas(state.generation.canvas())?);
            Ok(())
        })
    }
}

/// The positions of picture `index`, row by row: their ids, MMADA_MASKED where nothing has been decided.
///
/// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any; MMADA_BUSY while another thread runs a step.
/// Fails with MMADA_NOT_FOUND if there is no such picture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_generation_image_canvas(
    generation: *const mmada_generation,
    index: usize,
    ids: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(ids, "the ids")?;
            let state = handle::get(generation)?.read()?;
            let slots = state.generation.picture_canvas(index).ok_or_else(|| {
                Failure::new(mmada_status::MMADA_NOT_FOUND, format!("there is no picture {index}, counted from 0"))
            })?;
            out.give(canvas(slots)?);
            Ok(())
        })
    }
}

/// What stands for a position that has not been decided. `MMADA_MASKED` of the header.
const MASKED: u32 = u32::MAX;

fn canvas(slots: &[Slot]) -> Result<Buffer, Failure> {
    let mut ids = try_with_capacity(slots.len(), "a canvas")?;
    ids.extend(slots.iter().map(|slot| match slot {
        Slot::Masked => MASKED,
        Slot::Token(id) => *id,
    }));
    Ok(Buffer::Ids(ids))
}
