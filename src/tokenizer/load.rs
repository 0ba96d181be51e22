//! `tokenizer.json` to [`Tokenizer`]. Everything is checked before the `tokenizers` crate sees it: that crate slices
//! by lengths that the file implies, and would panic on some damaged files.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

use super::{AddedToken, AddedTokens, Entries, Kind, Tokenizer, bytes};
use crate::error::{Error, Result};

pub(super) type PlainBpe =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

type Merge = (String, String);

/// What a tokenizer is made of, checked part by part.
#[derive(Default)]
pub(super) struct Parts {
    /// Tokens in the byte alphabet; added tokens may be among them.
    pub vocab: HashMap<String, u32>,
    pub merges: Vec<Merge>,
    pub ignore_merges: bool,
    /// With them, whether each is special.
    pub added: Vec<(AddedToken, bool)>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    pub normalizer: Option<NormalizerWrapper>,
}

/// The largest published vocabularies take 33 MB.
const MAX_JSON_BYTES: usize = 48 << 20;
/// Ids index a table.
pub(super) const MAX_IDS: u64 = 1 << 22;
const MAX_PATTERN_BYTES: usize = 4096;

pub(super) fn tokenizer(json: &str, file: &str) -> Result<Tokenizer> {
    let loader = Loader { file };
    if json.len() > MAX_JSON_BYTES {
        return Err(loader.bad(format!("has {} bytes, the limit is {MAX_JSON_BYTES}", json.len())));
    }
    let root: Value = serde_json::from_str(json).map_err(|e| loader.bad(format!("is not JSON: {e}")))?;
    let Value::Object(mut root) = root else { return Err(loader.bad("is not a JSON object")) };
    let Some(Value::Object(mut model)) = root.remove("model") else { return Err(loader.bad("has no model")) };

    loader.check_decoder(root.get("decoder"))?;
    loader.check_model(&model)?;
    let vocab = loader.vocab(model.remove("vocab"))?;
    loader.check_bytes(&vocab)?;
    let Some(Value::Array(merges)) = model.remove("merges") else { return Err(loader.bad("has no merges")) };
    loader.build(Parts {
        merges: loader.merges(merges.into_iter().map(pair), &vocab)?,
        ignore_merges: model.get("ignore_merges").and_then(Value::as_bool).unwrap_or(false),
        added: loader.added_tokens(root.remove("added_tokens"))?,
        pre_tokenizer: Some(loader.pre_tokenizer(root.remove("pre_tokenizer"))?),
        normalizer: loader.normalizer(root.remove("normalizer"))?,
        vocab,
    })
}

/// The added tokens that no merge needs. A single character is needed: it may be a byte.
fn not_mergeable<'a>(added: &'a [(AddedToken, bool)], merges: &[Merge]) -> HashSet<&'a str> {
    let names = added.iter().map(|(token, _)| token.content.as_str());
    let mut names: HashSet<&str> = names.filter(|name| name.chars().nth(1).is_some()).collect();
    for (a, b) in merges {
        for name in [a, b, &format!("{a}{b}")] {
            names.remove(name.as_str());
        }
    }
    names
}

/// What every id stands for. Ids and sizes have been checked.
fn entries(vocab: &HashMap<String, u32>, added: &[(AddedToken, bool)]) -> Result<Entries> {
    let mut entries = Entries::default();
    for (name, &id) in vocab {
        match bytes::spelled(name) {
            Some(spelled) => entries.insert(id, &spelled, Kind::Text)?,
            None => entries.insert(id, name.as_bytes(), Kind::Text)?,
        }
    }
    for (token, special) in added {
        entries.insert(token.id, token.content.as_bytes(), if *special { Kind::Special } else { Kind::Text })?;
    }
    Ok(entries)
}

/// The file's name, and the checks of each part.
pub(super) struct Loader<'a> {
    file: &'a str,
}

impl<'a> Loader<'a> {
    pub(super) fn new(file: &'a str) -> Self {
        Loader { file }
    }

    /// What the parts make together.
    pub(super) fn build(&self, parts: Parts) -> Result<Tokenizer> {
        let Parts { mut vocab, merges, ignore_merges, added, pre_tokenizer, normalizer } = parts;
        self.check_ids(&vocab, &added)?;
        let entries = entries(&vocab, &added)?;
        // Plain text never gives an added token, also where whole words are looked up before merging.
        for name in not_mergeable(&added, &merges) {
            vocab.remove(name);
        }
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .ignore_merges(ignore_merges)
            .cache_capacity(0) // it would live in the caller's threads for good, and prompts are short
            .build()
            .map_err(|e| self.bad(format!("cannot be built: {e}")))?;
        let mut bpe = PlainBpe::new(bpe);
        bpe.with_pre_tokenizer(pre_tokenizer);
        bpe.with_normalizer(normalizer).map_err(|e| self.bad(format!("cannot be built: {e}")))?;
        let added: Vec<AddedToken> = added.into_iter().map(|(token, _)| token).collect();
        let added_ids = added.iter().map(|token| (token.content.clone(), token.id)).collect();
        Ok(Tokenizer { bpe, entries, added: AddedTokens::new(added), added_ids })
    }

    pub(super) fn bad(&self, reason: impl Display) -> Error {
        Error::format(self.file, format!("the tokenizer {reason}"))
    }

    pub(super) fn unsupported(&self, reason: impl Display) -> Error {
        Error::unsupported(self.file, format!("the tokenizer {reason}, which is not supported"))
    }

    /// Byte-level BPE without randomness and without marks at the ends of words.
    fn check_model(&self, model: &Map<String, Value>) -> Result<()> {
        match model.get("type") {
            None => {} // files of old versions do not say
            Some(Value::String(name)) if name == "BPE" => {}
            Some(other) => return Err(self.unsupported(format!("is of type {}", short(other)))),
        }
        if model.get("dropout").is_some_and(|v| !v.is_null() && v.as_f64() != Some(0.0)) {
            return Err(self.unsupported("drops merges at random"));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model.get(key).is_some_and(|v| !v.is_null() && v.as_str() != Some("")) {
                return Err(self.unsupported(format!("has a {key}")));
            }
        }
        Ok(())
    }

    fn id(&self, name: &str, id: &Value) -> Result<u32> {
        match id.as_u64() {
            Some(id) if id < MAX_IDS => Ok(id as u32),
            _ => Err(self.bad(format!("gives {} the id {}, ids are below {MAX_IDS}", quoted(name), short(id)))),
        }
    }

    fn vocab(&self, vocab: Option<Value>) -> Result<HashMap<String, u32>> {
        let Some(Value::Object(vocab)) = vocab else { return Err(self.bad("has no vocab")) };
        let mut ids = self.names(vocab.len())?;
        for (name, id) in vocab {
            let id = self.id(&name, &id)?;
            ids.insert(name, id);
        }
        Ok(ids)
    }

    /// Room for the ids of `count` names.
    pub(super) fn names(&self, count: usize) -> Result<HashMap<String, u32>> {
        let mut ids = HashMap::new();
        ids.try_reserve(count).map_err(|_| Error::OutOfMemory {
            what: "the tokenizer's vocabulary".to_owned(),
            bytes: count.saturating_mul(size_of::<(String, u32)>()),
        })?;
        Ok(ids)
    }

    /// Every text can be written with the vocabulary.
    pub(super) fn check_bytes(&self, ids: &HashMap<String, u32>) -> Result<()> {
        let missing = (0..256).find(|&b| !ids.contains_key(bytes::ALPHABET[b].encode_utf8(&mut [0; 4]) as &str));
        match missing {
            None => Ok(()),
            Some(byte) => Err(self.unsupported(format!("has no token for the byte 0x{byte:02x}"))),
        }
    }

    /// Pairs of tokens; `None` stands for what is no pair.
    pub(super) fn merges(
        &self,
        merges: impl Iterator<Item = Option<Merge>>,
        vocab: &HashMap<String, u32>,
    ) -> Result<Vec<Merge>> {
        let mut pairs = Vec::new();
        for (i, merge) in merges.enumerate() {
            let Some((a, b)) = merge else { return Err(self.bad(format!("has a merge {i} that is no pair"))) };
            let merged = format!("{a}{b}");
            if let Some(unknown) = [&a, &b, &merged].into_iter().find(|t| !vocab.contains_key(*t)) {
                return Err(self.bad(format!("has a merge {i} with {}, which is no token", quoted(unknown))));
            }
            pairs.push((a, b));
        }
        Ok(pairs)
    }

    /// The added tokens, and whether each is special.
    fn added_tokens(&self, tokens: Option<Value>) -> Result<Vec<(AddedToken, bool)>> {
        let tokens = match tokens {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(tokens)) => tokens,
            Some(_) => return Err(self.bad("has added_tokens that are no list")),
        };
        tokens.iter().enumerate().map(|(i, token)| self.added_token(i, token)).collect()
    }

    fn added_token(&self, i: usize, token: &Value) -> Result<(AddedToken, bool)> {
        let flag = |name: &str| token.get(name).and_then(Value::as_bool);
        match (token.get("content").and_then(Value::as_str), token.get("id")) {
            (Some(content), Some(id)) if !content.is_empty() => {
                let special = flag("special").unwrap_or(false);
                let token = AddedToken {
                    id: self.id(content, id)?,
                    content: content.to_owned(),
                    lstrip: flag("lstrip").unwrap_or(false),
                    rstrip: flag("rstrip").unwrap_or(false),
                    single_word: flag("single_word").unwrap_or(false),
                    normalized: flag("normalized").unwrap_or(!special),
                };
                Ok((token, special))
            }
            _ => Err(self.bad(format!("has an added token {i} without content or id"))),
        }
    }

    /// One name, one id.
    fn check_ids(&self, vocab: &HashMap<String, u32>, added: &[(AddedToken, bool)]) -> Result<()> {
        let mut names: HashMap<u32, &str> = HashMap::new();
        let added = added.iter().map(|(token, _)| (token.content.as_str(), token.id));
        for (name, id) in vocab.iter().map(|(name, &id)| (name.as_str(), id)).chain(added) {
            let other = *names.entry(id).or_insert(name);
            if other != name {
                return Err(self.bad(format!("gives the id {id} to both {} and {}", quoted(other), quoted(name))));
            }
            if let Some(&other) = vocab.get(name)
                && other != id
            {
                return Err(self.bad(format!("gives {} both ids {other} and {id}", quoted(name))));
            }
        }
        Ok(())
    }

    fn check_decoder(&self, decoder: Option<&Value>) -> Result<()> {
        match decoder {
            None | Some(Value::Null) => Ok(()),
            Some(decoder) if kind(decoder) == "ByteLevel" => Ok(()),
            Some(decoder) => Err(self.unsupported(format!("has the decoder {}", quoted(kind(decoder))))),
        }
    }

    fn normalizer(&self, normalizer: Option<Value>) -> Result<Option<NormalizerWrapper>> {
        let Some(normalizer) = normalizer.filter(|v| !v.is_null()) else { return Ok(None) };
        self.check_steps(&normalizer, "normalizer", "normalizers", &["NFC", "NFD", "NFKC", "NFKD", "Lowercase"])?;
        serde_json::from_value(normalizer).map(Some).map_err(|e| self.bad(format!("has a bad normalizer: {e}")))
    }

    pub(super) fn pre_tokenizer(&self, pre_tokenizer: Option<Value>) -> Result<PreTokenizerWrapper> {
        let value = pre_tokenizer.unwrap_or(Value::Null);
        let known = ["Split", "ByteLevel", "Digits", "Punctuation"];
        let steps = self.check_steps(&value, "pre_tokenizer", "pretokenizers", &known)?;
        if !steps.contains(&"ByteLevel") {
            return Err(self.unsupported("has no ByteLevel pre_tokenizer"));
        }
        serde_json::from_value(value).map_err(|e| self.bad(format!("has a bad pre_tokenizer: {e}")))
    }

    /// The kinds of all steps of a normalizer or pre-tokenizer: itself, or the members of a sequence.
    fn check_steps<'v>(&self, value: &'v Value, what: &str, list: &str, known: &[&str]) -> Result<Vec<&'v str>> {
        let steps = match value.get(list).and_then(Value::as_array) {
            Some(steps) if kind(value) == "Sequence" => steps.iter().collect(),
            _ => vec![value],
        };
        for step in &steps {
            if !known.contains(&kind(step)) {
                return Err(self.unsupported(format!("has the {what} {}", quoted(kind(step)))));
            }
            let pattern = step.get("pattern").and_then(|p| p.get("Regex").or(p.get("String"))).and_then(Value::as_str);
            if pattern.is_some_and(|p| p.len() > MAX_PATTERN_BYTES) {
                return Err(self.bad(format!("has a pattern longer than {MAX_PATTERN_BYTES} bytes")));
            }
        }
        Ok(steps.into_iter().map(kind).collect())
    }
}

/// Both written ways: `["a", "b"]` and `"a b"`.
fn pair(merge: Value) -> Option<Merge> {
    match merge {
        Value::String(merge) => {
            let (a, b) = merge.split_once(' ')?;
            (!b.contains(' ')).then(|| (a.to_owned(), b.to_owned()))
        }
        Value::Array(merge) => match <[Value; 2]>::try_from(merge) {
            Ok([Value::String(a), Value::String(b)]) => Some((a, b)),
            _ => None,
        },
        _ => None,
    }
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("none")
}

/// A string of the file inside a message: quoted, and not its megabytes.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn short(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}
