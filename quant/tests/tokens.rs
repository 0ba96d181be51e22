//! The roles of tokens, with and without the table that small checkpoints bring.

mod support;

use mmada::gguf::GgmlType;
use serde_json::{Value, json};
use support::{Fixture, Output, Sizes};

fn role(out: &Output, key: &str) -> Option<u32> {
    out.header.opt_u32(&format!("mmada.token.{key}")).unwrap()
}

fn added(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true})
}

/// A checkpoint without `mmada_tokens.json` whose tokenizer has the ids of the 8B's: text below 126080, then bos, eos,
/// reserved tokens, the mask, and more reserved ones up to 126345 (so that the three chat tokens are missing).
fn like_the_8b() -> Fixture {
    let sizes = Sizes { layers: 1, d: 2, heads: 1, kv_heads: 1, mlp: 3, rows: 134656, tied: false };
    let fixture = Fixture::of_sizes(&sizes);
    fixture.remove("mmada_tokens.json");
    fixture.edit("config.json", |c| {
        c["codebook_size"] = 8192.into();
        c["num_vq_tokens"] = 1024.into();
        c["mask_token_id"] = 126336.into();
        c["eos_token_id"] = 126081.into();
    });
    fixture.edit("tokenizer.json", |t| {
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| id.as_u64() < Some(480));
        for id in 480..126080 {
            vocab.insert(format!("word{id}"), id.into());
        }
        let tokens = (126080..126346).map(|id| match id {
            126080 => added(id, "<|startoftext|>"),
            126081 => added(id, "<|endoftext|>"),
            126336 => added(id, "<|mdm_mask|>"),
            _ => added(id, &format!("<|reserved_token_{}|>", id - 126082)),
        });
        t["added_tokens"] = tokens.collect();
    });
    fixture
}

#[test]
fn a_tokenizer_like_the_8bs_gets_its_chat_tokens_and_the_published_ids() {
    let out = like_the_8b().convert(GgmlType::F16);
    for (key, id) in [
        ("bos", 126080),
        ("eos", 126081),
        ("soi", 126084),
        ("eoi", 126085),
        ("sov", 126086),
        ("eov", 126087),
        ("t2i", 126088),
        ("mmu", 126089),
        ("t2v", 126090),
        ("v2v", 126091),
        ("lvg", 126092),
        ("ipad", 126093),
        ("r2i", 126094),
        ("mask", 126336),
        ("start_header", 126346),
        ("end_header", 126347),
        ("eot", 126348),
    ] {
        assert_eq!(role(&out, key), Some(id), "{key}");
    }
    assert_eq!(out.header.usize("mmada.image.code_offset").unwrap(), 126349);
    assert_eq!(out.notes.iter().filter(|note| note.contains("added as")).count(), 3, "{:?}", out.notes);
    let json: Value = serde_json::from_str(out.header.str("tokenizer.huggingface.json").unwrap()).unwrap();
    assert_eq!(json["added_tokens"].as_array().unwrap().last().unwrap(), &added(126348, "<|eot_id|>"));
    let tokens = out.header.strings(&out.bytes, "tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens[126346]), (126349, "<|start_header_id|>"));
}

#[test]
fn ids_of_the_8b_are_not_taken_where_the_tokenizer_has_other_tokens_there() {
    let fixture = like_the_8b();
    fixture.edit("tokenizer.json", |t| {
        t["added_tokens"][8]["content"] = "<tool>".into(); // 126088: t2i in the 8B
        t["added_tokens"][100]["content"] = "<|soi|>".into(); // named by this tokenizer
    });
    let error = fixture.refusal(&fixture.options(GgmlType::F16));
    assert!(error.contains("<|t2i|>") && error.contains("mmada_tokens.json"), "{error}");
    fixture.edit("tokenizer.json", |t| t["added_tokens"][101]["content"] = "<|t2i|>".into());
    let out = fixture.convert(GgmlType::F16);
    assert_eq!((role(&out, "soi"), role(&out, "t2i")), (Some(126180), Some(126181)));
    assert_eq!(role(&out, "eoi"), Some(126085));
}

#[test]
fn a_config_with_other_ids_is_remarked_on() {
    let fixture = Fixture::tiny();
    fixture.edit("config.json", |c| c["mask_token_id"] = 12.into());
    let out = fixture.convert(GgmlType::F16);
    assert_eq!(role(&out, "mask"), Some(497));
    assert!(out.notes.iter().any(|n| n.contains("mask_token_id is 12")), "{:?}", out.notes);
}

#[test]
fn the_table_may_leave_out_what_the_tokenizer_names_and_what_is_not_needed() {
    let fixture = Fixture::tiny();
    let whole = fixture.convert(GgmlType::F16);
    fixture.write("mmada_tokens.json", r#"{"<|soi|>": 483}"#);
    assert!(fixture.convert(GgmlType::F16).bytes == whole.bytes);
    // Without names in the tokenizer, the table is all there is.
    fixture.edit("tokenizer.json", |t| {
        for token in t["added_tokens"].as_array_mut().unwrap() {
            if ["<|soi|>", "<|r2i|>"].contains(&token["content"].as_str().unwrap()) {
                token["content"] = format!("<|unnamed_{}|>", token["id"]).into();
            }
        }
    });
    let out = fixture.convert(GgmlType::F16);
    assert_eq!((role(&out, "soi"), role(&out, "r2i")), (Some(483), None));
    fixture.write("mmada_tokens.json", "{}");
    std::fs::remove_file(fixture.output()).unwrap();
    assert!(fixture.refusal(&fixture.options(GgmlType::F16)).contains("<|soi|>"));
}

#[test]
fn text_must_fit_the_embedding() {
    let sizes = Sizes { layers: 1, d: 8, heads: 2, kv_heads: 1, mlp: 3, rows: 400, tied: false };
    let fixture = Fixture::of_sizes(&sizes);
    let error = fixture.refusal(&fixture.options(GgmlType::F16));
    assert!(error.contains("498 tokens") && error.contains("400 rows"), "{error}");
    let sizes = Sizes { rows: 753, ..sizes };
    let fixture = Fixture::of_sizes(&sizes);
    let error = fixture.refusal(&fixture.options(GgmlType::F16));
    assert!(error.contains("256 image codes from 498") && error.contains("753 rows"), "{error}");
}
