//! Models of any shape with random weights and a working tokenizer: for benches and tests that need no download.

mod tokenizer;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mmada::gguf::{GgmlType, MetaValue, TensorSpec, Writer};
use mmada::parallel::try_vec;
use mmada::prompt::MMADA_CHAT_TEMPLATE;
use mmada::{Error, Result};

use crate::choice::{Fallbacks, TypeOptions};
use crate::config::{Config, Family};
use crate::disk;
use crate::metadata::{Sources, metadata};
use crate::report::{Progress, Report, TensorLine};
use crate::rows::Job;
use crate::sampling::Sampling;
use crate::tokenizer::TextTokenizer;
use crate::tokens::Roles;
use crate::vq::{Half, Layout, NORM_GROUPS};
use crate::write::{Sink, encode_tensor, spec_bytes, thread_pool};
use weights::RandomRows;

/// The sizes of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    pub layers: usize,
    pub d_model: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d_ff: usize,
    /// Rows of the embedding: text, then image codes.
    pub vocab: usize,
    /// Image codes; 0 for a model of text only.
    pub codes: usize,
    /// Image tokens of a picture, a square number.
    pub tokens: usize,
    /// Longest sequence.
    pub context: usize,
    /// `None`: no image tokenizer.
    pub vq: Option<VqShape>,
}

/// The sizes of an image tokenizer. Levels go from the full resolution down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VqShape {
    pub channels: usize,
    pub encoder_mult: Vec<usize>,
    pub encoder_blocks: Vec<usize>,
    pub decoder_mult: Vec<usize>,
    pub decoder_blocks: Vec<usize>,
}

impl Shape {
    /// The released 8B models.
    pub fn mmada_8b() -> Shape {
        Shape {
            layers: 32,
            d_model: 4096,
            heads: 32,
            kv_heads: 32,
            d_ff: 12288,
            vocab: 134_656,
            codes: 8192,
            tokens: 1024,
            context: 4096,
            vq: Some(VqShape {
                channels: 128,
                encoder_mult: vec![1, 2, 2, 4, 4],
                encoder_blocks: vec![4, 3, 4, 3, 4],
                decoder_mult: vec![1, 1, 2, 2, 4],
                decoder_blocks: vec![4, 4, 3, 4, 3],
            }),
        }
    }

    /// A model that runs in no time, with everything that the large one has.
    pub fn tiny() -> Shape {
        Shape {
            layers: 2,
            d_model: 256,
            heads: 4,
            kv_heads: 2,
            d_ff: 512,
            vocab: 1024,
            codes: 256,
            tokens: 16,
            context: 2048,
            vq: Some(VqShape {
                channels: 32,
                encoder_mult: vec![1, 2],
                encoder_blocks: vec![1, 1],
                decoder_mult: vec![1, 2],
                decoder_blocks: vec![1, 1],
            }),
        }
    }
}

/// What to make.
#[derive(Clone, Debug)]
pub struct SynthOptions {
    pub shape: Shape,
    /// The file to write.
    pub output: PathBuf,
    pub types: TypeOptions,
    /// The same seed gives the same file.
    pub seed: u64,
    /// Tell what would be written, and write nothing.
    pub dry_run: bool,
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// After so many rows of a tensor the same come again: a large file in little time. `None`: all of them differ.
    pub distinct_rows: Option<usize>,
    /// Set it to stop; the partial output is removed.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl SynthOptions {
    /// Everything else at its default.
    pub fn new(shape: Shape, output: impl Into<PathBuf>, types: impl Into<TypeOptions>) -> Self {
        SynthOptions {
            shape,
            output: output.into(),
            types: types.into(),
            seed: 0,
            dry_run: false,
            threads: 0,
            distinct_rows: None,
            cancel: None,
        }
    }
}

/// Writes a random model. Weights are made as they are written: memory does not grow with the model.
///
/// # Errors
/// `InvalidArgument` names the size that no model can have; otherwise as `convert`.
pub fn synth(options: &SynthOptions, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let started = Instant::now();
    let shape = &options.shape;
    shape.check()?;
    let layout = shape.layout();
    let metadata = model_metadata(shape, layout.as_ref(), &options.types)?;
    let mut notes = Vec::new();
    let tensors = tensors(shape, layout.as_ref(), &options.types, &mut notes)?;
    notes.iter().for_each(|note| progress(Progress::Note(note)));

    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let file_bytes = Writer::size(&options.output, &metadata, &specs)?;
    let total = specs.iter().map(spec_bytes).sum();
    let line =
        |index, spec| TensorLine { index, count: specs.len(), spec, from: None, bytes: spec_bytes(spec), stats: None };
    if options.dry_run {
        specs.iter().enumerate().for_each(|(index, spec)| progress(Progress::Tensor(&line(index, spec))));
    } else {
        disk::require(&options.output, file_bytes)?;
        let pool = thread_pool(options.threads)?;
        let mut writer = Writer::create(&options.output, &metadata, &specs)?;
        let mut done = 0;
        for (index, (spec, spread)) in tensors.iter().enumerate() {
            let source = RandomRows::new(options.seed, &spec.name, *spread);
            let rows: usize = spec.dims.iter().skip(1).product();
            let distinct = options.distinct_rows.map_or(rows, |distinct| distinct.clamp(1, rows));
            let job = Job {
                dtype: spec.dtype,
                rows: distinct,
                cols: spec.dims.first().copied().unwrap_or(1),
                importance: None,
                allow_nonfinite: false,
                measure: !spec.dtype.is_float(),
            };
            let (line, cancel) = (line(index, spec), options.cancel.as_deref());
            if distinct == rows {
                encode_tensor(&pool, &source, &job, line, &mut writer, cancel, (&mut done, total), progress)?;
            } else {
                let all = done + spec_bytes(spec);
                let mut out = Repeat::new(&mut writer, spec_bytes(spec) / rows as u64 * distinct as u64)?;
                encode_tensor(&pool, &source, &job, line, &mut out, cancel, (&mut done, total), progress)?;
                out.fill_up(spec_bytes(spec), cancel)?;
                done = all;
            }
        }
        writer.finish()?;
    }
    Ok(Report {
        tensors: specs.len(),
        weights: specs.iter().map(|spec| spec.dims.iter().product::<usize>() as u64).sum(),
        weight_bytes: total,
        file_bytes,
        files: vec![options.output.clone()],
        seconds: started.elapsed(),
        has_images: layout.is_some(),
    })
}

/// A tensor whose first rows are made, and come again until it is whole.
struct Repeat<'a> {
    writer: &'a mut Writer,
    rows: Vec<u8>,
    written: usize,
}

impl<'a> Repeat<'a> {
    /// For rows of so many bytes together.
    fn new(writer: &'a mut Writer, bytes: u64) -> Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| Error::invalid("too many rows that differ"))?;
        Ok(Repeat { writer, rows: try_vec(bytes, "rows of weights")?, written: 0 })
    }

    /// Writes the rows again until there are so many bytes.
    fn fill_up(&mut self, bytes: u64, cancel: Option<&AtomicBool>) -> Result<()> {
        let mut rest = bytes - self.rows.len() as u64;
        while rest > 0 {
            if cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(Error::Cancelled);
            }
            let some = self.rows.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            self.writer.write(&self.rows[..some])?;
            rest -= some as u64;
        }
        Ok(())
    }
}

impl Sink for Repeat<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.rows[self.written..self.written + bytes.len()].copy_from_slice(bytes);
        self.written += bytes.len();
        self.writer.write(bytes)
    }
}

/// How a tensor's weights are distributed.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Spread {
    mean: f32,
    deviation: f32,
}

impl Shape {
    /// # Errors
    /// `InvalidArgument`: one sentence with the option at fault.
    fn check(&self) -> Result<()> {
        const MAX: usize = 1 << 24;
        let bad = |reason: String| Err(Error::invalid(reason));
        for (name, n) in [
            ("layers", self.layers),
            ("d-model", self.d_model),
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("d-ff", self.d_ff),
            ("vocab", self.vocab),
            ("context", self.context),
        ] {
            if !(1..=MAX).contains(&n) {
                return bad(format!("--{name} is {n}, outside 1..={MAX}"));
            }
        }
        let (d, heads, kv) = (self.d_model, self.heads, self.kv_heads);
        if !d.is_multiple_of(heads) || !(d / heads).is_multiple_of(2) {
            return bad(format!("--d-model {d} does not make {heads} heads of an even number of elements"));
        }
        if !heads.is_multiple_of(kv) {
            return bad(format!("--heads {heads} is no multiple of --kv-heads {kv}"));
        }
        let (vocab, codes, least) = (self.vocab, self.codes, tokenizer::least_tokens());
        if vocab.checked_sub(codes).is_none_or(|text| text < least) {
            return bad(format!("--vocab {vocab} leaves no room for {least} text tokens before {codes} image codes"));
        }
        if codes > 0 && (self.tokens == 0 || self.tokens.isqrt().pow(2) != self.tokens || self.tokens > MAX) {
            return bad(format!("--tokens {} is no square number of image tokens", self.tokens));
        }
        self.vq.as_ref().map_or(Ok(()), |vq| vq.check(codes))
    }

    fn layout(&self) -> Option<Layout> {
        let vq = self.vq.as_ref()?;
        Some(Layout {
            channels: vq.channels,
            z_channels: self.codes.trailing_zeros() as usize,
            encoder: Half { channel_mult: vq.encoder_mult.clone(), res_blocks: vq.encoder_blocks.clone() },
            decoder: Half { channel_mult: vq.decoder_mult.clone(), res_blocks: vq.decoder_blocks.clone() },
        })
    }
}

impl VqShape {
    fn check(&self, codes: usize) -> Result<()> {
        let bad = |reason: String| Err(Error::invalid(reason));
        if codes < 2 || !codes.is_power_of_two() {
            return bad(format!("--codes {codes} is no power of two, which an image tokenizer needs (or --no-vq)"));
        }
        let channels = self.channels;
        if channels == 0 || channels > 4096 || !channels.is_multiple_of(NORM_GROUPS) {
            return bad(format!("--vq-channels {channels} is no multiple of {NORM_GROUPS} up to 4096"));
        }
        let levels = self.encoder_mult.len();
        let lens = [self.encoder_blocks.len(), self.decoder_mult.len(), self.decoder_blocks.len()];
        if !(1..=8).contains(&levels) || lens.iter().any(|&n| n != levels) {
            return bad("the levels of the image tokenizer must be 1 to 8, the same in all of its parts".into());
        }
        let all = |list: &[usize]| list.iter().all(|n| (1..=64).contains(n));
        if ![&self.encoder_mult, &self.encoder_blocks, &self.decoder_mult, &self.decoder_blocks].iter().all(|l| all(l))
        {
            return bad("--vq-mult and --vq-blocks take numbers from 1 to 64".into());
        }
        Ok(())
    }
}

fn model_metadata(shape: &Shape, layout: Option<&Layout>, types: &TypeOptions) -> Result<Vec<(String, MetaValue)>> {
    let tokenizer = TextTokenizer::from_json(tokenizer::json(shape.vocab - shape.codes), "synthetic tokenizer")?;
    let number = |n: usize| u32::try_from(n).map_err(|_| Error::invalid(format!("{n} is too large")));
    let images = shape.codes > 0;
    let config = Config {
        family: Family::Mmada,
        layers: shape.layers,
        d_model: shape.d_model,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.d_model / shape.heads,
        mlp: shape.d_ff,
        context: shape.context,
        rms_eps: 1e-5,
        rope_theta: 500_000.0,
        weight_tying: false,
        rows: vec![],
        codebook_size: if images { Some(number(shape.codes)?) } else { None },
        num_vq_tokens: if images { Some(number(shape.tokens)?) } else { None },
        mask_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
        file: "synthetic model".into(),
    };
    let Shape { layers, d_model, heads, kv_heads, d_ff, vocab, .. } = shape;
    metadata(&Sources {
        name: &format!("synthetic-l{layers}-d{d_model}-h{heads}-k{kv_heads}-f{d_ff}-v{vocab}"),
        recipe: &types.recipe,
        config: &config,
        rows: shape.vocab,
        code_offset: if images { Some(number(shape.vocab - shape.codes)?) } else { None },
        vq: layout,
        roles: &Roles::named(&tokenizer),
        sampling: &Sampling::default(),
        tokenizer: &tokenizer,
        chat_template: Some(MMADA_CHAT_TEMPLATE.to_owned()),
    })
}

/// All tensors, in the order of the forward pass; the image tokenizer's by name.
fn tensors(
    shape: &Shape,
    layout: Option<&Layout>,
    types: &TypeOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<(TensorSpec, Spread)>> {
    let mut list = List { types, layers: shape.layers, out: vec![], fallbacks: Fallbacks::default() };
    let (d, kv, ff) = (shape.d_model, shape.d_model / shape.heads * shape.kv_heads, shape.d_ff);
    // Of a sum of n products with unit inputs, so that it has unit variance; what is added to the residual stream 2 L
    // times is smaller, so that the stream stays of that size.
    let unit = |n: usize| 1.0 / (n as f32).sqrt();
    let added = |n: usize| unit(n) / (2.0 * shape.layers as f32).sqrt();
    list.matrix("token_embd.weight", shape.vocab, d, 1.0)?;
    for n in 0..shape.layers {
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        list.norm(&name("attn_norm"), d);
        list.matrix(&name("attn_q"), d, d, unit(d))?;
        list.matrix(&name("attn_k"), kv, d, unit(d))?;
        list.matrix(&name("attn_v"), kv, d, unit(d))?;
        list.matrix(&name("attn_output"), d, d, added(d))?;
        list.norm(&name("ffn_norm"), d);
        list.matrix(&name("ffn_gate"), ff, d, unit(d))?;
        list.matrix(&name("ffn_up"), ff, d, unit(d))?;
        list.matrix(&name("ffn_down"), d, ff, added(ff))?;
    }
    list.norm("output_norm.weight", d);
    // Logits of a few units: a distribution that is neither flat nor a single token.
    list.matrix("output.weight", shape.vocab, d, 3.0 * unit(d))?;
    for tensor in layout.map(Layout::tensors).unwrap_or_default() {
        let name = format!("vq.{}", tensor.name);
        match tensor.shape.as_slice() {
            [outputs, inputs, height, width] => {
                let cols = inputs * height * width;
                list.matrix(&name, *outputs, cols, unit(cols))?;
            }
            [n] if name.contains("norm") && name.ends_with(".weight") => list.norm(&name, *n),
            _ => list.vector(&name, tensor.shape[0], Spread { mean: 0.0, deviation: 0.02 }),
        }
    }
    notes.extend(list.fallbacks.notes());
    Ok(list.out)
}

struct List<'a> {
    types: &'a TypeOptions,
    layers: usize,
    out: Vec<(TensorSpec, Spread)>,
    fallbacks: Fallbacks,
}

impl List<'_> {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize, deviation: f32) -> Result<()> {
        let dtype = self.types.choose(name, self.layers, cols, None, &mut self.fallbacks)?;
        let spec = TensorSpec { name: name.to_owned(), dtype, dims: vec![cols, rows] };
        self.out.push((spec, Spread { mean: 0.0, deviation }));
        Ok(())
    }

    fn vector(&mut self, name: &str, len: usize, spread: Spread) {
        self.out.push((TensorSpec { name: name.to_owned(), dtype: GgmlType::F32, dims: vec![len] }, spread));
    }

    fn norm(&mut self, name: &str, len: usize) {
        self.vector(name, len, Spread { mean: 1.0, deviation: 0.05 });
    }
}
