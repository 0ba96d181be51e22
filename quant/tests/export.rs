//! `export`: what is written equals what llama.cpp's converter writes, and runs here as the file it came from.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mmada::gguf::{GgmlType, Header, MetaArray, MetaValue};
use mmada::tokenizer::Special;
use mmada::{Compute, Context, ContextOptions, Error, Message, Model, Result, SequenceRequest, TextRequest};
use mmada_quantize::{
    ConvertOptions, ExportOptions, Progress, QuantizeOptions, Report, Shape, SynthOptions, convert, export, quantize,
    synth,
};
use serde_json::{Value, json};
use support::Fixture;
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A model file and its text part.
struct Pair {
    folder: TempDir,
    notes: Vec<String>,
    report: Report,
}

impl Pair {
    fn of(make: impl FnOnce(&Path) -> Result<()>) -> Pair {
        let folder = TempDir::new().unwrap();
        make(&folder.path().join("in.gguf")).unwrap();
        let options = ExportOptions::new(folder.path().join("in.gguf"), folder.path().join("out.gguf"));
        let (report, notes) = run(&options).unwrap();
        Pair { folder, notes, report }
    }

    fn converted(name: &str, dtype: GgmlType) -> Pair {
        Pair::of(|to| convert(&ConvertOptions::new(golden(name), to, dtype), &mut |_| {}).map(drop))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self, name: &str) -> Model {
        Model::open(self.path(name)).unwrap()
    }

    /// The logits of text are the same, bit for bit, in both files.
    fn assert_same_logits(&self) {
        let (a, b) = (self.model("in.gguf"), self.model("out.gguf"));
        let text = a.tokenizer().unwrap().len() as u32;
        assert_eq!((b.vocabulary().rows, b.vocabulary().text), (text, text));
        for length in [1usize, 37, 130] {
            let ids: Vec<u32> = (0..length as u32).map(|i| (i * 59 + i * i * 13 + 7) % text).collect();
            let (x, y) = (logits(&a, &ids, text), logits(&b, &ids, text));
            assert!(x.iter().any(|x| x.abs() > 1e-3), "nothing was computed");
            assert_eq!(x, y, "{length} tokens");
        }
    }
}

fn run(options: &ExportOptions) -> Result<(Report, Vec<String>)> {
    let mut notes = Vec::new();
    let report = export(options, &mut |event| {
        if let Progress::Note(note) = event {
            notes.push(note.to_owned());
        }
    })?;
    Ok((report, notes))
}

/// The sentence with which an export fails. Nothing may be left behind.
fn refusal(options: &ExportOptions) -> String {
    let error = run(options).expect_err("it succeeded").to_string();
    let folder = options.output.parent().unwrap();
    let left = fs::read_dir(folder).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(left, 0, "{error}");
    assert!(!error.contains('\n') && error.len() < 500, "not one sentence: {error}");
    error
}

fn logits(model: &Model, ids: &[u32], vocab: u32) -> Vec<f32> {
    let rows: Vec<usize> = (0..ids.len()).collect();
    let options = ContextOptions { threads: 2, compute: Compute::Exact, ..Default::default() };
    let request = SequenceRequest { ids, rows: &rows, vocab: 0..vocab };
    Context::new(model, options).unwrap().logits(&[request]).unwrap().remove(0)
}

#[test]
fn the_text_part_computes_what_the_whole_file_does_in_every_type() {
    for dtype in [GgmlType::F32, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_K] {
        let pair = Pair::converted("tiny", dtype);
        pair.assert_same_logits();
        let (before, after) = (pair.model("in.gguf"), pair.model("out.gguf"));
        for info in &after.header().tensors {
            assert_eq!(info.dtype, before.header().tensor(&info.name).unwrap().dtype, "{}", info.name);
        }
    }
    Pair::converted("grouped", GgmlType::F16).assert_same_logits();
}

#[test]
fn the_file_is_what_llama_cpp_s_converter_writes() {
    let pair = Pair::converted("grouped", GgmlType::BF16);
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (Header::parse(&bytes, "x.gguf").unwrap(), bytes)
    };
    let (theirs, their_bytes) = read(golden("llada/grouped.gguf"));
    let (ours, our_bytes) = read(pair.path("out.gguf"));
    assert_eq!(ours.tensors.len(), theirs.tensors.len());
    for t in &theirs.tensors {
        let (a, b) = (ours.require_tensor(&t.name).unwrap().data(&our_bytes), t.data(&their_bytes));
        assert_eq!(ours.tensor(&t.name).unwrap().dtype, t.dtype, "{}", t.name);
        // their vocabulary has six rows without tokens at its end
        let rows = if t.rows() == 504 { 498 } else { t.rows() };
        assert_eq!(a, &b[..b.len() / t.rows() * rows], "{}", t.name);
    }
    // and names of its own: of the model, and of a template that was given to it
    let free = ["general.name", "general.size_label", "general.quantization_version", "tokenizer.chat_template"];
    for (key, _) in theirs.metadata.iter().filter(|(key, _)| !free.contains(&key.as_str())) {
        let shorter = |value: MetaValue| match value {
            MetaValue::Array(MetaArray::String(mut v)) => {
                v.truncate(498);
                MetaValue::from(v)
            }
            MetaValue::Array(MetaArray::I32(v)) => MetaValue::from(v[..498].to_vec()),
            MetaValue::U32(504) => MetaValue::U32(498),
            value => value,
        };
        let their = shorter(theirs.owned(&their_bytes, key).unwrap());
        assert_eq!(ours.owned(&our_bytes, key).unwrap(), their, "{key}");
    }
}

#[test]
fn the_tokenizer_survives_and_questions_have_the_same_answers() {
    let pair =
        Pair::of(|to| fs::copy(golden("../../models/mmada-shapes.gguf"), to).map(drop).map_err(|e| Error::io("", e)));
    let (before, after) = (pair.model("in.gguf"), pair.model("out.gguf"));
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(golden("tiny/tokenizer_cases.json")).unwrap()).unwrap();
    for case in &cases {
        let (text, ids) = (case["text"].as_str().unwrap(), case["ids"].clone());
        let ids: Vec<u32> = serde_json::from_value(ids).unwrap();
        let tokenizer = after.tokenizer().unwrap();
        assert_eq!(tokenizer.encode(text, Special::Parse).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true), case["decoded"].as_str().unwrap());
        let plain = before.tokenizer().unwrap().encode(text, Special::Plain).unwrap();
        assert_eq!(tokenizer.encode(text, Special::Plain).unwrap(), plain, "{text:?}");
    }
    for thinking in [true, false] {
        let answer = |model: &Model| {
            let options = model.text_options(thinking, false);
            let messages = vec![Message::user("What is 17 + 25?")];
            let request = TextRequest { messages, image: None, squash: false, thinking, options };
            let mut generation = Context::new(model, ContextOptions::default()).unwrap().text(request).unwrap();
            while !generation.step().unwrap().done {}
            generation.text().unwrap()
        };
        let (a, b) = (answer(&before), answer(&after));
        assert_eq!((a.answer.as_str(), &a), ("42", &b), "with the defaults of the file, and its end");
    }
    let roles = |m: &Model| [m.vocabulary().bos, m.vocabulary().eos, m.vocabulary().eot, m.vocabulary().mask];
    assert_eq!(roles(&before), roles(&after));
}

#[test]
fn what_is_left_out_is_said() {
    let pair = Pair::converted("grouped", GgmlType::F16);
    assert_eq!(
        pair.notes,
        ["left out: the image tokenizer (124 tensors), 70 of 568 rows of the vocabulary that are no text"]
    );
    assert_eq!((pair.report.tensors, pair.report.has_images), (30, false));
    assert_eq!(pair.report.file_bytes, fs::metadata(pair.path("out.gguf")).unwrap().len());
    let keys = pair.model("out.gguf").header().metadata.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    assert!(!keys.iter().any(|key| key.contains("image") || key.contains("huggingface") || key.contains("draw")));
    let text_only = Pair::of(|to| {
        let shape = Shape { vq: None, codes: 0, ..Shape::tiny() };
        synth(&SynthOptions::new(shape, to, GgmlType::F16), &mut |_| {}).map(drop)
    });
    text_only.assert_same_logits();
    assert!(text_only.notes.iter().all(|note| !note.contains("image tokenizer")), "{:?}", text_only.notes);
}

#[test]
fn a_tied_embedding_stays_tied() {
    let fixture = Fixture::tiny();
    fixture.edit("config.json", |c| c["weight_tying"] = true.into());
    fixture.edit_backbone(|tensors| drop(tensors.remove("model.transformer.ff_out.weight")));
    let pair =
        Pair::of(|to| convert(&ConvertOptions::new(fixture.dir.path(), to, GgmlType::BF16), &mut |_| {}).map(drop));
    assert!(pair.model("out.gguf").header().tensor("output.weight").is_none());
    pair.assert_same_logits();
}

#[test]
fn any_part_of_a_split_file_will_do() {
    let pair = Pair::converted("tiny", GgmlType::F16);
    let parts = QuantizeOptions {
        types: None,
        split_max_size: Some(1_000_000),
        ..QuantizeOptions::new(pair.path("in.gguf"), pair.path("part.gguf"), GgmlType::F16)
    };
    let files = quantize(&parts, &mut |_| {}).unwrap().files;
    assert!(files.len() > 1);
    run(&ExportOptions::new(&files[1], pair.path("joined.gguf"))).unwrap();
    assert_eq!(fs::read(pair.path("joined.gguf")).unwrap(), fs::read(pair.path("out.gguf")).unwrap());
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    let pair = Pair::converted("grouped", GgmlType::Q8_0);
    let again = refusal(&ExportOptions::new(pair.path("out.gguf"), pair.path("nowhere/x.gguf")));
    assert!(again.contains("out.gguf: is of architecture llada already"), "{again}");
    let before = fs::read(pair.path("in.gguf")).unwrap();
    let own = run(&ExportOptions::new(pair.path("in.gguf"), pair.path("in.gguf"))).unwrap_err().to_string();
    assert!(own.contains("would replace"), "{own}");
    assert_eq!(fs::read(pair.path("in.gguf")).unwrap(), before);
    let out = TempDir::new().unwrap();
    let to = out.path().join("x.gguf");
    let options = ExportOptions::new(pair.path("in.gguf"), &to);
    let pre = refusal(&ExportOptions { pre: Some("qwen".into()), ..options.clone() });
    assert!(pre.contains("--pre \"qwen\" is not one of qwen2, "), "{pre}");
    let stop = Some(Arc::new(AtomicBool::new(true)));
    let stopped = run(&ExportOptions { cancel: stop, ..options.clone() }).unwrap_err();
    assert!(matches!(stopped, Error::Cancelled));
    assert!(refusal(&ExportOptions { input: "nowhere.gguf".into(), ..options.clone() }).contains("nowhere.gguf"));
    fs::write(pair.path("cut.gguf"), &before[..before.len() / 2]).unwrap();
    refusal(&ExportOptions { input: pair.path("cut.gguf"), ..options });
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn a_tokenizer_that_llama_cpp_could_not_follow_is_refused() {
    let out = TempDir::new().unwrap();
    let exported = |change: &dyn Fn(&mut Value), pre: Option<&str>| {
        let fixture = Fixture::tiny();
        fixture.edit("tokenizer.json", change);
        convert(&fixture.options(GgmlType::F16), &mut |_| {}).unwrap();
        let options = ExportOptions::new(fixture.output(), out.path().join("x.gguf"));
        run(&ExportOptions { pre: pre.map(str::to_owned), ..options }).map(|_| ())
    };
    let digits =
        |t: &mut Value| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\p{N}{1,2}".into();
    let refused = exported(&digits, None).unwrap_err().to_string();
    assert!(refused.contains("out.gguf: the tokenizer splits texts") && refused.contains("--pre"), "{refused}");
    exported(&digits, Some("llama-bpe")).unwrap();
    let header = Header::parse(&fs::read(out.path().join("x.gguf")).unwrap(), "x.gguf").unwrap();
    assert_eq!(header.str("tokenizer.ggml.pre").unwrap(), "llama-bpe");
    fs::remove_file(out.path().join("x.gguf")).unwrap();
    for pre in [None, Some("qwen2")] {
        let normalized = exported(&|t| t["normalizer"] = json!({"type": "NFC"}), pre).unwrap_err().to_string();
        assert!(normalized.contains("normalizes"), "{normalized}");
    }
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}
