//! C programs, built and run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn header() -> String {
    std::fs::read_to_string(root().join("include/mmada.h")).unwrap()
}

pub fn model() -> PathBuf {
    root().join("models/mmada-shapes.gguf")
}

/// A folder of one test's own.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The shared library that cargo made: it lies beside the test program.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap().join("libmmada.so");
    assert!(library.exists(), "{} is missing", library.display());
    library
}

/// A folder with the library under the names that it is linked and looked for by.
pub fn linked() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = folder("lib");
        for name in ["libmmada.so", "libmmada.so.0"] {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            #[cfg(unix)]
            std::os::unix::fs::symlink(library(), link).unwrap();
        }
        folder
    })
}

/// Runs a command that has to succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}\n{out}\n{err}", output.status);
    output
}

/// The C compiler (CC, or cc) with all warnings as errors.
pub fn compiler() -> Command {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
    command.args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-g", "-D_GNU_SOURCE"]);
    command
}

/// Builds `source` with the header in `include` and links it with the library.
pub fn build(source: &Path, include: &Path, program: &Path) {
    let lib = linked().display().to_string();
    let mut command = compiler();
    command.arg("-std=c99").arg("-I").arg(include).arg(source).arg("-o").arg(program);
    succeed(command.arg(format!("-L{lib}")).arg("-lmmada").arg(format!("-Wl,-rpath,{lib}")).args(["-pthread", "-ldl"]));
}

/// Builds a program of `tests/capi`, and gives what runs it.
pub fn program(name: &str) -> Command {
    let program = folder("programs").join(name);
    static BUILT: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
    let mut built = BUILT.lock().unwrap_or_else(|e| e.into_inner()); // a program that did not compile fails its own tests
    if !built.iter().any(|b| b == name) {
        build(&root().join(format!("tests/capi/{name}.c")), &root().join("include"), &program);
        built.push(name.to_owned());
    }
    Command::new(program)
}

/// Runs a program that neither it nor the library may make a sound in.
pub fn silently(command: &mut Command) {
    let output = succeed(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.is_empty() && err.is_empty(), "{command:?} wrote\n{out}\n{err}");
}
