//! Statuses and the error object.

use std::ffi::{c_char, c_int};

use super::boundary::guard_value;
use super::handle::{self, Object};
use crate::error::Error;

/// What a function returns. The numbers never change; later versions may add some, so treat an unknown one as a
/// failure.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_status {
    /// Success. Every other status means that nothing was written but the error.
    MMADA_OK = 0,
    /// The operating system refused to open, read or write a file.
    MMADA_IO_ERROR = 1,
    /// A model file is damaged, cut off, or not what it claims to be.
    MMADA_BAD_FORMAT = 2,
    /// A well-formed file or request that this version or this model cannot serve.
    MMADA_UNSUPPORTED = 3,
    /// An option or argument that cannot be, or options that contradict each other.
    MMADA_INVALID_ARGUMENT = 4,
    /// A sequence needs more positions than the model has.
    MMADA_CONTEXT_OVERFLOW = 5,
    /// A picture is damaged, empty, or larger than the limits.
    MMADA_BAD_IMAGE = 6,
    /// An allocation sized by a model or a request failed, or would exceed a context's memory limit.
    MMADA_OUT_OF_MEMORY = 7,
    /// The caller cancelled.
    MMADA_CANCELLED = 8,
    /// Another call is using the context or the generation. Try again later; nothing has changed.
    MMADA_BUSY = 9,
    /// A defect of this library.
    MMADA_INTERNAL_ERROR = 10,
    /// The context was made before a fork and is used in the child, where its threads do not exist.
    MMADA_FORKED = 11,
    /// A graphics card failed: its driver reported an error. Contexts on it fail from then on; new ones on the CPU work.
    MMADA_DEVICE_ERROR = 12,
    /// A pointer that must not be NULL is NULL.
    MMADA_NULL_POINTER = 101,
    /// A struct_size that no version of the library has, or fields that are set but unknown to this version.
    MMADA_STRUCT_SIZE = 102,
    /// A text is not UTF-8.
    MMADA_INVALID_UTF8 = 103,
    /// Not a handle of the expected type, or one that has been freed.
    MMADA_INVALID_HANDLE = 104,
    /// A step of a generation that is complete.
    MMADA_DONE = 105,
    /// There is nothing by that name or index.
    MMADA_NOT_FOUND = 106,
    /// A defect of this library, caught before it could harm the program.
    MMADA_PANIC = 107,
}

/// Why a call failed, owned by whoever received it.
pub struct mmada_error {
    _opaque: [u8; 0],
}

/// A status with its sentence.
#[derive(Debug)]
pub struct Failure {
    pub status: mmada_status,
    /// Ends with NUL and holds no other.
    sentence: Vec<u8>,
}

impl Failure {
    pub fn new(status: mmada_status, sentence: impl Into<String>) -> Self {
        // names of files and tensors may hold a NUL, at which C would stop reading, and what a terminal obeys
        let printable = |c: char| match c {
            '\n' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        let mut sentence: String = sentence.into().chars().map(printable).collect();
        sentence.push('\0');
        Failure { status, sentence: sentence.into_bytes() }
    }

    pub fn null(what: &str) -> Self {
        Self::new(mmada_status::MMADA_NULL_POINTER, format!("{what} is NULL"))
    }

    pub fn panic(message: &str) -> Self {
        Self::new(mmada_status::MMADA_PANIC, format!("a defect of this library was caught: {message}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        use mmada_status::*;
        let status = match error {
            Error::Io { .. } => MMADA_IO_ERROR,
            Error::Format { .. } => MMADA_BAD_FORMAT,
            Error::Unsupported { .. } => MMADA_UNSUPPORTED,
            Error::InvalidArgument(_) => MMADA_INVALID_ARGUMENT,
            Error::ContextOverflow { .. } => MMADA_CONTEXT_OVERFLOW,
            Error::Image { .. } => MMADA_BAD_IMAGE,
            Error::OutOfMemory { .. } => MMADA_OUT_OF_MEMORY,
            Error::Cancelled => MMADA_CANCELLED,
            Error::Busy => MMADA_BUSY,
            Error::Internal(_) => MMADA_INTERNAL_ERROR,
            Error::Forked => MMADA_FORKED,
            Error::Device { .. } => MMADA_DEVICE_ERROR,
        };
        Failure::new(status, error.to_string())
    }
}

impl Object for mmada_error {
    type Value = Failure;
    const MAGIC: u64 = handle::magic(b"error");
    const NAME: &'static str = "error";
}

/// The status that came with the error; MMADA_INVALID_HANDLE for NULL or no error. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_error_status(error: *const mmada_error) -> mmada_status {
    guard_value(mmada_status::MMADA_INVALID_HANDLE, || {
        // SAFETY: NULL or a handle, as for every function of the interface
        Ok(unsafe { handle::get(error) }?.status)
    })
}

/// One sentence for a person, in English: it names the file, tensor, option or size at fault. One line of NUL-terminated
/// UTF-8 without control characters, borrowed: valid until the error is freed. The empty text for NULL or no error.
/// Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_error_message(error: *const mmada_error) -> *const c_char {
    guard_value(c"".as_ptr(), || {
        // SAFETY: NULL or a handle, as for every function of the interface
        Ok(unsafe { handle::get(error) }?.sentence.as_ptr().cast())
    })
}

/// Frees an error. NULL is harmless. Threads: any, once nothing reads its message.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_error_free(error: *mut mmada_error) {
    // SAFETY: NULL or a handle, as for every function of the interface
    unsafe { handle::free(error) }
}

/// The name of a status, such as "MMADA_BUSY"; "unknown status" for a number that this version does not have.
/// NUL-terminated, valid for as long as the library is loaded. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn mmada_status_name(status: c_int) -> *const c_char {
    macro_rules! names {
        ($($name:ident),*) => {
            match status {
                $(s if s == mmada_status::$name as c_int => concat!(stringify!($name), "\0").as_ptr().cast(),)*
                _ => c"unknown status".as_ptr(),
            }
        };
    }
    names!(
        MMADA_OK,
        MMADA_IO_ERROR,
        MMADA_BAD_FORMAT,
        MMADA_UNSUPPORTED,
        MMADA_INVALID_ARGUMENT,
        MMADA_CONTEXT_OVERFLOW,
        MMADA_BAD_IMAGE,
        MMADA_OUT_OF_MEMORY,
        MMADA_CANCELLED,
        MMADA_BUSY,
        MMADA_INTERNAL_ERROR,
        MMADA_FORKED,
        MMADA_DEVICE_ERROR,
        MMADA_NULL_POINTER,
        MMADA_STRUCT_SIZE,
        MMADA_INVALID_UTF8,
        MMADA_INVALID_HANDLE,
        MMADA_DONE,
        MMADA_NOT_FOUND,
        MMADA_PANIC
    )
}
