//! The architectures that can be run, and what a file of each says where.

use super::{Header, Value};
use crate::error::{Error, Result};

/// What `general.architecture` says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Architecture {
    /// Text and images, with everything that is said of them in keys `mmada.*`.
    Mmada,
    /// Text alone, as llama.cpp's converter writes LLaDA (its `conversion/llada.py`): sizes in keys `llada.*`, roles of
    /// tokens and the tokenizer in keys `tokenizer.ggml.*`, rows of q and k in another order.
    Llada,
}

impl Architecture {
    const ALL: [Architecture; 2] = [Architecture::Mmada, Architecture::Llada];

    pub fn name(self) -> &'static str {
        match self {
            Architecture::Mmada => "mmada",
            Architecture::Llada => "llada",
        }
    }

    /// The metadata key of a size: `block_count` is `mmada.block_count`.
    pub fn key(self, name: &str) -> String {
        format!("{}.{name}", self.name())
    }
}

impl Header {
    /// The file's architecture.
    ///
    /// # Errors
    /// `Unsupported` for one that this library does not run.
    pub fn architecture(&self) -> Result<Architecture> {
        let name = self.str("general.architecture")?;
        Architecture::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
            let known = Architecture::ALL.map(|a| format!("`{}`", a.name())).join(" and ");
            Error::unsupported(self.file(), format!("unknown architecture `{name}` (this library runs {known})"))
        })
    }

    /// Rows of the embedding, by the metadata: `mmada.vocab_size`; in `llada` files one for each token.
    pub fn vocabulary_rows(&self) -> Result<u32> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        match self.architecture()? {
            Architecture::Mmada => self.u32("mmada.vocab_size"),
            Architecture::Llada => match self.get(TOKENS) {
                Some(Value::Array(tokens)) if tokens.len > 0 => u32::try_from(tokens.len)
                    .map_err(|_| Error::format(self.file(), format!("metadata {TOKENS} holds too many tokens"))),
                Some(_) => Err(Error::format(self.file(), format!("metadata {TOKENS} is no list of tokens"))),
                None => Err(Error::format(self.file(), format!("metadata {TOKENS} is missing"))),
            },
        }
    }
}
