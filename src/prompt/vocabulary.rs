//! The partition of a model's vocabulary, and the ids that have a role. All of it comes from the model file.
//!
//! ```text
//! 0 .. text                         entries of the tokenizer: words, then special tokens
//! code_offset .. code_offset+codes  image codes (at `text` unless the converter was told otherwise)
//! .. rows                           rows of the embedding that were never trained
//! ```

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gguf::{Architecture, Header, Value};
use crate::tokenizer::Tokenizer;

/// Which ids are text, which are image codes, and which have a role in prompts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vocabulary {
    /// Rows of the embedding: every id is below.
    pub rows: u32,
    /// Ids below are entries of the tokenizer.
    pub text: u32,
    /// The id of image code 0.
    pub code_offset: u32,
    /// Size of the codebook; 0 for a model without images.
    pub codes: u32,
    /// Begins a prompt.
    pub bos: u32,
    /// Ends a text, and fills what is left of an answer.
    pub eos: u32,
    /// Ends a turn of a chat.
    pub eot: u32,
    /// What is to be filled in.
    pub mask: u32,
    /// Around the name of who speaks.
    pub start_header: Option<u32>,
    pub end_header: Option<u32>,
    /// Around an image, and around a video.
    pub soi: Option<u32>,
    pub eoi: Option<u32>,
    pub sov: Option<u32>,
    pub eov: Option<u32>,
    /// Tasks: text to image, question about an image, text to video, video to video, image with text, reasoned image.
    pub t2i: Option<u32>,
    pub mmu: Option<u32>,
    pub t2v: Option<u32>,
    pub v2v: Option<u32>,
    pub lvg: Option<u32>,
    pub r2i: Option<u32>,
    /// Filled the left of image prompts in training.
    pub ipad: Option<u32>,
    pub pad: Option<u32>,
}

impl Vocabulary {
    /// Reads the partition from a model file's metadata: `mmada.vocab_size`, `mmada.image.*`, `mmada.token.*`, or
    /// `tokenizer.ggml.*` in `llada` files. `bytes` is the file that was parsed.
    ///
    /// # Errors
    /// [`Error::Format`] where a key is missing, a role has an id beyond the embedding or among the image codes, or
    /// the image codes do not fit.
    pub fn from_header(header: &Header, bytes: &[u8]) -> Result<Self> {
        match header.architecture()? {
            Architecture::Mmada => Self::mmada(header),
            Architecture::Llada => super::llada::vocabulary(header, bytes),
        }
    }

    fn mmada(header: &Header) -> Result<Self> {
        let rows = header.vocabulary_rows()?;
        let codes = image_codes(header, rows)?;
        let role = |name: &str| role(header, &key(name), rows, &codes);
        let need = |name: &str| role(name)?.ok_or_else(|| missing(header, &key(name)));
        // A list of tokens may be padded to all rows, with names for image codes: text ends where the codes begin.
        let listed = match header.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => u32::try_from(tokens.len).unwrap_or(u32::MAX),
            _ => rows,
        };
        let text_end = if codes.is_empty() { rows } else { codes.start };
        Ok(Vocabulary {
            rows,
            text: listed.min(text_end),
            code_offset: codes.start,
            codes: codes.end - codes.start,
            bos: need("bos")?,
            eos: need("eos")?,
            eot: need("eot")?,
            mask: need("mask")?,
            start_header: role("start_header")?,
            end_header: role("end_header")?,
            soi: role("soi")?,
            eoi: role("eoi")?,
            sov: role("sov")?,
            eov: role("eov")?,
            t2i: role("t2i")?,
            mmu: role("mmu")?,
            t2v: role("t2v")?,
            v2v: role("v2v")?,
            lvg: role("lvg")?,
            r2i: role("r2i")?,
            ipad: role("ipad")?,
            pad: role("pad")?,
        })
    }

    /// The ids of all image codes; empty for a model without images.
    pub fn image_ids(&self) -> Range<u32> {
        self.code_offset..self.code_offset + self.codes
    }

    /// The id of an image code.
    pub fn image_id(&self, code: u32) -> Option<u32> {
        (code < self.codes).then(|| self.code_offset + code)
    }

    /// The image code of an id.
    pub fn image_code(&self, id: u32) -> Option<u32> {
        self.image_ids().contains(&id).then(|| id - self.code_offset)
    }

    /// Whether an answer ends here: `<|eot_id|>` or eos.
    pub fn is_end(&self, id: u32) -> bool {
        id == self.eot || id == self.eos
    }

    /// Whether a tokenizer's ids are this model's. `file` is named in the error.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer, file: &str) -> Result<()> {
        let limit = if self.codes > 0 { self.code_offset } else { self.rows };
        if tokenizer.len() > limit as usize {
            let entries = tokenizer.len();
            let reason = format!("the tokenizer has ids up to {entries} (exclusive) but text ends at id {limit}");
            return Err(Error::format(file, reason));
        }
        for (name, id) in [("bos", self.bos), ("eos", self.eos), ("eot", self.eot), ("mask", self.mask)] {
            if tokenizer.token_bytes(id).is_none() {
                return Err(Error::format(file, format!("the tokenizer has no entry {id}, the model's {name} token")));
            }
        }
        Ok(())
    }

    /// The id of a role that the caller's task needs.
    pub(crate) fn need(&self, name: &str, id: Option<u32>) -> Result<u32> {
        id.ok_or_else(|| {
            Error::invalid(format!(
                "this model was not made for that: its vocabulary has no {name} token ({})",
                key(name)
            ))
        })
    }
}

fn key(name: &str) -> String {
    format!("mmada.token.{name}")
}

fn image_codes(header: &Header, rows: u32) -> Result<Range<u32>> {
    let (offset_key, size_key) = ("mmada.image.code_offset", "mmada.image.codebook_size");
    if header.get(offset_key).is_none() && header.get(size_key).is_none() {
        return Ok(rows..rows);
    }
    let (offset, size) = (header.u32(offset_key)?, header.u32(size_key)?);
    match offset.checked_add(size) {
        Some(end) if size > 0 && end <= rows => Ok(offset..end),
        _ => {
            let reason = format!("{size} image codes from id {offset} on do not fit in a vocabulary of {rows}");
            Err(Error::format(header.file(), reason))
        }
    }
}

pub(super) fn missing(header: &Header, key: &str) -> Error {
    Error::format(header.file(), format!("metadata key {key} is missing"))
}

/// The id that `key` gives, if it is there: one of the vocabulary and no image code.
pub(super) fn role(header: &Header, key: &str, rows: u32, codes: &Range<u32>) -> Result<Option<u32>> {
    let Some(id) = header.opt_u32(key)? else { return Ok(None) };
    if id >= rows {
        return Err(Error::format(header.file(), format!("{key} is {id} but the vocabulary has {rows} ids")));
    }
    if codes.contains(&id) {
        let reason = format!("{key} is {id}, among the image codes {}..{}", codes.start, codes.end);
        return Err(Error::format(header.file(), reason));
    }
    Ok(Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{MetaArray, MetaValue, Writer};

    fn header(keys: &[(&str, u32)], tokens: Option<usize>) -> Header {
        let mut metadata: Vec<(String, MetaValue)> = vec![("general.architecture".to_owned(), "mmada".into())];
        metadata.extend(keys.iter().map(|&(key, value)| (key.to_owned(), MetaValue::U32(value))));
        if let Some(count) = tokens {
            let names = (0..count).map(|i| format!("t{i}")).collect();
            metadata.push(("tokenizer.ggml.tokens".to_owned(), MetaValue::Array(MetaArray::String(names))));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.gguf");
        Writer::create(&path, &metadata, &[]).unwrap().finish().unwrap();
        Header::parse(&std::fs::read(path).unwrap(), "v.gguf").unwrap()
    }

    const TINY: [(&str, u32); 8] = [
        ("mmada.vocab_size", 768),
        ("mmada.image.code_offset", 498),
        ("mmada.image.codebook_size", 256),
        ("mmada.token.bos", 480),
        ("mmada.token.eos", 481),
        ("mmada.token.eot", 496),
        ("mmada.token.mask", 497),
        ("mmada.token.soi", 483),
    ];

    fn with(key: &str, value: Option<u32>) -> Result<Vocabulary> {
        let mut keys: Vec<_> = TINY.into_iter().filter(|k| k.0 != key).collect();
        keys.extend(value.map(|v| (key, v)));
        Vocabulary::from_header(&header(&keys, None), &[])
    }

    #[test]
    fn image_codes_begin_where_the_file_says() {
        let v = with("mmada.image.code_offset", Some(500)).unwrap();
        assert_eq!((v.text, v.image_ids(), v.image_id(3), v.image_id(256)), (500, 500..756, Some(503), None));
        assert_eq!((v.image_code(503), v.image_code(499), v.image_code(756)), (Some(3), None, None));
        assert_eq!((v.soi, v.eoi, v.is_end(481), v.is_end(496), v.is_end(497)), (Some(483), None, true, true, false));
        assert!(v.need("eoi", v.eoi).unwrap_err().to_string().contains("mmada.token.eoi"));
    }

    #[test]
    fn text_ends_with_the_list_of_tokens_or_at_the_codes() {
        let text = |tokens| Vocabulary::from_header(&header(&TINY, Some(tokens)), &[]).unwrap().text;
        assert_eq!((text(490), text(498), text(768)), (490, 498, 498));
        let no_images: Vec<_> = TINY.into_iter().filter(|k| !k.0.contains("image")).collect();
        let v = Vocabulary::from_header(&header(&no_images, Some(600)), &[]).unwrap();
        assert_eq!((v.text, v.codes, v.image_ids().len()), (600, 0, 0));
    }

    #[test]
    fn a_partition_that_cannot_be_is_an_error() {
        let cases = [
            ("mmada.vocab_size", None, "mmada.vocab_size"),
            ("mmada.token.mask", None, "mmada.token.mask"),
            ("mmada.token.mask", Some(768), "has 768 ids"),
            ("mmada.token.soi", Some(500), "among the image codes 498..754"),
            ("mmada.image.codebook_size", Some(271), "do not fit"),
            ("mmada.image.codebook_size", Some(u32::MAX), "do not fit"),
            ("mmada.image.codebook_size", Some(0), "do not fit"),
            ("mmada.image.codebook_size", None, "mmada.image.codebook_size"),
        ];
        for (key, value, reason) in cases {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.starts_with("v.gguf: ") && message.contains(reason), "{message}");
        }
    }
}
