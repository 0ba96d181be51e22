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
    // What there would be to note goes unsaid when nothing is converted.
    std::fs::remove_dir_all(fixture.path("vq")).unwrap();
    let said = stderr(&run(&["convert", dir, "-o", "nowhere/out.gguf", "--type", "f16"]));
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    assert_eq!(std::fs::read_dir(fixture.out.path()).unwrap().count(), 0);
}

/// A tiny random model in a folder of its own.
fn synthetic() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.gguf").to_str().unwrap().to_owned();
    let output = run(&["synth", "--layers", "1", "--no-vq", "-o", &file, "--type", "bf16", "-q"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    (folder, file)
}

#[test]
fn quantizing_is_called_as_llama_quantize_is() {
    let (folder, file) = synthetic();
    let out = folder.path().join("out.gguf").to_str().unwrap().to_owned();
    let output = run(&["--token-embedding-type", "q6_k", "--tensor-type", "attn_q=q8_0", &file, &out, "Q4_K_M", "2"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stdout.is_empty());
    let has = |name: &str, rest: &str| said.lines().any(|line| line.contains(name) && line.contains(rest));
    assert!(has("token_embd.weight", "BF16 -> Q6_K") && has("blk.0.attn_q.weight", "BF16 -> Q8_0"), "{said}");
    assert!(has("blk.0.ffn_up.weight", "4.500 bits  error 0.0"), "{said}");
    assert_eq!(said.lines().count(), 12 + 1, "{said}");

    // Named by itself, beside the input; no line per tensor.
    let output = run(&["-q", &file, "q8_0"]);
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(0), 1));
    assert!(stderr(&output).contains("-v1.0-Q8_0.gguf: 12 tensors"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn options_may_stand_anywhere() {
    let (folder, file) = synthetic();
    let out = folder.path().join("out.gguf").to_str().unwrap().to_owned();
    for args in [
        &[&file, "--pure", &out, "Q4_K_M", "2"][..],
        &[&file, &out, "--pure", "Q4_K_M", "-q", "2"],
        &[&file, "--dry-run", "Q4_K_M"],
        &[&file, &out, "Q4_K_M", "--tensor-type", "attn_q=q8_0"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_rule_that_no_matrix_matches_is_remarked_on() {
    let (_folder, file) = synthetic();
    let rules = ["attn_q=Q5_0", "atn_v=Q8_0", "attn_norm=F16"].map(|rule| ["--tensor-type", rule]);
    let output = run(&[&["-q", &file, "Q4_K_M"], rules.as_flattened()].concat());
    let said = stderr(&output);
    let idle: Vec<&str> = said.lines().filter(|line| line.contains("does nothing")).collect();
    assert!(output.status.success() && idle.len() == 2, "{said}");
    assert!(idle[0].contains("atn_v=Q8_0") && idle[1].contains("attn_norm=F16"), "{said}");
}

#[test]
fn a_dry_run_prints_its_table_to_stdout() {
    let (folder, file) = synthetic();
    let output = run(&["--dry-run", &file, "Q5_K_M"]);
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!((output.status.code(), table.lines().count()), (Some(0), 13), "{table}");
    assert!(table.lines().last().unwrap().contains("nothing was written") && output.stderr.is_empty());
    let output = run(&["synth", "--preset", "8b", "--type", "Q4_K_M", "-o", "nowhere.gguf", "--dry-run"]);
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(table.contains("134656 x 4096") && table.lines().last().unwrap().contains("8178"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_quantized_ends_with_exit_code_2_and_one_sentence() {
    let (folder, file) = synthetic();
    let out = folder.path().join("out.gguf").to_str().unwrap().to_owned();
    for args in [
        &[&file, &out, "Q9_K"][..],
        &[&file, &out],
        &[&file, &out, "Q8_0", "many"],
        &[&file, &out, "Q8_0", "1000000000"],
        &[&file, &out, "COPY", "--pure"],
        &[&file, &out, "COPY", "--tensor-type", "attn_q=q8_0"],
        &[&file, &file, "Q8_0"],
        &["nowhere.gguf", &out, "Q8_0"],
        &["--imatrix", "nowhere", &file, &out, "Q4_K_M"],
        &["--imatrix", &file, &file, &out, "Q4_K_M"],
        &["synth", "--d-model", "77", "-o", &out],
    ] {
        let output = run(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    }
    // What the argument parser refuses: it adds how to get help.
    for args in [
        &["--tensor-type", "(=q8_0", &file, &out, "Q8_0"][..],
        &["--override-kv", "a=int:x", &file, &out, "Q8_0"],
        &["--output-tensor-type", "q9", &file, &out, "Q8_0"],
        &["--split-max-size", "5", &file, &out, "Q8_0"],
        &["--keep-split", "--split-max-size", "5M", &file, &out, "Q8_0"],
        &[&file],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// No file may grow beyond a limit that the output exceeds, as on a disk that is full though it said otherwise.
#[cfg(target_os = "linux")]
#[test]
fn a_write_that_fails_leaves_nothing_behind() {
    let (folder, file) = synthetic();
    let out = folder.path().join("out.gguf").to_str().unwrap().to_owned();
    let tool = env!("CARGO_BIN_EXE_mmada-quantize");
    // An ignored SIGXFSZ stays ignored in the tool, whose writes then fail with an error.
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$@""#;
    for args in [&[tool, &file, &out, "F16"][..], &[tool, "--split-max-size", "1M", &file, &out, "F16"]] {
        let output = Command::new("sh").args(["-c", script, "sh"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).lines().last().unwrap().starts_with("error: "), "{}", stderr(&output));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn an_importance_matrix_is_measured_and_used_in_two_commands() {
    let fixture = Fixture::tiny();
    fixture.convert(mmada::gguf::GgmlType::F16);
    fixture.write("data.jsonl", "{\"prompt\": \"Why?\", \"answer\": \"Because.\"}\n");
    let (model, data) = (fixture.output(), fixture.path("data.jsonl"));
    let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
    let (matrix, out) = (fixture.path("imatrix.gguf"), fixture.path("q.gguf"));
    let (matrix, out) = (matrix.to_str().unwrap(), out.to_str().unwrap());
    let output = run(&["imatrix", model, "--data", data, "-o", matrix, "--states", "3", "-t", "2"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("15 matrices, 3 states (3 chat)") && said.lines().count() == 1, "{said}");
    let output = run(&["--imatrix", matrix, model, out, "Q4_0"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("left to right"), "{}", stderr(&output));
    for args in [
        &["imatrix", model, "--data", matrix][..],
        &["imatrix", "nowhere.gguf", "-o", out],
        &["--imatrix", matrix, model, out, "COPY"],
    ] {
        let output = run(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_text_part_is_exported_with_a_note_and_only_to_what_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/mmada-shapes.gguf");
    let out = folder.path().join("llada.gguf");
    let out = out.to_str().unwrap();
    let output = run(&["export", "--arch", "llada", demo, out]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stdout.is_empty() && said.starts_with("note: left out: the image tokenizer"), "{said}");
    assert_eq!(said.lines().count(), 1 + 48 + 1, "{said}");
    let again = run(&["export", "--arch", "llada", out, "x.gguf"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("llada already") && stderr(&again).lines().count() == 1, "{}", stderr(&again));
    for args in
        [&["export", "--arch", "llama", demo, out][..], &["export", demo, out], &["export", "--arch", "llada", demo]]
    {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    assert!(stderr(&run(&["export", "--arch", "llama", demo, out])).contains("possible values: llada"));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}
