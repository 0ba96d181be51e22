//! The vocabulary of `llada` files: what llama.cpp's keys say of tokens, and its rules where they say nothing.

use super::Vocabulary;
use super::vocabulary::{missing, role};
use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::tokenizer::{TOKEN_TYPES, UNUSED};

/// Names that end a turn, in files without `tokenizer.ggml.eot_token_id` (which the converter does not write for
/// LLaDA); llama.cpp looks for them too (llama-vocab.cpp).
const END_OF_TURN: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];
/// LLaDA's own, in files without `tokenizer.ggml.mask_token_id`.
const MASK: [&str; 1] = ["<|mdm_mask|>"];

/// One token for each row, all of them text. bos, eos and mask are needed; a turn ends with eos where nothing else
/// is said to end it.
pub(super) fn vocabulary(header: &Header, bytes: &[u8]) -> Result<Vocabulary> {
    let rows = header.vocabulary_rows()?;
    let key = |name: &str| format!("tokenizer.ggml.{name}_token_id");
    let role = |name: &str| role(header, &key(name), rows, &(rows..rows));
    let need = |name: &str| role(name)?.ok_or_else(|| missing(header, &key(name)));
    let named = |names: &[&str]| -> Result<Option<u32>> {
        let tokens = header.strings(bytes, "tokenizer.ggml.tokens")?;
        let found = names.iter().find_map(|name| tokens.iter().position(|token| token == name));
        Ok(found.map(|id| id as u32)) // below rows, a u32
    };
    let (bos, eos) = (need("bos")?, need("eos")?);
    let eot = match role("eot")? {
        Some(id) => id,
        None => named(&END_OF_TURN)?.unwrap_or(eos),
    };
    let mask = match role("mask")? {
        Some(id) => id,
        None => named(&MASK)?.ok_or_else(|| missing(header, &key("mask")))?,
    };
    if [bos, eos, eot].contains(&mask) {
        let reason = format!("{} is {mask}, which begins or ends texts", key("mask"));
        return Err(Error::format(header.file(), reason));
    }
    Ok(Vocabulary {
        rows,
        text: trained(header, bytes, rows)?,
        code_offset: rows,
        codes: 0,
        bos,
        eos,
        eot,
        mask,
        pad: role("padding")?,
        start_header: None,
        end_header: None,
        soi: None,
        eoi: None,
        sov: None,
        eov: None,
        t2i: None,
        mmu: None,
        t2v: None,
        v2v: None,
        lvg: None,
        r2i: None,
        ipad: None,
    })
}

/// One more than the last id that is a token: behind it are rows that were never trained, whose tokens the converter
/// makes up.
fn trained(header: &Header, bytes: &[u8], rows: u32) -> Result<u32> {
    let Some(types) = header.opt_usizes(bytes, TOKEN_TYPES)? else { return Ok(rows) };
    let last = types.iter().rposition(|&kind| kind != UNUSED);
    Ok(last.map_or(rows, |id| rows.min(id as u32 + 1)))
}
