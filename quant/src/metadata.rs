//! The metadata of the output file: everything about a model that is not a weight.

use mmada::gguf::MetaValue;
use mmada::{Error, Result};

use crate::config::Config;
use crate::recipe::Recipe;
use crate::sampling::Sampling;
use crate::tokenizer::TextTokenizer;
use crate::tokens::Roles;
use crate::vq::{Layout, NORM_EPSILON, NORM_GROUPS};

/// All that goes into the metadata.
pub struct Sources<'a> {
    pub name: &'a str,
    pub recipe: &'a Recipe,
    pub config: &'a Config,
    /// Rows of the embedding.
    pub rows: usize,
    /// First image code, for models with images.
    pub code_offset: Option<u32>,
    pub vq: Option<&'a Layout>,
    pub roles: &'a Roles,
    pub sampling: &'a Sampling,
    pub tokenizer: &'a TextTokenizer,
    pub chat_template: Option<String>,
}

/// The metadata in the order in which it is written.
pub fn metadata(s: &Sources) -> Result<Vec<(String, MetaValue)>> {
    let mut out: Vec<(String, MetaValue)> = vec![
        ("general.architecture".into(), "mmada".into()),
        ("general.name".into(), s.name.into()),
        ("general.file_type".into(), s.recipe.file_type().into()),
        ("general.alignment".into(), 32u32.into()),
    ];
    if !s.recipe.base().is_float() {
        out.push(("general.quantization_version".into(), 2u32.into()));
    }
    out.extend(backbone(s)?);
    if let (Some(offset), Some(codes)) = (s.code_offset, s.config.codebook_size) {
        out.push(("mmada.image.code_offset".into(), offset.into()));
        out.push(("mmada.image.codebook_size".into(), codes.into()));
        out.extend(s.config.num_vq_tokens.map(|n| ("mmada.image.token_count".to_owned(), n.into())));
    }
    out.extend(s.roles.0.iter().map(|&(key, id)| (format!("mmada.token.{key}"), id.into())));
    if let Some(layout) = s.vq {
        out.extend(image_tokenizer(layout)?);
    }
    out.extend(s.sampling.metadata());
    let role = |key| s.roles.get(key).ok_or_else(|| Error::Internal(format!("the role {key} was not checked")));
    out.extend(s.tokenizer.metadata(s.chat_template.clone(), role("bos")?, role("eos")?, role("mask")?));
    Ok(out)
}

fn number(n: usize, what: &str) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::invalid(format!("{what} is {n}, more than 32 bits hold")))
}

fn backbone(s: &Sources) -> Result<Vec<(String, MetaValue)>> {
    let c = s.config;
    let mut out: Vec<(String, MetaValue)> = Vec::new();
    for (key, n) in [
        ("block_count", c.layers),
        ("context_length", c.context),
        ("embedding_length", c.d_model),
        ("feed_forward_length", c.mlp),
        ("vocab_size", s.rows),
        ("attention.head_count", c.heads),
        ("attention.head_count_kv", c.kv_heads),
        ("attention.key_length", c.head_dim),
        ("attention.value_length", c.head_dim),
        ("rope.dimension_count", c.head_dim),
    ] {
        out.push((format!("mmada.{key}"), number(n, key)?.into()));
    }
    out.push(("mmada.weight_tying".into(), MetaValue::Bool(c.weight_tying)));
    out.push(("mmada.attention.causal".into(), MetaValue::Bool(false)));
    out.push(("mmada.attention.layer_norm_rms_epsilon".into(), c.rms_eps.into()));
    out.push(("mmada.rope.freq_base".into(), c.rope_theta.into()));
    Ok(out)
}

fn image_tokenizer(layout: &Layout) -> Result<Vec<(String, MetaValue)>> {
    let numbers = |list: &[usize], what| list.iter().map(|&n| number(n, what)).collect::<Result<Vec<u32>>>();
    let key = |name: &str| format!("mmada.vq.{name}");
    Ok(vec![
        (key("channels"), number(layout.channels, "vq.channels")?.into()),
        (key("z_channels"), number(layout.z_channels, "vq.z_channels")?.into()),
        (key("encoder.channel_mult"), numbers(&layout.encoder.channel_mult, "vq.channel_mult")?.into()),
        (key("encoder.res_blocks"), numbers(&layout.encoder.res_blocks, "vq.res_blocks")?.into()),
        (key("decoder.channel_mult"), numbers(&layout.decoder.channel_mult, "vq.channel_mult")?.into()),
        (key("decoder.res_blocks"), numbers(&layout.decoder.res_blocks, "vq.res_blocks")?.into()),
        (key("norm_groups"), number(NORM_GROUPS, "vq.norm_groups")?.into()),
        (key("norm_epsilon"), NORM_EPSILON.into()),
    ])
}
