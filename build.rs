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
    use std::ops::Range;
    use std::path::PathBuf;
    use std::{env, fs};

    use flate2::{Compression, write::DeflateEncoder};

    const FOLDER: &str = "src/kernels/cuda/ptx";
    /// How an entry point begins, and ends with a line of its own.
    const ENTRY: &str = "\n.visible .entry ";
    const END: &str = "\n}\n";

    /// Writes `kernels.deflate`, compressed pieces one after the other, and `kernels.rs`, which two pieces a kernel is made of, what
    /// its file's kernels share and its own, and how long its text is, by name.
    pub fn pack() -> Result<()> {
        println!("cargo::rerun-if-changed={FOLDER}");
        let (mut packed, mut kernels) = (Vec::new(), Vec::new());
        for file in fs::read_dir(FOLDER)? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "ptx") {
                continue;
            }
            let text = fs::read_to_string(path)?.replace("\r\n", "\n");
            let (common, entries) = cut(&text);
            let shared = compress(&mut packed, &common)?;
            for entry in entries {
                let name = entry[ENTRY.len()..].split('(').next().unwrap_or_default().to_owned();
                kernels.push((name, shared.clone(), compress(&mut packed, entry)?, common.len() + entry.len()));
            }
        }
        kernels.sort_by(|a, b| a.0.cmp(&b.0));
        let mut list = "[\n".to_owned();
        for kernel in kernels {
            let _ = writeln!(list, "    {kernel:?},");
        }
        list.push_str("]\n");
        let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
        fs::write(out.join("kernels.deflate"), packed)?;
        fs::write(out.join("kernels.rs"), list)
    }

    /// Where the compressed text is then.
    fn compress(packed: &mut Vec<u8>, text: &str) -> Result<Range<usize>> {
        let start = packed.len();
        let mut encoder = DeflateEncoder::new(&mut *packed, Compression::default());
        encoder.write_all(text.as_bytes())?;
        encoder.finish()?;
        Ok(start..packed.len())
    }

    /// What stands between a file's entry points, the version and variables of all of them; and the entry points.
    fn cut(file: &str) -> (String, Vec<&str>) {
        let (mut common, mut entries, mut rest) = (String::new(), Vec::new(), file);
        while let Some(at) = rest.find(ENTRY) {
            common.push_str(&rest[..at]);
            rest = &rest[at..];
            let end = rest.find(END).map_or(rest.len(), |end| end + END.len());
            entries.push(&rest[..end]);
            rest = &rest[end..];
        }
        common.push_str(rest);
        (common, entries)
    }
}
