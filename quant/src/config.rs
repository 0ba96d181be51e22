//! config.json: the sizes of the backbone, and a refusal by name of everything that the runtime cannot compute.
//! Keys and their meaning are those of the published MMaDA and LLaDA configurations.

use std::path::Path;

use mmada::{Error, Result};
use serde_json::Value;

use crate::json::{Object, brief};

/// Which published model a checkpoint belongs to. Both have the same backbone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Text and image tokens; prompts are laid out by MMaDA's own chat template.
    Mmada,
    /// Text only; the checkpoint's chat template counts.
    Llada,
}

/// The sizes of a backbone. All are at least 1 and consistent with one another.
#[derive(Clone, Debug)]
pub struct Config {
    pub family: Family,
    pub layers: usize,
    pub d_model: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mlp: usize,
    /// Positions the model was trained for.
    pub context: usize,
    pub rms_eps: f32,
    pub rope_theta: f32,
    /// The embedding is the output matrix too.
    pub weight_tying: bool,
    /// What the config says of the number of embedding rows: (key, rows), in the order in which they are believed.
    pub rows: Vec<(&'static str, usize)>,
    /// Image codes and image tokens per picture; absent in text-only checkpoints.
    pub codebook_size: Option<u32>,
    pub num_vq_tokens: Option<u32>,
    pub mask_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
    pub pad_token_id: Option<u32>,
    /// The file, for messages.
    pub file: String,
}

/// A key of config.json that changes what is computed, and the values with which the computation is ours.
/// An absent key and null mean the value of the released models.
const FLAGS: &[(&str, &[&str])] = &[
    ("block_type", &["\"llama\""]),
    ("layer_norm_type", &["\"rms\""]),
    ("activation_type", &["\"silu\""]),
    ("include_bias", &["false"]),
    ("include_qkv_bias", &["false"]),
    ("bias_for_layer_norm", &["false"]),
    ("attention_layer_norm", &["false"]),
    ("input_emb_norm", &["false"]),
    ("scale_logits", &["false"]),
    ("alibi", &["false"]),
    ("rope", &["true"]),
    ("block_group_size", &["1"]),
    ("clip_qkv", &[]),
];

/// The runtime's limit for every size; far above any model.
const MAX_SIZE: u32 = 1 << 24;

impl Config {
    /// Reads `config.json` of a checkpoint folder.
    ///
    /// # Errors
    /// `Io` where it cannot be read, `Format` for malformed JSON, missing, contradictory or mistyped keys,
    /// `Unsupported` for an architecture or a flag that the runtime does not compute.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::from_object(&Object::read(&dir.join("config.json"))?)
    }

    pub fn from_object(o: &Object) -> Result<Self> {
        let family = family(o)?;
        check_flags(o)?;
        let (layers, d_model, heads) = (size(o, "n_layers")?, size(o, "d_model")?, size(o, "n_heads")?);
        let kv_heads = kv_heads(o, heads)?;
        if !d_model.is_multiple_of(heads) {
            return Err(o.wrong("d_model", format!("({d_model}) is not a multiple of n_heads ({heads})")));
        }
        let head_dim = d_model / heads;
        if !head_dim.is_multiple_of(2) {
            return Err(o.wrong(
                "d_model",
                format!("/ n_heads gives heads of {head_dim} elements: rotary embeddings need an even number"),
            ));
        }
        let config = Config {
            family,
            layers,
            d_model,
            heads,
            kv_heads,
            head_dim,
            mlp: mlp(o, d_model)?,
            context: size(o, "max_sequence_length")?,
            rms_eps: positive(o, "rms_norm_eps")?,
            rope_theta: positive(o, "rope_theta")?,
            weight_tying: o.bool("weight_tying")?.unwrap_or(false),
            rows: rows(o)?,
            codebook_size: opt_size(o, "codebook_size")?,
            num_vq_tokens: opt_size(o, "num_vq_tokens")?,
            mask_token_id: o.u32("mask_token_id")?,
            eos_token_id: o.u32("eos_token_id")?,
            pad_token_id: o.u32("pad_token_id")?,
            file: o.file().to_owned(),
        };
        if family == Family::Mmada {
            o.required("codebook_size", config.codebook_size)?;
            o.required("num_vq_tokens", config.num_vq_tokens)?;
        }
        Ok(config)
    }

    /// Checks the embedding's rows against what the config says. The keys need not agree with one another (the
    /// embedding was enlarged after training began), so any of them will do.
    pub fn check_rows(&self, rows: usize) -> Result<()> {
        if self.rows.iter().any(|&(_, n)| n == rows) {
            return Ok(());
        }
        let said: Vec<String> = self.rows.iter().map(|(key, n)| format!("{key} {n}")).collect();
        Err(Error::format(
            &self.file,
            format!("the embedding has {rows} rows, but the config says {}", said.join(", ")),
        ))
    }
}

fn family(o: &Object) -> Result<Family> {
    let of_name = |name: &str| match name.to_ascii_lowercase() {
        n if n.starts_with("mmada") => Some(Family::Mmada),
        n if n == "llada" || n.starts_with("lladamodel") => Some(Family::Llada),
        _ => None,
    };
    // model_type decides where it is there; the class name is what is left in stripped-down configs.
    let name = match o.str("model_type")? {
        Some(name) => name,
        None => match o.get("architectures").and_then(|v| v.get(0)) {
            Some(Value::String(name)) => name,
            _ => return Err(o.wrong("model_type", "is missing, and no architectures are named")),
        },
    };
    of_name(name).ok_or_else(|| {
        Error::unsupported(o.file(), format!("the architecture \"{name}\" is not supported (mmada and llada are)"))
    })
}

fn check_flags(o: &Object) -> Result<()> {
    for &(key, supported) in FLAGS {
        let Some(value) = o.get(key) else { continue };
        // Key by key as JSON text: `1` is not `true`, and 1.0 is as good as 1.
        let text = match value.as_f64() {
            Some(x) => x.to_string(),
            None => value.to_string(),
        };
        if !supported.contains(&text.as_str()) {
            let wanted = supported.first().copied().unwrap_or("null");
            return Err(Error::unsupported(
                o.file(),
                format!("{key} is {}, which is not supported (only {wanted} is)", brief(value)),
            ));
        }
    }
    Ok(())
}

fn opt_size(o: &Object, key: &str) -> Result<Option<u32>> {
    match o.u32(key)? {
        Some(n) if !(1..=MAX_SIZE).contains(&n) => Err(o.wrong(key, format!("is {n}, outside 1..={MAX_SIZE}"))),
        n => Ok(n),
    }
}

fn size(o: &Object, key: &str) -> Result<usize> {
    Ok(o.required(key, opt_size(o, key)?)? as usize)
}

/// A positive f32.
fn positive(o: &Object, key: &str) -> Result<f32> {
    let x = o.required(key, o.f64(key)?)? as f32;
    if x > 0.0 && x.is_finite() { Ok(x) } else { Err(o.wrong(key, format!("is {x}, expected a positive number"))) }
}

fn kv_heads(o: &Object, heads: usize) -> Result<usize> {
    let multi_query = o.bool("multi_query_attention")?.unwrap_or(false);
    let kv_heads = match opt_size(o, "n_kv_heads")? {
        Some(n) if multi_query && n != 1 => {
            return Err(o.wrong("n_kv_heads", format!("is {n}, but multi_query_attention asks for 1")));
        }
        Some(n) => n as usize,
        None if multi_query => 1,
        None => heads,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(o.wrong("n_heads", format!("({heads}) is not a multiple of n_kv_heads ({kv_heads})")));
    }
    Ok(kv_heads)
}

fn mlp(o: &Object, d_model: usize) -> Result<usize> {
    if let Some(n) = opt_size(o, "mlp_hidden_size")? {
        return Ok(n as usize);
    }
    let Some(ratio) = o.f64("mlp_ratio")? else {
        return Err(o.wrong("mlp_hidden_size", "is missing, and so is mlp_ratio"));
    };
    let width = ratio * d_model as f64;
    if width.fract() != 0.0 || !(1.0..=f64::from(MAX_SIZE)).contains(&width) {
        return Err(o.wrong("mlp_ratio", format!("({ratio}) times d_model ({d_model}) is no usable width")));
    }
    Ok(width as usize)
}

fn rows(o: &Object) -> Result<Vec<(&'static str, usize)>> {
    let mut rows = Vec::new();
    for key in ["new_vocab_size", "embedding_size", "vocab_size"] {
        if let Some(n) = opt_size(o, key)? {
            rows.push((key, n as usize));
        }
    }
    if rows.is_empty() {
        return Err(o.wrong("vocab_size", "is missing, and so are embedding_size and new_vocab_size"));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A config like the published ones, with `changes` laid over it; a null takes a key away.
    fn with(changes: Value) -> Result<Config> {
        let mut config = json!({
            "model_type": "mmada", "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu",
            "d_model": 96, "n_heads": 6, "n_kv_heads": 2, "n_layers": 3, "mlp_hidden_size": 160, "mlp_ratio": 4,
            "max_sequence_length": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 700,
            "codebook_size": 64, "num_vq_tokens": 16, "rope": true, "alibi": false, "weight_tying": false,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        Config::from_object(&Object::parse(&config.to_string(), "config.json").unwrap())
    }

    #[test]
    fn null_sizes_are_derived_from_the_others() {
        let plain = with(json!({})).unwrap();
        assert_eq!((plain.kv_heads, plain.mlp, plain.head_dim), (2, 160, 16));
        assert_eq!(with(json!({"n_kv_heads": null})).unwrap().kv_heads, 6);
        assert_eq!(with(json!({"n_kv_heads": null, "multi_query_attention": true})).unwrap().kv_heads, 1);
        assert_eq!(with(json!({"n_kv_heads": null, "multi_query_attention": false})).unwrap().kv_heads, 6);
        assert_eq!(with(json!({"mlp_hidden_size": null})).unwrap().mlp, 384);
        assert_eq!(with(json!({"mlp_hidden_size": null, "mlp_ratio": 2.5})).unwrap().mlp, 240);
    }

    #[test]
    fn every_unsupported_flag_is_refused_by_its_name() {
        let cases = json!({
            "block_type": "sequential", "layer_norm_type": "default", "activation_type": "gelu", "include_bias": true,
            "include_qkv_bias": true, "bias_for_layer_norm": true, "attention_layer_norm": true, "input_emb_norm": true,
            "scale_logits": true, "alibi": true, "rope": false, "block_group_size": 2, "clip_qkv": 8.0,
        });
        for (key, value) in cases.as_object().unwrap() {
            let error = with(json!({ key: value })).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{key}: {error}");
            let text = error.to_string();
            assert!(text.contains("config.json") && text.contains(key) && text.contains(&value.to_string()), "{text}");
            with(json!({ key: null })).unwrap_or_else(|e| panic!("null {key}: {e}"));
        }
        assert!(with(json!({"model_type": "llama"})).unwrap_err().to_string().contains("\"llama\""));
    }

    #[test]
    fn contradictions_are_named() {
        for (changes, word) in [
            (json!({"n_heads": 5}), "n_heads"),
            (json!({"n_kv_heads": 4}), "n_kv_heads"),
            (json!({"n_kv_heads": 2, "multi_query_attention": true}), "multi_query_attention"),
            (json!({"d_model": 90}), "even"),
            (json!({"n_layers": 0}), "n_layers"),
            (json!({"n_layers": -1}), "n_layers"),
            (json!({"d_model": "96"}), "d_model"),
            (json!({"rms_norm_eps": 0}), "rms_norm_eps"),
            (json!({"mlp_hidden_size": null, "mlp_ratio": 0.013}), "mlp_ratio"),
            (json!({"codebook_size": null}), "codebook_size"),
            (json!({"vocab_size": null}), "vocab_size"),
            (json!({"max_sequence_length": null}), "max_sequence_length"),
        ] {
            let error = with(changes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_ignored_and_text_only_checkpoints_have_no_images() {
        let llada =
            with(json!({"model_type": "llada", "codebook_size": null, "num_vq_tokens": null, "new_key": [1]})).unwrap();
        assert_eq!((llada.family, llada.codebook_size), (Family::Llada, None));
        let by_class = with(json!({"model_type": null, "architectures": ["MMadaModelLM"]})).unwrap();
        assert_eq!(by_class.family, Family::Mmada);
    }

    #[test]
    fn any_of_the_vocabulary_sizes_may_be_the_embeddings() {
        let config = with(json!({"vocab_size": 700, "embedding_size": 704, "new_vocab_size": 768})).unwrap();
        for rows in [700, 704, 768] {
            config.check_rows(rows).unwrap();
        }
        let error = config.check_rows(701).unwrap_err().to_string();
        assert!(error.contains("701") && error.contains("new_vocab_size 768"), "{error}");
    }
}
