//! What a context tells while it works, to the one who made it: nothing unless asked, and never by printing.

use std::fmt;
use std::sync::Arc;

/// How much a message matters. The numbers never change; a smaller one matters more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Something failed that no call returns an error for.
    Error = 0,
    /// Something that a user should know of: a prompt that was cut.
    Warn = 1,
    /// What happens, in a few lines: a context was made, a generation began, it is complete.
    Info = 2,
    /// What it takes: buffers that are made, how long every step took.
    Debug = 3,
}

impl LogLevel {
    /// `error`, `warn`, `info` or `debug`.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

/// A function that takes the messages of a context, each one line without its end. It is called in the thread that
/// called the context, before that call returns; contexts that share one call it from several threads at once. It
/// must not call the context that is logging: that would answer `Busy`.
#[derive(Clone)]
pub struct Logger(Arc<Sink>);

type Sink = dyn Fn(LogLevel, &str) + Send + Sync;

impl Logger {
    /// A logger that gives every message to `sink`.
    pub fn new(sink: impl Fn(LogLevel, &str) + Send + Sync + 'static) -> Self {
        Logger(Arc::new(sink))
    }

    /// Gives a message to the logger.
    pub fn log(&self, level: LogLevel, message: &str) {
        (self.0)(level, message);
    }
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logger")
    }
}
