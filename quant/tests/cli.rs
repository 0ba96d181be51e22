//! The command: what it prints where, and its exit codes.

mod support;

use std::process::{Command, Output};

use support::{Fixture, golden};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmada-quantize")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_conversion_ends_with_a_summary_and_exit_code_0() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("tiny.gguf");
    let output =
        run(&["convert", golden().to_str().unwrap(), "-o", file.to_str().unwrap(), "--type", "q4_k", "-t", "2"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stdout.is_empty());
    assert!(said.contains("165 tensors") && said.lines().count() == 166, "{said}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
    assert!(std::fs::read(file).unwrap().starts_with(b"GGUF"));
}

#[test]
fn a_file_without_an_image_tokenizer_is_remarked_on() {
    let fixture = Fixture::tiny();
    std::fs::remove_dir_all(fixture.path("vq")).unwrap();
    let (dir, file) = (fixture.dir.path().to_str().unwrap(), fixture.output());
    let output = run(&["convert", dir, "-o", file.to_str().unwrap(), "--type", "f16"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).starts_with("note: ") && stderr(&output).contains("--vq"), "{}", stderr(&output));
}

#[test]
fn bad_input_and_usage_end_with_exit_code_2_and_one_sentence() {
    let fixture = Fixture::tiny();
    let (dir, out) = (fixture.dir.path().to_str().unwrap(), fixture.output());
    let out = out.to_str().unwrap();
    for args in [
        &["convert", "nowhere", "-o", out, "--type", "f16"][..],
        &["convert", dir, "-o", "nowhere/out.gguf", "--type", "f16"],
        &["convert", dir, "-o", out, "--type", "f16", "--vq", "nowhere"],
        &["convert", dir, "-o", out, "--type", "f16", "--image-code-offset", "3"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
        let said = stderr(&output);
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    }
    for args in [&["convert", dir, "-o", out, "--type", "q9"][..], &["convert", dir], &["nonsense"], &[]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(std::fs::read_dir(fixture.out.path()).unwrap().count(), 0);
}
