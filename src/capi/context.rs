//! Contexts: what runs a model.

use std::ffi::{CString, c_char, c_void};
use std::ptr;

use super::arguments::{
    self, Out, StructOut, Versioned, characters, flag, init_zeroed, read, read_or, slice, string, unknown, vec,
};
use super::boundary::{guard, guard_status};
use super::buffer::{Buffer, mmada_buffer};
use super::canceller::{canceller_or_new, mmada_canceller};
use super::error::{Failure, mmada_error, mmada_status};
use super::handle::{self, Object};
use super::image::mmada_image;
use super::model::{mmada_estimate, mmada_model, mmada_progress_callback, progress, reserved};
use crate::backend::DeviceChoice;
use crate::context::{Context, ContextOptions, Estimate, LogLevel, Logger};
use crate::generate::ScoreRequest;
use crate::model::{Compute, SequenceRequest};

/// The threads and buffers that run a model. One call at a time uses the buffers: a second one meanwhile gets MMADA_BUSY.
/// Generations of one context may take turns, step by step. Generations keep what they need of their context: it may be
/// freed before them, and its threads end with the last of them.
pub struct mmada_context {
    _opaque: [u8; 0],
}

impl Object for mmada_context {
    type Value = Context;
    const MAGIC: u64 = handle::magic(b"context");
    const NAME: &'static str = "context";
}

/// How exact products are.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_compute {
    /// 8- and 16-bit products wherever they do not change answers noticeably.
    MMADA_COMPUTE_FAST = 0,
    /// Float weights meet float activations in 32-bit arithmetic.
    MMADA_COMPUTE_EXACT = 1,
}

/// How much a message of the log matters.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_log_level {
    /// Something failed that no call returns an error for.
    MMADA_LOG_ERROR = 0,
    /// Something that a user should know of: a prompt that was cut.
    MMADA_LOG_WARN = 1,
    /// What happens, in a few lines.
    MMADA_LOG_INFO = 2,
    /// What it takes: buffers that are made, how long every step took.
    MMADA_LOG_DEBUG = 3,
}

/// Takes the messages of a context, each one line without its end: `level` is an mmada_log_level; `message` has `length`
/// bytes and a NUL behind them and is valid during the call. It is called by the thread that called the context or one
/// of its generations, before that call returns. It must not call that context or its generations, but for
/// `mmada_generation_cancel` and `mmada_canceller_cancel`, nor unwind (no C++ exception, no longjmp). `user_data` must stay
/// valid until the context and all its generations are freed.
pub type mmada_log_callback =
    Option<unsafe extern "C" fn(level: u32, message: *const c_char, length: usize, user_data: *mut c_void)>;

/// How a context runs its model. Initialize with `mmada_context_options_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_context_options {
    /// sizeof(mmada_context_options)
    pub struct_size: usize,
    /// Threads of the context's own; 0 (the default) for one per core. Results do not depend on it.
    pub threads: usize,
    /// Bytes of buffers that the context and its generations may have at a time; a request that needs more fails with
    /// MMADA_OUT_OF_MEMORY. The mapped model, the tokenizer, and small things are not counted. 0 (the default): no limit.
    pub memory_limit: u64,
    /// NULL (the default) for the best that the processor has, or an instruction set by name: "portable", "avx2",
    /// "avx2-vnni", "avx512", "amx", "neon", "neon-dotprod", "neon-i8mm" (mmada_device_info lists those that it has).
    /// Copied.
    pub instruction_set: *const c_char,
    /// In bytes, or MMADA_NUL_TERMINATED.
    pub instruction_set_length: usize,
    /// NULL (the default: silence), or who is told what happens.
    pub log: mmada_log_callback,
    /// Given to `log` as it is.
    pub log_user_data: *mut c_void,
    /// The mmada_log_level of the least important messages that `log` gets; MMADA_LOG_WARN by default.
    pub log_level: u32,
    /// An mmada_compute; MMADA_COMPUTE_FAST by default.
    pub compute: u32,
    /// 1 keeps the weights unpacked in memory, as the context's products want them: several times as fast where few
    /// tokens run at a time (up to some 64), for 1 to 2 bytes a weight (`packed_bytes` of mmada_context_info), which
    /// `memory_limit` counts. Making the context then takes the time to read the whole file. Answers are the same to the
    /// last bit. Contexts of one model with the same arithmetic and instruction set share the copy. 0 by default.
    pub pack: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Where the model runs: NULL (the default) or "cpu" for the processor; "cuda" or "cuda:0" for the first graphics card
    /// of NVIDIA's, "cuda:1" for the second (mmada_device_info lists those that there are); "auto" for the first card that
    /// can, or else for the processor, which `log` is told. With `instruction_set`, `pack` or MMADA_COMPUTE_EXACT, which
    /// only the processor has, "auto" is that too. Copied.
    pub device: *const c_char,
    /// In bytes, or MMADA_NUL_TERMINATED.
    pub device_length: usize,
    /// How many of the network's blocks run on the graphics card, the last ones and the output; the others run on the
    /// processor, threads and all. MMADA_ALL_LAYERS (the default): as many as there is memory for.
    pub gpu_layers: usize,
    /// NULL, or told how far copying the weights to a graphics card has come, after every 16 MiB or so.
    pub progress: mmada_progress_callback,
    /// Given to `progress` as it is.
    pub progress_user_data: *mut c_void,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_context_options {
    const NAME: &'static str = "mmada_context_options";
    const FIRST_SIZE: usize = 64;
}

impl mmada_context_options {
    fn new() -> Self {
        mmada_context_options {
            struct_size: size_of::<Self>(),
            threads: 0,
            memory_limit: 0,
            instruction_set: ptr::null(),
            instruction_set_length: arguments::NUL_TERMINATED,
            log: None,
            log_user_data: ptr::null_mut(),
            log_level: mmada_log_level::MMADA_LOG_WARN as u32,
            compute: mmada_compute::MMADA_COMPUTE_FAST as u32,
            pack: 0,
            reserved: 0,
            device: ptr::null(),
            device_length: arguments::NUL_TERMINATED,
            gpu_layers: arguments::ALL_LAYERS,
            progress: None,
            progress_user_data: ptr::null_mut(),
        }
    }
}

/// Fills `*options`, which has `struct_size` bytes (pass sizeof), with the defaults.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_options_init(
    options: *mut mmada_context_options,
    struct_size: usize,
) -> mmada_status {
    guard_status(|| {
        // SAFETY: the header asks for room of `struct_size` bytes
        unsafe { StructOut::uninitialized(options, struct_size)? }.put(mmada_context_options::new());
        Ok(())
    })
}

/// Makes a context, which starts its threads and packs the weights, or copies them to a graphics card, if that is asked
/// for; buffers are made when the first request needs them. `options` may be NULL for the defaults.
///
/// Owned by the caller on success: `*context`, to be freed with `mmada_context_free`. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for an instruction set that the processor does not have, more than 1024 threads, or
/// a device that is not there or cannot be used; MMADA_INTERNAL_ERROR if the system starts no more threads;
/// MMADA_OUT_OF_MEMORY if weights that are packed or on a card do not fit; MMADA_UNSUPPORTED for a model that a card
/// cannot run; MMADA_DEVICE_ERROR; MMADA_CANCELLED (by the progress callback).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_new(
    model: *const mmada_model,
    options: *const mmada_context_options,
    context: *mut *mut mmada_context,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(context, "the context")?;
            let model = handle::get(model)?;
            out.give(Context::new(model, context_options(options)?)?);
            Ok(())
        })
    }
}

/// Frees a context. NULL is harmless. Its generations go on. Threads: any, once no call uses it. If it has no
/// generations, its threads have ended when this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_free(context: *mut mmada_context) {
    // SAFETY: NULL or a handle, as for every function of the interface
    unsafe { handle::free(context) }
}

/// What a context is. Set `struct_size`, or initialize with `mmada_context_info_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_context_info {
    /// sizeof(mmada_context_info)
    pub struct_size: usize,
    /// Threads that it has.
    pub threads: usize,
    /// Bytes of buffers that it and its generations have now.
    pub memory_used: u64,
    /// The instruction set in use. NUL-terminated.
    pub instruction_set: [c_char; 16],
    /// An mmada_compute.
    pub compute: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes that its weights take when they are packed, whether or not they are.
    pub packed_bytes: u64,
    /// How many of the network's blocks run on a graphics card; 0 on the processor.
    pub gpu_layers: usize,
    /// What it runs on: "cpu", or a graphics card with its name, such as "cuda:0 (NVIDIA H100 80GB HBM3)". NUL-terminated,
    /// cut where it does not fit.
    pub device: [c_char; 160],
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_context_info {
    const NAME: &'static str = "mmada_context_info";
    const FIRST_SIZE: usize = 48;
}

/// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_info_init(info: *mut mmada_context_info, struct_size: usize) -> mmada_status {
    // SAFETY: the header asks for room of `struct_size` bytes; zeros are a struct of numbers
    unsafe { init_zeroed(info, struct_size) }
}

/// Fills `*info` with what the context is. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_get_info(
    context: *const mmada_context,
    info: *mut mmada_context_info,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let context = handle::get(context)?;
            StructOut::new(info)?.put(mmada_context_info {
                struct_size: 0,
                threads: context.threads(),
                memory_used: context.memory_used() as u64,
                instruction_set: characters(context.instruction_set()),
                compute: match context.compute() {
                    Compute::Fast => mmada_compute::MMADA_COMPUTE_FAST as u32,
                    Compute::Exact => mmada_compute::MMADA_COMPUTE_EXACT as u32,
                },
                reserved: 0,
                packed_bytes: context.packed_bytes() as u64,
                gpu_layers: context.gpu_layers(),
                device: characters(&context.device()),
            });
            Ok(())
        })
    }
}

/// About how many seconds an estimate takes on the context's threads: `*seconds`. Measures a product now, which takes
/// milliseconds on a small model and up to a second on a large one. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_estimate_seconds(
    context: *const mmada_context,
    estimate: *const mmada_estimate,
    seconds: *mut f64,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's; zeros are a struct of numbers
    unsafe {
        guard(error, || {
            let out = Out::new(seconds, "the seconds")?;
            let context = handle::get(context)?;
            let given = read(estimate, std::mem::zeroed())?;
            let estimate = Estimate {
                weights_bytes: usize::try_from(given.weight_bytes).unwrap_or(usize::MAX),
                scratch_bytes: usize::try_from(given.scratch_bytes).unwrap_or(usize::MAX),
                multiply_adds: given.multiply_adds,
                tokens: given.tokens,
            };
            out.put(context.seconds(&estimate)?);
            Ok(())
        })
    }
}

/// Runs the network once on a sequence of `id_count` ids, masks included, and writes logits: of the `row_count` positions
/// `rows`, in this order, for the ids from `vocab_begin` up to and without `vocab_end`. `logits` has room for
/// `logit_count` floats, which must be row_count * (vocab_end - vocab_begin); they are [rows, ids] row by row. After a
/// failure they hold anything. `canceller` may be NULL.
///
/// Threads: any; uses the context's buffers.
/// Fails with MMADA_INVALID_ARGUMENT for an empty sequence, or ids, rows or a range outside the model,
/// MMADA_CONTEXT_OVERFLOW, MMADA_BUSY, MMADA_CANCELLED, MMADA_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_forward(
    context: *mut mmada_context,
    ids: *const u32,
    id_count: usize,
    rows: *const usize,
    row_count: usize,
    vocab_begin: u32,
    vocab_end: u32,
    logits: *mut f32,
    logit_count: usize,
    canceller: *const mmada_canceller,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let context = handle::get(context.cast_const())?;
            let canceller = canceller_or_new(canceller)?;
            let ids = slice(ids, id_count, "the ids")?;
            let rows = slice(rows, row_count, "the rows")?;
            let out = arguments::slice_mut(logits, logit_count, "the logits")?;
            let sequence = SequenceRequest { ids, rows, vocab: vocab_begin..vocab_end };
            Ok(context.logits_into(&[sequence], out, &canceller)?)
        })
    }
}

/// How a score is estimated. Initialize with `mmada_score_options_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_score_options {
    /// sizeof(mmada_score_options)
    pub struct_size: usize,
    /// How many random maskings of the answer are averaged, each of which runs the network over prompt and answer; 128
    /// by default. One is enough for an answer of one token.
    pub samples: usize,
    /// Of the maskings: the same seed gives the same score.
    pub seed: u64,
    /// Classifier-free guidance against the masked prompt; 0 (the default) is none. It doubles the work.
    pub cfg_scale: f64,
    /// NULL, or what stops the call.
    pub canceller: *const mmada_canceller,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_score_options {
    const NAME: &'static str = "mmada_score_options";
    const FIRST_SIZE: usize = 40;
}

impl mmada_score_options {
    fn new() -> Self {
        mmada_score_options {
            struct_size: size_of::<Self>(),
            samples: 128,
            seed: 0,
            cfg_scale: 0.0,
            canceller: ptr::null(),
        }
    }
}

/// Fills `*options`, which has `struct_size` bytes (pass sizeof), with the defaults.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_score_options_init(
    options: *mut mmada_score_options,
    struct_size: usize,
) -> mmada_status {
    guard_status(|| {
        // SAFETY: the header asks for room of `struct_size` bytes
        unsafe { StructOut::uninitialized(options, struct_size)? }.put(mmada_score_options::new());
        Ok(())
    })
}

/// How likely an answer is. Set `struct_size`, or initialize with `mmada_score_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_score {
    /// sizeof(mmada_score)
    pub struct_size: usize,
    /// The estimate of a lower bound on ln p(answer | prompt), in nats; at most 0.
    pub log_likelihood: f64,
    /// The same divided by the answer's tokens.
    pub per_token: f64,
    /// How many maskings were averaged.
    pub samples: usize,
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_score {
    const NAME: &'static str = "mmada_score";
    const FIRST_SIZE: usize = 32;
}

/// Fills `*score`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_score_init(score: *mut mmada_score, struct_size: usize) -> mmada_status {
    // SAFETY: the header asks for room of `struct_size` bytes; zeros are a struct of numbers
    unsafe { init_zeroed(score, struct_size) }
}

/// How likely the ids of an answer are after those of a prompt (`mmada_model_prompt_ids` makes them of a chat): fills
/// `*score`. `options` may be NULL for the defaults.
///
/// Threads: any; uses the context's buffers.
/// Fails with MMADA_INVALID_ARGUMENT for an empty answer, a mask in it, or ids outside the vocabulary,
/// MMADA_CONTEXT_OVERFLOW, MMADA_BUSY, MMADA_CANCELLED, MMADA_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_score(
    context: *mut mmada_context,
    options: *const mmada_score_options,
    prompt: *const u32,
    prompt_count: usize,
    answer: *const u32,
    answer_count: usize,
    score: *mut mmada_score,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let context = handle::get(context.cast_const())?;
            let out = StructOut::new(score)?;
            let options = read_or(options, mmada_score_options::new())?;
            let canceller = canceller_or_new(options.canceller)?;
            let request = ScoreRequest {
                prompt: vec(prompt, prompt_count, "the prompt")?,
                answer: vec(answer, answer_count, "the answer")?,
                samples: options.samples,
                seed: options.seed,
                cfg_scale: options.cfg_scale,
            };
            let score = context.score_with(&request, &canceller)?;
            let (log_likelihood, per_token, samples) = (score.log_likelihood, score.per_token, score.samples);
            out.put(mmada_score { struct_size: 0, log_likelihood, per_token, samples });
            Ok(())
        })
    }
}

/// The codes of a picture, row by row, by the model's image tokenizer. Its sides must be multiples of the model's
/// `image_downsampling`. A code plus the model's `image_offset` is an id.
///
/// Owned by the caller on success: `*codes`, a buffer of ids. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for other sides, MMADA_UNSUPPORTED for a model without an image tokenizer,
/// MMADA_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_encode_image(
    context: *const mmada_context,
    image: *const mmada_image,
    codes: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(codes, "the codes")?;
            let context = handle::get(context)?;
            out.give(Buffer::Ids(context.encode_image(handle::get(image)?)?));
            Ok(())
        })
    }
}

/// The picture of `columns` times `rows` codes, given row by row; its sides in pixels are the model's
/// `image_downsampling` times that.
///
/// Owned by the caller on success: `*image`. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for another number of codes or one outside the codebook, MMADA_UNSUPPORTED for a
/// model without an image tokenizer, MMADA_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_context_decode_image(
    context: *const mmada_context,
    codes: *const u32,
    code_count: usize,
    columns: usize,
    rows: usize,
    image: *mut *mut mmada_image,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(image, "the image")?;
            let context = handle::get(context)?;
            out.give(context.decode_image(slice(codes, code_count, "the codes")?, columns, rows)?);
            Ok(())
        })
    }
}

unsafe fn context_options(from: *const mmada_context_options) -> Result<ContextOptions, Failure> {
    // SAFETY: the header asks for NULL or a struct, for texts that are there, and for a function that can be called until
    // the context is made, which is as long as the options are kept
    let (given, instruction_set, device, progress) = unsafe {
        let given = read_or(from, mmada_context_options::new())?;
        let instruction_set = match given.instruction_set.is_null() {
            true => None,
            false => Some(string(given.instruction_set, given.instruction_set_length, "the instruction set")?),
        };
        let device = match given.device.is_null() {
            true => DeviceChoice::Cpu,
            false => arguments::text(given.device, given.device_length, "the device")?.parse()?,
        };
        (given, instruction_set, device, progress(given.progress, given.progress_user_data))
    };
    reserved(given.reserved)?;
    Ok(ContextOptions {
        threads: given.threads,
        compute: match given.compute {
            v if v == mmada_compute::MMADA_COMPUTE_FAST as u32 => Compute::Fast,
            v if v == mmada_compute::MMADA_COMPUTE_EXACT as u32 => Compute::Exact,
            v => return Err(unknown("compute", v, "which is no mmada_compute")),
        },
        instruction_set,
        memory_limit: match given.memory_limit {
            0 => None,
            limit => Some(usize::try_from(limit).unwrap_or(usize::MAX)),
        },
        pack: flag(given.pack, "pack")?,
        device,
        gpu_layers: (given.gpu_layers != arguments::ALL_LAYERS).then_some(given.gpu_layers),
        progress,
        logger: logger(&given)?,
    })
}

fn logger(given: &mmada_context_options) -> Result<Option<Logger>, Failure> {
    let least = match given.log_level {
        v if v == mmada_log_level::MMADA_LOG_ERROR as u32 => LogLevel::Error,
        v if v == mmada_log_level::MMADA_LOG_WARN as u32 => LogLevel::Warn,
        v if v == mmada_log_level::MMADA_LOG_INFO as u32 => LogLevel::Info,
        v if v == mmada_log_level::MMADA_LOG_DEBUG as u32 => LogLevel::Debug,
        v => return Err(unknown("log_level", v, "which is no mmada_log_level")),
    };
    let Some(log) = given.log else { return Ok(None) };
    let user_data = UserData(given.log_user_data);
    Ok(Some(Logger::new(move |level, message| {
        if level > least {
            return;
        }
        let text = CString::new(message).unwrap_or_default(); // a message is one line without control characters
        // SAFETY: the header asks for a function of this type that can be called until the context is gone
        unsafe { log(level as u32, text.as_ptr(), text.as_bytes().len(), user_data.pointer()) };
    })))
}

/// A pointer that is handed back to the caller's callback and looked at by nobody else.
#[derive(Clone, Copy)]
pub struct UserData(pub *mut c_void);

// SAFETY: the header says which threads a callback is called by; the pointer is never followed here
unsafe impl Send for UserData {}
// SAFETY: as above
unsafe impl Sync for UserData {}

impl UserData {
    /// (A closure that named the field would capture the bare pointer.)
    pub fn pointer(self) -> *mut c_void {
        self.0
    }
}
