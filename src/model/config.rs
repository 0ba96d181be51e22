//! Sizes of the backbone, from the model file's metadata.

use crate::error::{Error, Result};
use crate::gguf::Header;

/// The architecture name in `general.architecture`.
pub const ARCHITECTURE: &str = "mmada";

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
}

/// Limits far above any model, so that products of sizes cannot overflow.
const MAX_SIZE: usize = 1 << 24;

impl Config {
    /// Reads and checks the `mmada.*` keys; an error names the file and the key.
    pub fn from_header(h: &Header) -> Result<Self> {
        let arch = h.str("general.architecture")?;
        if arch != ARCHITECTURE {
            return Err(Error::unsupported(
                h.file(),
                format!("unknown architecture `{arch}` (this library runs `{ARCHITECTURE}`)"),
            ));
        }
        let size = |key: &str| -> Result<usize> {
            let key = format!("{ARCHITECTURE}.{key}");
            match h.usize(&key)? {
                v if (1..=MAX_SIZE).contains(&v) => Ok(v),
                v => Err(Error::format(h.file(), format!("{key} is {v}, outside 1..={MAX_SIZE}"))),
            }
        };
        let heads = size("attention.head_count")?;
        let d_model = size("embedding_length")?;
        let head_dim = match h.opt_usize("mmada.attention.key_length")? {
            Some(_) => size("attention.key_length")?,
            None => d_model / heads,
        };
        let kv_heads = match h.opt_usize("mmada.attention.head_count_kv")? {
            Some(_) => size("attention.head_count_kv")?,
            None => heads,
        };
        let config = Config {
            layers: size("block_count")?,
            d_model,
            heads,
            kv_heads,
            head_dim,
            d_ff: size("feed_forward_length")?,
            context: size("context_length")?,
            vocab: size("vocab_size")?,
            rms_eps: h.opt_f32("mmada.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            rope_theta: h.opt_f32("mmada.rope.freq_base")?.unwrap_or(500_000.0),
        };
        config.check(h)?;
        Ok(config)
    }

    fn check(&self, h: &Header) -> Result<()> {
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
        if h.opt_usize("mmada.rope.dimension_count")?.is_some_and(|v| v != dim) {
            return fail(format!("mmada.rope.dimension_count must be the head size {dim}"));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0 && self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return fail(
                "mmada.attention.layer_norm_rms_epsilon or mmada.rope.freq_base is not a positive number".into(),
            );
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
