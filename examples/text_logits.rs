//! Tokenizes texts and computes the logits of every position, for `scripts/check-llada`.
//!
//! ```text
//! text_logits MODEL <texts >answers
//! ```
//! In both directions all numbers are 32 bits, little-endian. A text is 1 if names of special tokens in it are meant
//! and 0 if they are characters, its length, its bytes. An answer is the number of ids, the ids, the size of the
//! vocabulary, and the logits [ids, vocabulary] as f32. Products are exact.

use std::io::{Read, Write};

use mmada::tokenizer::Special;
use mmada::{Compute, Context, ContextOptions, Model, SequenceRequest};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn number(input: &mut &[u8]) -> Outcome<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn main() -> Outcome<()> {
    let file = std::env::args().nth(1).ok_or("usage: text_logits MODEL <texts >answers")?;
    let model = Model::open(&file)?;
    let context = Context::new(&model, ContextOptions { compute: Compute::Exact, ..Default::default() })?;
    let vocab = model.vocabulary().text;
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let mut input = &input[..];
    let mut out = std::io::stdout().lock();
    while !input.is_empty() {
        let special = if number(&mut input)? == 1 { Special::Parse } else { Special::Plain };
        let length = number(&mut input)? as usize;
        let (text, rest) = input.split_at_checked(length).ok_or("a text is cut off")?;
        input = rest;
        let ids = model.tokenizer()?.encode(std::str::from_utf8(text)?, special)?;
        let rows: Vec<usize> = (0..ids.len()).collect();
        let wanted = SequenceRequest { ids: &ids, rows: &rows, vocab: 0..vocab };
        let logits = if ids.is_empty() { vec![] } else { context.logits(&[wanted])?.remove(0) };
        let numbers = [&[ids.len() as u32], &ids[..], &[vocab]].concat();
        out.write_all(&numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>())?;
        out.write_all(&logits.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}
