//! Sizes of the backbone, from the model file's metadata.

use crate::error::{Error, Result};
use crate::gguf::{Architecture, Header};
use crate::kernels::elementwise::{MAX_NEIGHBOURS_HEAD, Pairs};

/// Sizes and constants of the backbone.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub layers: usize,
    /// width of the residual stream
    pub d_model: usize,
    pub heads: usize,
    /// key/value heads; divides `heads`
    pub kv_heads: usize,
    pub head_dim: usize,
    /// width of the gated MLP
    pub d_ff: usize,
    /// most positions in one sequence
    pub context: usize,
    /// rows of the embedding and of the output matrix
    pub vocab: usize,
    pub rms_eps: f32,
    pub rope_theta: f32,
    /// Which rows of a head of q and of k the file has beside each other.
    pub rope_pairs: Pairs,
}

/// Limits far above any model, so that products of sizes cannot overflow.
const MAX_SIZE: usize = 1 << 24;

impl Config {
    /// Reads and checks the keys `mmada.*` or `llada.*`; an error names the file and the key.
    pub fn from_header(h: &Header) -> Result<Self> {
        let arch = h.architecture()?;
        let in_range = |key: &str, v: usize| match v {
            v if (1..=MAX_SIZE).contains(&v) => Ok(v),
            v => Err(Error::format(h.file(), format!("{key} is {v}, outside 1..={MAX_SIZE}"))),
        };
        let size = |name: &str| -> Result<usize> { in_range(&arch.key(name), h.usize(&arch.key(name))?) };
        let size_or = |name: &str, default: usize| match h.opt_usize(&arch.key(name))? {
            Some(_) => size(name),
            None => Ok(default),
        };
        let heads = size("attention.head_count")?;
        let d_model = size("embedding_length")?;
        // llama.cpp's value where a file is silent (llama-model.cpp); our converter always says it.
        let (rope_theta, rope_pairs) = match arch {
            Architecture::Mmada => (500_000.0, Pairs::Halves),
            Architecture::Llada => (10_000.0, Pairs::Neighbours),
        };
        let config = Config {
            layers: size("block_count")?,
            d_model,
            heads,
            kv_heads: size_or("attention.head_count_kv", heads)?,
            head_dim: size_or("attention.key_length", d_model / heads)?,
            d_ff: size("feed_forward_length")?,
            context: size("context_length")?,
            vocab: in_range("the vocabulary's size", h.vocabulary_rows()? as usize)?,
            rms_eps: h.opt_f32(&arch.key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            rope_theta: h.opt_f32(&arch.key("rope.freq_base"))?.unwrap_or(rope_theta),
            rope_pairs,
        };
        config.check(h, arch)?;
        if arch == Architecture::Llada {
            config.check_llada(h)?;
        }
        Ok(config)
    }

    fn check(&self, h: &Header, arch: Architecture) -> Result<()> {
        let fail = |reason: String| Err(Error::format(h.file(), reason));
        let (heads, kv, dim) = (self.heads, self.kv_heads, self.head_dim);
        if !heads.is_multiple_of(kv) {
            return fail(format!("{heads} attention heads are no multiple of {kv} key/value heads"));
        }
        if heads * dim != self.d_model {
            return fail(format!("{heads} heads of {dim} elements do not make up a width of {}", self.d_model));
        }
        if !dim.is_multiple_of(2) {
            return fail(format!("a head of {dim} elements cannot be rotated in pairs"));
        }
        if h.opt_usize(&arch.key("rope.dimension_count"))?.is_some_and(|v| v != dim) {
            return fail(format!("{} must be the head size {dim}", arch.key("rope.dimension_count")));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0 && self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            let [eps, theta] = ["attention.layer_norm_rms_epsilon", "rope.freq_base"].map(|name| arch.key(name));
            return fail(format!("{eps} or {theta} is not a positive number"));
        }
        Ok(())
    }

    /// What llama.cpp's keys can ask for and this backbone does not compute.
    fn check_llada(&self, h: &Header) -> Result<()> {
        let fail = |reason: String| Err(Error::unsupported(h.file(), reason));
        if self.head_dim > MAX_NEIGHBOURS_HEAD {
            return fail(format!("heads of {} elements are more than {MAX_NEIGHBOURS_HEAD}", self.head_dim));
        }
        if h.opt_usize("llada.attention.value_length")?.is_some_and(|v| v != self.head_dim) {
            return fail(format!("llada.attention.value_length is not the head size {}", self.head_dim));
        }
        let scaling = h.opt_str("llada.rope.scaling.type")?;
        let factor = h.opt_f32("llada.rope.scaling.factor")?.unwrap_or(1.0);
        if scaling.is_some_and(|kind| kind != "none") || (scaling.is_none() && factor != 1.0) {
            let kind = scaling.unwrap_or("linear");
            return fail(format!("positions are scaled ({kind}, by llada.rope.scaling.*), which is not supported"));
        }
        if h.opt_bool("diffusion.shift_logits")?.unwrap_or(false) {
            return fail("diffusion.shift_logits is set: models that predict the next token are not supported".into());
        }
        Ok(())
    }

    /// Width of a row of keys or of values.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Multiply-adds of the backbone for one token of a sequence of `length` (without the output matrix).
    pub fn multiply_adds_per_token(&self, length: usize) -> u64 {
        let (d, kv, ff) = (self.d_model as u64, self.kv_dim() as u64, self.d_ff as u64);
        let weights = 2 * d * d + 2 * d * kv + 3 * d * ff;
        weights.saturating_add((2 * d).saturating_mul(length as u64)).saturating_mul(self.layers as u64)
    }
}
