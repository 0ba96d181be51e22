//! The layouts of the tasks: what stands before the masks that the model is to fill.
//!
//! Special tokens come from templates and from the vocabulary's roles. Whatever a user supplies is plain text: a
//! message that holds `<|eot_id|>` holds ten characters.

mod llada;
mod template;
mod vocabulary;

pub use template::{ChatTemplate, MMADA_CHAT_TEMPLATE};
pub use vocabulary::Vocabulary;

use crate::error::{Error, Result};
use crate::memory::{try_extend, try_with_capacity};
use crate::tokenizer::{Piece, Special, Tokenizer};
use template::Part;

/// Put before a question that is to be thought about.
pub const THINK_INSTRUCTION: &str = "You should first think about the reasoning process in the mind and then provide \
     the user with the answer. The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning \
     process here </think> answer here\n";

/// Put before a request for a picture that is to be described in detail first.
pub const DESCRIBE_INSTRUCTION: &str = "You should first think out a more detailed version of the description and then \
     provide the user with the image. The detailed description is enclosed within <think> </think> tags, i.e. <think> \
     detailed description here </think> image here\n";

/// Who says a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One turn of a chat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into() }
    }
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// A prompt for a picture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DrawPrompt {
    /// Everything before `<|soi|>`.
    pub ids: Vec<u32>,
    /// The text was longer than the model was trained for: its end is left out.
    pub truncated: bool,
}

/// The prompt of a chat, up to where the answer begins. With `thinking` the last user message is introduced by
/// [`THINK_INSTRUCTION`]. Contents are stripped of white space at both ends, as the training data was.
///
/// # Errors
/// [`Error::InvalidArgument`] for an empty chat, or for thinking without a user message; [`Error::Format`] when the
/// template fails on this chat (the sentence says why).
pub fn chat(
    tokenizer: &Tokenizer,
    vocabulary: &Vocabulary,
    template: &ChatTemplate,
    messages: &[Message],
    thinking: bool,
) -> Result<Vec<u32>> {
    if messages.is_empty() {
        return Err(Error::invalid("a chat needs at least one message"));
    }
    let asked = messages.iter().rposition(|m| m.role == Role::User).filter(|_| thinking);
    if thinking && asked.is_none() {
        return Err(Error::invalid("thinking needs a message of the user"));
    }
    let name = |id| tokenizer.token_text(id).unwrap_or_default();
    let parts = template.render(name(vocabulary.bos), name(vocabulary.eos), messages)?;

    let mut line = Line::new(tokenizer);
    for part in &parts {
        match part {
            // instruction and content are stripped as one text
            Part::Content(i) if Some(*i) == asked => match messages[*i].content.trim_end_matches(is_space) {
                "" => line.text(strip(THINK_INSTRUCTION))?,
                content => {
                    line.text(THINK_INSTRUCTION)?;
                    line.text(content)?;
                }
            },
            Part::Content(i) => line.text(strip(&messages[*i].content))?,
            Part::Markup(markup) => {
                for piece in tokenizer.pieces(markup) {
                    match piece {
                        Piece::Token(id) => line.token(id)?,
                        Piece::Text(text) => line.text(text)?,
                    }
                }
            }
        }
    }
    line.finish()
}

/// The prompt of a chat about an image: `<|mmu|><|soi|>{image}<|eoi|>`, then the chat. `codes` are the image
/// tokenizer's, in raster order.
///
/// # Errors
/// As [`chat`], and [`Error::InvalidArgument`] for a code outside the codebook or a model that sees no images.
pub fn image_question(
    tokenizer: &Tokenizer,
    vocabulary: &Vocabulary,
    template: &ChatTemplate,
    codes: &[u32],
    messages: &[Message],
    thinking: bool,
) -> Result<Vec<u32>> {
    let [mmu, soi, eoi] = [
        vocabulary.need("mmu", vocabulary.mmu)?,
        vocabulary.need("soi", vocabulary.soi)?,
        vocabulary.need("eoi", vocabulary.eoi)?,
    ];
    let mut ids = try_with_capacity(codes.len() + 3, IDS)?;
    ids.extend([mmu, soi]);
    for &code in codes {
        let id = vocabulary
            .image_id(code)
            .ok_or_else(|| Error::invalid(format!("{code} is no image code, the codebook has {}", vocabulary.codes)))?;
        ids.push(id);
    }
    ids.push(eoi);
    try_extend(&mut ids, &chat(tokenizer, vocabulary, template, messages, thinking)?, IDS)?;
    Ok(ids)
}

/// The prompt for a picture: `<|t2i|><bos>{text}<eos>`, of which all before the `<eos>` are at most `max_text_len`
/// ids; a longer text loses its end. The text is not stripped. With an empty text this is the unconditional prompt.
///
/// # Errors
/// [`Error::InvalidArgument`] for a `max_text_len` below 2 or a model that draws no images.
pub fn draw(tokenizer: &Tokenizer, vocabulary: &Vocabulary, text: &str, max_text_len: usize) -> Result<DrawPrompt> {
    let t2i = vocabulary.need("t2i", vocabulary.t2i)?;
    if max_text_len < 2 {
        return Err(Error::invalid(format!("max_text_len is {max_text_len}, it has to be at least 2")));
    }
    let mut ids = vec![t2i, vocabulary.bos];
    try_extend(&mut ids, &tokenizer.encode(text, Special::Plain)?, IDS)?;
    let truncated = ids.len() > max_text_len;
    ids.truncate(max_text_len);
    ids.push(vocabulary.eos);
    Ok(DrawPrompt { ids, truncated })
}

/// The prompt for a picture that is described first, up to where the description begins.
///
/// The `<eot_id>` after the text is eight plain characters: so it was in the training data.
///
/// # Errors
/// [`Error::InvalidArgument`] for a model that was not made for it.
pub fn reasoned(tokenizer: &Tokenizer, vocabulary: &Vocabulary, text: &str) -> Result<Vec<u32>> {
    let start_header = vocabulary.need("start_header", vocabulary.start_header)?;
    let end_header = vocabulary.need("end_header", vocabulary.end_header)?;
    let mut line = Line::new(tokenizer);
    line.token(vocabulary.need("r2i", vocabulary.r2i)?)?;
    line.token(vocabulary.bos)?;
    line.token(start_header)?;
    line.text("user")?;
    line.token(end_header)?;
    for text in ["\n", DESCRIBE_INSTRUCTION, text, "<eot_id>"] {
        line.text(text)?;
    }
    line.token(start_header)?;
    line.text("assistant")?;
    line.token(end_header)?;
    line.text("\n")?;
    line.finish()
}

/// Splits an answer `<think>...</think>answer` in its two parts, both stripped of white space.
///
/// Whatever stands before the last `</think>` is thinking, also where the opening tag is missing. Without an end
/// tag, an answer that begins with `<think>` never got beyond thinking: all of it is thinking and the answer is
/// empty. Without either tag there is no thinking.
pub fn split_thinking(text: &str) -> (Option<&str>, &str) {
    let (thinking, answer) = match text.rsplit_once("</think>") {
        Some((thinking, answer)) => (thinking, answer),
        None if strip(text).starts_with("<think>") => (text, ""),
        None => return (None, strip(text)),
    };
    let thinking = strip(thinking);
    let thinking = strip(thinking.strip_prefix("<think>").unwrap_or(thinking));
    (Some(thinking), strip(answer))
}

/// Without white space at both ends, where Python's `str.strip` and Jinja's `trim` see it: Unicode's, and the four
/// separators U+001C to U+001F.
fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// What memory for ids is asked for.
const IDS: &str = "the ids of a prompt";

/// Builds a sequence of special tokens and plain text. Texts that follow each other are tokenized as one.
struct Line<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    pending: String,
}

impl<'a> Line<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Line { tokenizer, ids: Vec::new(), pending: String::new() }
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let bytes = self.pending.len().saturating_add(text.len());
        let failed = |_| Error::OutOfMemory { what: "the text of a prompt".to_owned(), bytes };
        self.pending.try_reserve(text.len()).map_err(failed)?;
        self.pending.push_str(text);
        Ok(())
    }

    fn token(&mut self, id: u32) -> Result<()> {
        self.flush()?;
        try_extend(&mut self.ids, &[id], IDS)
    }

    fn flush(&mut self) -> Result<()> {
        let ids = self.tokenizer.encode(&self.pending, Special::Plain)?;
        self.pending.clear();
        try_extend(&mut self.ids, &ids, IDS)
    }

    fn finish(mut self) -> Result<Vec<u32>> {
        self.flush()?;
        Ok(self.ids)
    }
}

#[cfg(test)]
mod tests;
