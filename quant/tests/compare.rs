//! Comparing quantized models with their reference: on files made of the demo model's checkpoint.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use mmada::gguf::Header;
use mmada::{Compute, Context, ContextOptions, Error, Model, RgbImage};
use mmada_quantize::states::{StateOptions, Task, collect_states, own_samples};
use mmada_quantize::{
    CompareOptions, Comparison, ConvertOptions, Override, Progress, QuantizeOptions, Recipe, TaskSummary, View,
    compare, convert, quantize,
};
use serde_json::Value;
use tempfile::TempDir;

const TYPES: [&str; 4] = ["F16", "Q8_0", "Q4_K_M", "Q2_K"];

/// Every task once: with what should come out, and without.
const DATA: &str = r#"{"prompt": "What color comes after red?", "answer": "orange"}
{"prompt": "What is 17 + 25?", "answer": "<think>17 + 25 = 42</think>42"}
{"prompt": "What color is it?", "answer": "a red square on a white background", "image": "square.png"}
{"task": "think-question", "prompt": "What shape is it?", "answer": "<think>It is red.</think>square", "image": "square.png"}
{"prompt": "a red square on a white background", "image": "square.png"}
{"task": "draw", "prompt": "a blue circle on a black background"}
"#;

/// Models of several types, and data.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/mmada-shapes");
    for name in TYPES {
        let path = folder.path().join(format!("shapes-{name}.gguf"));
        convert(&ConvertOptions::new(&checkpoint, path, Recipe::from_name(name).unwrap()), &mut |_| {}).unwrap();
    }
    let pixel = |x: usize, y: usize| if x.max(y) < 50 && x.min(y) > 10 { [220, 30, 40] } else { [250, 250, 250] };
    let pixels = (0..64 * 64).flat_map(|i| pixel(i % 64, i / 64)).collect();
    mmada::image::save(&RgbImage::from_raw(64, 64, pixels).unwrap(), folder.path().join("square.png")).unwrap();
    fs::write(folder.path().join("data.jsonl"), DATA).unwrap();
    folder
});

fn file(name: &str) -> PathBuf {
    FOLDER.path().join(name)
}

fn model(name: &str) -> PathBuf {
    file(&format!("shapes-{name}.gguf"))
}

fn options(models: &[&str]) -> CompareOptions {
    CompareOptions {
        data: vec![file("data.jsonl")],
        per_sample: 3,
        drawings: 1,
        ..CompareOptions::new(model("F16"), models.iter().map(|name| model(name)).collect())
    }
}

fn compared(options: &CompareOptions) -> Comparison {
    let comparison = compare(options, &mut |_| {}).unwrap();
    Comparison { seconds: Duration::ZERO, ..comparison }
}

/// One comparison that several tests look at.
static ALL: LazyLock<Comparison> = LazyLock::new(|| compared(&options(&TYPES)));

fn task(comparison: &Comparison, at: usize, task: Task, view: View) -> &TaskSummary {
    comparison.models[at].tasks.iter().find(|t| t.task == task && t.view == view).unwrap()
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmada-quantize")).arg("compare").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_file_compared_with_itself_differs_in_nothing() {
    let own = &ALL.models[0];
    let drawings = own.drawings.unwrap();
    assert_eq!((drawings.pictures, drawings.codes, drawings.equal), (1, 64, 64));
    assert_eq!(own.image_codes(), Some(1.0));
    for summary in std::iter::once(&own.all).chain(own.tasks.iter().map(|task| &task.all)) {
        assert_eq!((summary.kl_mean, summary.kl_99, summary.kl_max), (0.0, 0.0, 0.0));
        assert_eq!((summary.top1, summary.committed_set, summary.committed_ids), (1.0, Some(1.0), Some(1.0)));
        assert_eq!(summary.truth_nats, summary.truth_nats_reference);
    }
    assert_eq!(own.file, ALL.reference);
}

#[test]
fn fewer_bits_are_further_from_the_reference() {
    for pair in ALL.models.windows(2) {
        let (more, fewer) = (&pair[0], &pair[1]);
        assert!(more.file.bytes > fewer.file.bytes && more.file.bits_per_weight() > fewer.file.bits_per_weight());
        assert!(more.all.kl_mean < fewer.all.kl_mean && more.all.kl_99 < fewer.all.kl_99);
        assert!(more.all.top1 > fewer.all.top1 && more.image_codes() > fewer.image_codes());
        for (a, b) in more.tasks.iter().zip(&fewer.tasks) {
            assert!(a.all.kl_mean < b.all.kl_mean, "{:?} {:?}", a.task, a.view);
        }
    }
    let worst = &ALL.models[3];
    assert!(worst.all.committed_ids.unwrap() < 1.0 && worst.all.committed_ids <= worst.all.committed_set);
    assert!(worst.drawings.unwrap().agreement() < 1.0);
    assert_ne!(worst.all.truth_nats, worst.all.truth_nats_reference);
}

#[test]
fn every_task_and_ratio_is_told_and_nothing_counts_twice() {
    let all = &ALL.models[1];
    let names: Vec<_> = all.tasks.iter().map(|t| (t.task.name(), t.view.name())).collect();
    let texts = ["chat", "think", "question", "think-question"].map(|name| (name, "sampler"));
    assert_eq!(names[..4], texts);
    assert_eq!(names[4..], [("draw", "sampler"), ("draw", "conditional"), ("draw", "unconditional")]);
    assert_eq!((ALL.samples, ALL.states), (6, 18));
    for task in &all.tasks {
        let sum = |of: fn(&mmada_quantize::Summary) -> u64| task.ratios.iter().map(|r| of(&r.summary)).sum::<u64>();
        assert_eq!((sum(|s| s.states), sum(|s| s.positions)), (task.all.states, task.all.positions));
        let mean: f64 = task.ratios.iter().map(|r| r.summary.kl_mean * r.summary.positions as f64).sum();
        assert!((mean / task.all.positions as f64 - task.all.kl_mean).abs() < 1e-12);
        assert!(task.ratios.iter().all(|r| r.to - r.from == 0.25 && r.summary.kl_99 <= r.summary.kl_max));
    }
    let sampler = || all.tasks.iter().filter(|t| t.view == View::Sampler).map(|t| &t.all);
    assert_eq!(sampler().map(|s| s.positions).sum::<u64>(), ALL.positions);
    assert_eq!((all.all.positions, all.all.states), (ALL.positions, 18));
}

#[test]
fn the_divergence_is_that_of_the_logits_that_the_interface_gives() {
    let exact = ContextOptions { compute: Compute::Exact, ..ContextOptions::default() };
    let open = |name| Context::new(&Model::open(model(name)).unwrap(), exact.clone()).unwrap();
    let (reference, quantized) = (open("F16"), open("Q2_K"));
    let states = StateOptions { per_sample: 3, ..StateOptions::default() };
    let states = collect_states(&reference, &[file("data.jsonl")], &states, &mut |_, _| Ok(())).unwrap();
    for wanted in [Task::Think, Task::Draw] {
        let (mut kl, mut count, mut same) = (0.0, 0, 0);
        for state in states.iter().filter(|state| state.task == wanted) {
            let (a, b) = (state.logits(&reference).unwrap(), state.logits(&quantized).unwrap());
            let width = state.vocab.len();
            for (a, b) in a.chunks(width).zip(b.chunks(width)) {
                let softmax = |row: &[f32]| {
                    let exp: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
                    let sum: f64 = exp.iter().sum();
                    exp.into_iter().map(|x| x / sum).collect::<Vec<f64>>()
                };
                let (p, q) = (softmax(a), softmax(b));
                kl += p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
                let best = |row: &[f64]| (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap();
                same += usize::from(best(&p) == best(&q));
                count += 1;
            }
        }
        let told = &task(&ALL, 3, wanted, View::Sampler).all;
        assert_eq!(told.positions, count as u64);
        assert!((told.kl_mean - kl / f64::from(count)).abs() < 1e-9 * told.kl_mean, "{} {kl}", told.kl_mean);
        assert!((told.top1 - same as f64 / f64::from(count)).abs() < 1e-12);
    }
}

#[test]
fn results_depend_neither_on_threads_nor_on_the_other_files() {
    let one = compared(&CompareOptions { threads: 1, ..options(&["Q4_K_M"]) });
    let three = compared(&CompareOptions { threads: 3, ..options(&["Q4_K_M"]) });
    assert_eq!(one, three);
    assert_eq!(one.models[0], ALL.models[2]);
}

#[test]
fn another_seed_gives_other_states() {
    let data = file("chat.jsonl");
    fs::write(&data, DATA.lines().next().unwrap()).unwrap();
    let seeded = |seed| {
        let asked = CompareOptions { data: vec![data.clone()], seed, ..options(&["Q4_K_M"]) };
        compared(&asked).models[0].all.clone()
    };
    assert_eq!(seeded(1), seeded(1));
    assert_ne!(seeded(1), seeded(7));
}

#[test]
fn without_data_the_reference_itself_gives_the_states() {
    let cancel = Arc::new(AtomicBool::new(false));
    let asked = CompareOptions { data: vec![], cancel: Some(cancel.clone()), ..options(&["Q8_0"]) };
    let samples = own_samples(&Model::open(model("F16")).unwrap()).len();
    let mut seen = 0;
    // It would take long. That it stops is what is asked for.
    let stopped = compare(&asked, &mut |progress| {
        let Progress::Steps { what: "making states", total, .. } = progress else { panic!("{progress:?}") };
        assert_eq!(total, samples);
        seen += 1;
        cancel.store(seen == 2, Ordering::Relaxed);
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(seen, 2);
}

#[test]
fn a_comparison_can_be_stopped_at_all_times() {
    for wanted in ["making states", "comparing logits", "drawing"] {
        let cancel = Arc::new(AtomicBool::new(false));
        let data = vec![file("drawing.jsonl")];
        fs::write(&data[0], DATA.lines().last().unwrap()).unwrap();
        let asked = CompareOptions { data, cancel: Some(cancel.clone()), ..options(&["Q8_0"]) };
        let mut last = "";
        let stopped = compare(&asked, &mut |progress| {
            let Progress::Steps { what, .. } = progress else { panic!("{progress:?}") };
            assert_ne!(last, wanted, "it went on");
            cancel.store(what == wanted, Ordering::Relaxed);
            last = ["making states", "comparing logits", "drawing"].into_iter().find(|w| *w == what).unwrap();
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "{wanted}");
    }
}

#[test]
fn json_has_everything_that_the_library_reports() {
    let (f16, q2, data) = (model("F16"), model("Q2_K"), file("data.jsonl"));
    let (f16, q2, data) = (f16.to_str().unwrap(), q2.to_str().unwrap(), data.to_str().unwrap());
    let output = run(&[f16, q2, "--data", data, "--states", "3", "--drawings", "1", "--json", "-t", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["compute"], &json["states"], &json["samples"]), (&"exact".into(), &18.into(), &6.into()));
    assert_eq!((&json["seed"], &json["data"][0], &json["states_per_sample"]), (&0.into(), &data.into(), &3.into()));
    assert!(json["seconds"].as_f64().unwrap() > 0.0 && json["positions"] == ALL.positions);
    assert_eq!(json["reference"]["file"], f16);
    let (told, own) = (&json["models"][0], &ALL.models[3]);
    assert_eq!((&told["file"], told["bytes"].as_u64()), (&q2.into(), Some(fs::metadata(q2).unwrap().len())));
    assert_eq!(told["bits_per_weight"].as_f64(), Some(own.file.bits_per_weight()));
    assert_eq!(told["image_codes"].as_f64(), own.image_codes());
    assert_eq!(told["drawings"]["agreement"].as_f64(), own.drawings.map(|d| d.agreement()));
    let summaries = |told: &Value, own: &mmada_quantize::Summary| {
        let numbers = [
            ("kl_mean", own.kl_mean),
            ("kl_median", own.kl_median),
            ("kl_99", own.kl_99),
            ("kl_max", own.kl_max),
            ("top1", own.top1),
            ("committed_set", own.committed_set.unwrap()),
            ("committed_ids", own.committed_ids.unwrap()),
            ("truth_nats", own.truth_nats.unwrap()),
            ("truth_nats_reference", own.truth_nats_reference.unwrap()),
            ("positions", own.positions as f64),
            ("states", own.states as f64),
        ];
        for (key, value) in numbers {
            // parsing a decimal number may be off by its last bit
            assert!((told[key].as_f64().unwrap() - value).abs() <= 1e-14 * value, "{key}");
        }
        assert_eq!(told.as_object().unwrap().len(), numbers.len());
    };
    summaries(&told["all"], &own.all);
    assert_eq!(told["tasks"].as_array().unwrap().len(), own.tasks.len());
    for (told, own) in told["tasks"].as_array().unwrap().iter().zip(&own.tasks) {
        assert_eq!((&told["task"], &told["view"]), (&own.task.name().into(), &own.view.name().into()));
        summaries(&told["all"], &own.all);
        assert_eq!(told["ratios"].as_array().unwrap().len(), own.ratios.len());
        for (told, own) in told["ratios"].as_array().unwrap().iter().zip(&own.ratios) {
            assert_eq!((told["from"].as_f64(), told["to"].as_f64()), (Some(own.from), Some(own.to)));
            summaries(&told["summary"], &own.summary);
        }
    }
}

#[test]
fn the_table_goes_to_stdout_and_the_plot_to_its_file() {
    let plot = file("plot.png");
    let models = TYPES.map(model);
    let mut args: Vec<&str> = vec![models[0].to_str().unwrap()];
    args.extend(models[1..].iter().map(|path| path.to_str().unwrap()));
    let data = file("data.jsonl");
    args.extend([
        "--plot",
        plot.to_str().unwrap(),
        "--states",
        "1",
        "--drawings",
        "0",
        "--data",
        data.to_str().unwrap(),
    ]);
    let output = run(&args);
    let (table, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("compared in ") && said.lines().count() == 1, "{said}");
    for name in ["Q8_0", "Q4_K_M", "Q2_K"] {
        let lines: Vec<&str> = table.lines().filter(|line| line.starts_with(&format!("shapes-{name}.gguf"))).collect();
        assert_eq!(lines.len(), 2, "{table}"); // among the files, and above its tasks
        assert_eq!(lines[0].split_whitespace().count(), 11, "{table}");
    }
    for task in Task::ALL {
        let name = format!("  {:20}", task.name());
        assert_eq!(table.lines().filter(|line| line.starts_with(&name)).count(), 3, "{table}");
    }
    let picture = mmada::image::open(&plot).unwrap();
    let blue = picture.pixels().filter(|p| p.0 == [31, 98, 184]).count();
    let white = picture.pixels().filter(|p| p.0 == [255, 255, 255]).count();
    // three dots of 14 pixels across, none of them hidden, and room around them
    assert!((3 * 100..=3 * 160).contains(&blue), "{blue}");
    assert!(white > picture.width() as usize * picture.height() as usize / 2);
}

/// A model whose token 300 begins otherwise.
fn other_token() -> PathBuf {
    let mut bytes = fs::read(model("Q8_0")).unwrap();
    let header = Header::parse(&bytes, "q8_0").unwrap();
    let token = header.strings(&bytes, "tokenizer.ggml.tokens").unwrap()[300];
    let at = token.as_ptr() as usize - bytes.as_ptr() as usize;
    assert!(token.is_ascii());
    bytes[at] = b'?';
    let path = file("token.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn models_that_do_not_match_are_refused_with_the_difference() {
    let changed = |name: &str, what: &str| {
        let path = file(name);
        let overrides = vec![Override::parse(what).unwrap()];
        let copy = QuantizeOptions {
            types: None,
            overrides,
            ..QuantizeOptions::new(model("Q8_0"), &path, Recipe::from_name("Q8_0").unwrap())
        };
        quantize(&copy, &mut |_| {}).unwrap();
        path
    };
    let tiny = file("tiny.gguf");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny");
    convert(&ConvertOptions::new(golden, &tiny, Recipe::from_name("F16").unwrap()), &mut |_| {}).unwrap();
    for (other, reason) in [
        (tiny, "number of layers is 2, but 5"),
        (changed("theta.gguf", "mmada.rope.freq_base=float:10000"), "base of the rotations is 10000, but 500000"),
        (changed("mask.gguf", "mmada.token.mask=int:496"), "id of [MASK] is 496, but 497"),
        (other_token(), "token 300 is \"?"),
    ] {
        let name = other.display().to_string();
        // named also where it is not the first
        let asked = CompareOptions { models: vec![model("Q8_0"), other], ..options(&[]) };
        let error = compare(&asked, &mut |_| panic!("work before checks")).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)));
        let error = error.to_string();
        assert!(error.starts_with(&name) && error.contains("shapes-F16.gguf") && error.contains(reason), "{error}");
    }
}

#[test]
fn bad_input_ends_with_exit_code_2_and_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, content: &str| {
        fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let (f16, q8) = (model("F16"), model("Q8_0"));
    let (f16, q8) = (f16.to_str().unwrap(), q8.to_str().unwrap());
    let no_picture = written("picture.jsonl", r#"{"prompt": "What is it?", "answer": "x", "image": "none.png"}"#);
    let bad = written("bad.jsonl", "{\"prompt\": \"x\"}\n{\"prompt\": 5}\n");
    let picture = folder.path().join("seen.png");
    mmada::image::save(&RgbImage::from_pixel(64, 64, [9, 8, 7].into()), &picture).unwrap();
    let picture = picture.to_str().unwrap();
    let seen = written("seen.jsonl", r#"{"prompt": "What is it?", "answer": "x", "image": "seen.png"}"#);
    let (broken, empty) = (written("broken.jsonl", "{\"prompt\""), written("empty.txt", "\n"));
    let no_model = written("no.gguf", "no model");
    for (args, reason) in [
        (vec!["none.gguf", q8], "none.gguf"),
        (vec![f16, "none.gguf"], "none.gguf"),
        (vec![f16, q8, no_model.as_str()], "no.gguf"),
        (vec![f16, q8, "--data", "none.jsonl"], "none.jsonl"),
        (vec![f16, q8, "--data", &bad], "line 2"),
        (vec![f16, q8, "--data", &broken], "broken.jsonl"),
        (vec![f16, q8, "--data", &empty], "empty.txt"),
        (vec![f16, q8, "--data", &no_picture], "none.png"),
        (vec![f16, q8, "--states", "0"], "0 states"),
        (vec![f16, q8, "--plot", "none/plot.png"], "none/plot.png"),
        (vec![f16, q8, "--plot", "plot.jpg"], ".png"),
        (vec![f16, q8, "--data", &seen, "--plot", picture], "would replace"),
    ] {
        let output = run(&args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?} {said}");
        assert!(output.stdout.is_empty());
        assert!(said.starts_with("error: ") && said.lines().count() == 1 && said.contains(reason), "{said}");
    }
    assert_eq!(mmada::image::open(picture).unwrap().get_pixel(5, 5).0, [9, 8, 7]);
    assert_eq!(run(&[f16]).status.code(), Some(2));
}

#[test]
fn damaged_weights_are_told_of_the_file_that_has_them() {
    let mut bytes = fs::read(model("F16")).unwrap();
    let header = Header::parse(&bytes, "f16").unwrap();
    let at = header.tensor("output_norm.weight").unwrap().range.start;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let damaged = file("damaged.gguf");
    fs::write(&damaged, bytes).unwrap();
    let asked = CompareOptions { models: vec![damaged], ..options(&[]) };
    let error = compare(&asked, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("damaged.gguf") && error.contains("not finite"), "{error}");
}

#[test]
#[cfg(unix)]
fn an_interrupted_comparison_exits_with_130_and_prints_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("data.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmada-quantize"))
        .arg("compare")
        .args([model("F16"), model("Q8_0")])
        .args(["--states", "100000", "--data"])
        .arg(&pipe)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Who reads the data has begun to work.
    let feeding = std::thread::spawn(move || fs::write(pipe, r#"{"task": "draw", "prompt": "a red circle"}"#).unwrap());
    while !feeding.is_finished() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = Command::new("sh").args(["-c", "kill -INT \"$0\"", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty() && text(&output.stderr) == "error: cancelled\n");
}
