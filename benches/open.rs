//! Opening a file of the 8B's size: time, and how much of the file is touched.
//!
//! The file is sparse: a header as the converter writes it (vocabulary of 126 thousand entries included) in front of
//! 16 GB of hole, so it needs no disk and every page that is touched shows.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use mmada::Model;
use mmada::gguf::GgmlType;

const LAYERS: u64 = 32;
const WIDTH: u64 = 4096;
const MLP: u64 = 12288;
const ROWS: u64 = 134_656;
const ENTRIES: usize = 126_349;

/// A GGUF v3 header, piece by piece.
#[derive(Default)]
struct Header {
    values: Vec<u8>,
    value_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    /// bytes of the tensors so far
    data: u64,
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

impl Header {
    fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        put_string(&mut self.values, key);
        self.values.extend_from_slice(&kind.to_le_bytes());
        self.values.extend_from_slice(bytes);
        self.value_count += 1;
    }
    fn u32(&mut self, key: &str, v: u32) {
        self.value(key, 4, &v.to_le_bytes());
    }
    fn string(&mut self, key: &str, v: &str) {
        let mut bytes = Vec::new();
        put_string(&mut bytes, v);
        self.value(key, 8, &bytes);
    }
    fn strings(&mut self, key: &str, values: impl ExactSizeIterator<Item = String>) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(values.len() as u64).to_le_bytes());
        values.for_each(|v| put_string(&mut bytes, &v));
        self.value(key, 9, &bytes);
    }
    fn tensor(&mut self, name: &str, dims: &[u64], dtype: GgmlType) {
        put_string(&mut self.tensors, name);
        self.tensors.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| self.tensors.extend_from_slice(&d.to_le_bytes()));
        self.tensors.extend_from_slice(&(dtype as u32).to_le_bytes());
        self.tensors.extend_from_slice(&self.data.to_le_bytes());
        let bytes = dims[1..].iter().product::<u64>() * dtype.row_bytes(dims[0] as usize).unwrap() as u64;
        self.data += bytes.next_multiple_of(32);
        self.tensor_count += 1;
    }
    fn write(&self, path: &Path) -> u64 {
        let mut out = b"GGUF".to_vec();
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&self.tensor_count.to_le_bytes());
        out.extend_from_slice(&self.value_count.to_le_bytes());
        out.extend_from_slice(&self.values);
        out.extend_from_slice(&self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        let size = out.len() as u64 + self.data;
        let mut file = File::create(path).unwrap();
        file.write_all(&out).unwrap();
        file.set_len(size).unwrap();
        size
    }
}

/// The 8B in F16, without its image tokenizer.
fn header_of_the_8b() -> Header {
    let mut h = Header::default();
    h.string("general.architecture", "mmada");
    for (key, v) in [
        ("block_count", LAYERS),
        ("context_length", 4096),
        ("embedding_length", WIDTH),
        ("feed_forward_length", MLP),
        ("vocab_size", ROWS),
        ("attention.head_count", 32),
        ("image.code_offset", ENTRIES as u64),
        ("image.codebook_size", 8192),
        ("image.token_count", 1024),
        ("token.bos", 126_080),
        ("token.eos", 126_081),
        ("token.eot", 126_348),
        ("token.mask", 126_336),
    ] {
        h.u32(&format!("mmada.{key}"), v as u32);
    }
    h.strings("tokenizer.ggml.tokens", (0..ENTRIES).map(|i| format!("token{i}")));
    h.strings("tokenizer.ggml.merges", (0..ENTRIES).map(|i| format!("tok en{i}")));
    h.string("tokenizer.huggingface.json", &"x".repeat(8 << 20));
    h.tensor("token_embd.weight", &[WIDTH, ROWS], GgmlType::F16);
    for n in 0..LAYERS {
        let mut block = |name: &str, dims: &[u64], t| h.tensor(&format!("blk.{n}.{name}.weight"), dims, t);
        block("attn_norm", &[WIDTH], GgmlType::F32);
        block("ffn_norm", &[WIDTH], GgmlType::F32);
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            block(name, &[WIDTH, WIDTH], GgmlType::F16);
        }
        block("ffn_gate", &[WIDTH, MLP], GgmlType::F16);
        block("ffn_up", &[WIDTH, MLP], GgmlType::F16);
        block("ffn_down", &[MLP, WIDTH], GgmlType::F16);
    }
    h.tensor("output_norm.weight", &[WIDTH], GgmlType::F32);
    h.tensor("output.weight", &[WIDTH, ROWS], GgmlType::F16);
    h
}

/// Resident bytes of this process's mapping of `path` (Linux).
fn resident(path: &Path) -> Option<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let rest = &maps[maps.find(path.to_str()?)?..];
    let line = rest.lines().find(|l| l.starts_with("Rss:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn open(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("8b.gguf");
    let header = header_of_the_8b();
    let size = header.write(&path);
    let model = Model::open(&path).unwrap();
    assert_eq!(model.config().layers, LAYERS as usize);
    if let Some(resident) = resident(&path) {
        let header = (header.values.len() + header.tensors.len()) as u64;
        println!(
            "a file of {:.1} GB with a header of {:.1} MB: {:.1} MB are resident once it is open",
            size as f64 / 1e9,
            header as f64 / 1e6,
            resident as f64 / 1e6
        );
        // the system maps pages around those that were touched
        assert!(resident < header + (4 << 20), "opening touched the weights");
    }
    drop(model);
    c.bench_function("open a 16 GB file", |b| b.iter(|| Model::open(&path).unwrap()));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = open
}
criterion_main!(benches);
