//! Where a command's words and pictures go: the result to standard output, all else to standard error, files
//! whole or not at all. Nothing here panics when a pipe is closed or a disk is full.

use std::fs;
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

/// Checks, before any work is done, that `path` can be written later: its folder exists and its extension is one
/// of `extensions` (lower case).
pub fn check_target(path: &Path, extensions: &[&str]) -> Result<(), Failure> {
    let name = path.display();
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension {
        Some(e) if extensions.contains(&e.as_str()) => {}
        Some(e) => return Err(Failure::Input(format!("{name}: cannot write .{e} files, only {}", listed(extensions)))),
        None => {
            return Err(Failure::Input(format!("{name}: the name must end in {}", listed(extensions))));
        }
    }
    let folder = folder_of(path);
    match fs::metadata(folder) {
        Ok(m) if m.is_dir() => {}
        Ok(_) => return Err(Failure::Input(format!("{name}: {} is not a folder", folder.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::Input(format!("{name}: the folder {} does not exist", folder.display())));
        }
        Err(e) => return Err(Failure::Input(format!("{name}: {}", reason(&e)))),
    }
    if path.is_dir() {
        return Err(Failure::Input(format!("{name}: is a folder, not a file")));
    }
    Ok(())
}

fn listed(extensions: &[&str]) -> String {
    let dotted: Vec<_> = extensions.iter().map(|e| format!(".{e}")).collect();
    dotted.join(", ")
}

/// The folder that holds `path`; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
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
    fn a_target_needs_an_existing_folder_and_a_known_extension() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"x").unwrap();
        fs::create_dir(at("folder.png")).unwrap();
        assert!(check_target(&at("new.PNG"), &["png"]).is_ok());
        for (name, part) in [
            ("new.bmp", "cannot write .bmp"),
            ("new", "must end in .png"),
            (".png", "must end in .png"),
            ("none/new.png", "does not exist"),
            ("file/new.png", "is not a folder"),
            ("folder.png", "is a folder"),
        ] {
            let failure = check_target(&at(name), &["png"]).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.to_string().contains(part), "{name}: {failure}");
        }
        assert!(check_target(Path::new("here.gif"), &["gif"]).is_ok());
    }

    #[test]
    fn io_errors_are_told_without_numbers() {
        #[cfg(unix)]
        assert_eq!(reason(&io::Error::from_raw_os_error(28)), "no space left on the device");
        let told = reason(&io::ErrorKind::PermissionDenied.into());
        assert!(!told.contains("os error"), "{told}");
    }
}
