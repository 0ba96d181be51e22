//! Tells the library what it is built as: see `mmada::build_info`. Nothing is compiled or looked for here.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for (name, of_cargo) in [("MMADA_TARGET", "TARGET"), ("MMADA_PROFILE", "PROFILE")] {
        println!("cargo::rustc-env={name}={}", std::env::var(of_cargo).unwrap_or_default());
    }
}
