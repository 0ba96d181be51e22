//! Tells the library what it is built as (see `mmada::build_info`), and the linker what the shared library is called; packs
//! the kernels for graphics cards. Nothing is compiled or looked for here.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for (name, of_cargo) in [("MMADA_TARGET", "TARGET"), ("MMADA_PROFILE", "PROFILE")] {
        println!("cargo::rustc-env={name}={}", env::var(of_cargo).unwrap_or_default());
    }
    // The binary interface stays compatible within a major version: that is the number programs look for at run time.
    let major = env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    match env::var("CARGO_CFG_TARGET_OS").unwrap_or_default().as_str() {
        "macos" | "ios" => println!("cargo::rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libmmada.{major}.dylib"),
        "windows" | "none" | "" => {}
        _ => println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmmada.so.{major}"),
    }
    #[cfg(feature = "cuda")]
    ptx::pack().expect("the PTX of src/kernels/cuda/ptx can be read and packed");
}

/// Cuts the committed PTX into modules of one kernel each and compresses them: 5.5 MB of text are a fifth of that in the library.
/// What a model does not use is not translated for its card, which would take the driver seconds.
#[cfg(feature = "cuda")]
mod ptx {
    use std::fmt::Write as _;
    use std::io::{Result, Write as _};
    use std::path::PathBuf;
    use std::{env, fs};

    use flate2::{Compression, write::DeflateEncoder};

    const FOLDER: &str = "src/kernels/cuda/ptx";
    /// How an entry point begins, and ends with a line of its own.
    const ENTRY: &str = "\n.visible .entry ";
    const END: &str = "\n}\n";

    /// Writes `kernels.deflate`, modules one after the other, and `kernels.rs`, where each lies and how long its text is, by
    /// name.
    pub fn pack() -> Result<()> {
        println!("cargo::rerun-if-changed={FOLDER}");
        let mut modules = Vec::new();
        for file in fs::read_dir(FOLDER)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "ptx") {
                modules.extend(cut(&fs::read_to_string(path)?.replace("\r\n", "\n")));
            }
        }
        modules.sort();
        let (mut packed, mut list) = (Vec::new(), "[\n".to_owned());
        for (name, text) in modules {
            let start = packed.len();
            let mut encoder = DeflateEncoder::new(&mut packed, Compression::best());
            encoder.write_all(text.as_bytes())?;
            encoder.finish()?;
            let _ = writeln!(list, "    ({name:?}, {start}..{}, {}),", packed.len(), text.len());
        }
        list.push_str("]\n");
        let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
        fs::write(out.join("kernels.deflate"), packed)?;
        fs::write(out.join("kernels.rs"), list)
    }

    /// The names of a file's entry points, each with a module of what stands between them, the version and variables of all of
    /// them, and the entry point.
    fn cut(file: &str) -> Vec<(String, String)> {
        let (mut common, mut entries, mut rest) = (String::new(), Vec::new(), file);
        while let Some(at) = rest.find(ENTRY) {
            common.push_str(&rest[..=at]);
            rest = &rest[at + 1..];
            let end = rest.find(END).map_or(rest.len(), |end| end + END.len());
            entries.push(&rest[..end]);
            rest = &rest[end..];
        }
        common.push_str(rest);
        let name = |entry: &str| entry[ENTRY.len() - 1..].split('(').next().unwrap_or_default().to_owned();
        entries.into_iter().map(|entry| (name(entry), format!("{common}\n{entry}"))).collect()
    }
}
