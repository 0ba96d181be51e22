use serde_json::{Value, json};

use super::*;

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/golden/tiny/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn tiny() -> Tokenizer {
    Tokenizer::from_json(&fixture("tokenizer.json"), "tokenizer.json").unwrap()
}

/// The tiny tokenizer after `change`.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Tokenizer> {
    let mut json = serde_json::from_str(&fixture("tokenizer.json")).unwrap();
    change(&mut json);
    Tokenizer::from_json(&json.to_string(), "model.gguf")
}

#[test]
fn the_golden_cases_are_met() {
    let tokenizer = tiny();
    let cases: Vec<Value> = serde_json::from_str(&fixture("tokenizer_cases.json")).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, Special::Parse).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, true), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn what_a_person_types_is_never_a_special_token() {
    let tokenizer = tiny();
    for name in ["<|eot_id|>", "<|mdm_mask|>", "[iPAD]"] {
        let id = tokenizer.token_id(name).unwrap();
        assert_eq!(tokenizer.encode(name, Special::Parse).unwrap(), [id]);
        let text = format!("a {name}b");
        let ids = tokenizer.encode(&text, Special::Plain).unwrap();
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{text}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
}

#[test]
fn an_added_token_that_is_not_special_is_plain_text_too() {
    let tokenizer = changed(|json| {
        json["added_tokens"][0]["special"] = json!(false);
        json["added_tokens"][0]["content"] = json!("red");
        json["model"]["ignore_merges"] = json!(true);
        json["model"]["vocab"]["red"] = json!(480);
    })
    .unwrap();
    assert_eq!(tokenizer.encode("red", Special::Parse).unwrap(), [480]);
    let plain = tokenizer.encode("red", Special::Plain).unwrap();
    assert!(!plain.contains(&480));
    assert_eq!(tokenizer.decode(&plain, true), "red");
    assert_eq!(tokenizer.decode(&[480], true), "red", "only special tokens are left out");
    assert_eq!(tokenizer.token_id("red"), Some(480));
}

#[test]
fn bytes_of_tokens_join_to_the_text() {
    let tokenizer = tiny();
    let text = "na\u{ef}ve \u{1f642}\n<|eot_id|>\u{0}";
    let ids = tokenizer.encode(text, Special::Parse).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).copied().collect();
    assert_eq!(bytes, text.as_bytes());
    assert_eq!(tokenizer.token_text(496), Some("<|eot_id|>"));
    assert_eq!((tokenizer.len(), tokenizer.is_empty()), (498, false));
    assert!(tokenizer.token_bytes(498).is_none() && tokenizer.token_bytes(u32::MAX).is_none());
}

#[test]
fn ids_without_text_are_left_out_and_half_characters_are_marked() {
    let tokenizer = tiny();
    let smile = tokenizer.encode("\u{1f642}", Special::Plain).unwrap();
    assert_eq!(tokenizer.decode(&[600, 39, 767, u32::MAX], false), tokenizer.decode(&[39], false));
    assert_eq!(tokenizer.decode(&smile[..smile.len() - 1], false), "\u{fffd}");
}

#[test]
fn the_longest_token_wins_and_strips_its_sides() {
    let tokenizer = changed(|json| {
        let token = |id: u32, content: &str, strip: bool, word: bool| {
            json!({"id": id, "content": content, "single_word": word, "lstrip": strip, "rstrip": strip,
                   "normalized": false, "special": true})
        };
        let added =
            [token(498, "<a>", false, false), token(499, "<a><b>", true, false), token(500, "cat", false, true)];
        json["added_tokens"].as_array_mut().unwrap().extend(added);
    })
    .unwrap();
    let pieces = tokenizer.pieces("x  <a><b> \n<a> concat cat");
    let (text, token) = (Piece::Text, Piece::Token);
    assert_eq!(pieces, [text("x"), token(499), token(498), text(" concat "), token(500)]);
    assert_eq!(tokenizer.pieces("\u{e9}<a"), [text("\u{e9}<a")]);
    assert!(tokenizer.pieces("").is_empty());
}

#[test]
fn old_files_write_merges_as_one_string() {
    let text = "a large blue star, a red circle";
    let old = changed(|json| {
        for merge in json["model"]["merges"].as_array_mut().unwrap() {
            *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
        }
        json["model"].as_object_mut().unwrap().remove("type");
    });
    let ids = old.unwrap().encode(text, Special::Plain).unwrap();
    assert_eq!(ids, tiny().encode(text, Special::Plain).unwrap());
}

#[test]
fn padding_truncation_and_post_processing_change_nothing() {
    let text = "a large blue star";
    let padded = changed(|json| {
        json["truncation"] = json!({"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"});
        json["padding"] = json!({"strategy": {"Fixed": 99}, "direction": "Left", "pad_id": 1, "pad_token": "[PAD]"});
        json["post_processor"] = json!({"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 2]});
    });
    let ids = padded.unwrap().encode(text, Special::Plain).unwrap();
    assert_eq!(ids, tiny().encode(text, Special::Plain).unwrap());
}

#[test]
fn damaged_files_are_errors_that_name_the_file() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 17] = [
        ("no model", |j| j["model"] = json!(3)),
        ("no vocab", |j| j["model"]["vocab"] = json!([])),
        ("no merges", |j| j["model"]["merges"] = json!(null)),
        ("is no pair", |j| j["model"]["merges"][3] = json!(["a", "b", "c"])),
        ("is no pair", |j| j["model"]["merges"][3] = json!("abc")),
        ("which is no token", |j| j["model"]["merges"][0] = json!(["provid", "provid"])),
        ("the byte 0x20", |j| drop(j["model"]["vocab"].as_object_mut().unwrap().remove("Ġ"))),
        ("ids are below", |j| j["model"]["vocab"]["zz"] = json!(4_000_000_000u32)),
        ("ids are below", |j| j["model"]["vocab"]["zz"] = json!(-1)),
        ("to both", |j| j["model"]["vocab"]["zz"] = json!(5)),
        ("both ids", |j| j["model"]["vocab"]["<|soi|>"] = json!(1000)),
        ("without content or id", |j| j["added_tokens"][2] = json!({"content": "", "id": 3})),
        ("is of type", |j| j["model"]["type"] = json!("Unigram")),
        ("at random", |j| j["model"]["dropout"] = json!(0.1)),
        ("continuing_subword_prefix", |j| j["model"]["continuing_subword_prefix"] = json!("é##")),
        ("no ByteLevel", |j| j["pre_tokenizer"] = json!({"type": "Digits", "individual_digits": true})),
        ("\"Precompiled\"", |j| j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    ];
    for (reason, change) in cases {
        let message = changed(change).err().unwrap_or_else(|| panic!("{reason}: accepted")).to_string();
        assert!(message.starts_with("model.gguf: the tokenizer ") && message.contains(reason), "{message}");
        assert!(message.len() < 300, "{message}");
    }
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let json = fixture("tokenizer.json");
    for end in (0..json.trim_end().len()).step_by(997) {
        assert!(Tokenizer::from_json(&json[..end], "t.json").is_err(), "cut at {end}");
    }
    assert!(Tokenizer::from_json(&"[".repeat(1_000_000), "t.json").is_err());
    let long = "x".repeat(60);
    let bad_pattern =
        changed(|j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(format!("({long}")));
    assert!(bad_pattern.is_err());
}

#[test]
fn long_texts_keep_every_byte_and_too_long_ones_are_refused() {
    let tokenizer = tiny();
    for unit in [" ", "a", "\n ", "語", "12"] {
        let text = unit.repeat(50_000 / unit.len());
        let ids = tokenizer.encode(&text, Special::Plain).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
    let refused = tokenizer.encode(&"a".repeat(MAX_TEXT_BYTES + 1), Special::Plain).unwrap_err();
    assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
}
