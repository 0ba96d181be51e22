//! The text tokenizer of a checkpoint: tokenizer.json goes into the file as it is (with the chat tokens that it lacks
//! appended), and once more as the `tokenizer.ggml.*` keys that other GGUF readers know.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mmada::gguf::MetaValue;
use mmada::prompt::{ChatTemplate, MMADA_CHAT_TEMPLATE};
use mmada::tokenizer::{Tokenizer, split_name, split_names};
use mmada::{Error, Result};
use serde_json::{Value, json};

use crate::config::Family;
use crate::json::{Object, read_text};

/// Added, in this order, to tokenizers that lack them.
const CHAT_TOKENS: [&str; 3] = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];

/// Ids are table indices here and in every reader; no tokenizer has more.
const MAX_ID: u32 = 1 << 24;

// llama.cpp's `llama_token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

#[derive(Clone, Debug)]
struct Token {
    text: String,
    kind: i32,
}

/// tokenizer.json and tokenizer_config.json.
pub struct TextTokenizer {
    file: String,
    json: String,
    tokens: BTreeMap<u32, Token>,
    ids: HashMap<String, u32>,
    merges: Vec<String>,
    /// llama.cpp's name for how text is split before the merges, where it has one.
    split: Option<&'static str>,
    /// Texts are changed before they are split.
    normalizes: bool,
    config: Option<Object>,
}

impl TextTokenizer {
    /// Reads the tokenizer of a checkpoint folder and appends the chat tokens it lacks (named in `notes`).
    ///
    /// # Errors
    /// `Io` where tokenizer.json cannot be read, `Format` where it contradicts itself, `Unsupported` where the runtime
    /// could not use it.
    pub fn read(dir: &Path, notes: &mut Vec<String>) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let text = read_text(&path)?;
        let config = Object::read_if_present(&dir.join("tokenizer_config.json"))?;
        let mut tokenizer = Self::parse(text, &path.display().to_string())?;
        tokenizer.config = config;
        tokenizer.add_chat_tokens(notes)?;
        // The runtime's own loader has the last word: what it refuses must not get into a file.
        Tokenizer::from_json(&tokenizer.json, &tokenizer.file)?;
        Ok(tokenizer)
    }

    /// A tokenizer that is complete: its text is kept as it is.
    pub fn from_json(json: String, file: &str) -> Result<Self> {
        let tokenizer = Self::parse(json, file)?;
        Tokenizer::from_json(&tokenizer.json, file)?;
        Ok(tokenizer)
    }

    fn parse(text: String, file: &str) -> Result<Self> {
        let root = Object::parse(&text, file)?;
        let model = root.required("model", root.object("model")?)?;
        match model.str("type")? {
            Some("BPE") | None => {} // files of old versions do not say
            Some(other) => {
                let reason = format!("the tokenizer model is {other}, only BPE is supported");
                return Err(Error::unsupported(file, reason));
            }
        }
        let ignore_merges = model.bool("ignore_merges")?.unwrap_or(false);
        let mut tokenizer = TextTokenizer {
            file: file.to_owned(),
            json: String::new(),
            tokens: BTreeMap::new(),
            ids: HashMap::new(),
            merges: merges(&model)?,
            split: root.get("pre_tokenizer").and_then(|pre| split_name(&pre.to_string(), ignore_merges)),
            normalizes: root.get("normalizer").is_some(),
            config: None,
        };
        let vocab = model.required("vocab", model.object("vocab")?)?;
        for key in vocab.keys() {
            let id = vocab.required(key, vocab.u32(key)?)?;
            tokenizer.insert(id, key, NORMAL)?;
        }
        for added in root.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let (Some(id), Some(content)) = (added["id"].as_u64(), added["content"].as_str()) else {
                return Err(root.wrong("added_tokens", "has an entry without id or content"));
            };
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            tokenizer.insert(id, content, if added["special"] == true { CONTROL } else { USER_DEFINED })?;
        }
        if tokenizer.tokens.is_empty() {
            return Err(model.wrong("vocab", "is empty"));
        }
        tokenizer.json = text;
        Ok(tokenizer)
    }

    /// An added token may stand in the vocabulary too, with the same id.
    fn insert(&mut self, id: u32, text: &str, kind: i32) -> Result<()> {
        if id >= MAX_ID {
            return Err(Error::format(
                &self.file,
                format!("token {text:?} has the id {id}, beyond the limit {MAX_ID}"),
            ));
        }
        let before = self.ids.insert(text.to_owned(), id).filter(|&other| other != id);
        if let Some(other) = before {
            return Err(Error::format(&self.file, format!("token {text:?} has two ids, {other} and {id}")));
        }
        match self.tokens.insert(id, Token { text: text.to_owned(), kind }) {
            Some(other) if other.text != text => Err(Error::format(
                &self.file,
                format!("the id {id} belongs to two tokens, {:?} and {text:?}", other.text),
            )),
            _ => Ok(()),
        }
    }

    fn add_chat_tokens(&mut self, notes: &mut Vec<String>) -> Result<()> {
        let missing: Vec<&str> = CHAT_TOKENS.into_iter().filter(|name| !self.ids.contains_key(*name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let malformed = |e| Error::format(&self.file, format!("not valid JSON: {e}"));
        let mut root: Value = serde_json::from_str(&self.json).map_err(malformed)?;
        for name in missing {
            let id = self.len();
            self.insert(id, name, CONTROL)?;
            let token = json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true,
            });
            match &mut root["added_tokens"] {
                Value::Array(list) => list.push(token),
                list => *list = json!([token]),
            }
            notes.push(format!("{}: {name} is missing and added as {id}", self.file));
        }
        self.json = root.to_string();
        Ok(())
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// The largest id + 1: where image codes begin.
    pub fn len(&self) -> u32 {
        self.tokens.last_key_value().map_or(0, |(&id, _)| id + 1)
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub fn text(&self, id: u32) -> Option<&str> {
        self.tokens.get(&id).map(|t| t.text.as_str())
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.tokens.get(&id).is_some_and(|t| t.kind == CONTROL)
    }

    /// The id of a token that tokenizer_config.json names: `bos_token` and so on.
    pub fn configured(&self, key: &str) -> Option<u32> {
        let text = match self.config.as_ref()?.get(key)? {
            Value::String(text) => text,
            Value::Object(token) => token.get("content")?.as_str()?,
            _ => return None,
        };
        self.id(text)
    }

    /// The chat template to write: MMaDA's for MMaDA checkpoints, whose inference code sets it over the tokenizer's,
    /// else the checkpoint's own.
    pub fn chat_template(&self, dir: &Path, family: Family) -> Result<Option<String>> {
        if family == Family::Mmada {
            return Ok(Some(MMADA_CHAT_TEMPLATE.to_owned()));
        }
        let beside = dir.join("chat_template.jinja");
        if beside.is_file() {
            return read_template(&beside).map(Some);
        }
        let Some(config) = &self.config else { return Ok(None) };
        let template = match config.get("chat_template") {
            None => return Ok(None),
            Some(Value::String(template)) => template,
            // Several templates: a list of {name, template}.
            Some(Value::Array(list)) => list
                .iter()
                .find(|t| t["name"] == "default")
                .and_then(|t| t["template"].as_str())
                .ok_or_else(|| config.wrong("chat_template", "has no template named default"))?,
            Some(_) => return Err(config.wrong("chat_template", "is neither a string nor a list of templates")),
        };
        ChatTemplate::new(template, config.file())?;
        Ok(Some(template.to_owned()))
    }

    /// llama.cpp's name for how text is split before the merges, or the name that was `given`.
    ///
    /// # Errors
    /// `Unsupported` where there is none, or where the tokenizer does more to a text than split and merge;
    /// `InvalidArgument` for a name that the runtime does not know.
    pub fn ggml_split(&self, given: Option<&str>) -> Result<&'static str> {
        let fail = |reason: &str| Err(Error::unsupported(&self.file, reason));
        if self.normalizes {
            return fail("the tokenizer normalizes texts, which llama.cpp's keys cannot say");
        }
        match (given, self.split) {
            (Some(name), _) => split_names().find(|known| *known == name).ok_or_else(|| {
                let known: Vec<&str> = split_names().collect();
                Error::invalid(format!("--pre {name:?} is not one of {}", known.join(", ")))
            }),
            (None, Some(name)) => Ok(name),
            (None, None) => fail("the tokenizer splits texts in a way that llama.cpp has no name for (see --pre)"),
        }
    }

    /// `tokenizer.*` metadata. `mask` is the id of the mask token.
    pub fn metadata(&self, chat_template: Option<String>, bos: u32, eos: u32, mask: u32) -> Vec<(String, MetaValue)> {
        let mut out = vec![("tokenizer.huggingface.json".to_owned(), MetaValue::String(self.json.clone()))];
        out.extend(chat_template.map(|t| ("tokenizer.chat_template".to_owned(), MetaValue::String(t))));
        out.extend(self.ggml_lists(self.split.unwrap_or("default")));
        let mut put = |key: &str, value: MetaValue| out.push((format!("tokenizer.ggml.{key}"), value));
        put("bos_token_id", bos.into());
        put("eos_token_id", eos.into());
        put("mask_token_id", mask.into());
        put("padding_token_id", self.configured("pad_token").unwrap_or(eos).into());
        put("add_bos_token", false.into());
        out
    }

    /// The vocabulary in `tokenizer.ggml.*`, `pre` being the name of the split.
    pub fn ggml_lists(&self, pre: &str) -> Vec<(String, MetaValue)> {
        let mut tokens = Vec::with_capacity(self.len() as usize);
        let mut kinds = Vec::with_capacity(self.len() as usize);
        for id in 0..self.len() {
            let (text, kind) = match self.tokens.get(&id) {
                Some(token) => (token.text.clone(), token.kind),
                None => (self.unused_name(id), UNUSED),
            };
            tokens.push(text);
            kinds.push(kind);
        }
        let lists = [
            ("model", "gpt2".into()),
            ("pre", pre.into()),
            ("tokens", MetaValue::from(tokens)),
            ("token_type", MetaValue::from(kinds)),
            ("merges", MetaValue::from(self.merges.clone())),
        ];
        lists.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into()
    }

    /// The name that llama.cpp's converter gives to an id without a token; no two ids may have one name.
    fn unused_name(&self, id: u32) -> String {
        let mut name = format!("[PAD{id}]");
        while self.ids.contains_key(&name) {
            name.push('_');
        }
        name
    }
}

/// A Jinja file, its syntax checked.
pub fn read_template(path: &Path) -> Result<String> {
    let template = read_text(path)?;
    ChatTemplate::new(&template, &path.display().to_string())?;
    Ok(template)
}

/// "a b" or ["a", "b"] each; written as "a b".
fn merges(model: &Object) -> Result<Vec<String>> {
    let wrong = || model.wrong("merges", "has an entry that is no pair of tokens");
    let Some(list) = model.get("merges") else { return Err(model.wrong("merges", "is missing")) };
    let merge = |pair: &Value| match pair {
        Value::String(pair) => Ok(pair.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] => Ok(format!("{a} {b}")),
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    };
    list.as_array().ok_or_else(wrong)?.iter().map(merge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmada::gguf::MetaArray;

    fn tokenizer(added: Value) -> Result<TextTokenizer> {
        let json = json!({
            "added_tokens": added, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 4}, "merges": [["a", "b"], "b a"]},
        });
        TextTokenizer::parse(json.to_string(), "tokenizer.json")
    }

    #[test]
    fn chat_tokens_that_are_missing_are_appended_in_order() {
        let mut notes = Vec::new();
        let mut t = tokenizer(json!([{"id": 7, "content": "<|end_header_id|>", "special": true}])).unwrap();
        assert_eq!(t.len(), 8);
        t.add_chat_tokens(&mut notes).unwrap();
        assert_eq!(CHAT_TOKENS.map(|name| t.id(name)), [Some(8), Some(7), Some(9)]);
        assert_eq!(notes.len(), 2);
        let again = TextTokenizer::parse(t.json.clone(), "tokenizer.json").unwrap();
        assert_eq!(CHAT_TOKENS.map(|name| again.id(name)), [Some(8), Some(7), Some(9)]);
        assert!(again.is_special(9));
    }

    #[test]
    fn the_ggml_keys_have_every_id_and_both_forms_of_merges() {
        let t = tokenizer(json!([{"id": 6, "content": "<u>", "special": false}])).unwrap();
        let metadata: BTreeMap<_, _> = t.metadata(None, 0, 1, 2).into_iter().collect();
        let strings = |key: &str| match &metadata[key] {
            MetaValue::Array(MetaArray::String(list)) => list.join(","),
            other => panic!("{other:?}"),
        };
        assert_eq!(strings("tokenizer.ggml.tokens"), "a,b,ab,[PAD3],ba,[PAD5],<u>");
        assert_eq!(strings("tokenizer.ggml.merges"), "a b,b a");
        assert_eq!(metadata["tokenizer.ggml.token_type"], MetaValue::Array(MetaArray::I32(vec![1, 1, 1, 5, 1, 5, 4])));
        assert_eq!(metadata["tokenizer.ggml.pre"], MetaValue::String("gpt-2".into()));
        let clash = tokenizer(json!([{"id": 6, "content": "[PAD5]", "special": true}])).unwrap();
        assert_eq!(
            clash.ggml_lists("gpt-2")[2].1,
            MetaValue::from(["a", "b", "ab", "[PAD3]", "ba", "[PAD5]_", "[PAD5]"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for (added, word) in [
            (json!([{"id": 0, "content": "x"}]), "two tokens"),
            (json!([{"id": 9, "content": "a"}]), "two ids"),
            (json!([{"id": 4000000000u32, "content": "x"}]), "limit"),
            (json!([{"content": "x"}]), "without id"),
        ] {
            let error = tokenizer(added).err().unwrap().to_string();
            assert!(error.contains("tokenizer.json") && error.contains(word), "{error}");
        }
        let unigram = r#"{"model": {"type": "Unigram"}}"#.to_owned();
        assert!(TextTokenizer::parse(unigram, "t.json").err().unwrap().to_string().contains("Unigram"));
    }
}
