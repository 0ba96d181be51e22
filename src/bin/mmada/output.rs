//! Where a command's words and pictures go: the result to standard output, all else to standard error, files
//! whole or not at all. Nothing here panics when a pipe is closed or a disk is full.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::args::Common;
use crate::failure::Failure;

/// Standard output and standard error as a command sees them.
#[derive(Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    /// Standard error is a terminal that can redraw lines.
    pub terminal: bool,
}

impl Output {
    pub fn new(common: &Common) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Output { json: common.json, quiet: common.quiet, terminal: io::stderr().is_terminal() && !dumb }
    }

    /// Whether progress is drawn.
    pub fn shows_progress(&self) -> bool {
        self.terminal && !self.quiet
    }

    /// Something worth knowing that nobody has to act on; only a person at a terminal sees it.
    pub fn note(&self, text: &str) {
        if self.shows_progress() {
            say(text);
        }
    }

    /// Something that cannot be found out later, such as a random seed: in logs too, but not with `--quiet`.
    pub fn record(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// The result has a flaw that the user should know of.
    pub fn warn(&self, text: &str) {
        say(&format!("warning: {text}"));
    }
}

/// A line on standard error. Where that fails there is nobody left to tell.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes to standard output and makes sure that it arrived.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::Run(format!("standard output: {}", reason(&e))))
}

/// `print` with a newline at the end unless the text brings one.
pub fn print_line(text: &str) -> Result<(), Failure> {
    if text.ends_with('\n') { print(text) } else { print(&format!("{text}\n")) }
}

/// One JSON object, on one line.
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value}\n"))
}

/// An I/O error in words, without Rust's "(os error 28)".
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::BrokenPipe => "the reader closed the pipe".to_owned(),
        io::ErrorKind::StorageFull => "no space left on the device".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}

/// Checks, before any work is done, that the animation `path` can be written later: its folder exists and it is
/// named as a GIF. (For pictures `mmada::image::check_target` does the same.)
pub fn check_animation(path: &Path) -> Result<(), Failure> {
    let name = path.display();
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gif")) {
        return Err(Failure::Input(format!("{name}: animations are written as .gif")));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Failure::Input(format!("{name}: the folder {} does not exist", folder.display())));
    }
    if path.is_dir() {
        return Err(Failure::Input(format!("{name}: is a folder")));
    }
    Ok(())
}

/// The outcome of writing a file: what the system refused is this run's failure, not bad input.
pub fn written<T>(result: mmada::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| match error {
        mmada::Error::Io { file, source } => Failure::Run(format!("{file}: {}", reason(&source))),
        other => other.into(),
    })
}

/// `out.png` with a suffix before the extension: `out-2.png`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(suffix);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_go_before_the_extension() {
        assert_eq!(with_suffix(Path::new("out.png"), "-1"), Path::new("out-1.png"));
        assert_eq!(with_suffix(Path::new("a.b/c.d.JPG"), "-12"), Path::new("a.b/c.d-12.JPG"));
    }

    #[test]
    fn an_animation_needs_an_existing_folder_and_the_right_extension() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), b"x").unwrap();
        std::fs::create_dir(at("folder.gif")).unwrap();
        assert!(check_animation(&at("new.GIF")).is_ok());
        assert!(check_animation(Path::new("here.gif")).is_ok());
        for (name, part) in [
            ("new.png", "written as .gif"),
            ("new", "written as .gif"),
            (".gif", "written as .gif"),
            ("none/new.gif", "does not exist"),
            ("file/new.gif", "does not exist"),
            ("folder.gif", "is a folder"),
        ] {
            let failure = check_animation(&at(name)).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.to_string().contains(part), "{name}: {failure}");
        }
    }

    #[test]
    fn a_full_disk_is_a_failure_of_the_run() {
        let full = mmada::Error::io("out.png", io::ErrorKind::StorageFull.into());
        let failure = written::<()>(Err(full)).unwrap_err();
        assert_eq!((failure.exit_code(), failure.to_string().as_str()), (1, "out.png: no space left on the device"));
        assert_eq!(written::<()>(Err(mmada::Error::invalid("x"))).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn io_errors_are_told_without_numbers() {
        #[cfg(unix)]
        assert_eq!(reason(&io::Error::from_raw_os_error(28)), "no space left on the device");
        let told = reason(&io::ErrorKind::PermissionDenied.into());
        assert!(!told.contains("os error"), "{told}");
    }
}
