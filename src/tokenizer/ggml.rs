//! `tokenizer.ggml.*` to [`Tokenizer`]: the keys in which llama.cpp's converter keeps a byte-level BPE tokenizer
//! (`conversion/base.py`, `_set_vocab_gpt2`).

use std::collections::HashMap;

use super::load::{Loader, MAX_IDS, Parts};
use super::split::{Split, split_names};
use super::{AddedToken, Tokenizer};
use crate::error::{Error, Result};
use crate::gguf::Header;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
/// What each token is: an integer of llama.cpp's `llama_token_type`.
pub(crate) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";

const NORMAL: usize = 1;
const UNKNOWN: usize = 2;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;
/// A row without a token.
pub(crate) const UNUSED: usize = 5;

pub(super) fn tokenizer(header: &Header, bytes: &[u8]) -> Result<Tokenizer> {
    let loader = Loader::new(header.file());
    match header.str(MODEL)? {
        "gpt2" => {}
        other => return Err(loader.unsupported(format!("is of type {other:?} ({MODEL})"))),
    }
    if header.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false) {
        return Err(loader.unsupported("puts a space before texts"));
    }
    let split = split(header)?;
    let (tokens, types) = (header.strings(bytes, TOKENS)?, header.usizes(bytes, TOKEN_TYPES)?);
    if tokens.len() != types.len() || tokens.len() as u64 > MAX_IDS {
        let (tokens, types) = (tokens.len(), types.len());
        return Err(
            loader.bad(format!("has {tokens} tokens and {types} types of tokens, at most {MAX_IDS} are possible"))
        );
    }
    let mut parts =
        Parts { ignore_merges: split.ignore_merges, vocab: loader.names(tokens.len())?, ..Parts::default() };
    for (id, (&name, kind)) in tokens.iter().zip(types).enumerate() {
        let id = id as u32; // below MAX_IDS
        match kind {
            UNUSED => continue,
            _ if name.is_empty() => continue,
            NORMAL => {}
            UNKNOWN | CONTROL | USER_DEFINED => {
                parts.added.push((added(id, name, kind == USER_DEFINED), kind != USER_DEFINED));
            }
            other => {
                return Err(loader.bad(format!("has a token {id} of type {other}, which is none of byte-level BPE")));
            }
        }
        insert(&loader, &mut parts.vocab, name, id)?;
    }
    loader.check_bytes(&parts.vocab)?;
    let merges = header.strings(bytes, MERGES)?.into_iter().map(|merge| merge.split_once(' '));
    let merges = merges.map(|pair| pair.map(|(a, b)| (a.to_owned(), b.to_owned())));
    parts.merges = loader.merges(merges, &parts.vocab)?;
    parts.pre_tokenizer = Some(loader.pre_tokenizer(Some(split.pre_tokenizer()))?);
    loader.build(parts)
}

fn split(header: &Header) -> Result<&'static Split> {
    let name = header.str(PRE)?;
    Split::named(name).ok_or_else(|| {
        let known: Vec<&str> = split_names().collect();
        let reason = format!("{PRE} is {name:?}, which this version does not know (it knows {})", known.join(", "));
        Error::unsupported(header.file(), reason)
    })
}

/// llama.cpp's files do not say whether a token swallows the white space beside it, and it swallows none.
fn added(id: u32, name: &str, normalized: bool) -> AddedToken {
    AddedToken { id, content: name.to_owned(), lstrip: false, rstrip: false, single_word: false, normalized }
}

fn insert(loader: &Loader, vocab: &mut HashMap<String, u32>, name: &str, id: u32) -> Result<()> {
    match vocab.insert(name.to_owned(), id) {
        None => Ok(()),
        Some(other) => Err(loader.bad(format!("gives {} both ids {other} and {id}", super::load::quoted(name)))),
    }
}
