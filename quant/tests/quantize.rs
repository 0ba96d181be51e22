//! GGUF to GGUF: types, importance, metadata, split files, and what must not happen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mmada::gguf::{GgmlType, Header, MetaValue, TensorSpec, Writer};
use mmada::tensor::dequantize;
use mmada::{Model, Result};
use mmada_quantize::{
    Override, Progress, QuantizeOptions, Recipe, Report, Shape, SynthOptions, TensorRule, TypeOptions, quantize, synth,
};
use tempfile::TempDir;

/// A folder with a model of random weights and room for what is made of it.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new(shape: Shape, dtype: GgmlType) -> Self {
        let fixture = Fixture { folder: TempDir::new().unwrap() };
        synth(&SynthOptions::new(shape, fixture.path("in.gguf"), dtype), &mut |_| {}).unwrap();
        fixture
    }

    /// Eight layers, so that there are layers to raise; no image tokenizer.
    fn deep() -> Self {
        Self::new(Shape { layers: 8, vq: None, ..Shape::tiny() }, GgmlType::F16)
    }

    fn tiny() -> Self {
        Self::new(Shape::tiny(), GgmlType::F16)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, recipe: &str) -> QuantizeOptions {
        QuantizeOptions::new(self.path("in.gguf"), self.path("out.gguf"), Recipe::from_name(recipe).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The sentence with which quantizing fails. Nothing may be left behind.
    fn refusal(&self, options: &QuantizeOptions) -> String {
        let before = self.names();
        let error = run(options).expect_err("it succeeded").to_string();
        assert_eq!(self.names(), before, "{error}");
        assert!(!error.contains('\n') && error.len() < 500, "not one sentence: {error}");
        error
    }
}

fn run(options: &QuantizeOptions) -> Result<(Report, Vec<String>)> {
    let mut notes = Vec::new();
    let report = quantize(options, &mut |event| {
        if let Progress::Note(note) = event {
            notes.push(note.to_owned());
        }
    })?;
    Ok((report, notes))
}

struct File {
    bytes: Vec<u8>,
    header: Header,
}

impl File {
    fn read(path: &Path) -> File {
        let bytes = fs::read(path).unwrap();
        let header = Header::parse(&bytes, &path.display().to_string()).unwrap();
        File { bytes, header }
    }

    fn dtype(&self, name: &str) -> GgmlType {
        self.header.tensor(name).unwrap_or_else(|| panic!("no {name}")).dtype
    }

    fn data(&self, name: &str) -> &[u8] {
        self.header.tensor(name).unwrap_or_else(|| panic!("no {name}")).data(&self.bytes)
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let info = self.header.tensor(name).unwrap();
        let mut values = vec![0.0; info.cols() * info.rows()];
        dequantize(info.dtype, info.data(&self.bytes), &mut values).unwrap();
        values
    }
}

/// A file like `from` with changed values of one tensor.
fn rewritten(from: &Path, to: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let file = File::read(from);
    let start = file.header.tensor(tensor).unwrap().range.clone();
    let mut bytes = file.bytes.clone();
    change(&mut bytes[start]);
    fs::write(to, bytes).unwrap();
}

#[test]
fn every_tensor_gets_its_type_and_keeps_its_values() {
    let fixture = Fixture::deep();
    let (report, notes) = run(&fixture.options("Q4_K_M")).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    let (source, out) = (File::read(&fixture.path("in.gguf")), File::read(&fixture.path("out.gguf")));
    assert_eq!(report.file_bytes, out.bytes.len() as u64);
    for (name, dtype) in [
        ("token_embd.weight", GgmlType::Q8_0),
        ("output.weight", GgmlType::Q6_K),
        ("output_norm.weight", GgmlType::F32),
        ("blk.0.ffn_down.weight", GgmlType::Q6_K),
        ("blk.1.ffn_down.weight", GgmlType::Q4_K),
        ("blk.7.attn_v.weight", GgmlType::Q6_K),
        ("blk.7.attn_q.weight", GgmlType::Q4_K),
    ] {
        assert_eq!(out.dtype(name), dtype, "{name}");
    }
    for info in &source.header.tensors {
        let (a, b) = (source.values(&info.name), out.values(&info.name));
        assert_eq!(out.header.tensor(&info.name).unwrap().dims, info.dims);
        let energy: f64 = a.iter().map(|x| f64::from(x * x)).sum();
        let error: f64 = a.iter().zip(&b).map(|(x, y)| f64::from((x - y) * (x - y))).sum();
        let limit = match out.dtype(&info.name) {
            GgmlType::Q4_K => 0.1,
            GgmlType::Q6_K => 0.03,
            GgmlType::Q8_0 => 0.01,
            _ => 0.0,
        };
        assert!((error / energy).sqrt() <= limit, "{}: {}", info.name, (error / energy).sqrt());
    }
    assert_eq!(out.header.u32("general.file_type").unwrap(), 15);
    for (key, _) in source.header.metadata.iter().filter(|(key, _)| key != "general.file_type") {
        let same = source.header.owned(&source.bytes, key).unwrap();
        assert_eq!(out.header.owned(&out.bytes, key).unwrap(), same, "{key}");
    }
    Model::open(fixture.path("out.gguf")).unwrap();
}

#[test]
fn the_errors_that_are_told_are_those_of_the_file() {
    let fixture = Fixture::tiny();
    let mut told = BTreeMap::new();
    quantize(&fixture.options("Q5_K_S"), &mut |event| {
        if let Progress::Tensor(line) = event {
            told.insert(line.spec.name.clone(), (line.error(), line.to_string()));
        }
    })
    .unwrap();
    let (source, out) = (File::read(&fixture.path("in.gguf")), File::read(&fixture.path("out.gguf")));
    assert_eq!(told.len(), source.header.tensors.len());
    let (error, line) = &told["blk.1.ffn_up.weight"];
    let (a, b) = (source.values("blk.1.ffn_up.weight"), out.values("blk.1.ffn_up.weight"));
    let squares = |f: &dyn Fn(usize) -> f32| (0..a.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>();
    let expected = (squares(&|i| a[i] - b[i]) / squares(&|i| a[i])).sqrt();
    assert!((error.unwrap() - expected).abs() < 1e-5 * expected, "{error:?} {expected}");
    assert!(line.contains("512 x 256") && line.contains("F16 -> Q5_K") && line.contains("5.500 bits"), "{line}");
    assert_eq!(told["vq.encoder.conv_in.weight"].0, None, "copied");
}

#[test]
fn converting_and_quantizing_at_once_gives_the_same_weights_as_one_after_the_other() {
    let folder = TempDir::new().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny");
    let (plain, once, twice) =
        (folder.path().join("f32.gguf"), folder.path().join("once.gguf"), folder.path().join("twice.gguf"));
    let recipe = |name: &str| Recipe::from_name(name).unwrap();
    let convert = |to: &Path, name: &str| {
        let options = mmada_quantize::ConvertOptions::new(&golden, to, recipe(name));
        mmada_quantize::convert(&options, &mut |_| {}).unwrap()
    };
    convert(&plain, "F32");
    let report = convert(&once, "Q5_K_M");
    run(&QuantizeOptions::new(&plain, &twice, recipe("Q5_K_M"))).unwrap();
    let (once, twice) = (File::read(&once), File::read(&twice));
    assert_eq!(report.tensors, once.header.tensors.len());
    for info in &once.header.tensors {
        assert!(
            twice.dtype(&info.name) == info.dtype && twice.data(&info.name) == once.data(&info.name),
            "{}",
            info.name
        );
    }
    assert_eq!(once.header.u32("general.file_type").unwrap(), twice.header.u32("general.file_type").unwrap());
}

#[test]
fn the_users_types_count_before_the_recipes() {
    let fixture = Fixture::deep();
    let rules = ["ffn_(up|gate)=Q5_0", r"blk\.0\.=F16"].map(|rule| TensorRule::parse(rule).unwrap());
    let mut options = fixture.options("Q4_K_M");
    options.types = Some(TypeOptions {
        tensor_types: rules.into(),
        token_embedding: Some(GgmlType::Q6_K),
        leave_output: true,
        ..Recipe::from_name("Q4_K_M").unwrap().into()
    });
    run(&options).unwrap();
    let out = File::read(&fixture.path("out.gguf"));
    for (name, dtype) in [
        ("token_embd.weight", GgmlType::Q6_K),
        ("output.weight", GgmlType::F16),
        ("blk.0.ffn_up.weight", GgmlType::Q5_0),
        ("blk.0.attn_q.weight", GgmlType::F16),
        ("blk.1.attn_q.weight", GgmlType::Q4_K),
        ("blk.0.attn_norm.weight", GgmlType::F32),
    ] {
        assert_eq!(out.dtype(name), dtype, "{name}");
    }
    options.types = Some(TypeOptions { pure: true, ..Recipe::from_name("Q4_K_M").unwrap().into() });
    run(&options).unwrap();
    let out = File::read(&fixture.path("out.gguf"));
    assert!(out.header.tensors.iter().all(|t| t.dims.len() == 1 || t.dtype == GgmlType::Q4_K));
}

#[test]
fn rows_that_no_block_fills_fall_back_with_a_note() {
    let fixture = Fixture::new(
        Shape { d_model: 96, heads: 6, kv_heads: 6, d_ff: 100, vq: None, ..Shape::tiny() },
        GgmlType::BF16,
    );
    let (_, notes) = run(&fixture.options("Q4_K_M")).unwrap();
    let out = File::read(&fixture.path("out.gguf"));
    assert_eq!(out.dtype("blk.1.attn_q.weight"), GgmlType::Q5_0);
    assert_eq!(out.dtype("blk.1.ffn_down.weight"), GgmlType::F16);
    assert_eq!(out.dtype("output.weight"), GgmlType::Q8_0);
    for (tensor, dtype) in [
        ("blk.0.attn_q.weight and 11 more", "Q5_0"),
        ("blk.0.ffn_down.weight and 1 more", "F16"),
        ("output.weight is", "Q8_0"),
    ] {
        assert!(notes.iter().any(|n| n.contains(tensor) && n.contains(dtype)), "{tensor}: {notes:?}");
    }
    Model::open(fixture.path("out.gguf")).unwrap();
}

#[test]
fn what_is_quantized_already_needs_the_flag() {
    let fixture = Fixture::new(Shape::tiny(), GgmlType::Q8_0);
    let mut options = fixture.options("Q4_0");
    let error = fixture.refusal(&options);
    assert!(error.contains("blk.0.attn_q.weight is Q8_0") && error.contains("--allow-requantize"), "{error}");
    // Copying what stays as it is loses nothing.
    run(&fixture.options("Q8_0")).unwrap();
    assert!(
        File::read(&fixture.path("out.gguf")).data("output.weight")
            == File::read(&fixture.path("in.gguf")).data("output.weight")
    );
    options.allow_requantize = true;
    run(&options).unwrap();
    assert_eq!(File::read(&fixture.path("out.gguf")).dtype("blk.0.attn_q.weight"), GgmlType::Q4_0);
}

#[test]
fn weights_that_are_no_numbers_stop_the_run_unless_allowed() {
    let fixture = Fixture::tiny();
    let tensor = "blk.1.ffn_down.weight";
    for (bits, shown) in [(0x7e00u16, "NaN"), (0x7c00, "inf"), (0xfc00, "-inf")] {
        rewritten(&fixture.path("in.gguf"), &fixture.path("bad.gguf"), tensor, |bytes| {
            for row in [200, 97] {
                bytes[(row * 512 + 13) * 2..][..2].copy_from_slice(&bits.to_le_bytes());
            }
        });
        for recipe in ["Q4_K_M", "F16", "F32"] {
            let mut options = fixture.options(recipe);
            options.input = fixture.path("bad.gguf");
            let error = fixture.refusal(&options);
            for word in ["bad.gguf", tensor, "row 97", "element 13", shown] {
                assert!(error.contains(word), "{recipe}: {word} is not in: {error}");
            }
            options.allow_nonfinite = true;
            let (_, notes) = run(&options).unwrap();
            assert!(notes.iter().any(|n| n.contains(tensor) && n.contains("2 weights")), "{notes:?}");
            let out = File::read(&fixture.path("out.gguf"));
            let values = out.values(tensor);
            let kept = values.iter().filter(|x| !x.is_finite()).count();
            assert_eq!(kept, if out.dtype(tensor).is_float() { 2 } else { 0 }, "{recipe}");
            fs::remove_file(fixture.path("out.gguf")).unwrap();
        }
    }
}

#[test]
fn values_too_large_for_the_type_are_refused_even_where_infinity_is_not() {
    let fixture = Fixture::new(Shape { vq: None, ..Shape::tiny() }, GgmlType::BF16);
    let tensor = "blk.0.attn_q.weight";
    rewritten(&fixture.path("in.gguf"), &fixture.path("bad.gguf"), tensor, |bytes| {
        bytes[256 * 2 * 5..][..2].copy_from_slice(&half::bf16::from_f32(1e30).to_le_bytes());
    });
    let mut options = fixture.options("F16");
    (options.input, options.allow_nonfinite) = (fixture.path("bad.gguf"), true);
    let error = fixture.refusal(&options);
    assert!(error.contains(tensor) && error.contains("row 5") && error.contains("does not fit F16"), "{error}");
}

#[test]
fn a_dry_run_tells_the_sizes_and_writes_nothing() {
    let fixture = Fixture::deep();
    let mut options = fixture.options("Q5_K_S");
    options.dry_run = true;
    let mut lines = 0;
    let report = quantize(&options, &mut |event| {
        if let Progress::Tensor(line) = event {
            lines += 1;
            assert!(line.error().is_none());
        }
    })
    .unwrap();
    assert_eq!((fixture.names(), lines), (vec!["in.gguf".to_owned()], report.tensors));
    options.dry_run = false;
    let (written, _) = run(&options).unwrap();
    assert_eq!((written.file_bytes, written.weight_bytes), (report.file_bytes, report.weight_bytes));
}

#[test]
fn files_are_split_joined_and_kept_split() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options("F16");
    options.types = None;
    options.split_max_size = Some(700_000);
    options.output = Some(fixture.path("parts.gguf"));
    let (report, _) = run(&options).unwrap();
    let count = report.files.len();
    assert!(
        count > 3 && report.files[1] == fixture.path(&format!("parts-00002-of-{count:05}.gguf")),
        "{:?}",
        report.files
    );
    let sizes: Vec<u64> = report.files.iter().map(|f| fs::metadata(f).unwrap().len()).collect();
    assert_eq!(sizes.iter().sum::<u64>(), report.file_bytes);
    // The first part has the metadata, too.
    assert!(sizes[1..].iter().all(|&n| n < 710_000), "{sizes:?}");

    // The runtime opens them by any part.
    let whole = Model::open(fixture.path("in.gguf")).unwrap();
    for path in [&report.files[0], &report.files[2]] {
        let model = Model::open(path).unwrap();
        assert_eq!(model.config(), whole.config());
        assert_eq!(model.tokenizer().unwrap().len(), whole.tokenizer().unwrap().len());
        for info in &whole.header().tensors {
            let part = model.header().tensor(&info.name).unwrap();
            assert!(part.data(model.bytes()) == info.data(whole.bytes()), "{}", info.name);
        }
    }

    // Quantized, split as before.
    let mut options = fixture.options("Q4_K_S");
    options.input = report.files[1].clone();
    options.keep_split = true;
    let (kept, _) = run(&options).unwrap();
    assert_eq!(kept.files.len(), count);
    for (a, b) in report.files.iter().zip(&kept.files) {
        let names = |p: &Path| File::read(p).header.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(a), names(b));
    }
    // Joined again: byte by byte what the whole file gives.
    let mut options = fixture.options("Q4_K_S");
    options.output = Some(fixture.path("whole.gguf"));
    run(&options).unwrap();
    options.input = report.files[0].clone();
    options.output = Some(fixture.path("joined.gguf"));
    run(&options).unwrap();
    assert!(fs::read(fixture.path("joined.gguf")).unwrap() == fs::read(fixture.path("whole.gguf")).unwrap());
}

#[test]
fn a_split_file_with_a_part_missing_or_foreign_is_refused() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options("F16");
    (options.types, options.split_max_size) = (None, Some(1_500_000));
    let (report, _) = run(&options).unwrap();
    assert!(report.files.len() >= 3);
    let mut options = fixture.options("Q8_0");
    options.input = report.files[0].clone();
    options.output = Some(fixture.path("new.gguf"));
    let third = fs::read(&report.files[2]).unwrap();
    fs::copy(&report.files[1], &report.files[2]).unwrap();
    let error = fixture.refusal(&options);
    assert!(error.contains("this is part 2 of") && error.contains("not part 3"), "{error}");
    assert!(Model::open(&report.files[0]).err().unwrap().to_string().contains("this is part 2 of"));
    fs::write(&report.files[2], &third[..third.len() - 40_000]).unwrap();
    assert!(fixture.refusal(&options).contains("truncated"));
    assert!(Model::open(&report.files[0]).err().unwrap().to_string().contains("truncated"));
    fs::remove_file(&report.files[2]).unwrap();
    let name = report.files[2].file_name().unwrap().to_str().unwrap();
    assert!(fixture.refusal(&options).contains(name));
    assert!(Model::open(&report.files[0]).err().unwrap().to_string().contains(name));
    let renamed = fixture.path("renamed.gguf");
    fs::rename(&report.files[0], &renamed).unwrap();
    options.input = renamed.clone();
    assert!(fixture.refusal(&options).contains("renamed.gguf"));
    assert!(Model::open(&renamed).err().unwrap().to_string().contains("one of"));
}

#[test]
fn the_output_is_never_one_of_the_inputs() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options("Q8_0");
    options.output = Some(fixture.path("in.gguf"));
    let error = fixture.refusal(&options);
    assert!(error.contains("would replace") && error.contains("in.gguf"), "{error}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(fixture.path("in.gguf"), fixture.path("link.gguf")).unwrap();
        options.output = Some(fixture.path("link.gguf"));
        assert!(fixture.refusal(&options).contains("would replace"));
    }
    // Until it is whole the output has this name, which downloads that were not renamed have too.
    fs::copy(fixture.path("in.gguf"), fixture.path("out.gguf.part")).unwrap();
    options.input = fixture.path("out.gguf.part");
    options.output = Some(fixture.path("out.gguf"));
    let error = fixture.refusal(&options);
    assert!(error.contains("would replace") && error.contains("out.gguf.part"), "{error}");
    assert!(fs::read(fixture.path("in.gguf")).unwrap() == fs::read(fixture.path("out.gguf.part")).unwrap());
}

#[test]
fn without_a_name_the_file_is_named_by_the_convention() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options("Q5_0");
    options.output = None;
    options.overrides =
        ["general.name=str:Small Thing", "general.version=str:v2"].map(|o| Override::parse(o).unwrap()).into();
    let (report, _) = run(&options).unwrap();
    assert_eq!(report.files, [fixture.path("Small-Thing-2.3M-v2-Q5_0.gguf")]);
    let out = File::read(&report.files[0]);
    assert_eq!(out.header.str("general.name").unwrap(), "Small Thing");
    // Keeping a value's type: this key is a u32.
    options.overrides = vec![Override::parse("mmada.context_length=str:many").unwrap()];
    assert!(fixture.refusal(&options).contains("mmada.context_length"));
    options.overrides = vec![Override::parse("mmada.context_length=int:77").unwrap()];
    let (report, _) = run(&options).unwrap();
    assert_eq!(Model::open(&report.files[0]).unwrap().config().context, 77);
}

#[test]
fn a_cancelled_run_leaves_nothing_behind() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options("Q4_K_M");
    options.cancel = Some(Arc::new(AtomicBool::new(true)));
    assert_eq!(fixture.refusal(&options), "cancelled");
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let fixture = Fixture::deep();
    let bytes = |threads: usize| {
        run(&QuantizeOptions { threads, ..fixture.options("Q4_K_M") }).unwrap();
        fs::read(fixture.path("out.gguf")).unwrap()
    };
    assert!(bytes(1) == bytes(3));
}

/// Importance for tensors of a model: (name, mean squares by column).
fn write_imatrix(path: &Path, entries: &[(&str, Vec<f32>)], count: f32, own: bool) {
    let mut metadata: Vec<(String, MetaValue)> = vec![
        ("general.type".into(), "imatrix".into()),
        ("imatrix.datasets".into(), vec!["a.txt".to_owned(), "b.txt".to_owned()].into()),
        ("imatrix.chunk_count".into(), 7u32.into()),
        ("imatrix.chunk_size".into(), 512u32.into()),
    ];
    if own {
        metadata.push(("mmada.imatrix.version".into(), 1u32.into()));
    }
    let mut specs = Vec::new();
    let mut data = Vec::new();
    for (name, weights) in entries {
        let spec = |suffix: &str, n: usize| TensorSpec {
            name: format!("{name}.{suffix}"),
            dtype: GgmlType::F32,
            dims: vec![n, 1],
        };
        specs.extend([spec("in_sum2", weights.len()), spec("counts", 1)]);
        data.push(weights.iter().flat_map(|w| (w * count).to_le_bytes()).collect::<Vec<u8>>());
        data.push(count.to_le_bytes().to_vec());
    }
    let mut writer = Writer::create(path, &metadata, &specs).unwrap();
    data.iter().for_each(|bytes| writer.write(bytes).unwrap());
    writer.finish().unwrap();
}

/// Outlier columns that matter a thousand times as much.
fn importance(cols: usize) -> Vec<f32> {
    (0..cols).map(|c| if c % 37 == 5 { 1000.0 } else { 1.0 }).collect()
}

/// The squared error of `tensor` in `out`, weighted by column.
fn weighted_error(source: &File, out: &File, tensor: &str, weights: &[f32]) -> f64 {
    let (a, b) = (source.values(tensor), out.values(tensor));
    a.iter().zip(&b).enumerate().map(|(i, (x, y))| f64::from(weights[i % weights.len()] * (x - y) * (x - y))).sum()
}

#[test]
fn important_columns_come_out_closer() {
    let fixture = Fixture::new(Shape { layers: 8, ..Shape::tiny() }, GgmlType::F32);
    let imatrix = fixture.path("imatrix.gguf");
    let (up, down) = ("blk.0.ffn_up.weight", "blk.1.ffn_down.weight");
    let mut options = fixture.options("Q4_K_M");
    run(&options).unwrap();
    let plain = File::read(&fixture.path("out.gguf"));

    write_imatrix(&imatrix, &[(up, importance(256)), (down, importance(512))], 9.0, false);
    options.imatrix = Some(imatrix.clone());
    options.output = Some(fixture.path("weighted.gguf"));
    let (_, notes) = run(&options).unwrap();
    assert!(notes.iter().any(|n| n.contains("left to right")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("nothing of 54 matrices")), "{notes:?}");
    let (source, weighted) = (File::read(&fixture.path("in.gguf")), File::read(&fixture.path("weighted.gguf")));
    for (tensor, cols) in [(up, 256), (down, 512)] {
        let error = |file: &File| weighted_error(&source, file, tensor, &importance(cols));
        assert!(error(&weighted) < 0.7 * error(&plain), "{tensor}: {} {}", error(&weighted), error(&plain));
    }
    let other = "blk.0.ffn_gate.weight";
    assert!(weighted.data(other) == plain.data(other), "no importance, no difference");
    assert_eq!(weighted.header.str("quantize.imatrix.file").unwrap(), "imatrix.gguf");
    assert_eq!(weighted.header.str("quantize.imatrix.dataset").unwrap(), "a.txt, b.txt");
    assert_eq!(weighted.header.u32("quantize.imatrix.entries_count").unwrap(), 2);
    assert_eq!(weighted.header.u32("quantize.imatrix.chunks_count").unwrap(), 7);

    write_imatrix(&imatrix, &[(up, importance(256)), (down, importance(512))], 9.0, true);
    let (_, notes) = run(&options).unwrap();
    assert!(!notes.iter().any(|n| n.contains("left to right")), "{notes:?}");
}

#[test]
fn every_recipe_makes_a_model_that_opens() {
    let fixture = Fixture::deep();
    let mut sizes = Vec::new();
    for name in Recipe::names() {
        let (report, _) = run(&fixture.options(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let model = Model::open(fixture.path("out.gguf")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let number = model.header().u32("general.file_type").unwrap();
        assert_eq!(number, Recipe::from_name(name).unwrap().file_type(), "{name}");
        sizes.push((report.file_bytes, name));
    }
    assert_eq!(sizes.iter().min().unwrap().1, "Q2_K");
    assert_eq!(sizes.iter().max().unwrap().1, "F32");
}

#[test]
fn an_importance_matrix_of_another_model_is_refused_with_the_mismatch() {
    let fixture = Fixture::tiny();
    let imatrix = fixture.path("imatrix.gguf");
    let mut options = fixture.options("Q4_K_M");
    options.imatrix = Some(imatrix.clone());
    let up = "blk.0.ffn_up.weight";
    write_imatrix(&imatrix, &[(up, importance(256)), ("blk.9.ffn_up.weight", importance(256))], 5.0, false);
    let error = fixture.refusal(&options);
    assert!(error.contains("another model") && error.contains("blk.9.ffn_up.weight"), "{error}");
    write_imatrix(&imatrix, &[(up, importance(512))], 5.0, false);
    let error = fixture.refusal(&options);
    assert!(error.contains(up) && error.contains("512") && error.contains("256"), "{error}");
    write_imatrix(&imatrix, &[(up, vec![-1.0; 256])], 5.0, false);
    assert!(fixture.refusal(&options).contains("column 0"));
    write_imatrix(&imatrix, &[(up, importance(256))], f32::NAN, false);
    assert!(fixture.refusal(&options).contains("counts"));
    write_imatrix(&imatrix, &[(up, importance(256))], 0.0, false);
    assert!(fixture.refusal(&options).contains("says nothing"));
    options.imatrix = Some(fixture.path("in.gguf"));
    assert!(fixture.refusal(&options).contains("not an importance matrix"));
    fs::write(&imatrix, b"blk.0 old format").unwrap();
    options.imatrix = Some(imatrix);
    assert!(fixture.refusal(&options).contains("imatrix.gguf: not a GGUF file"));
}

#[test]
fn a_model_that_is_none_is_refused() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options("Q8_0");
    let whole = fs::read(fixture.path("in.gguf")).unwrap();
    options.input = fixture.path("bad.gguf");
    for (bytes, word) in
        [(&b"PK\x03\x04 zip"[..], "not a GGUF file"), (&whole[..whole.len() - 99], "truncated"), (b"", "empty")]
    {
        fs::write(&options.input, bytes).unwrap();
        assert!(fixture.refusal(&options).contains(word), "{word}");
    }
    options.input = fixture.path("missing.gguf");
    assert!(fixture.refusal(&options).contains("missing.gguf"));
    write_imatrix(&fixture.path("imatrix.gguf"), &[("a", vec![1.0])], 1.0, true);
    options.input = fixture.path("imatrix.gguf");
    assert!(fixture.refusal(&options).contains("general.type"));
    options = fixture.options("Q8_0");
    (options.keep_split, options.split_max_size) = (true, Some(5));
    assert!(fixture.refusal(&options).contains("--keep-split"));
    options = fixture.options("Q8_0");
    options.types = Some(GgmlType::IQ1_S.into());
    assert!(fixture.refusal(&options).contains("IQ1_S"));
}
