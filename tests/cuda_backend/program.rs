//! The program on a card, and that neither it nor the library needs anything of CUDA to be loaded.

use std::path::Path;
use std::process::Command;

use crate::library;
use crate::support::{Card, data, is_card, program};

/// What a tool of binutils says of a file.
fn tool(name: &str, arguments: &[&str], file: &Path) -> String {
    let done = Command::new(name).args(arguments).arg(file).output();
    let done = done.unwrap_or_else(|error| panic!("{name}, of the package binutils, cannot be run: {error}"));
    assert!(done.status.success(), "{name} {}: {}", file.display(), String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn nothing_of_cuda_is_linked() {
    if is_card() {
        return; // the same files were looked at where they were built
    }
    // cargo puts the shared library beside the test program
    let library = std::env::current_exe().unwrap().with_file_name("libmmada.so");
    assert!(!cfg!(feature = "capi") || library.exists(), "{} is missing", library.display());
    for file in [program(), library].into_iter().filter(|file| file.exists()) {
        let dynamic = tool("readelf", &["--dynamic", "--wide"], &file);
        let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
        let is_nvidias = |line: &&str| ["cuda", "cudart", "cublas", "nv"].iter().any(|name| line.contains(name));
        assert!(!needed.is_empty() && !needed.iter().any(is_nvidias), "{}: {needed:?}", file.display());
        let undefined = tool("nm", &["--dynamic", "--undefined-only", "--format=posix"], &file);
        let names: Vec<&str> = undefined.lines().filter_map(|line| line.split([' ', '@']).next()).collect();
        // cuInit and all others: cu and a capital letter
        let is_drivers =
            |name: &&&str| name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(char::is_uppercase));
        let drivers: Vec<_> = names.iter().filter(is_drivers).collect();
        assert!(!names.is_empty() && drivers.is_empty(), "{}: {drivers:?}", file.display());
    }
}

#[test]
fn the_program_runs_on_a_card_by_name_and_lists_it() {
    let card = Card::open();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(program());
        command.args(arguments);
        if card.driver().is_some() {
            command.env("LD_LIBRARY_PATH", library::folder());
        }
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let system = run(&["info", "--system"]);
    assert!(system.contains("cuda:0") && system.contains("compute capability"), "{system}");
    let model = data("models/mmada-shapes.gguf");
    let ask = [
        "ask",
        "-m",
        model.to_str().unwrap(),
        "--gen-length",
        "8",
        "--block-length",
        "8",
        "--steps",
        "4",
        "What is 2 + 3?",
    ];
    let on = |device: &[&str]| run(&[&ask[..], device].concat());
    assert_eq!(on(&["--device", "cuda"]), on(&[]));
    assert_eq!(on(&["--device", "cuda:0", "--gpu-layers", "2"]), on(&["--device", "cpu"]));
}
