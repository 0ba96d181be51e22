//! Why a command ended early, and the exit code that says so.

use std::fmt;

use mmada::Error;

use crate::output;

pub const FAILED: u8 = 1;
pub const BAD_INPUT: u8 = 2;
pub const INTERRUPTED: u8 = 130;

/// A command's error: one sentence for standard error and an exit code.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for cannot be: exit code 2.
    Input(String),
    /// It could have been, but something gave way: a full disk, a closed pipe, no memory. Exit code 1.
    Run(String),
    /// Ctrl-C: exit code 130.
    Interrupted,
}

impl Failure {
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Input(_) => BAD_INPUT,
            Failure::Run(_) => FAILED,
            Failure::Interrupted => INTERRUPTED,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Input(why) | Failure::Run(why) => f.write_str(why),
            Failure::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl From<Error> for Failure {
    /// The library's I/O errors come from reading models and pictures, so they count as bad input; files that
    /// this program writes report theirs through `output`.
    fn from(error: Error) -> Self {
        match &error {
            Error::Cancelled => Failure::Interrupted,
            Error::OutOfMemory { .. } | Error::Busy | Error::Internal(_) | Error::Device { .. } => {
                Failure::Run(error.to_string())
            }
            Error::Io { file, source } => Failure::Input(format!("{file}: {}", output::reason(source))),
            _ => Failure::Input(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_bad_input_from_failing_and_from_interruption() {
        let overflow = Error::ContextOverflow { what: "the chat".into(), needed: 9, limit: 8 };
        let memory = Error::OutOfMemory { what: "scratch".into(), bytes: 1 };
        for (error, code) in [
            (Error::format("a.gguf", "cut off"), 2),
            (Error::unsupported("a.gguf", "alibi"), 2),
            (Error::invalid("3 does not divide 8"), 2),
            (Error::image("a.png", "cut off"), 2),
            (Error::io("a.gguf", std::io::ErrorKind::NotFound.into()), 2),
            (overflow, 2),
            (memory, 1),
            (Error::Busy, 1),
            (Error::Internal("x".into()), 1),
            (Error::Cancelled, 130),
        ] {
            let sentence = error.to_string();
            assert_eq!(Failure::from(error).exit_code(), code, "{sentence}");
        }
    }
}
