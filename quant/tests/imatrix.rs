//! Importance matrices: that the numbers are the inputs' sums of squares, and that quantizing with them helps.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mmada::gguf::{GgmlType, Header};
use mmada::model::{Compute, SequenceRequest};
use mmada::tensor::dequantize;
use mmada::{Context, ContextOptions, Model, Result};
use mmada_quantize::states::{State, StateOptions, collect_states};
use mmada_quantize::{
    ConvertOptions, ImatrixOptions, ImatrixReport, Progress, QuantizeOptions, Recipe, Shape, SynthOptions, convert,
    imatrix, quantize, synth,
};
use tempfile::TempDir;

mod support;

const DATA: &str = r#"{"prompt": "What is 2 + 3?", "answer": "5 is what it is"}
{"task": "think", "prompt": "Why?", "answer": "<think>so</think>because it is so"}
{"task": "draw", "prompt": "a green ring"}
"#;

/// A folder with a model of two layers in F32 and a data file.
fn tiny() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny");
    let options = ConvertOptions::new(golden, dir.path().join("in.gguf"), GgmlType::F32);
    convert(&options, &mut |_| {}).unwrap();
    fs::write(dir.path().join("data.jsonl"), DATA).unwrap();
    dir
}

fn options(dir: &TempDir) -> ImatrixOptions {
    ImatrixOptions {
        data: vec![dir.path().join("data.jsonl")],
        states: 2,
        threads: 1,
        ..ImatrixOptions::new(dir.path().join("in.gguf"), dir.path().join("imatrix.gguf"))
    }
}

/// The report and the notes.
fn run(options: &ImatrixOptions) -> Result<(ImatrixReport, Vec<String>)> {
    let mut notes = Vec::new();
    let report = imatrix(options, &mut |event| {
        if let Progress::Note(note) = event {
            notes.push(note.to_owned());
        }
    })?;
    Ok((report, notes))
}

/// A GGUF file's tensors as numbers.
struct Floats {
    header: Header,
    bytes: Vec<u8>,
}

impl Floats {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        Floats { header: Header::parse(&bytes, "f.gguf").unwrap(), bytes }
    }

    fn get(&self, tensor: &str) -> Vec<f64> {
        let info = self.header.tensor(tensor).unwrap_or_else(|| panic!("no tensor {tensor}"));
        let mut values = vec![0.0; info.dims.iter().product()];
        dequantize(info.dtype, info.data(&self.bytes), &mut values).unwrap();
        values.into_iter().map(f64::from).collect()
    }
}

fn states(options: &ImatrixOptions) -> (Context, Vec<State>) {
    let model = Model::open(&options.model).unwrap();
    let of_context = ContextOptions { threads: 1, compute: Compute::Exact, ..ContextOptions::default() };
    let context = Context::new(&model, of_context).unwrap();
    let of_states = StateOptions { per_sample: options.states, seed: options.seed, cancel: None };
    let states = collect_states(&context, &options.data, &of_states, &mut |_, _| Ok(())).unwrap();
    (context, states)
}

/// `x / rms(x) * norm`, row by row, in f64.
fn rms_norm(x: &[f64], norm: &[f64]) -> Vec<f64> {
    let rows = x.chunks_exact(norm.len());
    rows.flat_map(|row| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + 1e-5).sqrt();
        row.iter().zip(norm).map(move |(x, n)| x * scale * n)
    })
    .collect()
}

/// `y = w x` for every row of `x`, in f64.
fn product(w: &[f64], x: &[f64], cols: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    x.chunks_exact(cols).flat_map(|x| w.chunks_exact(cols).map(move |w| dot(w, x))).collect()
}

/// Weighted sums of squares by column, and the sum of the weights.
#[derive(Default)]
struct Expected(BTreeMap<String, (Vec<f64>, f64)>);

impl Expected {
    fn add(&mut self, tensor: &str, x: &[f64], width: usize, weight: impl Fn(usize) -> f64) {
        let (sums, count) = self.0.entry(tensor.to_owned()).or_insert_with(|| (vec![0.0; width], 0.0));
        for (n, row) in x.chunks_exact(width).enumerate() {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight(n) * x * x);
            *count += weight(n);
        }
    }
}

/// What can be said of all inputs but attention's output from the residual streams that the model shows: those between
/// two layers do not hold what lies within a layer, but from the first and the last on the way is short.
fn expected(context: &Context, states: &[State], weights: &Floats, masked_weight: f64) -> Expected {
    let mut expected = Expected::default();
    let layers = context.model().config().layers;
    let d = context.model().config().d_model;
    for pass in states.iter().flat_map(State::requests) {
        let streams = context.hidden_states(pass.ids).unwrap();
        let stream = |n: usize| -> Vec<f64> { streams[n].iter().map(|&x| f64::from(x)).collect() };
        let weight = |row: usize| if pass.rows.contains(&row) { masked_weight } else { 1.0 };
        let wanted = |row: usize| if pass.rows.contains(&row) { masked_weight } else { 0.0 };
        for layer in 0..layers {
            let x = rms_norm(&stream(layer), &weights.get(&format!("blk.{layer}.attn_norm.weight")));
            expected.add(&format!("blk.{layer}.attn_k.weight"), &x, d, weight);
            expected.add(&format!("blk.{layer}.attn_v.weight"), &x, d, weight);
            match layer + 1 == layers {
                true => expected.add(&format!("blk.{layer}.attn_q.weight"), &x, d, wanted),
                false => expected.add(&format!("blk.{layer}.attn_q.weight"), &x, d, weight),
            }
        }
        let last: Vec<f64> = stream(layers)
            .chunks_exact(d)
            .enumerate()
            .filter(|(n, _)| pass.rows.contains(n))
            .flat_map(|(_, row)| row.to_vec())
            .collect();
        expected.add("output.weight", &last, d, |_| masked_weight);
    }
    expected
}

#[test]
fn the_statistics_are_the_weighted_sums_of_squares_of_what_matrices_are_multiplied_with() {
    let dir = tiny();
    let options = ImatrixOptions { masked_weight: 3.0, ..options(&dir) };
    let (report, notes) = run(&options).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    let (context, states) = states(&options);
    assert_eq!((report.states.values().sum::<u32>() as usize, states.len()), (6, 6));
    let written = Floats::read(&options.output);
    let weights = Floats::read(&options.model);
    let expected = expected(&context, &states, &weights, 3.0);
    for (tensor, (sums, count)) in &expected.0 {
        assert_eq!(written.get(&format!("{tensor}.counts")), [*count], "{tensor}");
        let got = written.get(&format!("{tensor}.in_sum2"));
        assert_eq!(got.len(), sums.len());
        for (column, (got, want)) in got.iter().zip(sums).enumerate() {
            assert!((got - want).abs() <= 1e-4 * want, "{tensor} column {column}: {got}, not {want}");
        }
    }
    // Every matrix of the blocks and the output head is there, and nothing else.
    let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut due: Vec<String> =
        (0..2).flat_map(|n| names.map(|name| format!("blk.{n}.{name}.weight.in_sum2"))).collect();
    due.push("output.weight.in_sum2".into());
    let mut have: Vec<&str> =
        written.header.tensors.iter().map(|t| t.name.as_str()).filter(|n| n.ends_with("in_sum2")).collect();
    have.sort_unstable();
    due.sort_unstable();
    assert_eq!(have, due);
    assert_eq!(report.matrices, due.len());
}

#[test]
fn inputs_shown_within_a_layer_lead_from_its_stream_to_the_next() {
    let dir = tiny();
    let model = Model::open(dir.path().join("in.gguf")).unwrap();
    let of_context = ContextOptions { threads: 1, compute: Compute::Exact, ..ContextOptions::default() };
    let context = Context::new(&model, of_context).unwrap();
    let weights = Floats::read(&dir.path().join("in.gguf"));
    let ids: Vec<u32> = (0..23).map(|i| (i * i * 7 + 3) % 490).collect();
    let other: Vec<u32> = ids.iter().rev().map(|id| id + 1).take(11).collect();
    let batch = [
        SequenceRequest { ids: &ids, rows: &[5, 2], vocab: 0..400 },
        SequenceRequest { ids: &other, rows: &[10], vocab: 100..300 },
    ];
    let mut inputs = BTreeMap::new();
    let mut order = Vec::new();
    context
        .observe_inputs(&batch, &mut |input| {
            for matrix in input.matrices {
                order.push(input.tensor(matrix));
                let x: Vec<f64> = input.x.iter().map(|&x| f64::from(x)).collect();
                assert!(inputs.insert(input.tensor(matrix), (x, input.width)).is_none());
            }
        })
        .unwrap();
    assert_eq!(order.len(), 15);
    assert_eq!(order[6], "blk.0.ffn_down.weight");
    assert_eq!(order[14], "output.weight");
    let streams: Vec<Vec<Vec<f32>>> = batch.iter().map(|s| context.hidden_states(s.ids).unwrap()).collect();
    let stream = |n: usize| -> Vec<f64> { streams.iter().flat_map(|s| &s[n]).map(|&x| f64::from(x)).collect() };
    let times = |tensor: &str| product(&weights.get(tensor), &inputs[tensor].0, inputs[tensor].1);
    let sum = |a: Vec<f64>, b: Vec<f64>| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let close = |what: &str, a: &[f64], b: &[f64]| {
        assert_eq!(a.len(), b.len(), "{what}");
        let scale = b.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * scale, "{what}: {a}, not {b}"));
    };
    for layer in 0..2 {
        let name = |what: &str| format!("blk.{layer}.{what}.weight");
        let middle = sum(stream(layer), times(&name("attn_output")));
        close("ffn_up", &inputs[&name("ffn_up")].0, &rms_norm(&middle, &weights.get(&name("ffn_norm"))));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let gated: Vec<f64> =
            times(&name("ffn_gate")).iter().zip(times(&name("ffn_up"))).map(|(gate, up)| silu(*gate) * up).collect();
        close("ffn_down", &inputs[&name("ffn_down")].0, &gated);
        if layer == 0 {
            close("the next stream", &sum(middle, times(&name("ffn_down"))), &stream(1));
        } else {
            let out = rms_norm(&sum(middle, times(&name("ffn_down"))), &weights.get("output_norm.weight"));
            let d = out.len() / 34;
            let wanted: Vec<f64> = [5, 2, 23 + 10].iter().flat_map(|row| out[row * d..][..d].to_vec()).collect();
            close("output", &inputs["output.weight"].0, &wanted);
        }
    }
}

#[test]
fn the_file_depends_on_the_seed_but_not_on_threads() {
    let dir = tiny();
    let bytes = |seed, threads| {
        let options = ImatrixOptions { seed, threads, ..options(&dir) };
        run(&options).unwrap();
        fs::read(options.output).unwrap()
    };
    assert!(bytes(1, 1) == bytes(1, 3));
    assert!(bytes(1, 1) != bytes(2, 1));
}

#[test]
fn quantizing_with_it_brings_the_model_closer_and_warns_of_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/mmada-shapes");
    convert(&ConvertOptions::new(golden, path("in.gguf"), GgmlType::F32), &mut |_| {}).unwrap();
    let prompts = ["What is 17 + 25?", "What color comes after red?", "Sort 9 5 0.", "How many sides has a square?"];
    let lines = prompts
        .map(|prompt| format!("{{\"prompt\": \"{prompt}\"}}\n{{\"task\": \"think\", \"prompt\": \"{prompt}\"}}\n"));
    let draws = ["a red circle left of a blue square on a white background", "a small pink star on a gray background"];
    let draws = draws.map(|prompt| format!("{{\"task\": \"draw\", \"prompt\": \"{prompt}\"}}\n"));
    fs::write(path("data.jsonl"), lines.concat() + &draws.concat()).unwrap();
    let of_imatrix = ImatrixOptions { threads: 2, ..options(&dir) };
    run(&of_imatrix).unwrap();

    let make = |name: &str, imatrix: Option<PathBuf>| {
        let recipe = Recipe::from_name("Q2_K").unwrap();
        let options = QuantizeOptions { imatrix, ..QuantizeOptions::new(path("in.gguf"), path(name), recipe) };
        let mut notes = Vec::new();
        quantize(&options, &mut |event| {
            if let Progress::Note(note) = event {
                notes.push(note.to_owned());
            }
        })
        .unwrap();
        notes
    };
    let plain_notes = make("plain.gguf", None);
    let notes = make("weighted.gguf", Some(of_imatrix.output.clone()));
    assert_eq!(notes, plain_notes, "nothing to tell of a matrix of our own");
    let weighted = Model::open(path("weighted.gguf")).unwrap();
    assert_eq!(weighted.header().str("quantize.imatrix.dataset").unwrap(), "data.jsonl");
    assert_eq!(weighted.header().u32("quantize.imatrix.chunks_count").unwrap(), 20);

    // The weighted error of all matrices together, and the divergence of the logits on states of another seed.
    let (source, matrix) = (Floats::read(&path("in.gguf")), Floats::read(&of_imatrix.output));
    let error = |name: &str| -> f64 {
        let file = Floats::read(&path(name));
        let blocks = source.header.tensors.iter().filter(|t| t.name.starts_with("blk.") && t.rows() > 1);
        blocks
            .map(|t| {
                let importance = matrix.get(&format!("{}.in_sum2", t.name));
                let (a, b) = (source.get(&t.name), file.get(&t.name));
                let squares = a
                    .iter()
                    .zip(&b)
                    .enumerate()
                    .map(|(i, (a, b))| importance[i % importance.len()] * (a - b) * (a - b));
                squares.sum::<f64>()
            })
            .sum()
    };
    let (plain, better) = (error("plain.gguf"), error("weighted.gguf"));
    assert!(better < 0.9 * plain, "{better} of {plain}");
    let (context, states) = states(&ImatrixOptions { seed: 77, ..of_imatrix });
    let of = |name: &str| Context::new(&Model::open(path(name)).unwrap(), ContextOptions::default()).unwrap();
    let divergence = |other: &Context| states.iter().map(|state| kl(state, &context, other)).sum::<f64>();
    let (plain, better) = (divergence(&of("plain.gguf")), divergence(&of("weighted.gguf")));
    assert!(better < 0.9 * plain, "{better} of {plain}");
}

/// Sum over the masked positions of the Kullback-Leibler divergence of `other` from `reference`.
fn kl(state: &State, reference: &Context, other: &Context) -> f64 {
    let softmax = |context: &Context| -> Vec<f64> {
        let logits = state.logits(context).unwrap();
        let rows = logits.chunks_exact(state.vocab.len());
        rows.flat_map(|row| {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|&l| f64::from(l - top).exp()).sum();
            row.iter().map(move |&l| f64::from(l - top).exp() / sum)
        })
        .collect()
    };
    let (p, q) = (softmax(reference), softmax(other));
    p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q.max(1e-300)).ln()).sum()
}

#[test]
fn a_quantized_model_is_measured_with_a_note_and_a_model_with_tied_weights_at_its_embedding() {
    let dir = tiny();
    let quantized = dir.path().join("q8.gguf");
    quantize(&QuantizeOptions::new(dir.path().join("in.gguf"), &quantized, GgmlType::Q8_0), &mut |_| {}).unwrap();
    let (_, notes) = run(&ImatrixOptions { model: quantized, ..options(&dir) }).unwrap();
    assert!(
        notes.len() == 1 && notes[0].contains("q8.gguf is quantized already") && notes[0].contains("Q8_0"),
        "{notes:?}"
    );

    let golden = support::Fixture::of_sizes(&support::Sizes {
        layers: 1,
        d: 64,
        heads: 4,
        kv_heads: 2,
        mlp: 96,
        rows: 768,
        tied: true,
    });
    golden.convert(GgmlType::F16);
    let text = dir.path().join("data.txt");
    let options = ImatrixOptions { model: golden.output(), data: vec![text.clone()], ..options(&dir) };
    fs::write(&text, "One paragraph. It has two sentences.\n\nAnother one").unwrap();
    run(&options).unwrap();
    let written = Floats::read(&options.output);
    assert!(written.header.tensor("token_embd.weight.in_sum2").is_some());
    assert!(written.header.tensor("output.weight.in_sum2").is_none());
}

#[test]
fn what_cannot_be_measured_is_one_sentence_and_leaves_nothing() {
    let dir = tiny();
    let refusal = |options: &ImatrixOptions| {
        let error = run(options).expect_err("it succeeded").to_string();
        assert!(!error.contains('\n') && !dir.path().join("imatrix.gguf").exists(), "{error}");
        let parts = fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "part"));
        assert_eq!(parts.count(), 0, "{error}");
        error
    };
    let with = |change: &dyn Fn(&mut ImatrixOptions)| {
        let mut options = options(&dir);
        change(&mut options);
        options
    };
    let model = dir.path().join("in.gguf");
    assert!(refusal(&with(&|o| o.output = model.clone())).contains("would replace"));
    assert!(refusal(&with(&|o| o.output = dir.path().join("data.jsonl"))).contains("would replace"));
    assert!(refusal(&with(&|o| o.output = dir.path().join("no/imatrix.gguf"))).contains("imatrix.gguf"));
    assert!(refusal(&with(&|o| o.masked_weight = 0.0)).contains("is 0, it must be above 0"));
    assert!(refusal(&with(&|o| o.masked_weight = f32::NAN)).contains("NaN"));
    assert!(refusal(&with(&|o| o.states = 0)).contains("0 states"));
    assert!(refusal(&with(&|o| o.model = dir.path().join("none.gguf"))).contains("none.gguf"));
    assert!(refusal(&with(&|o| o.data = vec![dir.path().join("none.txt")])).contains("none.txt"));
    let cancelled = with(&|o| o.cancel = Some(Arc::new(AtomicBool::new(true))));
    assert_eq!(refusal(&cancelled), "cancelled");
    assert!(Model::open(&model).is_ok());
    // a model without an image tokenizer, and weights that make activations infinite
    let text = dir.path().join("text.gguf");
    let shape = Shape { vq: None, codes: 0, ..Shape::tiny() };
    synth(&SynthOptions::new(shape, &text, Recipe::from_name("F32").unwrap()), &mut |_| {}).unwrap();
    let error = refusal(&with(&|o| o.model = text.clone()));
    assert!(error.contains("data.jsonl: line 3: needs pictures") && error.contains("text.gguf"), "{error}");
}
