//! Files of architecture `llada`: one that llama.cpp's converter made of a checkpoint runs as our own conversion does,
//! for text; what it cannot do and what is damaged is said in one sentence.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mmada::gguf::{Architecture, GgmlType, Header, MetaArray, MetaValue, TensorSpec, Writer};
use mmada::kernels::elementwise::Pairs;
use mmada::tokenizer::Special;
use mmada::{
    Compute, Context, ContextOptions, DrawRequest, Error, Generation, Message, Model, RgbImage, SequenceRequest,
    TextOptions, TextRequest,
};
use mmada_quantize::ConvertOptions;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The converter's file.
fn theirs() -> Model {
    Model::open(golden("llada/grouped.gguf")).unwrap()
}

/// The same checkpoint as we convert it.
fn ours() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = folder().join("llada-ours.gguf");
        let options = ConvertOptions::new(golden("grouped"), &path, GgmlType::BF16);
        mmada_quantize::convert(&options, &mut |_| {}).unwrap();
        Model::open(&path).unwrap()
    })
}

fn context(model: &Model) -> Context {
    Context::new(model, ContextOptions { threads: 2, compute: Compute::Exact, ..Default::default() }).unwrap()
}

fn logits(model: &Model, ids: &[u32], vocab: u32) -> Vec<f32> {
    let rows: Vec<usize> = (0..ids.len()).collect();
    context(model).logits(&[SequenceRequest { ids, rows: &rows, vocab: 0..vocab }]).unwrap().remove(0)
}

fn question(text: &str, options: TextOptions) -> TextRequest {
    TextRequest { messages: vec![Message::user(text)], image: None, squash: false, thinking: false, options }
}

fn finished(mut generation: Generation) -> Generation {
    while !generation.step().unwrap().done {}
    generation
}

#[test]
fn a_file_of_llama_cpp_s_converter_gives_the_very_numbers_of_ours() {
    let (theirs, text) = (theirs(), ours().vocabulary().text);
    for length in [1usize, 7, 64, 131] {
        let ids: Vec<u32> = (0..length as u32).map(|i| (i * 97 + i * i * 31) % text).collect();
        let (a, b) = (logits(ours(), &ids, text), logits(&theirs, &ids, text));
        assert!(a.iter().any(|x| x.abs() > 0.1), "nothing was computed");
        assert_eq!(a, b, "{length} tokens");
    }
    let (a, b) = (ours().config(), theirs.config());
    assert_eq!((a.heads, a.kv_heads, a.rope_pairs), (6, 2, Pairs::Halves));
    assert_eq!((b.heads, b.kv_heads, b.rope_pairs), (6, 2, Pairs::Neighbours));
}

#[test]
fn its_tokenizer_gives_our_ids_and_texts() {
    let theirs = theirs();
    let (a, b) = (ours().tokenizer().unwrap(), theirs.tokenizer().unwrap());
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(golden("tiny/tokenizer_cases.json")).unwrap()).unwrap();
    let golden = cases.iter().map(|case| case["text"].as_str().unwrap());
    for text in golden.chain(["I'LL don't 3.14 12345\n\n\r\n \t x", "na\u{ef}ve \u{1f642}[PAD499]<|mdm_mask|>"]) {
        for special in [Special::Plain, Special::Parse] {
            let ids = a.encode(text, special).unwrap();
            assert_eq!(b.encode(text, special).unwrap(), ids, "{text:?}");
            assert_eq!(b.decode(&ids, true), a.decode(&ids, true));
        }
    }
    assert_eq!(a.len(), b.len(), "rows without tokens are no tokens");
}

#[test]
fn roles_and_defaults_are_the_file_s_or_llada_s() {
    let theirs = theirs();
    assert_eq!(theirs.header().architecture().unwrap(), Architecture::Llada);
    let (a, b) = (ours().vocabulary(), theirs.vocabulary());
    assert_eq!((b.bos, b.eos, b.eot, b.mask), (a.bos, a.eos, a.eot, a.mask));
    assert_eq!((b.rows, b.text, b.image_ids().len(), b.soi), (504, 498, 0, None));
    let options = theirs.text_options(false, false);
    assert_eq!((options.gen_length, options.steps, options.block_length), (128, 128, 32));
    assert!(!theirs.has_images() && theirs.image_size() == 0 && theirs.downsampling().is_none());
}

#[test]
fn a_question_is_laid_out_by_its_template_and_answered() {
    let theirs = theirs();
    let options = TextOptions { gen_length: 24, steps: 12, block_length: 8, ..Default::default() };
    let generation = finished(context(&theirs).text(question("What?", options.clone())).unwrap());
    let layout = "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|><|start_header_id|>\
                  assistant<|end_header_id|>\n\n";
    let prompt = theirs.tokenizer().unwrap().encode(layout, Special::Parse).unwrap();
    assert_eq!(generation.sequence(0).unwrap()[..prompt.len()], prompt);
    let answer = generation.text().unwrap();
    assert!(answer.ids.iter().all(|&id| id < theirs.vocabulary().text), "rows without tokens are never chosen");
    // the same prompt here: the same answer
    let same = finished(context(ours()).text_from_ids(prompt, options).unwrap());
    assert_eq!(same.text().unwrap(), answer);
    let estimate = theirs.estimate_text(32, &theirs.text_options(false, false));
    assert!(estimate.multiply_adds > 0 && estimate.weights_bytes == theirs.bytes().len());
}

#[test]
fn pictures_are_refused_in_a_clear_sentence() {
    let (theirs, picture) = (theirs(), RgbImage::new(8, 8));
    let context = context(&theirs);
    let (text, image) = theirs.draw_options(false);
    let draw = DrawRequest { prompt: "x".into(), think: false, width: 64, height: 64, count: 1, text, image };
    let asked = TextRequest { image: Some(picture.clone()), ..question("What?", theirs.text_options(false, true)) };
    let refusals = [
        context.draw(draw.clone()).map(drop),
        context.draw(DrawRequest { think: true, ..draw }).map(drop),
        context.text(asked).map(drop),
        context.encode_image(&picture).map(drop),
        context.decode_image(&[0], 1, 1).map(drop),
    ];
    for refusal in refusals {
        let error = refusal.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("no image tokenizer"), "{error}");
    }
}

/// The converter's file after changes to its metadata (`None` takes a key away) and its tensors.
fn changed(
    name: &str,
    changes: &[(&str, Option<MetaValue>)],
    tensors: impl Fn(&mut Vec<(TensorSpec, Vec<u8>)>),
) -> PathBuf {
    let bytes = std::fs::read(golden("llada/grouped.gguf")).unwrap();
    let header = Header::parse(&bytes, "grouped.gguf").unwrap();
    let mut metadata = header.owned_metadata(&bytes).unwrap();
    for (key, value) in changes {
        metadata.retain(|(k, _)| k != key);
        metadata.extend(value.clone().map(|value| (key.to_string(), value)));
    }
    let mut all: Vec<(TensorSpec, Vec<u8>)> = (header.tensors.iter())
        .map(|t| (TensorSpec { name: t.name.clone(), dtype: t.dtype, dims: t.dims.clone() }, t.data(&bytes).to_vec()))
        .collect();
    tensors(&mut all);
    let path = folder().join(name);
    let specs: Vec<TensorSpec> = all.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = Writer::create(&path, &metadata, &specs).unwrap();
    all.iter().for_each(|(spec, bytes)| writer.write_tensor(&spec.name, bytes).unwrap());
    writer.finish().unwrap();
    path
}

#[test]
fn what_a_file_leaves_out_is_found_or_named() {
    let open = |name: &str, key: &str| Model::open(changed(name, &[(key, None)], |_| {}));
    let no_mask = open("llada-mask.gguf", "tokenizer.ggml.mask_token_id").unwrap();
    assert_eq!(no_mask.vocabulary().mask, ours().vocabulary().mask, "found by its name");
    let theta = open("llada-theta.gguf", "llada.rope.freq_base").unwrap();
    assert_eq!(theta.config().rope_theta, 10_000.0, "llama.cpp's");
    let silent = open("llada-template.gguf", "tokenizer.chat_template").unwrap();
    let refused = context(&silent).text(question("What?", silent.text_options(false, false))).err().unwrap();
    assert!(refused.to_string().contains("no chat template (tokenizer.chat_template)"), "{refused}");
    let options = TextOptions { gen_length: 8, steps: 4, block_length: 8, ..Default::default() };
    finished(context(&silent).text_from_ids(vec![480, 12], options).unwrap()).text().unwrap();
    // a tied embedding is the output matrix
    let tied = changed("llada-tied.gguf", &[], |all| all.retain(|(spec, _)| spec.name != "output.weight"));
    let tied = Model::open(tied).unwrap();
    let ids = [480, 3, 497, 400, 9];
    assert_ne!(logits(&tied, &ids, 498), logits(&theirs(), &ids, 498));
    assert!(logits(&tied, &ids, 498).iter().all(|x| x.is_finite()));
}

#[test]
fn a_tokenizer_that_is_damaged_or_unknown_is_named_when_it_is_needed() {
    let names = |edit: fn(&mut Vec<String>)| {
        let bytes = std::fs::read(golden("llada/grouped.gguf")).unwrap();
        let header = Header::parse(&bytes, "").unwrap();
        let Ok(MetaValue::Array(MetaArray::String(mut names))) = header.owned(&bytes, "tokenizer.ggml.tokens") else {
            panic!("no tokens")
        };
        edit(&mut names);
        Some(MetaValue::from(names))
    };
    let types = |value: i32| Some(MetaValue::from(vec![value; 504]));
    let merges = |merge: &str| Some(MetaValue::from(vec![merge.to_owned()]));
    let cases: Vec<(&str, Option<MetaValue>, &str)> = vec![
        ("tokenizer.ggml.model", Some("llama".into()), "is of type \"llama\""),
        ("tokenizer.ggml.model", None, "tokenizer.ggml.model is missing"),
        ("tokenizer.ggml.pre", Some("tekken".into()), "\"tekken\", which this version does not know (it knows qwen2, "),
        ("tokenizer.ggml.pre", None, "tokenizer.ggml.pre is missing"),
        ("tokenizer.ggml.token_type", None, "token_type is missing"),
        ("tokenizer.ggml.token_type", types(6), "type 6"),
        ("tokenizer.ggml.token_type", Some(vec![1i32; 503].into()), "504 tokens and 503 types"),
        ("tokenizer.ggml.merges", None, "merges is missing"),
        ("tokenizer.ggml.merges", merges("ab"), "that is no pair"),
        ("tokenizer.ggml.merges", merges("a zzzz"), "which is no token"),
        ("tokenizer.ggml.tokens", names(|n| n[7] = n[8].clone()), "both ids 7 and 8"),
        ("tokenizer.ggml.tokens", names(|n| n[0] = "xxx".into()), "no token for the byte"),
        ("tokenizer.ggml.add_space_prefix", Some(true.into()), "a space before texts"),
    ];
    for (key, value, reason) in cases {
        let model = Model::open(changed("llada-tokenizer.gguf", &[(key, value)], |_| {})).unwrap();
        let error = model.tokenizer().err().unwrap_or_else(|| panic!("{reason}: accepted")).to_string();
        assert!(error.contains("llada-tokenizer.gguf: ") && error.contains(reason), "{error}");
        assert!(error.len() < 600 && !error.contains('\n'), "{error}");
    }
}

#[test]
fn what_cannot_be_run_is_refused_when_the_file_is_opened() {
    let u = |v: u32| Some(MetaValue::U32(v));
    let cases: Vec<(&str, Option<MetaValue>, &str)> = vec![
        ("general.architecture", Some("llada-moe".into()), "unknown architecture `llada-moe`"),
        ("diffusion.shift_logits", Some(true.into()), "diffusion.shift_logits"),
        ("llada.rope.scaling.type", Some("yarn".into()), "scaled (yarn"),
        ("llada.rope.scaling.factor", Some(2f32.into()), "scaled (linear"),
        ("llada.rope.dimension_count", u(8), "llada.rope.dimension_count"),
        ("llada.attention.value_length", u(32), "llada.attention.value_length"),
        ("llada.attention.head_count", None, "llada.attention.head_count"),
        ("llada.attention.head_count_kv", u(4), "no multiple of 4"),
        ("llada.block_count", u(4), "blk.3."),
        ("llada.block_count", u(2), "blk.2."),
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens is missing"),
        ("tokenizer.ggml.tokens", Some("a b".into()), "no list of tokens"),
        ("tokenizer.ggml.tokens", Some(vec!["a".to_owned(); 3].into()), "504 x 96"),
        ("tokenizer.ggml.bos_token_id", None, "bos_token_id is missing"),
        ("tokenizer.ggml.eos_token_id", u(504), "has 504 ids"),
        ("tokenizer.ggml.mask_token_id", u(481), "begins or ends texts"),
    ];
    let refusal = |path: PathBuf, reason: &str| {
        let error = Model::open(path).err().unwrap_or_else(|| panic!("{reason}: accepted")).to_string();
        assert!(error.contains("llada-refused.gguf: ") && error.contains(reason), "{error}");
    };
    for (key, value, reason) in cases {
        refusal(changed("llada-refused.gguf", &[(key, value)], |_| {}), reason);
    }
    let rename = |from: &'static str, to: &'static str| {
        let edit = move |all: &mut Vec<(TensorSpec, Vec<u8>)>| {
            all.iter_mut().filter(|(spec, _)| spec.name == from).for_each(|(spec, _)| spec.name = to.into());
        };
        changed("llada-refused.gguf", &[], edit)
    };
    refusal(rename("blk.1.attn_norm.weight", "blk.1.attn_q.bias"), "tensor blk.1.attn_q.bias");
    refusal(rename("blk.1.attn_q.weight", "blk.1.attn_qkv.weight"), "tensor blk.1.attn_qkv.weight");
    refusal(rename("output_norm.weight", "rope_freqs.weight"), "tensor rope_freqs.weight");
    let bytes = std::fs::read(golden("llada/grouped.gguf")).unwrap();
    for cut in [100, bytes.len() / 50, bytes.len() / 2, bytes.len() - 1] {
        let path = folder().join("llada-cut.gguf");
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(Model::open(&path).is_err(), "cut at {cut}");
    }
}
