//! One error type for the whole library. Every variant has a number that never changes (`code`), which the
//! C interface reports; the sentence (`Display`) names the file, tensor, option or size that is at fault.

use std::fmt::Display;
use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. The message is one sentence for a person; `code` is for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read or write `file`.
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
    /// `file` is damaged or not what it claims to be: bad magic, cut off, offsets or shapes out of bounds.
    #[error("{file}: {reason}")]
    Format { file: String, reason: String },
    /// `file` is well formed but holds something that this version cannot run.
    #[error("{file}: {reason}")]
    Unsupported { file: String, reason: String },
    /// The caller asked for something that cannot be: an option out of range, steps that do not divide.
    #[error("{0}")]
    InvalidArgument(String),
    /// A sequence needs more positions than the model has.
    #[error("{what} needs {needed} positions but the model's context is {limit}")]
    ContextOverflow { what: String, needed: usize, limit: usize },
    /// A picture could not be decoded, or is larger than the limits allow.
    #[error("{file}: {reason}")]
    Image { file: String, reason: String },
    /// An allocation sized by a model or a request failed. `bytes` is 0 where a driver does not say how many it wanted.
    #[error("out of memory: {what}{}", needs(*bytes))]
    OutOfMemory { what: String, bytes: usize },
    /// The work was cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
    /// The context is in use by another call.
    #[error("the context is busy with another call")]
    Busy,
    /// A defect of this library.
    #[error("internal error: {0}")]
    Internal(String),
    /// The context is of a process that this one was forked from: its threads do not exist here.
    #[error("this context was made before the process forked; make a new one in the child")]
    Forked,
    /// A graphics card failed: its driver reported an error, or its memory is gone.
    #[error("{device}: {reason}")]
    Device { device: String, reason: String },
}

/// What was asked for, where that is known.
fn needs(bytes: usize) -> String {
    if bytes == 0 { String::new() } else { format!(" needs {bytes} bytes") }
}

impl Error {
    /// A number that stays the same in every version; 0 is success and never returned here.
    pub fn code(&self) -> i32 {
        match self {
            Error::Io { .. } => 1,
            Error::Format { .. } => 2,
            Error::Unsupported { .. } => 3,
            Error::InvalidArgument(_) => 4,
            Error::ContextOverflow { .. } => 5,
            Error::Image { .. } => 6,
            Error::OutOfMemory { .. } => 7,
            Error::Cancelled => 8,
            Error::Busy => 9,
            Error::Internal(_) => 10,
            Error::Forked => 11,
            Error::Device { .. } => 12,
        }
    }

    pub fn io(file: impl Display, source: io::Error) -> Self {
        Error::Io { file: file.to_string(), source }
    }
    pub fn format(file: impl Display, reason: impl Display) -> Self {
        Error::Format { file: file.to_string(), reason: reason.to_string() }
    }
    pub fn unsupported(file: impl Display, reason: impl Display) -> Self {
        Error::Unsupported { file: file.to_string(), reason: reason.to_string() }
    }
    pub fn invalid(reason: impl Display) -> Self {
        Error::InvalidArgument(reason.to_string())
    }
    pub fn image(file: impl Display, reason: impl Display) -> Self {
        Error::Image { file: file.to_string(), reason: reason.to_string() }
    }
}
