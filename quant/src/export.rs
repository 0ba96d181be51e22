//! The text part of a model file as llama.cpp names it: architecture `llada`. What its converter would have made of the
//! checkpoint (`conversion/llada.py`) is made of our file; types of tensors stay, since rows are moved and dropped but
//! never changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use mmada::gguf::{Architecture, GgmlType, Header, MetaValue, TensorInfo, TensorSpec, Writer};
use mmada::model::{Config, Weights, is_backbone};
use mmada::prompt::{MMADA_CHAT_TEMPLATE, Vocabulary};
use mmada::tokenizer::Tokenizer;
use mmada::{Error, Result};

use crate::disk;
use crate::input::{GgufRows, Input};
use crate::report::{Progress, Report, TensorLine};
use crate::rows::{Job, Rows, Scratch};
use crate::tokenizer::TextTokenizer;
use crate::write::{encode_tensor, spec_bytes, thread_pool};

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// A file of architecture `mmada`, or any part of a split one.
    pub input: PathBuf,
    pub output: PathBuf,
    /// llama.cpp's name for how the tokenizer splits texts; `None`: it is recognised, or there is an error.
    pub pre: Option<String>,
    /// Weights that are no finite numbers do not stop the run.
    pub allow_nonfinite: bool,
    /// Threads that check the weights; 0 means one per core.
    pub threads: usize,
    /// Set it to stop; the partial output is removed.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl ExportOptions {
    /// Everything else at its default.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        ExportOptions {
            input: input.into(),
            output: output.into(),
            pre: None,
            allow_nonfinite: false,
            threads: 0,
            cancel: None,
        }
    }
}

/// Writes the text part of a model as a `llada` file, which llama.cpp's diffusion example runs and this library too.
///
/// # Errors
/// One sentence that names the file, tensor or option at fault; no output is left behind then. `Unsupported` for a
/// tokenizer that llama.cpp's keys cannot describe; `Cancelled` after `options.cancel` was set.
pub fn export(options: &ExportOptions, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let started = Instant::now();
    let input = Input::open(&options.input)?;
    let source = Source::read(&input, options)?;
    let metadata = source.metadata()?;
    let (tensors, specs): (Vec<&TensorInfo>, Vec<TensorSpec>) = source.tensors().unzip();
    disk::keep_inputs(&options.output, input.paths())?;
    let file_bytes = Writer::size(&options.output, &metadata, &specs)?;
    disk::require(&options.output, file_bytes)?;
    let pool = thread_pool(options.threads)?;
    let mut writer = Writer::create(&options.output, &metadata, &specs)?;
    if let Some(note) = source.left_out(&tensors) {
        progress(Progress::Note(&note));
    }
    let total: u64 = specs.iter().map(spec_bytes).sum();
    let mut done = 0;
    for (index, (info, spec)) in tensors.iter().zip(&specs).enumerate() {
        let rows = ExportRows { rows: input.rows(info)?, head: source.permuted(&info.name) };
        let count = specs.len();
        let line = TensorLine { index, count, spec, from: Some(info.dtype), bytes: spec_bytes(spec), stats: None };
        let job = Job {
            dtype: info.dtype,
            rows: spec.dims.iter().skip(1).product(),
            cols: info.cols(),
            importance: None,
            allow_nonfinite: options.allow_nonfinite,
            measure: false,
        };
        let cancel = options.cancel.as_deref();
        encode_tensor(&pool, &rows, &job, line, &mut writer, cancel, (&mut done, total), progress)?;
    }
    writer.finish()?;
    Ok(Report {
        tensors: specs.len(),
        weights: specs.iter().map(|spec| spec.dims.iter().product::<usize>() as u64).sum(),
        weight_bytes: total,
        file_bytes,
        files: vec![options.output.clone()],
        seconds: started.elapsed(),
        has_images: false,
    })
}

/// The model that is exported, checked as the runtime checks it.
struct Source<'a> {
    input: &'a Input,
    config: Config,
    tied: bool,
    vocabulary: Vocabulary,
    tokenizer: TextTokenizer,
    pre: &'static str,
}

impl<'a> Source<'a> {
    fn read(input: &'a Input, options: &ExportOptions) -> Result<Self> {
        let h = &input.header;
        if h.architecture()? != Architecture::Mmada {
            return Err(Error::invalid(format!("{}: is of architecture llada already", h.file())));
        }
        let config = Config::from_header(h)?;
        Weights::from_header(h, &config)?;
        let vocabulary = Vocabulary::from_header(h, &[])?; // no key of such a file is an array
        let json = h.str("tokenizer.huggingface.json")?;
        let tokenizer = TextTokenizer::from_json(json.to_owned(), h.file())?;
        vocabulary.check_tokenizer(&Tokenizer::from_json(json, h.file())?, h.file())?;
        let pre = tokenizer.ggml_split(options.pre.as_deref())?;
        let tied = h.opt_bool("mmada.weight_tying")?.unwrap_or(false);
        Ok(Source { input, config, tied, vocabulary, tokenizer, pre })
    }

    fn header(&self) -> &'a Header {
        &self.input.header
    }

    /// The tensors that are kept, and what becomes of them. llama.cpp wants one row of the embedding for each token.
    fn tensors(&self) -> impl Iterator<Item = (&'a TensorInfo, TensorSpec)> {
        // An output beside a tied embedding is not what the model computes with.
        let unused = |name: &str| self.tied && name == "output.weight";
        let kept = move |info: &&TensorInfo| is_backbone(&info.name, self.config.layers) && !unused(&info.name);
        self.header().tensors.iter().filter(kept).map(|info| {
            let mut dims = info.dims.clone();
            if let ("token_embd.weight" | "output.weight", [_, rows]) = (info.name.as_str(), dims.as_mut_slice()) {
                *rows = self.tokenizer.len() as usize;
            }
            (info, TensorSpec { name: info.name.clone(), dtype: info.dtype, dims })
        })
    }

    /// Elements of a head, for the matrices whose rows change their order.
    fn permuted(&self, name: &str) -> Option<usize> {
        let permuted = name.ends_with(".attn_q.weight") || name.ends_with(".attn_k.weight");
        permuted.then_some(self.config.head_dim)
    }

    fn left_out(&self, kept: &[&TensorInfo]) -> Option<String> {
        let all = &self.header().tensors;
        let rows = self.config.vocab.saturating_sub(self.tokenizer.len() as usize);
        let images = all.iter().filter(|t| t.name.starts_with("vq.")).count();
        let others = all.len().saturating_sub(kept.len() + images);
        let mut parts = Vec::new();
        if images > 0 {
            parts.push(format!("the image tokenizer ({images} tensors)"));
        }
        if rows > 0 {
            parts.push(format!("{rows} of {} rows of the vocabulary that are no text", self.config.vocab));
        }
        if others > 0 {
            parts.push(format!("{others} tensors that are not the backbone's"));
        }
        (!parts.is_empty()).then(|| format!("left out: {}", parts.join(", ")))
    }

    /// All keys, in the order of llama.cpp's converter: general, sizes, tokenizer. Defaults of sampling stay under our
    /// names, for want of others.
    fn metadata(&self) -> Result<Vec<(String, MetaValue)>> {
        let ours = |key: &str| key.starts_with("mmada.") || key.starts_with("tokenizer.");
        let mut out: Vec<(String, MetaValue)> = vec![("general.architecture".into(), "llada".into())];
        let general = self.input.metadata().iter().filter(|(key, _)| key != "general.architecture" && !ours(key));
        out.extend(general.cloned());
        if !out.iter().any(|(key, _)| key == "general.type") {
            out.push(("general.type".into(), "model".into()));
        }
        out.extend(self.sizes()?);
        out.push(("diffusion.shift_logits".into(), false.into()));
        out.extend(self.tokenizer.ggml_lists(self.pre));
        out.extend(self.roles()?);
        let template = self.header().opt_str("tokenizer.chat_template")?.unwrap_or(MMADA_CHAT_TEMPLATE);
        out.push(("tokenizer.chat_template".into(), template.into()));
        let text = |key: &str| key.starts_with("mmada.sampling.text.") || key.starts_with("mmada.sampling.text_think.");
        out.extend(self.input.metadata().iter().filter(|(key, _)| text(key)).cloned());
        Ok(out)
    }

    fn sizes(&self) -> Result<Vec<(String, MetaValue)>> {
        let c = &self.config;
        let mut out = Vec::new();
        for (key, n) in [
            ("block_count", c.layers),
            ("context_length", c.context),
            ("embedding_length", c.d_model),
            ("feed_forward_length", c.d_ff),
            ("attention.head_count", c.heads),
            ("attention.head_count_kv", c.kv_heads),
            ("rope.dimension_count", c.head_dim),
            ("vocab_size", self.tokenizer.len() as usize),
        ] {
            let n = u32::try_from(n).map_err(|_| Error::invalid(format!("{key} is {n}, more than 32 bits hold")))?;
            out.push((Architecture::Llada.key(key), n.into()));
        }
        out.push((Architecture::Llada.key("rope.freq_base"), c.rope_theta.into()));
        out.push((Architecture::Llada.key("attention.layer_norm_rms_epsilon"), c.rms_eps.into()));
        out.push((Architecture::Llada.key("attention.causal"), false.into()));
        Ok(out)
    }

    /// As the converter has it, a prompt begins with bos: llama.cpp adds it to plain prompts, and takes care that a
    /// template's bos is not doubled. The end of a turn it would find by name only.
    fn roles(&self) -> Result<Vec<(String, MetaValue)>> {
        let v = &self.vocabulary;
        let key = "tokenizer.ggml.padding_token_id";
        let padding = self.header().opt_u32(key)?.filter(|&id| id < self.tokenizer.len()).unwrap_or(v.eos);
        let ids = [("bos", v.bos), ("eos", v.eos), ("eot", v.eot), ("mask", v.mask), ("padding", padding)];
        let mut out: Vec<(String, MetaValue)> =
            ids.into_iter().map(|(role, id)| (format!("tokenizer.ggml.{role}_token_id"), id.into())).collect();
        out.push(("tokenizer.ggml.add_bos_token".into(), true.into()));
        Ok(out)
    }
}

/// The rows of a tensor: the first of them, or with `head` in the order that llama.cpp rotates. Its LLaDA rotates rows
/// 2 i and 2 i + 1 of a head together (`LLAMA_ROPE_TYPE_NORM`), where in our files i and i + head / 2 are a pair.
struct ExportRows<'a> {
    rows: GgufRows<'a>,
    head: Option<usize>,
}

impl ExportRows<'_> {
    /// Where row `row` of the output comes from.
    fn source(&self, row: usize) -> usize {
        match self.head {
            Some(head) => row - row % head + row % head / 2 + row % 2 * (head / 2),
            None => row,
        }
    }
}

impl Rows for ExportRows<'_> {
    fn row_bytes(&self) -> usize {
        self.rows.row_bytes()
    }

    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
        if self.head.is_none() {
            return self.rows.read(first, buffer);
        }
        let rows = buffer.chunks_exact_mut(self.row_bytes().max(1));
        rows.enumerate().try_for_each(|(i, row)| self.rows.read(self.source(first + i), row))
    }

    fn decode(&self, row: usize, bytes: &[u8], scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        self.rows.decode(self.source(row), bytes, scratch, out)
    }

    fn stored_as(&self) -> Option<GgmlType> {
        self.rows.stored_as()
    }

    fn fault(&self, row: usize, reason: &str) -> Error {
        self.rows.fault(self.source(row), reason)
    }
}
