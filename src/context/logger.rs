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

    /// Gives a message to the logger. What would break its line (a file may be called that way) becomes U+FFFD.
    pub fn log(&self, level: LogLevel, message: &str) {
        match message.contains(char::is_control) {
            true => (self.0)(level, &message.replace(char::is_control, "\u{fffd}")),
            false => (self.0)(level, message),
        }
    }
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logger")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_a_file_is_called() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let logger = Logger::new(move |level, line| sink.lock().unwrap().push((level, line.to_owned())));
        logger.log(LogLevel::Info, "a\nb\r\u{1b}[31m\0.gguf: a context");
        logger.log(LogLevel::Warn, "é: plain");
        let expected =
            [(LogLevel::Info, "a\u{fffd}b\u{fffd}\u{fffd}[31m\u{fffd}.gguf: a context"), (LogLevel::Warn, "é: plain")];
        assert_eq!(*lines.lock().unwrap(), expected.map(|(level, line)| (level, line.to_owned())));
    }
}
