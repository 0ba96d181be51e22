//! The command line as its users meet it: exit codes, what goes to which stream, files that appear whole or not at
//! all. Runs the built program on the demo model. Nothing here needs a terminal or a fast machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mmada::gguf::{Header, TensorSpec, Writer};
use serde_json::Value as Json;
use tempfile::TempDir;

/// A working folder of its own, so that tests do not see each other's files.
struct Folder(TempDir);

/// What a run left behind.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names in the folder, sorted.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmada"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_remove("MMADA_MODEL")
            .env_remove("MMADA_CPU")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Runs with `input` on standard input.
    fn feed(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The program may leave before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(input);
        Ran::from(child.wait_with_output().unwrap())
    }

    /// A run that must succeed.
    fn good(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
        ran
    }

    /// A run that must be refused: exit code 2, nothing on standard output, one sentence on standard error that
    /// holds all of `parts`, and no file more than before.
    fn refused(&self, args: &[&str], parts: &[&str]) {
        let before = self.files();
        let ran = self.run(args);
        ran.assert_failed(2, parts);
        assert_eq!(self.files(), before, "{args:?} left files");
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    fn json(&self) -> Json {
        assert_eq!(self.out.matches('\n').count(), 1, "not one line: {}", self.out);
        serde_json::from_str(&self.out).unwrap()
    }

    fn assert_failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().count(), 1, "not one sentence: {}", self.err);
        assert!(self.err.starts_with("mmada: "), "{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in: {}", self.err);
        }
    }
}

fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mmada-shapes.gguf")
}

fn pixels(path: &Path) -> (u32, u32) {
    image::open(path).unwrap().to_rgb8().dimensions()
}

/// A copy of the demo model without its image tokenizer.
fn text_only_model(to: &Path) {
    let bytes = fs::read(demo_model()).unwrap();
    let header = Header::parse(&bytes, "demo").unwrap();
    let keys = header.metadata.iter().map(|(key, _)| key).filter(|key| !key.starts_with("mmada.vq."));
    let metadata: Vec<_> = keys.map(|key| (key.clone(), header.owned(&bytes, key).unwrap())).collect();
    let kept: Vec<_> = header.tensors.iter().filter(|t| !t.name.starts_with("vq.")).collect();
    assert!(kept.len() < header.tensors.len());
    let specs: Vec<_> =
        kept.iter().map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype, dims: t.dims.clone() }).collect();
    let mut writer = Writer::create(to, &metadata, &specs).unwrap();
    for tensor in kept {
        writer.write(tensor.data(&bytes)).unwrap();
    }
    writer.finish().unwrap();
}

// ---- drawing

#[test]
fn draw_leaves_a_picture_in_the_working_folder() {
    let folder = Folder::new();
    let ran = folder.good(&["draw", "a red circle on a white background"]);
    assert_eq!(ran.out, "");
    assert_eq!(folder.files(), ["out.png"]);
    assert_eq!(pixels(&folder.path("out.png")), (64, 64));
    assert!(ran.err.contains("seed"), "a drawn seed is not reported: {}", ran.err);
}

#[test]
fn a_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = Folder::new();
    for (threads, name) in [("1", "one.png"), ("2", "two.png"), ("3", "three.png")] {
        folder.good(&["draw", "a blue star", "--seed", "7", "--steps", "4", "-t", threads, "-o", name]);
    }
    folder.good(&["draw", "a blue star", "--seed", "8", "--steps", "4", "-o", "other.png"]);
    let bytes = |name: &str| fs::read(folder.path(name)).unwrap();
    assert_eq!(bytes("one.png"), bytes("two.png"));
    assert_eq!(bytes("one.png"), bytes("three.png"));
    assert_ne!(bytes("one.png"), bytes("other.png"));
}

#[test]
fn several_pictures_are_numbered_and_each_can_be_drawn_alone_again() {
    let folder = Folder::new();
    let draw = ["draw", "a green ring", "--steps", "4"];
    let ran = folder.good(&[&draw[..], &["--count", "2", "--seed", "40", "--json", "-o", "ring.png"]].concat());
    let json = ran.json();
    assert_eq!(json["files"], serde_json::json!(["ring-1.png", "ring-2.png"]));
    assert_eq!(json["seeds"], serde_json::json!([40, 41]));
    assert_eq!(folder.files(), ["ring-1.png", "ring-2.png"]);
    folder.good(&[&draw[..], &["--seed", "41", "-o", "again.png"]].concat());
    assert_eq!(fs::read(folder.path("again.png")).unwrap(), fs::read(folder.path("ring-2.png")).unwrap());
}

#[test]
fn other_sizes_and_formats_can_be_asked_for() {
    let folder = Folder::new();
    folder.good(&["draw", "a pink square", "--size", "48x32", "--seed", "1", "-o", "small.jpg", "--steps", "3"]);
    assert_eq!(pixels(&folder.path("small.jpg")), (48, 32));
    assert_eq!(&fs::read(folder.path("small.jpg")).unwrap()[..2], &[0xff, 0xd8]);
}

#[test]
fn previews_are_whole_pictures_of_the_steps_on_the_way() {
    let folder = Folder::new();
    folder.good(&["draw", "a cyan cross", "--steps", "5", "--preview-every", "2", "--seed", "1"]);
    assert_eq!(folder.files(), ["out-step-002.png", "out-step-004.png", "out.png"]);
    assert_eq!(pixels(&folder.path("out-step-002.png")), (64, 64));
}

#[test]
fn thinking_before_drawing_prints_the_description() {
    let folder = Folder::new();
    let draw = ["draw", "an orange diamond", "--think", "--seed", "1", "--steps", "3"];
    let ran = folder.good(&[&draw[..], &["-o", "think.png"]].concat());
    assert!(ran.out.contains("diamond"), "{}", ran.out);
    let json = folder.good(&[&draw[..], &["--json"]].concat()).json();
    assert_eq!(json["description"].as_str().unwrap().trim_end(), ran.out.trim_end());
    assert_eq!(fs::read(folder.path("think.png")).unwrap(), fs::read(folder.path("out.png")).unwrap());
}

#[test]
fn a_prompt_that_is_cut_is_drawn_with_a_warning() {
    let folder = Folder::new();
    let long = "a red circle and ".repeat(30);
    let ran = folder.good(&["draw", &long, "--steps", "2", "--quiet"]);
    assert!(ran.err.starts_with("warning: "), "{}", ran.err);
    assert_eq!(folder.files(), ["out.png"]);
}

#[test]
fn a_fixed_seed_and_no_terminal_make_a_silent_run() {
    let folder = Folder::new();
    let ran = folder.good(&["draw", "a red circle", "--seed", "3", "--steps", "2"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
}

#[test]
fn the_seed_that_was_drawn_repeats_the_picture() {
    let folder = Folder::new();
    let json = folder.good(&["draw", "a red circle", "--steps", "3", "--json", "-o", "a.png"]).json();
    let seed = json["seed"].to_string();
    folder.good(&["draw", "a red circle", "--steps", "3", "--seed", &seed, "-o", "b.png"]);
    assert_eq!(fs::read(folder.path("a.png")).unwrap(), fs::read(folder.path("b.png")).unwrap());
}

// ---- asking

#[test]
fn ask_prints_an_answer_and_nothing_else() {
    let folder = Folder::new();
    let ran = folder.good(&["ask", "Sort 9 5 0."]);
    assert!(!ran.out.trim().is_empty());
    assert!(ran.out.ends_with('\n'));
    assert_eq!(ran.err, "");
    assert!(folder.files().is_empty());
}

#[test]
fn json_holds_the_answer_its_ids_and_its_seed() {
    let folder = Folder::new();
    let plain = folder.good(&["ask", "What is 1 + 4?"]);
    let json = folder.good(&["ask", "What is 1 + 4?", "--json", "--seed", "5"]).json();
    assert_eq!(json["text"].as_str().unwrap().trim_end(), plain.out.trim_end());
    assert_eq!(json["seed"], 5);
    assert!(!json["ids"].as_array().unwrap().is_empty());
    assert!(json["timings"]["total_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn answer_only_leaves_the_thinking_out() {
    let folder = Folder::new();
    let question = ["ask", "Spell green backwards.", "--think"];
    let whole = folder.good(&question).out;
    let json = folder.good(&[&question[..], &["--json"]].concat()).json();
    let only = folder.good(&[&question[..], &["--answer-only"]].concat()).out;
    assert!(whole.contains("</think>"), "{whole}");
    assert!(!only.contains("think>"), "{only}");
    assert_eq!(only.trim(), whole.rsplit("</think>").next().unwrap().trim());
    assert_eq!(json["answer"].as_str().unwrap().trim(), only.trim());
    assert!(!json["thinking"].as_str().unwrap().is_empty());
}

#[test]
fn a_picture_can_be_asked_about() {
    let folder = Folder::new();
    folder.good(&["draw", "a red circle on a white background", "--seed", "2", "-o", "seen.png"]);
    for squash in [&[][..], &["--squash"]] {
        let ran = folder.good(&[&["ask", "What is in the image?", "--image", "seen.png"], squash].concat());
        assert!(ran.out.contains("background"), "{}", ran.out);
    }
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let folder = Folder::new();
    let whole = folder.good(&["ask", "Sort 9 5 0."]).out;
    let stop: String = whole.trim().chars().skip(2).take(1).collect();
    let cut = folder.good(&["ask", "Sort 9 5 0.", "--stop", "no such text", "--stop", &stop]).out;
    assert!(!cut.contains(&stop) && whole.starts_with(cut.trim_end()), "{whole:?} stopped at {stop:?} is {cut:?}");
}

#[test]
fn sampling_options_reach_the_sampler() {
    let folder = Folder::new();
    let ask = |more: &[&str]| folder.good(&[&["ask", "Sort 9 5 0.", "--json"], more].concat()).json();
    let options = ["--gen-length", "16", "--block-length", "8", "--steps", "4", "--temperature", "1.5"];
    let json = ask(&[&options[..], &["--remasking", "random", "--cfg-scale", "0.5", "--seed", "9"]].concat());
    let expected = serde_json::json!({
        "gen_length": 16, "steps": 4, "block_length": 8, "temperature": 1.5, "cfg_scale": 0.5, "remasking": "random",
    });
    assert_eq!(json["options"], expected);
    assert!(json["ids"].as_array().unwrap().len() <= 16);
    let again = ask(&[&options[..], &["--remasking", "random", "--cfg-scale", "0.5", "--seed", "9"]].concat());
    assert_eq!(json["ids"], again["ids"]);
}

#[test]
fn exact_arithmetic_can_be_chosen() {
    let folder = Folder::new();
    assert!(!folder.good(&["ask", "What is 1 + 4?", "--compute", "exact", "--steps", "4"]).out.trim().is_empty());
}

// ---- chatting

#[test]
fn chat_answers_every_line_of_a_pipe() {
    let folder = Folder::new();
    let ran = folder.feed(&["chat", "--json"], b"What is 1 + 4?\n\nSort 9 5 0.\n/quit\nnever read\n");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let turns: Vec<Json> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(turns.len(), 2);
    assert_eq!((&turns[0]["turn"], &turns[1]["turn"]), (&Json::from(0), &Json::from(1)));
    let first = folder.good(&["ask", "What is 1 + 4?", "--json"]).json();
    assert_eq!(turns[0]["ids"], first["ids"]);
}

#[test]
fn chat_remembers_until_it_is_told_to_forget() {
    let folder = Folder::new();
    let ran = folder.feed(&["chat", "--json"], b"Sort 9 5 0.\n/reset\nWhat is 1 + 4?\n");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let last: Json = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(last["ids"], folder.good(&["ask", "What is 1 + 4?", "--json"]).json()["ids"]);
}

#[test]
fn a_chat_that_outgrows_the_context_says_so() {
    let folder = Folder::new();
    let line = format!("{}\n", "9 5 0 ".repeat(400));
    let ran = folder.feed(&["chat", "--steps", "1"], line.repeat(8).as_bytes());
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("outgrown") && ran.err.contains("positions"), "{}", ran.err);
    assert!(ran.out.lines().count() >= 1, "the first messages fit");
}

// ---- looking into files

#[test]
fn info_shows_metadata_tensors_and_needs() {
    let folder = Folder::new();
    let model = demo_model();
    let model = model.to_str().unwrap();
    let text = folder.good(&["info", model]).out;
    for part in ["general.architecture", "mmada.block_count", "token_embd.weight", "blk.4.ffn_down.weight", "MiB"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let json = folder.good(&["info", "--json", "-m", model]).json();
    assert_eq!(json["metadata"]["mmada.block_count"], 5);
    assert_eq!(json["bytes"].as_u64().unwrap(), fs::metadata(model).unwrap().len());
    let tensors = json["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|t| t["name"] == "output_norm.weight" && t["type"] == "F32"));
    let estimates = json["estimates"].as_array().unwrap();
    assert_eq!(estimates.len(), 3);
    assert!(estimates.iter().all(|e| e["scratch_bytes"].as_u64().unwrap() > 0 && e["seconds"].as_f64().unwrap() > 0.0));
    assert!(json["pack"]["bytes"].as_u64().unwrap() > 1 << 20 && json["pack"]["packed"] == false);
    assert_eq!(folder.good(&["info", "--json", "--pack", "-m", model]).json()["pack"]["packed"], true);
    assert!(text.contains("with --pack"), "{text}");
}

#[test]
fn packed_weights_give_the_same_answer() {
    let folder = Folder::new();
    let ask = |more: &[&str]| {
        let arguments = [&["ask", "What is 17 + 25?", "--seed", "1", "--json"], more].concat();
        folder.good(&arguments).json()["answer"].clone()
    };
    assert_eq!(ask(&["--pack"]), ask(&[]));
    assert_eq!(ask(&["--pack"]), "42");
}

#[test]
fn info_of_the_system_needs_no_model() {
    let folder = Folder::new();
    let json = folder.good(&["info", "--system", "--json", "-t", "2"]).json();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["threads"], 2);
    let sets: Vec<&str> = json["instruction_sets"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!((sets[0], json["instruction_set"].as_str()), ("portable", sets.last().copied()));
    let shown = format!("instruction set  {} (of {})\n", sets[sets.len() - 1], sets.join(", "));
    assert!(folder.good(&["info", "--system"]).out.contains(&shown));
}

#[test]
fn devices_are_listed_and_chosen_by_name() {
    let folder = Folder::new();
    let json = folder.good(&["info", "--system", "--json"]).json();
    let text = folder.good(&["info", "--system"]).out;
    let devices = json["devices"].as_array().unwrap();
    assert_eq!((devices[0]["id"].as_str(), devices[0]["refusal"].as_str()), (Some("cpu"), None));
    for device in devices {
        let line = format!("{:15}  {}", device["id"].as_str().unwrap(), device["name"].as_str().unwrap());
        assert!(text.contains(&line), "{line} is not in:\n{text}");
    }
    let ask = ["ask", "What is 17 + 25?", "--seed", "1", "--json"];
    let on = |device: &str| folder.run(&[&ask[..], &["--device", device]].concat());
    let json_of_cpu = on("cpu").json();
    assert_eq!((&json_of_cpu["device"], &json_of_cpu["answer"]), (&"cpu".into(), &"42".into()));
    let unknown = on("gpu");
    assert!(unknown.code == Some(2) && unknown.err.contains("`gpu` is not one of auto, cpu, cuda or cuda:N"));
    if devices.len() > 1 {
        return; // this machine has a card
    }
    let reason = json["unavailable"]["cuda"].as_str().unwrap();
    assert!(text.contains(&format!("cuda             none: {reason}\n")), "{text}");
    on("cuda:7").assert_failed(2, &["cuda:7", reason]);
    let auto = on("auto");
    assert!(auto.err.contains("warning: ") && auto.err.contains(reason), "{}", auto.err);
    assert_eq!((&auto.json()["device"], &auto.json()["answer"]), (&"cpu".into(), &"42".into()));
    assert_eq!(folder.run(&[&ask[..], &["--gpu-layers", "-1"]].concat()).code, Some(2));
}

#[test]
fn the_environment_can_force_a_lower_instruction_set() {
    let folder = Folder::new();
    let run = |args: &[&str], name: &str| Ran::from(folder.command(args).env("MMADA_CPU", name).output().unwrap());
    let info = ["info", "--system", "--json"];
    let sets = folder.good(&info).json()["instruction_sets"].clone();
    for set in sets.as_array().unwrap() {
        assert_eq!(run(&info, set.as_str().unwrap()).json()["instruction_set"], *set);
    }
    let best = sets.as_array().unwrap().last().unwrap();
    assert_eq!(run(&info, "").json()["instruction_set"], *best, "empty is as if it were not set");

    let ask = ["ask", "What is 2 + 2?", "--steps", "2", "--seed", "1", "--json"];
    assert_eq!(folder.good(&ask).json()["instruction_set"], *best);
    assert_eq!(run(&ask, "portable").json()["instruction_set"], "portable");
    for (args, name) in [(&ask[..], "avx1024"), (&info, "Portable"), (&["draw", "a dog"], "vax")] {
        run(args, name).assert_failed(2, &["MMADA_CPU", &format!("`{name}`"), "portable"]);
    }
    assert!(folder.files().is_empty());
}

// ---- animations

#[test]
fn traces_are_animations_with_a_frame_a_step() {
    use image::AnimationDecoder;
    let folder = Folder::new();
    folder.good(&["draw", "a red circle", "--steps", "4", "--seed", "1", "--trace", "draw.gif"]);
    folder.good(&["ask", "Sort 9 5 0.", "--steps", "6", "--trace", "ask.gif"]);
    assert_eq!(folder.files(), ["ask.gif", "draw.gif", "out.png"]);
    for (name, least, most) in [("draw.gif", 4, 4), ("ask.gif", 1, 6)] {
        let file = BufReader::new(fs::File::open(folder.path(name)).unwrap());
        let frames = image::codecs::gif::GifDecoder::new(file).unwrap().into_frames();
        let count = frames.inspect(|frame| assert!(frame.is_ok(), "{name} is damaged")).count();
        assert!((least..=most).contains(&count), "{name} has {count} frames");
    }
}

// ---- usage and bad input

#[test]
fn usage_errors_exit_with_2_and_speak_on_standard_error() {
    let folder = Folder::new();
    for args in [
        &[][..],
        &["paint"],
        &["draw"],
        &["ask"],
        &["draw", "x", "--size", "64"],
        &["draw", "x", "--size", "64x0"],
        &["draw", "x", "--count", "0"],
        &["draw", "x", "--guidance", "nan"],
        &["draw", "x", "--steps", "many"],
        &["ask", "x", "--squash"],
        &["ask", "x", "--remasking", "best"],
        &["ask", "x", "--compute", "slow"],
        &["info", "--system", "x.gguf"],
    ] {
        let ran = folder.run(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(!ran.err.trim().is_empty(), "{args:?}");
    }
    assert!(folder.files().is_empty());
}

#[test]
fn help_and_version_are_results() {
    let folder = Folder::new();
    assert!(folder.good(&["--help"]).out.contains("draw"));
    assert!(folder.good(&["ask", "--help"]).out.contains("--gen-length"));
    assert!(folder.good(&["--version"]).out.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn models_that_are_none_are_refused_by_name() {
    let folder = Folder::new();
    fs::write(folder.path("notes.gguf"), "these are notes, not a model").unwrap();
    fs::write(folder.path("empty.gguf"), "").unwrap();
    fs::create_dir(folder.path("folder.gguf")).unwrap();
    for name in ["notes.gguf", "empty.gguf", "folder.gguf", "missing.gguf"] {
        folder.refused(&["ask", "x", "-m", name], &[name]);
        folder.refused(&["draw", "x", "-m", name], &[name]);
        folder.refused(&["info", name], &[name]);
    }
}

#[test]
fn the_model_named_in_the_environment_is_used() {
    let folder = Folder::new();
    let ran = Ran::from(folder.command(&["ask", "x"]).env("MMADA_MODEL", "elsewhere.gguf").output().unwrap());
    ran.assert_failed(2, &["elsewhere.gguf"]);
}

#[test]
fn a_model_that_was_cut_off_is_refused() {
    let folder = Folder::new();
    let whole = fs::read(demo_model()).unwrap();
    // Behind the last tensor stands only padding.
    let header = Header::parse(&whole, "demo").unwrap();
    let end = header.tensors.iter().map(|t| t.range.end).max().unwrap();
    for length in [3, 4, 24, 1000, whole.len() / 3, end - 1] {
        fs::write(folder.path("cut.gguf"), &whole[..length]).unwrap();
        folder.refused(&["ask", "x", "-m", "cut.gguf"], &["cut.gguf"]);
        folder.refused(&["info", "cut.gguf"], &["cut.gguf"]);
    }
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_work() {
    let folder = Folder::new();
    fs::create_dir(folder.path("dir.png")).unwrap();
    // The model does not exist either: that it is the output which is named shows the order.
    for (output, part) in [("missing/out.png", "missing"), ("out.bmp", "bmp"), ("out", "out"), ("dir.png", "folder")] {
        folder.refused(&["draw", "x", "-m", "no.gguf", "-o", output], &[output, part]);
    }
    folder.refused(&["draw", "x", "-m", "no.gguf", "--trace", "missing/t.gif"], &["missing/t.gif"]);
    folder.refused(&["ask", "x", "-m", "no.gguf", "--trace", "t.png"], &["t.png", ".gif"]);
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let folder = Folder::new();
    folder.refused(&["draw", "a circle", "--size", "60x64"], &["60"]);
    folder.refused(&["draw", "a circle", "--schedule", "spiral"], &["spiral"]);
    folder.refused(&["draw", "a circle", "--steps", "0"], &["steps"]);
    folder.refused(&["draw", "a circle", "--temperature", "-1"], &["temperature"]);
    folder.refused(&["draw", "a circle", "--size", "800000x800000"], &["positions"]);
    for count in ["99999999999", "18446744073709551615"] {
        folder.run(&["draw", "a circle", "--count", count]).assert_failed(1, &["out of memory"]);
    }
    folder.refused(&["ask", "x", "--gen-length", "24", "--block-length", "7"], &["24", "7"]);
    folder.refused(&["ask", "x", "--gen-length", "24", "--block-length", "8", "--steps", "4"], &["4", "3"]);
    folder.refused(&["ask", "x", "--gen-length", "0"], &["gen_length"]);
    folder.refused(&["ask", "x", "-t", "100000"], &["threads"]);
    folder.refused(&["ask", &"9 5 0 ".repeat(3000)], &["positions"]);
}

#[test]
fn pictures_that_do_not_decode_are_refused() {
    let folder = Folder::new();
    folder.good(&["draw", "a red circle", "--seed", "1", "--steps", "2", "-o", "whole.png"]);
    let whole = fs::read(folder.path("whole.png")).unwrap();
    fs::write(folder.path("cut.png"), &whole[..whole.len() / 2]).unwrap();
    fs::write(folder.path("text.png"), "no picture at all").unwrap();
    // A header that promises a hundred gigapixels (its checksum is wrong as well, either may be what is named).
    let mut bomb = whole;
    bomb[16..24].copy_from_slice(&[0, 5, 0, 0, 0, 5, 0, 0]);
    fs::write(folder.path("bomb.png"), bomb).unwrap();
    for name in ["cut.png", "text.png", "bomb.png", "missing.png"] {
        folder.refused(&["ask", "What is in the image?", "--image", name], &[name]);
    }
}

#[test]
fn a_model_without_an_image_tokenizer_answers_but_neither_sees_nor_draws() {
    let folder = Folder::new();
    text_only_model(&folder.path("text.gguf"));
    assert!(!folder.good(&["ask", "Sort 9 5 0.", "-m", "text.gguf"]).out.trim().is_empty());
    folder.refused(&["ask", "x", "--image", "a.png", "-m", "text.gguf"], &["text.gguf", "image tokenizer"]);
    folder.refused(&["draw", "x", "-m", "text.gguf"], &["text.gguf", "image tokenizer"]);
}

// ---- when the system gives way

#[test]
fn a_closed_pipe_is_one_sentence_and_exit_code_1() {
    let folder = Folder::new();
    for args in [&["ask", "Sort 9 5 0."][..], &["info"], &["info", "--system", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = folder.command(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let ran = Ran::from(child.wait_with_output().unwrap());
        ran.assert_failed(1, &["standard output", "pipe"]);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_standard_output_is_one_sentence_and_exit_code_1() {
    let folder = Folder::new();
    for args in [&["ask", "Sort 9 5 0.", "--json"][..], &["info"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let child = folder.command(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        Ran::from(child.wait_with_output().unwrap()).assert_failed(1, &["standard output", "no space"]);
    }
}

#[test]
#[cfg(unix)]
fn a_picture_that_cannot_be_written_leaves_nothing_behind() {
    let folder = Folder::new();
    // A file size limit of 0 makes every write to a file fail, as a full disk does.
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"";
    for more in [&[][..], &["--trace", "t.gif"]] {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_mmada"), "draw", "a red circle", "--steps", "2"]).args(more);
        let output = command.current_dir(folder.0.path()).env_remove("MMADA_MODEL").output().unwrap();
        Ran::from(output).assert_failed(1, &[]);
        assert!(folder.files().is_empty(), "{:?}", folder.files());
    }
}

#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    let status = Command::new("sh").args(["-c", "kill -INT \"$0\"", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
#[cfg(unix)]
fn an_interrupted_drawing_exits_with_130_and_leaves_no_half_written_file() {
    let folder = Folder::new();
    let args = ["draw", "a red circle", "--steps", "50000", "--preview-every", "1", "--trace", "t.gif"];
    let mut command = folder.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first preview says that the work is under way.
    while !folder.path("out-step-001.png").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    interrupt(&child);
    let ran = Ran::from(child.wait_with_output().unwrap());
    ran.assert_failed(130, &["interrupted"]);
    for name in folder.files() {
        assert!(name.starts_with("out-step-") && name.ends_with(".png"), "{name} was left");
        assert_eq!(pixels(&folder.path(&name)), (64, 64));
    }
}

#[test]
#[cfg(unix)]
fn an_interrupted_chat_exits_with_130_while_it_waits() {
    let folder = Folder::new();
    let mut command = folder.command(&["chat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Sort 9 5 0.\n").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    assert!(!answer.trim().is_empty());
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(input);
}

#[test]
fn a_llada_file_is_described_and_answers_but_sees_and_draws_nothing() {
    let folder = Folder::new();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llada/grouped.gguf");
    let info = folder.good(&["info", file]);
    assert!(info.out.contains("llada.attention.head_count_kv") && info.out.contains("  answer "), "{}", info.out);
    assert!(!info.out.contains("drawing") && info.err.is_empty(), "{}", info.err);
    folder.good(&["ask", "What?", "-m", file, "--gen-length", "8", "--block-length", "8", "--steps", "2"]);
    image::RgbImage::new(8, 8).save(folder.path("in.png")).unwrap();
    for args in [&["draw", "a ring", "-m", file][..], &["ask", "What?", "--image", "in.png", "-m", file]] {
        let refused = folder.run(args);
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""));
        assert!(refused.err.contains("no image tokenizer"), "{}", refused.err);
    }
    assert_eq!(folder.files(), ["in.png"]);
}
