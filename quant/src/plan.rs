//! What the output file will hold: every tensor, where it comes from, its type and shape. All shapes are checked here,
//! before a byte is written.

use std::collections::BTreeMap;

use mmada::gguf::{GgmlType, TensorSpec};
use mmada::{Error, Result};

use crate::checkpoint::{Checkpoint, Entry};
use crate::config::Config;
use crate::vq::Layout;

/// One tensor of the output.
#[derive(Clone, Debug)]
pub struct Planned {
    pub spec: TensorSpec,
    /// Name in the checkpoint, for messages.
    pub source: String,
    pub entry: Entry,
    /// The entry is the image tokenizer's.
    pub vq: bool,
    pub rows: usize,
    pub cols: usize,
    /// A convolution, [cout, cin, kh * kw] in the checkpoint: its rows become [kh * kw, cin].
    pub conv: Option<Conv>,
}

/// The inner dimensions of a convolution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conv {
    pub inputs: usize,
    pub taps: usize,
}

/// The types that a backbone can be converted to.
pub const TYPES: &[GgmlType] =
    &[GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_K];

/// Backbone tensors of a layer: (checkpoint, output).
const LAYER: &[(&str, &str)] = &[
    ("attn_norm", "attn_norm"),
    ("q_proj", "attn_q"),
    ("k_proj", "attn_k"),
    ("v_proj", "attn_v"),
    ("attn_out", "attn_output"),
    ("ff_norm", "ffn_norm"),
    ("ff_proj", "ffn_gate"),
    ("up_proj", "ffn_up"),
    ("ff_out", "ffn_down"),
];

const ROOT: &str = "model.transformer";
const EMBEDDING: &str = "model.transformer.wte.weight";

/// Rows of the embedding.
pub fn embedding_rows(config: &Config, backbone: &Checkpoint) -> Result<usize> {
    let entry = backbone
        .get(EMBEDDING)
        .ok_or_else(|| Error::format(backbone.origin(), format!("tensor {EMBEDDING} is missing")))?;
    let rows = match entry.shape.as_slice() {
        &[rows, cols] if cols == config.d_model => rows,
        shape => {
            let reason =
                format!("tensor {EMBEDDING} has shape {shape:?}, expected rows of d_model = {}", config.d_model);
            return Err(Error::format(backbone.file_of(entry).display(), reason));
        }
    };
    config.check_rows(rows)?;
    Ok(rows)
}

/// The tensors of the backbone, in the order of the forward pass.
///
/// # Errors
/// `Format` names the tensor that is missing, of another shape or of a layer that the config does not have.
pub fn backbone(
    config: &Config,
    checkpoint: &Checkpoint,
    dtype: GgmlType,
    notes: &mut Vec<String>,
) -> Result<Vec<Planned>> {
    let rows = embedding_rows(config, checkpoint)?;
    let (d, mlp) = (config.d_model, config.mlp);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut plan = Plan { checkpoint, dtype, out: vec![], notes, fallen_back: BTreeMap::new() };
    let outer = if dtype.is_float() { dtype } else { GgmlType::Q8_0 };
    plan.matrix(EMBEDDING, "token_embd.weight", outer, rows, d)?;
    for layer in 0..config.layers {
        for &(from, to) in LAYER {
            let source = format!("{ROOT}.blocks.{layer}.{from}.weight");
            let target = format!("blk.{layer}.{to}.weight");
            match to {
                "attn_norm" | "ffn_norm" => plan.vector(&source, &target, d)?,
                "attn_q" => plan.matrix(&source, &target, dtype, q, d)?,
                "attn_k" | "attn_v" => plan.matrix(&source, &target, dtype, kv, d)?,
                "attn_output" => plan.matrix(&source, &target, dtype, d, q)?,
                "ffn_down" => plan.matrix(&source, &target, dtype, d, mlp)?,
                _ => plan.matrix(&source, &target, dtype, mlp, d)?,
            }
        }
    }
    plan.vector(&format!("{ROOT}.ln_f.weight"), "output_norm.weight", d)?;
    if !config.weight_tying {
        plan.matrix(&format!("{ROOT}.ff_out.weight"), "output.weight", outer, rows, d)?;
    }
    plan.note_fallen_back();
    let (planned, notes) = (plan.out, plan.notes);
    let refuse = |name: &str| {
        let layer = name.strip_prefix("model.transformer.blocks.").and_then(|rest| rest.split('.').next());
        match layer.and_then(|n| n.parse::<usize>().ok()) {
            Some(n) if n >= config.layers => Some(format!("belongs to layer {n}, but n_layers is {}", config.layers)),
            _ if name.ends_with(".bias") => Some("is a bias, which the runtime does not add".to_owned()),
            _ => None,
        }
    };
    leftovers(checkpoint, &planned, refuse, notes)?;
    Ok(planned)
}

/// The tensors of the image tokenizer, sorted by name: matrices F16, the rest F32. The code book's are dropped, they
/// are the bits of its indices.
pub fn image_tokenizer(layout: &Layout, checkpoint: &Checkpoint, notes: &mut Vec<String>) -> Result<Vec<Planned>> {
    let mut plan = Plan { checkpoint, dtype: GgmlType::F16, out: vec![], notes, fallen_back: BTreeMap::new() };
    for tensor in layout.tensors() {
        let target = format!("vq.{}", tensor.name);
        match tensor.shape.as_slice() {
            &[outputs, inputs, height, width] => {
                plan.conv(&tensor.name, &target, &tensor.shape, outputs, Conv { inputs, taps: height * width })?;
            }
            _ => plan.vector(&tensor.name, &target, tensor.shape[0])?,
        }
    }
    let (mut planned, notes) = (plan.out, plan.notes);
    planned.iter_mut().for_each(|tensor| tensor.vq = true);
    let refuse = |name: &str| {
        let ours = name.starts_with("encoder.") || name.starts_with("decoder.");
        ours.then(|| "does not fit the architecture that the other tensors describe (is one missing?)".to_owned())
    };
    leftovers(checkpoint, &planned, refuse, notes)?;
    Ok(planned)
}

struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    /// The type that was asked for.
    dtype: GgmlType,
    out: Vec<Planned>,
    notes: &'a mut Vec<String>,
    /// Matrices that are stored in another type, by that type and the length of their rows.
    fallen_back: BTreeMap<(&'static str, usize), Vec<String>>,
}

impl Plan<'_> {
    fn put(
        &mut self,
        source: &str,
        target: &str,
        shape: &[usize],
        dtype: GgmlType,
        dims: Vec<usize>,
        conv: Option<Conv>,
    ) -> Result<()> {
        let entry = self.checkpoint.expect(source, shape)?.clone();
        self.out.push(Planned {
            cols: dims[0],
            rows: dims.get(1).copied().unwrap_or(1),
            spec: TensorSpec { name: target.to_owned(), dtype, dims },
            source: source.to_owned(),
            entry,
            vq: false,
            conv,
        });
        Ok(())
    }

    fn vector(&mut self, source: &str, target: &str, len: usize) -> Result<()> {
        self.put(source, target, &[len], GgmlType::F32, vec![len], None)
    }

    /// A matrix in `dtype`, or in the nearest type whose blocks fill its rows.
    fn matrix(&mut self, source: &str, target: &str, dtype: GgmlType, rows: usize, cols: usize) -> Result<()> {
        let chosen = fitting(dtype, cols);
        if chosen != dtype {
            self.fallen_back.entry((chosen.name(), cols)).or_default().push(target.to_owned());
        }
        self.put(source, target, &[rows, cols], chosen, vec![cols, rows], None)
    }

    /// One note for all matrices of a kind: a model has hundreds.
    fn note_fallen_back(&mut self) {
        for ((chosen, cols), names) in &self.fallen_back {
            let others = if names.len() > 1 { format!(" and {} more are", names.len() - 1) } else { " is".to_owned() };
            self.notes.push(format!(
                "{}{others} stored as {chosen}: blocks of {} do not fill rows of {cols}",
                names[0], self.dtype
            ));
        }
    }

    fn conv(&mut self, source: &str, target: &str, shape: &[usize], outputs: usize, conv: Conv) -> Result<()> {
        let dims = vec![conv.inputs * conv.taps, outputs];
        // The memory order of a 1x1 convolution is that of a matrix already.
        let permuted = (conv.taps > 1).then_some(conv);
        self.put(source, target, shape, GgmlType::F16, dims, permuted)
    }
}

/// Q4_K wants rows of whole 256s, Q8_0 of 32s, F16 takes all.
fn fitting(dtype: GgmlType, cols: usize) -> GgmlType {
    [dtype, GgmlType::Q8_0].into_iter().find(|t| cols.is_multiple_of(t.block_len())).unwrap_or(GgmlType::F16)
}

/// Tensors of the checkpoint that the plan leaves out: an error if `refuse` has a reason, else one note.
fn leftovers(
    checkpoint: &Checkpoint,
    planned: &[Planned],
    refuse: impl Fn(&str) -> Option<String>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let used: std::collections::HashSet<&str> = planned.iter().map(|t| t.source.as_str()).collect();
    let mut left = Vec::new();
    for name in checkpoint.names().filter(|name| !used.contains(name) && !name.starts_with("quantize.")) {
        if let Some(reason) = refuse(name) {
            return Err(Error::format(checkpoint.origin(), format!("tensor {name} {reason}")));
        }
        left.push(name);
    }
    if !left.is_empty() {
        let named = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
        notes.push(format!("{}: ignored, as the model does not use them: {named}{more}", checkpoint.origin()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_a_block_does_not_fill_get_the_next_type_that_does() {
        use GgmlType::{BF16, F16, F32, Q4_0, Q4_K, Q8_0};
        assert_eq!(fitting(Q4_K, 512), Q4_K);
        assert_eq!(fitting(Q4_K, 384), Q8_0);
        assert_eq!(fitting(Q4_K, 100), F16);
        assert_eq!(fitting(Q4_0, 96), Q4_0);
        assert_eq!(fitting(Q4_0, 48), F16);
        assert_eq!(fitting(Q8_0, 33), F16);
        assert_eq!((fitting(F32, 7), fitting(BF16, 7)), (F32, BF16));
    }
}
