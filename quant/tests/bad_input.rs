//! Checkpoints that cannot be converted: one sentence that names what is wrong, and no output left behind.

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mmada::gguf::GgmlType;
use serde_json::json;
use support::{Fixture, Random};

/// The conversion of `fixture` fails with a sentence that has all of `words`.
fn refused(fixture: &Fixture, words: &[&str]) {
    let error = fixture.refusal(&fixture.options(GgmlType::Q8_0));
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_missing_or_truncated_shard_is_named() {
    const SHARD: &str = "model-00002-of-00002.safetensors";
    let fixture = Fixture::tiny();
    let whole = fs::read(fixture.path(SHARD)).unwrap();
    fixture.remove(SHARD);
    refused(&fixture, &[SHARD, "missing", "model.transformer.blocks.1.attn_norm.weight"]);
    for cut in [0, 7, 8, 100, 4000, whole.len() / 2, whole.len() - 1] {
        fixture.write(SHARD, &whole[..cut]);
        refused(&fixture, &[SHARD]);
    }
    refused(&fixture, &["truncated", &format!("{}", whole.len() - 1)]);
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fixture.write(SHARD, huge);
    refused(&fixture, &[SHARD, "header"]);
    fixture.write(SHARD, b"\x10\0\0\0\0\0\0\0{\"a\": not json  ");
    refused(&fixture, &[SHARD, "malformed"]);
}

#[test]
fn an_index_that_contradicts_its_shards_is_refused() {
    const TENSOR: &str = "model.transformer.blocks.0.q_proj.weight";
    let fixture = Fixture::tiny();
    fixture.edit("model.safetensors.index.json", |index| {
        index["weight_map"][TENSOR] = "model-00002-of-00002.safetensors".into();
    });
    refused(&fixture, &[TENSOR, "model-00002-of-00002.safetensors", "missing"]);
    fixture.edit("model.safetensors.index.json", |index| {
        drop(index["weight_map"].as_object_mut().unwrap().remove(TENSOR))
    });
    refused(&fixture, &[TENSOR, "model.safetensors.index.json", "missing"]);
    fixture
        .edit("model.safetensors.index.json", |index| index["weight_map"][TENSOR] = "../elsewhere.safetensors".into());
    refused(&fixture, &["../elsewhere.safetensors", "no file name"]);
    fixture.write("model.safetensors.index.json", "{\"weight_map\": {}}");
    refused(&fixture, &["model.safetensors.index.json", "no tensors"]);
}

#[test]
fn a_tensor_that_is_missing_or_of_the_wrong_shape_or_type_is_named() {
    for name in ["wte", "ln_f", "ff_out", "blocks.1.up_proj", "blocks.0.ff_norm"] {
        let tensor = format!("model.transformer.{name}.weight");
        let fixture = Fixture::tiny();
        fixture.edit_backbone(|tensors| drop(tensors.remove(&tensor)));
        refused(&fixture, &[&tensor, "missing", "model.safetensors"]);
        fixture.edit_backbone(|tensors| drop(tensors.insert(tensor.clone(), Random(3).tensor(&[256, 255]))));
        refused(&fixture, &[&tensor, "[256, 255]", "model.safetensors"]);
    }
    let tensor = "model.transformer.blocks.1.k_proj.weight";
    let fixture = Fixture::tiny();
    fixture.edit_backbone(|tensors| {
        let t = tensors.get_mut(tensor).unwrap();
        (t.dtype, t.bytes) = (safetensors::Dtype::I16, vec![1; 256 * 256 * 2]);
    });
    refused(&fixture, &[tensor, "I16"]);
}

#[test]
fn tensors_that_contradict_the_config_are_refused() {
    let fixture = Fixture::tiny();
    fixture
        .edit_backbone(|t| drop(t.insert("model.transformer.blocks.0.q_proj.bias".into(), Random(3).tensor(&[256]))));
    refused(&fixture, &["model.transformer.blocks.0.q_proj.bias", "bias"]);
    let fixture = Fixture::tiny();
    fixture.edit("config.json", |c| c["n_layers"] = 1.into());
    refused(&fixture, &["model.transformer.blocks.1.", "n_layers is 1"]);
    for (key, value, word) in [
        ("n_layers", json!(3), "blocks.2."),
        ("d_model", json!(128), "wte"),
        ("n_kv_heads", json!(2), "k_proj"),
        ("mlp_hidden_size", json!(500), "ff_proj"),
        ("embedding_size", json!("many"), "embedding_size"),
        ("codebook_size", json!(512), "codebook_size"),
        ("num_vq_tokens", json!(15), "num_vq_tokens"),
    ] {
        let fixture = Fixture::tiny();
        fixture.edit("config.json", |c| c[key] = value);
        refused(&fixture, &[word]);
    }
    let fixture = Fixture::tiny();
    fixture.edit("config.json", |c| {
        for key in ["vocab_size", "embedding_size", "new_vocab_size"] {
            c[key] = 800.into();
        }
    });
    refused(&fixture, &["768 rows", "new_vocab_size 800"]);
}

#[test]
fn flags_that_the_runtime_does_not_compute_are_refused_by_name() {
    for (key, value) in [
        ("model_type", json!("llama")),
        ("block_type", json!("sequential")),
        ("activation_type", json!("swiglu")),
        ("layer_norm_type", json!("default")),
        ("include_bias", json!(true)),
        ("include_qkv_bias", json!(true)),
        ("bias_for_layer_norm", json!(true)),
        ("attention_layer_norm", json!(true)),
        ("input_emb_norm", json!(true)),
        ("scale_logits", json!(true)),
        ("alibi", json!(true)),
        ("rope", json!(false)),
        ("block_group_size", json!(4)),
        ("clip_qkv", json!(1.5)),
    ] {
        let fixture = Fixture::tiny();
        let text = value.to_string();
        fixture.edit("config.json", |c| c[key] = value);
        let key = if key == "model_type" { "architecture" } else { key };
        refused(&fixture, &["config.json", key, &text, "not supported"]);
    }
}

#[test]
fn a_weight_that_is_no_number_stops_the_conversion_at_its_row() {
    let tensor = "model.transformer.blocks.0.ff_out.weight";
    for (bits, shown) in [(0x7fc0u16, "NaN"), (0x7f80, "inf"), (0xff80, "-inf")] {
        let fixture = Fixture::tiny();
        fixture.edit_backbone(|tensors| {
            let bytes = &mut tensors.get_mut(tensor).unwrap().bytes;
            for row in [201, 97, 255] {
                bytes[(row * 512 + 13) * 2..][..2].copy_from_slice(&bits.to_le_bytes());
            }
        });
        refused(&fixture, &[tensor, "row 97", "element 13", shown, "model.safetensors"]);
    }
    let fixture = Fixture::tiny();
    fixture.edit_backbone(|t| {
        t.get_mut(tensor).unwrap().bytes[0..2].copy_from_slice(&half::bf16::from_f32(1e6).to_le_bytes());
    });
    let error = fixture.refusal(&fixture.options(GgmlType::F16));
    assert!(error.contains(tensor) && error.contains("does not fit F16"), "{error}");
    fixture.convert(GgmlType::BF16);
}

#[test]
fn an_image_tokenizer_with_gaps_is_refused() {
    for tensor in [
        "encoder.conv_in.weight",
        "encoder.down.1.block.0.nin_shortcut.bias",
        "encoder.down.0.block.0.conv1.weight",
        "decoder.up.2.block.0.conv1.weight",
        "decoder.up.1.block.0.conv1.weight",
        "decoder.up.0.block.0.norm2.bias",
        "decoder.mid.attn_1.proj_out.weight",
    ] {
        let fixture = Fixture::tiny();
        fixture.edit_vq(|tensors| drop(tensors.remove(tensor)));
        let error = fixture.refusal(&fixture.options(GgmlType::Q8_0));
        let part = &tensor[..tensor.rfind('.').unwrap()];
        assert!(error.contains(part) || error.contains("levels"), "{tensor}: {error}");
        assert!(error.contains("vq"), "{tensor}: {error}");
    }
    let fixture = Fixture::tiny();
    fixture
        .edit_vq(|t| drop(t.insert("encoder.down.0.block.0.conv2.weight".into(), Random(5).tensor(&[32, 16, 3, 3]))));
    refused(&fixture, &["encoder.down.0.block.0.conv2.weight", "[32, 16, 3, 3]", "[32, 32, 3, 3]"]);
    let fixture = Fixture::tiny();
    fixture.edit_vq(|t| drop(t.insert("encoder.down.1.block.5.conv1.bias".into(), Random(5).tensor(&[64]))));
    refused(&fixture, &["encoder.down.1.block.5.conv1.bias", "does not fit"]);
    let fixture = Fixture::tiny();
    fixture.write("vq/model.safetensors", "");
    refused(&fixture, &["vq", "model.safetensors"]);
    fixture.remove("vq/model.safetensors");
    refused(&fixture, &["vq", "no weights"]);
    let mut options = fixture.options(GgmlType::Q8_0);
    options.vq = Some(fixture.path("nowhere"));
    assert!(fixture.refusal(&options).contains("nowhere"));
}

#[test]
fn broken_text_files_are_named() {
    for (name, content, word) in [
        ("config.json", "{\"d_model\": 256,", "JSON"),
        ("config.json", "[1, 2]", "array"),
        ("config.json", "\u{0}", "JSON"),
        ("tokenizer.json", "{}", "model"),
        ("tokenizer.json", "{\"model\": {\"type\": \"WordPiece\"}}", "WordPiece"),
        ("tokenizer_config.json", "nothing", "JSON"),
        ("mmada_tokens.json", "{\"<|startoftext|>\": -1}", "<|startoftext|>"),
        ("mmada_tokens.json", "{\"<|startoftext|>\": 481}", "<|startoftext|> is 481"),
        ("mmada_tokens.json", "{\"<|r2i|>\": 600}", "<|r2i|> is 600"),
        ("mmada_sampling.json", "{\"text\": {\"steps\": 0}}", "text.steps"),
        ("model.safetensors.index.json", "{\"weight_map\": 3}", "weight_map"),
    ] {
        let fixture = Fixture::tiny();
        fixture.write(name, content);
        refused(&fixture, &[name, word]);
    }
    for name in ["config.json", "tokenizer.json"] {
        let fixture = Fixture::tiny();
        fixture.remove(name);
        refused(&fixture, &[name]);
        fixture.write(name, b"\xff\xfe");
        refused(&fixture, &[name, "UTF-8"]);
    }
}

#[test]
fn folders_and_options_that_cannot_be_are_named() {
    let fixture = Fixture::tiny();
    let with = |change: &dyn Fn(&mut mmada_quantize::ConvertOptions)| {
        let mut options = fixture.options(GgmlType::Q8_0);
        change(&mut options);
        fixture.refusal(&options)
    };
    assert!(with(&|o| o.checkpoint = fixture.path("nowhere")).contains("nowhere"));
    assert!(with(&|o| o.checkpoint = fixture.path("config.json")).contains("not a folder"));
    assert!(with(&|o| o.checkpoint = fixture.out.path().to_owned()).contains("config.json"));
    assert!(with(&|o| o.output = Some(fixture.path("nowhere/out.gguf"))).contains("nowhere"));
    assert!(with(&|o| o.output = Some(fixture.out.path().to_owned())).contains("folder"));
    assert!(with(&|o| o.types = GgmlType::IQ2_XXS.into()).contains("IQ2_XXS"));
    assert!(with(&|o| o.chat_template = Some(fixture.path("nowhere.jinja"))).contains("nowhere.jinja"));
    fixture.write("broken.jinja", "{% for");
    assert!(with(&|o| o.chat_template = Some(fixture.path("broken.jinja"))).contains("broken.jinja"));
    assert!(with(&|o| o.image_code_offset = Some(497)).contains("497"));
    assert!(with(&|o| o.image_code_offset = Some(513)).contains("513"));
    assert!(with(&|o| o.image_code_offset = Some(u32::MAX)).contains("fit"));
    fixture.remove("model.safetensors.index.json");
    assert!(with(&|_| {}).contains("several .safetensors"));
}

#[test]
fn the_output_never_replaces_its_input() {
    let fixture = Fixture::tiny();
    for name in ["model-00001-of-00002.safetensors", "config.json", "vq/model.safetensors", "tokenizer.json"] {
        let before = fs::read(fixture.path(name)).unwrap();
        let mut options = fixture.options(GgmlType::F16);
        options.output = Some(fixture.path(name));
        assert!(fixture.refusal(&options).contains(name));
        assert!(fs::read(fixture.path(name)).unwrap() == before, "{name}");
    }
}

#[test]
fn a_failure_leaves_an_older_output_as_it_was() {
    let fixture = Fixture::tiny();
    let before = fixture.convert(GgmlType::F16).bytes;
    fixture.edit_backbone(|t| t.get_mut("model.transformer.ff_out.weight").unwrap().bytes[0..2].fill(0xff));
    fixture.run(&fixture.options(GgmlType::F16)).unwrap_err();
    assert!(fs::read(fixture.output()).unwrap() == before);
    assert_eq!(fs::read_dir(fixture.out.path()).unwrap().count(), 1);
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options(GgmlType::Q4_K);
    options.cancel = Some(Arc::new(AtomicBool::new(true)));
    assert_eq!(fixture.refusal(&options), "cancelled");
}
