//! Tells the library what it is built as (see `mmada::build_info`), and the linker what the shared library is called.
//! Nothing is compiled or looked for here.

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
}
