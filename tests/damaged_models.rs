//! Damaged and hostile model files, from opening to the first steps: an error or a result, never a panic, an endless
//! run or an allocation that a claim of the file sized.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use mmada::gguf::{GgmlType, Header, MetaValue, TensorSpec, Writer};
use mmada::{Context, ContextOptions, DrawRequest, Generation, Message, Model, Result, RgbImage, TextRequest};
use mmada_quantize::ConvertOptions;

/// The system's allocator, which remembers the largest request of the whole run.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
/// The test model takes 4 MB and its buffers for these requests less than that.
const MOST_BYTES: usize = 64 << 20;

// SAFETY: all calls are handed to the system's allocator as they are.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's promise is the same
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A sound model file, and its bytes.
fn sound() -> &'static (PathBuf, Vec<u8>) {
    static SOUND: OnceLock<(PathBuf, Vec<u8>)> = OnceLock::new();
    SOUND.get_or_init(|| {
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
        let path = folder().join("sound.gguf");
        let options =
            ConvertOptions { vq: Some(checkpoint.join("vq")), ..ConvertOptions::new(checkpoint, &path, GgmlType::F16) };
        mmada_quantize::convert(&options, &mut |_| {}).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    })
}

/// Opens a model and takes the first step of every task. The error of the first thing that failed.
fn exercise(path: &Path) -> Result<()> {
    let model = Model::open(path)?;
    let context = Context::new(&model, ContextOptions { threads: 1, ..Default::default() })?;
    model.estimate_text(8, &model.text_options(true, true));
    context.logits(&[])?;
    let mut failed = Ok(());
    let mut steps = |begun: Result<Generation>, count: usize| {
        let run = begun.and_then(|mut generation| {
            (0..count).try_for_each(|_| generation.step().map(drop))?;
            if generation.codes(0).is_ok() { generation.image(0).map(drop) } else { generation.text().map(drop) }
        });
        if failed.is_ok() {
            failed = run;
        }
    };
    let mut options = model.text_options(false, false);
    (options.gen_length, options.steps, options.block_length) = (8, 4, 4);
    steps(context.text_from_ids(vec![1, 2, 3], options.clone()), 1);
    let picture = RgbImage::from_fn(23, 19, |x, y| image::Rgb([(x * 7) as u8, (y * 11) as u8, 9]));
    for image in [None, Some(picture)] {
        let messages = vec![Message::system("short"), Message::user("what is this?")];
        let request = TextRequest { messages, image, squash: false, thinking: true, options: options.clone() };
        steps(context.text(request), 1);
    }
    let side = model.downsampling().unwrap_or(1) * 2;
    for think in [false, true] {
        let (text, mut image) = model.draw_options(think);
        (image.steps, image.text_len) = (2, image.text_len.min(400));
        let prompt = "a red ring".to_owned();
        steps(context.draw(DrawRequest { prompt, think, width: side, height: side, count: 1, text, image }), 1);
    }
    failed
}

/// `exercise`, watched.
fn survives(path: &Path, what: &str) -> Result<()> {
    let result = exercise(path);
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= MOST_BYTES, "{what}: {largest} bytes at once");
    if let Err(e) = &result {
        let sentence = e.to_string();
        assert!(!sentence.is_empty() && sentence.len() < 2000 && !sentence.contains('\n'), "{what}: {sentence}");
    }
    result
}

/// Numbers that are the same in every run (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

#[test]
fn a_sound_model_passes() {
    let path = &sound().0;
    survives(path, "sound").unwrap();
}

#[test]
fn random_damage_of_the_header_is_an_error_or_harmless() {
    let (path, bytes) = sound();
    let header = Header::parse(bytes, "sound.gguf").unwrap();
    let position = |text: &str| bytes.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    // Most of the header is the tokenizer: the numbers before it and the tensors behind it are aimed at as often.
    let parts = [
        0..position("tokenizer.huggingface.json"),
        position("tokenizer.huggingface.json")..position("tokenizer.ggml.model"),
        position("tokenizer.ggml.merges")..header.data_start,
    ];
    let words = [0u64, 1, 2, 255, 1 << 20, 1 << 31, u32::MAX.into(), 1 << 40, i64::MAX as u64, u64::MAX];
    let damaged_path = folder().join("damaged.gguf");
    std::fs::copy(path, &damaged_path).unwrap();
    let mut file = OpenOptions::new().write(true).open(&damaged_path).unwrap();
    let mut random = Random(7);
    let (mut refused, mut passed) = (0, 0);
    for round in 0..400 {
        let mut damaged = bytes[..header.data_start].to_vec();
        for _ in 0..1 + random.below(2) {
            let part = &parts[round % parts.len()];
            let at = part.start + random.below(part.len() - 8);
            match random.below(4) {
                0 => damaged[at] ^= 1 << random.below(8),
                1 => damaged[at] = random.below(256) as u8,
                2 => damaged[at..at + 4].copy_from_slice(&words[random.below(words.len())].to_le_bytes()[..4]),
                _ => damaged[at..at + 8].copy_from_slice(&words[random.below(words.len())].to_le_bytes()),
            }
        }
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&damaged).unwrap();
        match survives(&damaged_path, &format!("round {round}")) {
            Ok(()) => passed += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 50 && passed > 20, "{refused} refused, {passed} passed: the damage is too much or too little");
}

#[test]
fn a_model_cut_off_at_any_of_many_places_is_refused() {
    let bytes = &sound().1;
    let header = Header::parse(bytes, "sound.gguf").unwrap();
    let path = folder().join("cut.gguf");
    let ends = header.tensors.iter().flat_map(|t| [t.range.start, t.range.end - 1]);
    let spread = (0..header.data_start).step_by(4999);
    let last = bytes.len() - 33..bytes.len(); // the last tensor's end and its padding
    for len in spread.chain(ends).chain(last) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let sentence = Model::open(&path).err().unwrap_or_else(|| panic!("{len} of {} bytes", bytes.len())).to_string();
        assert!(sentence.starts_with(&path.display().to_string()), "{sentence}");
    }
}

/// The sound model with other metadata; `None` takes a key away. Without the tensors named in `without`.
fn rewritten(name: &str, changes: &[(&str, Option<MetaValue>)], without: &str) -> PathBuf {
    let bytes = &sound().1;
    let header = Header::parse(bytes, "sound.gguf").unwrap();
    let mut metadata: Vec<(String, MetaValue)> =
        header.metadata.iter().map(|(key, _)| (key.clone(), header.owned(bytes, key).unwrap())).collect();
    for (key, value) in changes {
        metadata.retain(|(k, _)| k != key);
        metadata.extend(value.clone().map(|v| ((*key).to_owned(), v)));
    }
    let tensors = header.tensors.iter().filter(|t| t.name != without);
    let spec = |t: &mmada::gguf::TensorInfo| TensorSpec { name: t.name.clone(), dtype: t.dtype, dims: t.dims.clone() };
    let path = folder().join(format!("{name}.gguf"));
    let mut writer = Writer::create(&path, &metadata, &tensors.clone().map(spec).collect::<Vec<_>>()).unwrap();
    tensors.for_each(|t| writer.write_tensor(&t.name, t.data(bytes)).unwrap());
    writer.finish().unwrap();
    path
}

#[test]
fn hostile_metadata_is_refused_by_its_key() {
    let u = |v: u32| Some(MetaValue::U32(v));
    let f = |v: f32| Some(MetaValue::F32(v));
    let s = |v: &str| Some(MetaValue::from(v));
    let cases: Vec<(&str, Option<MetaValue>, &str)> = vec![
        ("general.architecture", s("llama"), "unknown architecture"),
        ("mmada.attention.head_count", u(0), "head_count is 0"),
        ("mmada.attention.head_count", u(1 << 24), "heads"),
        ("mmada.attention.head_count_kv", u(0), "head_count_kv is 0"),
        ("mmada.attention.head_count_kv", u(3), "no multiple of 3"),
        ("mmada.attention.key_length", u(63), "do not make up"),
        ("mmada.attention.layer_norm_rms_epsilon", f(f32::NAN), "layer_norm_rms_epsilon"),
        ("mmada.attention.layer_norm_rms_epsilon", f(-1.0), "layer_norm_rms_epsilon"),
        ("mmada.attention.layer_norm_rms_epsilon", Some(MetaValue::F64(1e300)), "layer_norm_rms_epsilon"),
        ("mmada.rope.freq_base", f(0.0), "freq_base"),
        ("mmada.rope.freq_base", f(f32::INFINITY), "freq_base"),
        ("mmada.rope.dimension_count", u(32), "dimension_count"),
        ("mmada.block_count", u(0), "block_count is 0"),
        ("mmada.block_count", u(1 << 24), "blk.2."),
        ("mmada.block_count", Some(MetaValue::I32(-1)), "block_count"),
        ("mmada.block_count", s("2"), "block_count"),
        ("mmada.context_length", Some(MetaValue::U64(1 << 62)), "context_length"),
        ("mmada.context_length", u(3), "positions"),
        ("mmada.vocab_size", u(1 << 24), "token_embd.weight"),
        ("mmada.image.code_offset", u(u32::MAX), "do not fit"),
        ("mmada.image.code_offset", u(400), "among the image codes"),
        ("mmada.image.codebook_size", u(255), "codebook_size is 255"),
        ("mmada.image.token_count", u(0), "token_count 0"),
        ("mmada.image.token_count", u(15), "token_count 15"),
        ("mmada.image.token_count", u(1 << 22), "positions"),
        ("mmada.image.token_count", u(1 << 24), "positions"),
        ("mmada.vq.norm_groups", u(0), "0 groups"),
        ("mmada.vq.norm_epsilon", f(f32::NAN), "norm_epsilon"),
        ("mmada.vq.z_channels", u(64), "z_channels is 64"),
        ("mmada.vq.encoder.res_blocks", Some(vec![1u32, u32::MAX, 1].into()), "res_blocks holds"),
        ("mmada.vq.encoder.channel_mult", Some(vec![u64::MAX; 3].into()), "channel_mult"),
        ("mmada.sampling.text.steps", u(0), "steps is 0"),
        ("mmada.sampling.text.gen_length", u(0), "gen_length is 0"),
        ("mmada.sampling.text.block_length", u(0), "block_length is 0"),
        ("mmada.sampling.text.temperature", f(f32::NAN), "temperature"),
        ("mmada.sampling.draw.guidance_scale", f(f32::INFINITY), "guidance"),
        ("mmada.sampling.draw.steps", Some(MetaValue::U64(1 << 60)), "mmada.sampling.draw.steps"),
        ("mmada.sampling.draw.max_text_len", u(0), "max_text_len"),
        ("mmada.token.mask", u(u32::MAX), "mmada.token.mask"),
        ("mmada.token.mask", None, "mmada.token.mask"),
        ("mmada.token.soi", None, "mmada.token.soi"),
        (
            "tokenizer.chat_template",
            s("{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}"),
            "fuel",
        ),
        ("tokenizer.chat_template", s("{{ messages[9].content.x.y }}"), "chat template"),
        ("tokenizer.huggingface.json", None, "tokenizer.huggingface.json"),
        ("tokenizer.huggingface.json", s(""), "not JSON"),
        ("tokenizer.huggingface.json", s("{}"), "no model"),
        ("tokenizer.huggingface.json", s(&"[".repeat(1 << 20)), "not JSON"),
        ("tokenizer.huggingface.json", s(r#"{"model": {"vocab": {"a": 1e99}}}"#), "the id"),
    ];
    for (i, (key, value, reason)) in cases.into_iter().enumerate() {
        let path = rewritten(&format!("hostile-{i}"), &[(key, value)], "");
        let sentence = survives(&path, key).expect_err(&format!("{key} {reason}")).to_string();
        assert!(sentence.contains(reason), "{key}: {sentence}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn odd_metadata_that_can_be_is_lived_with() {
    let u = |v: u32| Some(MetaValue::U32(v));
    let cases: Vec<Vec<(&str, Option<MetaValue>)>> = vec![
        vec![("mmada.context_length", u(1 << 24))],
        vec![("mmada.rope.freq_base", Some(MetaValue::F32(1e-38)))],
        vec![("mmada.rope.freq_base", Some(MetaValue::F32(1e38)))],
        vec![("mmada.attention.layer_norm_rms_epsilon", Some(MetaValue::F32(1e38)))],
        vec![("mmada.token.mask", u(481)), ("mmada.token.eos", u(481)), ("mmada.token.eot", u(481))],
        vec![("mmada.token.soi", u(497)), ("mmada.token.eoi", u(497))],
        vec![("mmada.attention.head_count", u(256)), ("mmada.attention.head_count_kv", u(256))],
        vec![("tokenizer.chat_template", None)],
        vec![("tokenizer.ggml.tokens", Some(MetaValue::from(Vec::<String>::new())))],
        vec![("mmada.image.code_offset", u(512))],
    ];
    for (i, changes) in cases.into_iter().enumerate() {
        let path = rewritten(&format!("odd-{i}"), &changes, "");
        // Some cannot work (numbers that are not finite, no token to choose): then with a sentence.
        let _ = survives(&path, &format!("{changes:?}"));
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_missing_tensor_is_named_whichever_it_is() {
    let header = Header::parse(&sound().1, "sound.gguf").unwrap();
    for tensor in &header.tensors {
        let path = rewritten("missing", &[], &tensor.name);
        let sentence = Model::open(&path).err().unwrap_or_else(|| panic!("opened without {}", tensor.name)).to_string();
        assert!(sentence.contains(&format!("tensor {} is missing", tensor.name)), "{sentence}");
    }
}
