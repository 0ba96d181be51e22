//! A byte-level BPE tokenizer that needs no data: the 256 bytes, some merges of English, filling words, and the tokens
//! with roles.

use serde_json::{Map, Value, json};

use crate::tokens::ROLE_NAMES;

/// Merges in the order of their rank. A space is written `Ġ`, as byte-level tokenizers do.
const MERGES: &[(&str, &str)] = &[
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġ", "a"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "s"),
    ("a", "t"),
    ("o", "r"),
    ("e", "n"),
    ("Ġ", "c"),
    ("e", "s"),
    ("i", "s"),
    ("i", "t"),
    ("a", "n"),
    ("Ġ", "o"),
    ("o", "u"),
    ("in", "g"),
    ("e", "d"),
    ("a", "l"),
    ("Ġ", "p"),
    ("Ġo", "f"),
    ("an", "d"),
];

/// Tokens that every vocabulary has.
pub fn least_tokens() -> usize {
    256 + MERGES.len() + ROLE_NAMES.len()
}

/// tokenizer.json of a vocabulary of `size` tokens, at least `least_tokens()`: bytes, merges, filling words that no
/// text is cut into, and last the special tokens.
pub fn json(size: usize) -> String {
    let mut vocab = Map::new();
    let mut put = |token: String| {
        let id = vocab.len();
        vocab.insert(token, id.into());
    };
    (0..=255).for_each(|byte| put(byte_char(byte).to_string()));
    MERGES.iter().for_each(|(a, b)| put(format!("{a}{b}")));
    let filling = size.saturating_sub(least_tokens());
    (0..filling).for_each(|n| put(format!("Ġword{n}")));
    let first = vocab.len();
    let special = |(i, name): (usize, &&str)| {
        json!({
            "id": first + i, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let added: Vec<Value> = ROLE_NAMES.iter().enumerate().map(special).collect();
    let merges: Vec<String> = MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
    .to_string()
}

/// The character that byte-level tokenizers write a byte as: itself where it can be seen, else one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let seen = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if seen(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !seen(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('?')
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmada::tokenizer::{Special, Tokenizer};

    #[test]
    fn any_text_is_cut_and_comes_back() {
        for size in [least_tokens(), 1000] {
            let tokenizer = Tokenizer::from_json(&json(size), "synthetic").unwrap();
            assert_eq!(tokenizer.len(), size);
            let text = "the and of\n\tÄpfel 🍎 \u{0} ~ \u{7f}";
            let ids = tokenizer.encode(text, Special::Plain).unwrap();
            assert_eq!(tokenizer.decode(&ids, true), text);
            assert!(ids.len() < text.len(), "merges are used");
            let ids = tokenizer.encode("<|mdm_mask|>", Special::Parse).unwrap();
            assert_eq!(ids.len(), 1);
            assert!(tokenizer.is_special(ids[0]));
        }
    }
}
