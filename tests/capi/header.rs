//! include/mmada.h is what cbindgen makes of src/capi, stands alone in C and C++, and its first program runs.

use std::process::Command;

use super::support::{build, compiler, folder, header, model, root, succeed};

/// In the order of the header.
const SOURCES: [&str; 9] =
    ["library", "error", "buffer", "image", "model", "options", "canceller", "context", "generation"];

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(root().join(format!("src/capi/{name}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_committed_header_is_that_of_the_sources() {
    let text = generated();
    if std::env::var_os("MMADA_WRITE_HEADER").is_some() {
        std::fs::write(root().join("include/mmada.h"), &text).unwrap();
    }
    assert!(header() == text, "include/mmada.h is not what cbindgen makes of src/capi: MMADA_WRITE_HEADER=1 writes it");
}

#[test]
fn every_header_compiles_alone_in_c_and_in_cpp_without_a_warning() {
    let mut headers: Vec<_> = std::fs::read_dir(root().join("include")).unwrap().map(|e| e.unwrap().path()).collect();
    headers.push(root().join("tests/abi/v0/mmada.h"));
    for header in headers {
        let c = header.extension().is_some_and(|e| e == "h");
        let languages = [("c", "c99", c), ("c", "c11", c), ("c++", "c++17", true)];
        for (language, standard, _) in languages.iter().filter(|(.., right)| *right) {
            let mut command = compiler();
            command.args(["-fsyntax-only", "-x", language, &format!("-std={standard}")]);
            succeed(command.arg("-I").arg(root().join("include")).arg(&header));
        }
    }
}

#[test]
fn the_header_says_the_version_that_the_library_has() {
    let version = env!("CARGO_PKG_VERSION");
    let numbers = version.split('.').zip(["MAJOR", "MINOR", "PATCH"]);
    for (number, name) in numbers {
        assert!(header().contains(&format!("#define MMADA_VERSION_{name} {number}\n")), "{name} of {version}");
    }
    assert!(header().contains(&format!("#define MMADA_VERSION \"{version}\"\n")));
}

#[test]
fn the_program_at_the_top_of_the_header_runs() {
    let header = header();
    let lines = header.lines().skip_while(|line| !line.starts_with(" *     #include"));
    let lines = lines.take_while(|line| line.starts_with(" *     ") || *line == " *");
    let source: Vec<&str> = lines.map(|line| line.strip_prefix(" *     ").unwrap_or_default()).collect();
    assert!(source.len() > 30, "the header begins with another comment");
    let folder = folder("usage");
    let (file, program) = (folder.join("ask.c"), folder.join("ask"));
    std::fs::write(&file, source.join("\n")).unwrap();
    build(&file, &root().join("include"), &program);
    let output = succeed(Command::new(program).arg(model()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().last(), Some("12/12 42"), "{text}");
}
