//! Model files.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use super::arguments::{self, Out, StructOut, Versioned, flag, init_zeroed, read_or, slice, text};
use super::boundary::{guard, guard_status};
use super::buffer::{Buffer, mmada_buffer};
use super::context::UserData;
use super::error::{Failure, mmada_error, mmada_status};
use super::handle::{self, Object};
use super::options::{self, mmada_image_options, mmada_message, mmada_text_options};
use crate::context::{Model, OpenOptions, Progress};
use crate::error::Error;
use crate::tokenizer::Special;

/// An opened and checked model file. It never changes, so any number of threads and contexts may use it at once.
/// Contexts and generations keep what they need of it: it may be freed before them.
pub struct mmada_model {
    _opaque: [u8; 0],
}

impl Object for mmada_model {
    type Value = Model;
    const MAGIC: u64 = handle::magic(b"model");
    const NAME: &'static str = "model";
}

/// Called while a model file is read into memory or its weights are copied to a graphics card, by the thread that opens
/// the model or makes the context, before the function that does so returns and never after: `done` of `total` bytes
/// have come over. 0 goes on; anything else stops, and that function fails with MMADA_CANCELLED. A mapped file is not
/// read, so there is one call, when it is open.
pub type mmada_progress_callback = Option<unsafe extern "C" fn(done: u64, total: u64, user_data: *mut c_void) -> c_int>;

/// How a model file is brought into memory. Initialize with `mmada_open_options_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_open_options {
    /// sizeof(mmada_open_options)
    pub struct_size: usize,
    /// 1 (the default): map the file. Opening takes milliseconds, pages come in when they are used, and processes share
    /// them; nobody may change or cut off the file meanwhile. 0: read all of it into memory.
    pub use_mmap: u32,
    /// Must be 0.
    pub reserved: u32,
    /// NULL, or told how far reading has come.
    pub progress: mmada_progress_callback,
    /// Given to `progress` as it is.
    pub progress_user_data: *mut c_void,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_open_options {
    const NAME: &'static str = "mmada_open_options";
    const FIRST_SIZE: usize = 32;
}

impl mmada_open_options {
    fn new() -> Self {
        mmada_open_options {
            struct_size: size_of::<Self>(),
            use_mmap: 1,
            reserved: 0,
            progress: None,
            progress_user_data: ptr::null_mut(),
        }
    }
}

/// Fills `*options`, which has `struct_size` bytes (pass sizeof), with the defaults.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_open_options_init(options: *mut mmada_open_options, struct_size: usize) -> mmada_status {
    guard_status(|| {
        // SAFETY: the header asks for room of `struct_size` bytes
        unsafe { StructOut::uninitialized(options, struct_size)? }.put(mmada_open_options::new());
        Ok(())
    })
}

/// Opens a GGUF file and checks its metadata and the names, shapes and extents of its tensors. Of a split file any part
/// may be named. `path_length` may be MMADA_NUL_TERMINATED; on Unix the path may be any bytes. `options` may be NULL for
/// the defaults.
///
/// Owned by the caller on success: `*model`, to be freed with `mmada_model_free`. Threads: any.
/// Fails with MMADA_IO_ERROR, MMADA_BAD_FORMAT (damaged or cut off), MMADA_UNSUPPORTED (another architecture),
/// MMADA_OUT_OF_MEMORY, or MMADA_CANCELLED (by the progress callback).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_open(
    path: *const c_char,
    path_length: usize,
    options: *const mmada_open_options,
    model: *mut *mut mmada_model,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(model, "the model")?;
            let path = arguments::path(path, path_length)?;
            out.give(Model::open_with(path, &open_options(options)?)?);
            Ok(())
        })
    }
}

/// Opens the model file behind a file descriptor, from its beginning. `name` stands for the path in messages.
/// A split file cannot be opened this way. Unix only: elsewhere this fails with MMADA_UNSUPPORTED.
///
/// The descriptor stays the caller's, who may close it after the call. Otherwise as `mmada_model_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_open_fd(
    fd: c_int,
    name: *const c_char,
    name_length: usize,
    options: *const mmada_open_options,
    model: *mut *mut mmada_model,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(model, "the model")?;
            let name = text(name, name_length, "the name")?;
            let options = open_options(options)?;
            out.give(Model::open_file(arguments::file(fd, name)?, name, &options)?);
            Ok(())
        })
    }
}

/// Opens a model file whose `size` bytes are in memory, without copying them. `name` stands for the path in messages.
/// `data` must be aligned to 32 bytes.
///
/// The bytes stay the caller's, who must neither change nor release them before the model, all its contexts and all
/// their generations are freed. Otherwise as `mmada_model_open`; fails with MMADA_INVALID_ARGUMENT for another
/// alignment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_open_memory(
    data: *const u8,
    size: usize,
    name: *const c_char,
    name_length: usize,
    model: *mut *mut mmada_model,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's; that the bytes outlive the model is among them
    unsafe {
        guard(error, || {
            let out = Out::new(model, "the model")?;
            if data.is_null() {
                return Err(Failure::null("data"));
            }
            let bytes: &'static [u8] = slice(data, size, "data")?;
            out.give(Model::from_memory(bytes, text(name, name_length, "the name")?)?);
            Ok(())
        })
    }
}

/// Frees a model. NULL is harmless. Contexts and generations made with it go on. Threads: any, once no call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_free(model: *mut mmada_model) {
    // SAFETY: NULL or a handle, as for every function of the interface
    unsafe { handle::free(model) }
}

/// What a model is. Set `struct_size`, or initialize with `mmada_model_info_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_model_info {
    /// sizeof(mmada_model_info)
    pub struct_size: usize,
    /// Size of the file.
    pub file_bytes: usize,
    /// Most positions of one sequence, prompt and answer together.
    pub context_length: usize,
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Ids are below this.
    pub vocabulary: usize,
    /// Ids below this are text; the tokenizer knows these.
    pub text_vocabulary: usize,
    /// The id of image code 0.
    pub image_offset: usize,
    /// Size of the codebook; 0 for a model without pictures.
    pub image_codes: usize,
    /// Pixels of a side of the pictures that the model was trained on; 0 without an image tokenizer.
    pub image_size: usize,
    /// Pixels of a side of one image code: widths and heights are multiples of it. 0 without an image tokenizer.
    pub image_downsampling: usize,
    /// 1 if the model can see and draw pictures.
    pub has_images: u32,
    /// Begins a prompt.
    pub bos_id: u32,
    /// Ends a text.
    pub eos_id: u32,
    /// Ends a turn of a chat.
    pub eot_id: u32,
    /// What is to be filled in.
    pub mask_id: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_model_info {
    const NAME: &'static str = "mmada_model_info";
    const FIRST_SIZE: usize = 112;
}

/// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_info_init(info: *mut mmada_model_info, struct_size: usize) -> mmada_status {
    // SAFETY: the header asks for room of `struct_size` bytes; zeros are a struct of numbers
    unsafe { init_zeroed(info, struct_size) }
}

/// Fills `*info` with what the model is. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_get_info(
    model: *const mmada_model,
    info: *mut mmada_model_info,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let model = handle::get(model)?;
            let out = StructOut::new(info)?;
            let (config, vocabulary) = (model.config(), model.vocabulary());
            out.put(mmada_model_info {
                struct_size: 0,
                file_bytes: model.bytes().len(),
                context_length: config.context,
                layers: config.layers,
                d_model: config.d_model,
                vocabulary: vocabulary.rows as usize,
                text_vocabulary: vocabulary.text as usize,
                image_offset: vocabulary.code_offset as usize,
                image_codes: vocabulary.codes as usize,
                image_size: model.image_size(),
                image_downsampling: model.downsampling().unwrap_or(0),
                has_images: model.has_images().into(),
                bos_id: vocabulary.bos,
                eos_id: vocabulary.eos,
                eot_id: vocabulary.eot,
                mask_id: vocabulary.mask,
                reserved: 0,
            });
            Ok(())
        })
    }
}

/// How many entries the file's metadata has: `*count`. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_metadata_count(
    model: *const mmada_model,
    count: *mut usize,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(count, "the count")?;
            out.put(handle::get(model)?.header().metadata.len());
            Ok(())
        })
    }
}

/// The key of metadata entry `index`, in the order of the file, such as "general.name".
///
/// Owned by the caller on success: `*key`, a text. Threads: any. Fails with MMADA_NOT_FOUND beyond the last one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_metadata_key(
    model: *const mmada_model,
    index: usize,
    key: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(key, "the key")?;
            let metadata = &handle::get(model)?.header().metadata;
            let (key, _) = metadata.get(index).ok_or_else(|| {
                not_found(format!("there is no metadata entry {index}, there are {}, counted from 0", metadata.len()))
            })?;
            out.give(Buffer::text(key.as_str())?);
            Ok(())
        })
    }
}

/// The value of a metadata key: a string as it is, anything else as JSON (numbers, true and false, arrays).
/// `key_length` may be MMADA_NUL_TERMINATED.
///
/// Owned by the caller on success: `*value`, a text. Threads: any. Fails with MMADA_NOT_FOUND for a missing key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_metadata(
    model: *const mmada_model,
    key: *const c_char,
    key_length: usize,
    value: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(value, "the value")?;
            let model = handle::get(model)?;
            let key = text(key, key_length, "the key")?;
            if model.header().get(key).is_none() {
                return Err(not_found(format!("{}: there is no metadata key {key}", model.file())));
            }
            out.give(Buffer::text(model.header().owned(model.bytes(), key)?.into_text()?)?);
            Ok(())
        })
    }
}

/// The ids of a text. With `parse_special` 0, as for anything that a user supplies, text that looks like a special
/// token is ordinary text; with 1 it becomes that token. No token is added at either end. The first call (or the first
/// text that is begun) builds the tokenizer, which takes a moment for a large vocabulary.
///
/// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for a text above 1 MiB.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_tokenize(
    model: *const mmada_model,
    text: *const c_char,
    text_length: usize,
    parse_special: u32,
    ids: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(ids, "the ids")?;
            let model = handle::get(model)?;
            let text = arguments::text(text, text_length, "the text")?;
            let special = if flag(parse_special, "parse_special")? { Special::Parse } else { Special::Plain };
            out.give(Buffer::Ids(model.tokenizer()?.encode(text, special)?));
            Ok(())
        })
    }
}

/// The text of ids. Ids that are no text (image codes, unused rows) are left out, and with `skip_special` 1 so are
/// special tokens. Bytes that are not UTF-8, such as a character cut in half, become U+FFFD.
///
/// Owned by the caller on success: `*text`. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_detokenize(
    model: *const mmada_model,
    ids: *const u32,
    id_count: usize,
    skip_special: u32,
    text: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(text, "the text")?;
            let model = handle::get(model)?;
            let ids = slice(ids, id_count, "the ids")?;
            let skip = flag(skip_special, "skip_special")?;
            out.give(Buffer::text(model.tokenizer()?.try_decode(ids, skip)?)?);
            Ok(())
        })
    }
}

/// The ids of a chat, up to where the answer begins: what `mmada_context_begin_text` puts before the answer if there is
/// no picture. With `thinking` 1 the instruction to think first is part of it. For counting tokens, for
/// `mmada_context_score`, and for callers who change the prompt.
///
/// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for no messages or thinking without a message of the user, MMADA_UNSUPPORTED for a
/// message with a picture, MMADA_BAD_FORMAT if the file's tokenizer or chat template is damaged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_prompt_ids(
    model: *const mmada_model,
    messages: *const mmada_message,
    message_count: usize,
    thinking: u32,
    ids: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(ids, "the ids")?;
            let model = handle::get(model)?;
            let (messages, picture) = options::messages(messages, message_count)?;
            if picture.is_some() {
                return Err(Error::unsupported(model.file(), "the ids of a chat about a picture need a context").into());
            }
            out.give(Buffer::Ids(model.prompt_ids(&messages, flag(thinking, "thinking")?)?));
            Ok(())
        })
    }
}

/// What a request will take. Bounds: an answer may end early.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_estimate {
    /// sizeof(mmada_estimate)
    pub struct_size: usize,
    /// Bytes of the model file: mapped, shared with other processes, given back under pressure.
    pub weight_bytes: u64,
    /// Bytes of buffers that the context allocates for the request.
    pub scratch_bytes: u64,
    /// Multiply-adds of all steps together.
    pub multiply_adds: u64,
    /// Tokens that run through the network, over all steps.
    pub tokens: u64,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_estimate {
    const NAME: &'static str = "mmada_estimate";
    const FIRST_SIZE: usize = 40;
}

impl From<crate::Estimate> for mmada_estimate {
    fn from(e: crate::Estimate) -> Self {
        mmada_estimate {
            struct_size: 0,
            weight_bytes: e.weights_bytes as u64,
            scratch_bytes: e.scratch_bytes as u64,
            multiply_adds: e.multiply_adds,
            tokens: e.tokens,
        }
    }
}

/// Fills `*estimate`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_estimate_init(estimate: *mut mmada_estimate, struct_size: usize) -> mmada_status {
    // SAFETY: the header asks for room of `struct_size` bytes; zeros are a struct of numbers
    unsafe { init_zeroed(estimate, struct_size) }
}

/// What answering takes after a prompt of `prompt_tokens` tokens (a picture's among them), before anything is loaded: a
/// mapped model costs nothing until it runs. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_estimate_text(
    model: *const mmada_model,
    prompt_tokens: usize,
    options: *const mmada_text_options,
    estimate: *mut mmada_estimate,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let model = handle::get(model)?;
            let options = options::text(options, model, false)?.options;
            StructOut::new(estimate)?.put(model.estimate_text(prompt_tokens, &options).into());
            Ok(())
        })
    }
}

/// What drawing takes after a prompt of `prompt_tokens` tokens, without the thinking that may come first (see
/// `mmada_model_estimate_text`) and without decoding. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_model_estimate_image(
    model: *const mmada_model,
    prompt_tokens: usize,
    options: *const mmada_image_options,
    estimate: *mut mmada_estimate,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let model = handle::get(model)?;
            let draw = options::image(options, model)?;
            let size = (draw.width, draw.height);
            StructOut::new(estimate)?.put(model.estimate_draw(prompt_tokens, size, draw.count, &draw.options).into());
            Ok(())
        })
    }
}

fn not_found(sentence: String) -> Failure {
    Failure::new(mmada_status::MMADA_NOT_FOUND, sentence)
}

unsafe fn open_options(from: *const mmada_open_options) -> Result<OpenOptions, Failure> {
    // SAFETY: the header asks for NULL or a struct
    let given = unsafe { read_or(from, mmada_open_options::new())? };
    reserved(given.reserved)?;
    // SAFETY: the header asks for a function that can be called until opening returns, which is as long as this is kept
    let progress = unsafe { progress(given.progress, given.progress_user_data) };
    Ok(OpenOptions { mmap: flag(given.use_mmap, "use_mmap")?, progress })
}

/// The caller's progress function.
///
/// # Safety
/// It can be called for as long as the result lives.
pub unsafe fn progress(function: mmada_progress_callback, user_data: *mut c_void) -> Option<Progress> {
    let user_data = UserData(user_data);
    function.map(|call| -> Progress {
        // SAFETY: by the caller's promise
        Arc::new(move |done, total| unsafe { call(done, total, user_data.pointer()) } == 0)
    })
}

/// An error for a reserved field that is set.
pub fn reserved(value: u32) -> Result<(), Failure> {
    match value {
        0 => Ok(()),
        _ => Err(arguments::unknown("a reserved field", value, "it must be 0")),
    }
}
