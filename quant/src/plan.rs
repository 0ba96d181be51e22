//! What the output file will hold: every tensor, where it comes from, its type and shape. All shapes are checked here,
//! before a byte is written.

use mmada::gguf::{GgmlType, TensorSpec};
use mmada::{Error, Result};

use crate::checkpoint::{Checkpoint, Entry, SourceType};
use crate::choice::{Fallbacks, TypeOptions};
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
    types: &TypeOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Planned>> {
    let rows = embedding_rows(config, checkpoint)?;
    let (d, mlp) = (config.d_model, config.mlp);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut plan =
        Plan { checkpoint, types, layers: config.layers, out: vec![], notes, fallbacks: Fallbacks::default() };
    plan.matrix(EMBEDDING, "token_embd.weight", rows, d)?;
    for layer in 0..config.layers {
        for &(from, to) in LAYER {
            let source = format!("{ROOT}.blocks.{layer}.{from}.weight");
            let target = format!("blk.{layer}.{to}.weight");
            match to {
                "attn_norm" | "ffn_norm" => plan.vector(&source, &target, d)?,
                "attn_q" => plan.matrix(&source, &target, q, d)?,
                "attn_k" | "attn_v" => plan.matrix(&source, &target, kv, d)?,
                "attn_output" => plan.matrix(&source, &target, d, q)?,
                "ffn_down" => plan.matrix(&source, &target, d, mlp)?,
                _ => plan.matrix(&source, &target, mlp, d)?,
            }
        }
    }
    plan.vector(&format!("{ROOT}.ln_f.weight"), "output_norm.weight", d)?;
    if !config.weight_tying {
        plan.matrix(&format!("{ROOT}.ff_out.weight"), "output.weight", rows, d)?;
    }
    let (planned, notes) = (plan.out, plan.notes);
    notes.extend(plan.fallbacks.notes());
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
pub fn image_tokenizer(
    layout: &Layout,
    checkpoint: &Checkpoint,
    types: &TypeOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Planned>> {
    let mut plan = Plan { checkpoint, types, layers: 0, out: vec![], notes, fallbacks: Fallbacks::default() };
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
    notes.extend(plan.fallbacks.notes());
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
    types: &'a TypeOptions,
    layers: usize,
    out: Vec<Planned>,
    notes: &'a mut Vec<String>,
    fallbacks: Fallbacks,
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

    /// A matrix in the type that the recipe has for it, or the nearest whose blocks fill its rows.
    fn matrix(&mut self, source: &str, target: &str, rows: usize, cols: usize) -> Result<()> {
        let dtype = self.types.choose(target, self.layers, cols, self.source_type(source), &mut self.fallbacks)?;
        self.put(source, target, &[rows, cols], dtype, vec![cols, rows], None)
    }

    fn conv(&mut self, source: &str, target: &str, shape: &[usize], outputs: usize, conv: Conv) -> Result<()> {
        let cols = conv.inputs * conv.taps;
        // In another order of memory than here, so that nothing is kept as it is.
        let dtype = self.types.choose(target, self.layers, cols, None, &mut self.fallbacks)?;
        // The memory order of a 1x1 convolution is that of a matrix already.
        let permuted = (conv.taps > 1).then_some(conv);
        self.put(source, target, shape, dtype, vec![cols, outputs], permuted)
    }

    /// What a checkpoint's tensor is stored as; `put` refuses what cannot be read.
    fn source_type(&self, source: &str) -> Option<GgmlType> {
        match self.checkpoint.get(source)?.dtype {
            SourceType::F32 => Some(GgmlType::F32),
            SourceType::F16 => Some(GgmlType::F16),
            SourceType::BF16 => Some(GgmlType::BF16),
            SourceType::Other(_) => None,
        }
    }
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
