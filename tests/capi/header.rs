//! include/mmada.h is what cbindgen makes of src/capi.

use std::path::{Path, PathBuf};

/// In the order of the header.
const SOURCES: [&str; 9] =
    ["library", "error", "buffer", "image", "model", "options", "canceller", "context", "generation"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

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
    let path: PathBuf = root().join("include/mmada.h");
    let text = generated();
    if std::env::var_os("MMADA_WRITE_HEADER").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == text,
        "include/mmada.h is not what cbindgen makes of src/capi: MMADA_WRITE_HEADER=1 writes it"
    );
}
