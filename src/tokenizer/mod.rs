//! Text to ids and back: byte-level BPE, as a model's `tokenizer.json` describes it.
//!
//! The merging itself is the `tokenizers` crate's. What that crate would do with special tokens is done here
//! instead, because it depends on who wrote the text: in a template `<|eot_id|>` ends a turn, in what a person typed
//! it is ten harmless characters.

mod bytes;
mod ggml;
mod load;
mod split;

use std::collections::HashMap;
use std::str::Utf8Chunk;

use tokenizers::Model;

pub(crate) use ggml::{TOKEN_TYPES, UNUSED};
pub use split::{split_name, split_names};

use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::memory::{try_copy, try_extend, try_grow, try_with_capacity};

/// What to do with text that looks like a special token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// It is ordinary text, as everything that a user supplies should be.
    Plain,
    /// It is the token. For templates and for callers who build prompts themselves.
    Parse,
}

/// A text tokenizer. Cheap to share between threads; building one parses the whole vocabulary.
pub struct Tokenizer {
    /// Merges text that holds no special tokens.
    bpe: load::PlainBpe,
    entries: Entries,
    added: AddedTokens,
    added_ids: HashMap<String, u32>,
}

/// A part of a text: a special token, or what lies between two of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece<'a> {
    Token(u32),
    Text(&'a str),
}

/// What memory for ids is asked for.
const IDS: &str = "the ids of a text";

/// Longest text that is tokenized. Far beyond any context; keeps a mistaken file from taking all memory.
const MAX_TEXT_BYTES: usize = 1 << 20;

impl Tokenizer {
    /// Builds the tokenizer from the text of a `tokenizer.json`. `file` is named in errors.
    ///
    /// Only byte-level BPE is accepted (what every published MMaDA and LLaDA checkpoint uses): any string is then
    /// encodable, without unknown tokens, and every token is a sequence of bytes. Padding, truncation and
    /// post-processing that the file asks for are left out: prompts are built by [`crate::prompt`].
    ///
    /// # Errors
    /// [`Error::Format`] for what is damaged (not JSON, a merge of unknown tokens, two entries with one id),
    /// [`Error::Unsupported`] for another kind of tokenizer.
    pub fn from_json(json: &str, file: &str) -> Result<Self> {
        load::tokenizer(json, file)
    }

    /// Builds the tokenizer from the keys `tokenizer.ggml.*` that llama.cpp's converter writes. `bytes` is the file
    /// that was parsed.
    ///
    /// # Errors
    /// As [`Tokenizer::from_json`]; [`Error::Unsupported`] also for a split (`tokenizer.ggml.pre`) that is not one of
    /// [`split_names`].
    pub fn from_ggml(header: &Header, bytes: &[u8]) -> Result<Self> {
        ggml::tokenizer(header, bytes)
    }

    /// The ids of a text. No token is added at either end.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        match special {
            Special::Plain => self.encode_plain(text),
            Special::Parse => {
                let mut ids = Vec::new();
                for piece in self.pieces(text) {
                    match piece {
                        Piece::Token(id) => try_extend(&mut ids, &[id], IDS)?,
                        Piece::Text(text) => try_extend(&mut ids, &self.encode_plain(text)?, IDS)?,
                    }
                }
                Ok(ids)
            }
        }
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if text.len() > MAX_TEXT_BYTES {
            let length = text.len();
            return Err(Error::invalid(format!("a text of {length} bytes is too long, the limit is {MAX_TEXT_BYTES}")));
        }
        match self.bpe.encode_fast(text, false) {
            Ok(encoding) => try_copy(encoding.get_ids(), IDS),
            Err(e) => Err(Error::Internal(format!("a text of {} bytes cannot be tokenized: {e}", text.len()))),
        }
    }

    /// Cuts a text at its special tokens.
    pub fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        self.added.split(text)
    }

    /// The text of `ids`. Ids that are no text (image codes, unused rows) are left out, and with `skip_special` so
    /// are special tokens. Bytes that are not UTF-8, such as a character cut in half, become U+FFFD.
    ///
    /// # Panics
    /// As every `String` does, where there is no memory for the text: see [`Tokenizer::try_decode`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(self.decoded(ids, skip_special).map(<[u8]>::len).sum());
        self.decoded(ids, skip_special).for_each(|token| bytes.extend_from_slice(token));
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// [`Tokenizer::decode`] for as many ids as a request may have.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        const WHAT: &str = "the text of tokens";
        let mut bytes = try_with_capacity(self.decoded(ids, skip_special).map(<[u8]>::len).sum(), WHAT)?;
        self.decoded(ids, skip_special).for_each(|token| bytes.extend_from_slice(token));
        let bytes = match String::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(e) => e.into_bytes(),
        };
        let chunk = |chunk: Utf8Chunk| chunk.valid().len() + if chunk.invalid().is_empty() { 0 } else { 3 };
        let mut text = try_with_capacity(bytes.utf8_chunks().map(chunk).sum(), WHAT)?;
        for chunk in bytes.utf8_chunks() {
            text.extend_from_slice(chunk.valid().as_bytes());
            if !chunk.invalid().is_empty() {
                text.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
        String::from_utf8(text).map_err(|e| Error::Internal(format!("the text of {} tokens: {e}", ids.len())))
    }

    /// The bytes of those ids that count.
    fn decoded<'a>(&'a self, ids: &'a [u32], skip_special: bool) -> impl Iterator<Item = &'a [u8]> {
        let counts = move |&&id: &&u32| !(skip_special && self.is_special(id));
        ids.iter().filter(counts).filter_map(|&id| self.token_bytes(id))
    }

    /// The bytes that a token stands for, not always whole characters; `None` for an id that is no text.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.entries.get(id).map(|entry| entry.0)
    }

    /// The text of a token, where it is whole characters.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.token_bytes(id)?).ok()
    }

    /// The id of an entry by its name in the file: `<|eot_id|>`, or `Ġred` for a token of ordinary text.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.added_ids.get(name).copied().or_else(|| self.bpe.get_model().token_to_id(name))
    }

    /// Whether decoding with `skip_special` leaves this token out.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.entries.get(id), Some((_, Kind::Special)))
    }

    /// One more than the largest id: where the image codes of a model begin.
    pub fn len(&self) -> usize {
        self.entries.slots.len()
    }

    /// Never true: a tokenizer holds at least the 256 bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Kind {
    /// No entry has this id.
    #[default]
    None,
    Text,
    /// An added token that is skipped when decoding for people.
    Special,
}

/// id -> bytes, all in one buffer: a vocabulary has 100,000 entries and more.
#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    /// Start and length in `bytes`.
    slots: Vec<(u32, u32, Kind)>,
}

impl Entries {
    fn get(&self, id: u32) -> Option<(&[u8], Kind)> {
        let &(start, length, kind) = self.slots.get(usize::try_from(id).ok()?)?;
        let bytes = self.bytes.get(start as usize..)?.get(..length as usize)?;
        (kind != Kind::None).then_some((bytes, kind))
    }

    /// The caller has checked that `id` and the sum of all bytes are within the limits of `load`.
    fn insert(&mut self, id: u32, bytes: &[u8], kind: Kind) -> Result<()> {
        const WHAT: &str = "the table of tokens";
        let at = id as usize;
        if self.slots.len() <= at {
            try_grow(&mut self.slots, at + 1, WHAT)?;
        }
        self.slots[at] = (self.bytes.len() as u32, bytes.len() as u32, kind);
        try_extend(&mut self.bytes, bytes, WHAT)
    }
}

/// An entry of `added_tokens`: found in text before any merging.
struct AddedToken {
    id: u32,
    content: String,
    /// Swallows white space on this side.
    lstrip: bool,
    rstrip: bool,
    /// Not inside a longer word.
    single_word: bool,
    /// Looked for after all those that are not `normalized`.
    normalized: bool,
}

/// All added tokens, by their first byte, longest first.
#[derive(Default)]
struct AddedTokens {
    by_first: HashMap<u8, Vec<AddedToken>>,
}

impl AddedTokens {
    fn new(tokens: Vec<AddedToken>) -> Self {
        let mut by_first: HashMap<u8, Vec<AddedToken>> = HashMap::new();
        for token in tokens {
            by_first.entry(token.content.as_bytes()[0]).or_default().push(token);
        }
        for tokens in by_first.values_mut() {
            tokens.sort_by_key(|t| std::cmp::Reverse(t.content.len()));
        }
        AddedTokens { by_first }
    }

    fn split<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        for piece in self.split_by(text, false) {
            match piece {
                Piece::Token(_) => pieces.push(piece),
                Piece::Text(text) => pieces.extend(self.split_by(text, true)),
            }
        }
        pieces
    }

    /// Leftmost match first, the longest of those that begin at one place.
    fn split_by<'a>(&self, text: &'a str, normalized: bool) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let (mut done, mut at) = (0, 0);
        while at < text.len() {
            let Some(token) = self.at(text, at, normalized) else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + token.content.len());
            at = end;
            if token.single_word && !stands_alone(&text[..start], &text[end..]) {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                pieces.push(Piece::Text(&text[done..start]));
            }
            pieces.push(Piece::Token(token.id));
            (done, at) = (end, end);
        }
        if done < text.len() {
            pieces.push(Piece::Text(&text[done..]));
        }
        pieces
    }

    /// The longest token that begins at byte `at`. A continuation byte matches nothing: tokens begin with a character.
    fn at(&self, text: &str, at: usize, normalized: bool) -> Option<&AddedToken> {
        let rest = &text.as_bytes()[at..];
        let tokens = self.by_first.get(rest.first()?)?;
        tokens.iter().find(|t| t.normalized == normalized && rest.starts_with(t.content.as_bytes()))
    }
}

fn stands_alone(before: &str, after: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    !before.chars().next_back().is_some_and(is_word) && !after.chars().next().is_some_and(is_word)
}

#[cfg(test)]
mod tests;
