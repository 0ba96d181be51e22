//! Checkpoints for the tests: the golden one, copies of it to damage, and small ones of odd sizes.
#![allow(dead_code)] // every test target uses a part

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mmada::Result;
use mmada::gguf::{GgmlType, Header};
use mmada_quantize::{ConvertOptions, Progress, Report, convert};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::Value;
use tempfile::TempDir;

pub const TYPES: [GgmlType; 6] =
    [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_K];

pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny")
}

/// A tensor as a checkpoint holds it.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Tensor { dtype: Dtype::F32, shape: shape.into(), bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }

    pub fn values(&self) -> Vec<f32> {
        let halves = || self.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self.dtype {
            Dtype::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F16 => halves().map(|b| half::f16::from_bits(b).to_f32()).collect(),
            Dtype::BF16 => halves().map(|b| half::bf16::from_bits(b).to_f32()).collect(),
            other => panic!("{other}"),
        }
    }
}

pub type Tensors = BTreeMap<String, Tensor>;

/// All tensors of the safetensors files of a folder.
pub fn read_tensors(dir: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") && !path.ends_with("expected.safetensors") {
            let bytes = fs::read(&path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                let tensor = Tensor { dtype: view.dtype(), shape: view.shape().into(), bytes: view.data().into() };
                tensors.insert(name.to_owned(), tensor);
            }
        }
    }
    tensors
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let view = |t: &'_ Tensor| TensorView::new(t.dtype, t.shape.clone(), leak(&t.bytes)).unwrap();
    serialize_to_file(tensors.iter().map(|(name, t)| (name, view(t))), None, path).unwrap();
}

/// The views of the safetensors crate borrow; tests are short.
fn leak(bytes: &[u8]) -> &'static [u8] {
    bytes.to_vec().leak()
}

/// A checkpoint folder that may be changed, and an empty folder for the output.
pub struct Fixture {
    pub dir: TempDir,
    pub out: TempDir,
}

impl Fixture {
    /// A copy of the golden checkpoint, without its expected numbers.
    pub fn tiny() -> Self {
        let fixture = Fixture { dir: tempfile::tempdir().unwrap(), out: tempfile::tempdir().unwrap() };
        fs::create_dir(fixture.path("vq")).unwrap();
        for name in [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "mmada_tokens.json",
            "vq/model.safetensors",
            "vq/config.json",
        ] {
            fs::write(fixture.path(name), fs::read(golden().join(name)).unwrap()).unwrap();
        }
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn output(&self) -> PathBuf {
        self.out.path().join("out.gguf")
    }

    pub fn remove(&self, name: &str) -> &Self {
        fs::remove_file(self.path(name)).unwrap();
        self
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path(name), content).unwrap();
        self
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) -> &Self {
        let mut json: Value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut json);
        self.write(name, json.to_string())
    }

    /// Replaces the shards by one file, after a change.
    pub fn edit_backbone(&self, change: impl FnOnce(&mut Tensors)) -> &Self {
        let mut tensors = read_tensors(self.dir.path());
        change(&mut tensors);
        for name in fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()) {
            if name.starts_with("model") {
                self.remove(&name);
            }
        }
        write_tensors(&self.path("model.safetensors"), &tensors);
        self
    }

    pub fn edit_vq(&self, change: impl FnOnce(&mut Tensors)) -> &Self {
        let mut tensors = read_tensors(&self.path("vq"));
        change(&mut tensors);
        write_tensors(&self.path("vq/model.safetensors"), &tensors);
        self
    }

    pub fn options(&self, dtype: GgmlType) -> ConvertOptions {
        ConvertOptions { name: Some("fixture".into()), ..ConvertOptions::new(self.dir.path(), self.output(), dtype) }
    }

    /// Converts; the report and the notes.
    pub fn run(&self, options: &ConvertOptions) -> Result<(Report, Vec<String>)> {
        let mut notes = Vec::new();
        let report = convert(options, &mut |progress| {
            if let Progress::Note(note) = progress {
                notes.push(note.to_owned());
            }
        })?;
        Ok((report, notes))
    }

    pub fn convert(&self, dtype: GgmlType) -> Output {
        self.convert_with(&self.options(dtype))
    }

    pub fn convert_with(&self, options: &ConvertOptions) -> Output {
        let (report, notes) = self.run(options).unwrap();
        let bytes = fs::read(self.output()).unwrap();
        let header = Header::parse(&bytes, "out.gguf").unwrap();
        Output { bytes, header, report, notes }
    }

    /// The sentence with which a conversion fails. Nothing may be left in the output folder.
    pub fn refusal(&self, options: &ConvertOptions) -> String {
        let error = self.run(options).expect_err("the conversion succeeded");
        let left: Vec<_> = fs::read_dir(self.out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{error}: left {left:?}");
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() < 500, "not one sentence: {text}");
        text
    }
}

/// What a conversion wrote.
pub struct Output {
    pub bytes: Vec<u8>,
    pub header: Header,
    pub report: Report,
    pub notes: Vec<String>,
}

impl Output {
    pub fn dtype(&self, tensor: &str) -> GgmlType {
        self.header.tensor(tensor).unwrap_or_else(|| panic!("no tensor {tensor}")).dtype
    }

    pub fn values(&self, tensor: &str) -> Vec<f32> {
        let info = self.header.tensor(tensor).unwrap_or_else(|| panic!("no tensor {tensor}"));
        let mut values = vec![0.0; info.dims.iter().product()];
        mmada::tensor::dequantize(info.dtype, info.data(&self.bytes), &mut values).unwrap();
        values
    }
}

/// A checkpoint's name of a backbone tensor, as the model file calls it.
pub fn backbone_name(source: &str) -> String {
    let parts: Vec<&str> = source.split('.').collect();
    match parts.as_slice() {
        ["model", "transformer", "wte", _] => "token_embd.weight".into(),
        ["model", "transformer", "ln_f", _] => "output_norm.weight".into(),
        ["model", "transformer", "ff_out", _] => "output.weight".into(),
        ["model", "transformer", "blocks", n, what, _] => {
            let to = match *what {
                "attn_norm" => "attn_norm",
                "ff_norm" => "ffn_norm",
                "q_proj" => "attn_q",
                "k_proj" => "attn_k",
                "v_proj" => "attn_v",
                "attn_out" => "attn_output",
                "ff_proj" => "ffn_gate",
                "up_proj" => "ffn_up",
                "ff_out" => "ffn_down",
                other => panic!("{other}"),
            };
            format!("blk.{n}.{to}.weight")
        }
        _ => panic!("{source}"),
    }
}

/// Numbers between -1 and 1 that look random (a linear congruential generator, Knuth's constants).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    pub fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.next()).collect();
        Tensor::f32(shape, &values)
    }
}

/// Sizes of a backbone.
pub struct Sizes {
    pub layers: usize,
    pub d: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub mlp: usize,
    pub rows: usize,
    pub tied: bool,
}

/// Random weights of a backbone in f32.
pub fn random_backbone(s: &Sizes) -> Tensors {
    let mut random = Random(7);
    let kv = s.d / s.heads * s.kv_heads;
    let mut shapes = vec![("wte".to_owned(), vec![s.rows, s.d]), ("ln_f".to_owned(), vec![s.d])];
    if !s.tied {
        shapes.push(("ff_out".to_owned(), vec![s.rows, s.d]));
    }
    for n in 0..s.layers {
        for (name, shape) in [
            ("attn_norm", vec![s.d]),
            ("ff_norm", vec![s.d]),
            ("q_proj", vec![s.d, s.d]),
            ("k_proj", vec![kv, s.d]),
            ("v_proj", vec![kv, s.d]),
            ("attn_out", vec![s.d, s.d]),
            ("ff_proj", vec![s.mlp, s.d]),
            ("up_proj", vec![s.mlp, s.d]),
            ("ff_out", vec![s.d, s.mlp]),
        ] {
            shapes.push((format!("blocks.{n}.{name}"), shape));
        }
    }
    shapes.into_iter().map(|(n, shape)| (format!("model.transformer.{n}.weight"), random.tensor(&shape))).collect()
}

impl Fixture {
    /// The golden checkpoint with another backbone, and no image tokenizer.
    pub fn of_sizes(s: &Sizes) -> Self {
        let fixture = Fixture::tiny();
        fs::remove_dir_all(fixture.path("vq")).unwrap();
        fixture.edit_backbone(|tensors| *tensors = random_backbone(s));
        fixture.edit("config.json", |c| {
            for (key, n) in [
                ("n_layers", s.layers),
                ("d_model", s.d),
                ("n_heads", s.heads),
                ("n_kv_heads", s.kv_heads),
                ("mlp_hidden_size", s.mlp),
                ("embedding_size", s.rows),
                ("vocab_size", s.rows),
                ("new_vocab_size", s.rows),
            ] {
                c[key] = n.into();
            }
            c["weight_tying"] = s.tied.into();
        });
        fixture
    }
}
