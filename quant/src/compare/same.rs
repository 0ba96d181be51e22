//! Whether two files can be compared at all: logits mean the same only where shape and vocabulary are the same.

use mmada::{Error, Model, Result};

/// # Errors
/// `InvalidArgument` names both files and the first difference.
pub fn check(reference: &Model, model: &Model) -> Result<()> {
    let (ours, theirs) = (traits(model)?, traits(reference)?);
    let fail = |reason: String| {
        let (file, other) = (model.file(), reference.file());
        Err(Error::invalid(format!("{file} cannot be compared to {other}: {reason}")))
    };
    if let Some(((what, is), (_, due))) = ours.iter().zip(&theirs).find(|(a, b)| a != b) {
        return fail(format!("{what} is {is}, but {due} in the reference"));
    }
    // Tokens of one number may still be different words.
    let (ours, theirs) = (tokens(model)?, tokens(reference)?);
    if let Some(id) = ours.iter().zip(&theirs).position(|(a, b)| a != b) {
        return fail(format!("token {id} is {:?}, but {:?} in the reference", ours[id], theirs[id]));
    }
    match ours.len() == theirs.len() {
        true => Ok(()),
        false => fail(format!("it lists {} tokens, the reference {}", ours.len(), theirs.len())),
    }
}

fn tokens(model: &Model) -> Result<Vec<&str>> {
    Ok(model.header().opt_strings(model.bytes(), "tokenizer.ggml.tokens")?.unwrap_or_default())
}

/// What must be equal, by name.
fn traits(model: &Model) -> Result<Vec<(&'static str, String)>> {
    let (c, v) = (model.config(), model.vocabulary());
    let role = |id: Option<u32>| id.map_or("absent".to_owned(), |id| id.to_string());
    Ok(vec![
        ("the architecture", model.header().str("general.architecture")?.to_owned()),
        ("the number of layers", c.layers.to_string()),
        ("the width", c.d_model.to_string()),
        ("the number of attention heads", c.heads.to_string()),
        ("the number of key/value heads", c.kv_heads.to_string()),
        ("the width of the MLP", c.d_ff.to_string()),
        ("the context", c.context.to_string()),
        ("the size of the vocabulary", c.vocab.to_string()),
        ("the epsilon of the norms", c.rms_eps.to_string()),
        ("the base of the rotations", c.rope_theta.to_string()),
        ("the number of text tokens", v.text.to_string()),
        ("the id of the first image code", v.code_offset.to_string()),
        ("the number of image codes", v.codes.to_string()),
        ("the id of [MASK]", v.mask.to_string()),
        ("the id of bos", v.bos.to_string()),
        ("the id of eos", v.eos.to_string()),
        ("the id of eot", v.eot.to_string()),
        ("the id of soi", role(v.soi)),
        ("the id of eoi", role(v.eoi)),
        ("the id of t2i", role(v.t2i)),
        ("the id of mmu", role(v.mmu)),
        ("the side of pictures in pixels", model.image_size().to_string()),
    ])
}
