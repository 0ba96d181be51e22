//! A checkpoint folder to one GGUF file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use mmada::gguf::{MetaValue, SplitWriter, TensorSpec};
use mmada::{Error, Result};

use crate::checkpoint::Checkpoint;
use crate::choice::TypeOptions;
use crate::config::Config;
use crate::disk;
use crate::imatrix::Imatrix;
use crate::metadata::{Sources, metadata};
use crate::naming;
use crate::overrides::Override;
use crate::plan::{self, Planned};
use crate::report::{Progress, Report, TensorLine};
use crate::rows::Job;
use crate::sampling::Sampling;
use crate::tokenizer::{TextTokenizer, read_template};
use crate::tokens::Roles;
use crate::vq::Layout;
use crate::weights::CheckpointRows;
use crate::write::{by_size, encode_tensor, name_parts, spec_bytes, thread_pool};

/// What to convert, and how.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Folder with config.json, the weights and tokenizer.json.
    pub checkpoint: PathBuf,
    /// The file to write; `None`: named by the GGUF naming convention, in the working directory. What has this name is
    /// replaced once the new file is whole.
    pub output: Option<PathBuf>,
    /// Split so that no part has more bytes of tensors, but for tensors larger than that.
    pub split_max_size: Option<u64>,
    /// What the tensors are stored as.
    pub types: TypeOptions,
    /// An importance matrix: a GGUF file that names the tensors as the output does.
    pub imatrix: Option<PathBuf>,
    /// Weights that are no finite numbers do not stop the conversion.
    pub allow_nonfinite: bool,
    /// Folder of the image tokenizer; `None`: the folder `vq` of the checkpoint, if there is one.
    pub vq: Option<PathBuf>,
    /// A Jinja file that replaces the chat template.
    pub chat_template: Option<PathBuf>,
    /// Id of image code 0; `None`: the number of tokens of the tokenizer.
    pub image_code_offset: Option<u32>,
    /// general.name; `None`: the checkpoint folder's name.
    pub name: Option<String>,
    /// Metadata that is changed or added.
    pub overrides: Vec<Override>,
    /// Tell what would be written, and write nothing.
    pub dry_run: bool,
    /// Threads that quantize; 0 means one per core.
    pub threads: usize,
    /// Set it to stop; the partial output is removed.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl ConvertOptions {
    /// Everything else at its default.
    pub fn new(checkpoint: impl Into<PathBuf>, output: impl Into<PathBuf>, types: impl Into<TypeOptions>) -> Self {
        ConvertOptions {
            checkpoint: checkpoint.into(),
            output: Some(output.into()),
            split_max_size: None,
            types: types.into(),
            imatrix: None,
            allow_nonfinite: false,
            vq: None,
            chat_template: None,
            image_code_offset: None,
            name: None,
            overrides: vec![],
            dry_run: false,
            threads: 0,
            cancel: None,
        }
    }
}

/// Converts a checkpoint. Weights are streamed: memory does not grow with the checkpoint.
///
/// # Errors
/// One sentence that names the file, tensor or option at fault; no output is left behind then.
/// `Cancelled` after `options.cancel` was set.
pub fn convert(options: &ConvertOptions, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let started = Instant::now();
    let source = Source::open(options)?;
    let mut notes = source.notes.clone();
    let mut metadata = source.metadata(options, &mut notes)?;
    let planned = source.plan(&options.types, &mut notes)?;
    let imatrix = match &options.imatrix {
        Some(file) => {
            let imatrix = Imatrix::read(file)?;
            let matrices = planned.iter().filter(|t| t.spec.dims.len() > 1);
            imatrix.check(matrices.map(|t| (t.spec.name.as_str(), t.cols)), &mut notes)?;
            metadata.extend(imatrix.metadata());
            Some(imatrix)
        }
        None => None,
    };
    options.overrides.iter().try_for_each(|change| change.apply(&mut metadata))?;
    let specs: Vec<TensorSpec> = planned.iter().map(|t| t.spec.clone()).collect();
    notes.extend(options.types.idle(&specs));
    let total: u64 = specs.iter().map(spec_bytes).sum();
    let groups = by_size(specs, options.split_max_size.unwrap_or(u64::MAX));
    let parts = name_parts(output(options, &metadata, &planned), groups);
    let files: Vec<PathBuf> = parts.iter().map(|(path, _)| path.clone()).collect();
    files.iter().try_for_each(|file| source.guard_inputs(options, file))?;
    let file_bytes = SplitWriter::sizes(&metadata, &parts)?.iter().sum();
    let tell = |progress: &mut dyn FnMut(Progress)| notes.iter().for_each(|note| progress(Progress::Note(note)));
    let line = |index, spec, rows: &CheckpointRows| TensorLine {
        index,
        count: planned.len(),
        spec,
        from: Some(rows.dtype()),
        bytes: spec_bytes(spec),
        stats: None,
    };
    let mut tensors = planned.iter().enumerate();
    if options.dry_run {
        tell(progress);
        tensors.try_for_each(|(index, tensor)| {
            progress(Progress::Tensor(&line(index, &tensor.spec, &source.rows(tensor)?)));
            Ok::<_, Error>(())
        })?;
    } else {
        let pool = thread_pool(options.threads)?;
        files.first().map_or(Ok(()), |file| disk::require(file, file_bytes))?;
        let mut writer = SplitWriter::create(&metadata, &parts)?;
        // Only now: whoever asked for what cannot be should read one sentence.
        tell(progress);
        let mut done = 0;
        tensors.try_for_each(|(index, tensor)| {
            let job = Job {
                dtype: tensor.spec.dtype,
                rows: tensor.rows,
                cols: tensor.cols,
                importance: imatrix.as_ref().and_then(|m| m.get(&tensor.spec.name)),
                allow_nonfinite: options.allow_nonfinite,
                measure: true,
            };
            let rows = source.rows(tensor)?;
            let (line, cancel) = (line(index, &tensor.spec, &rows), options.cancel.as_deref());
            encode_tensor(&pool, &rows, &job, line, &mut writer, cancel, (&mut done, total), progress)
        })?;
        writer.finish()?;
    }
    Ok(Report {
        tensors: planned.len(),
        weights: planned.iter().map(|t| t.rows as u64 * t.cols as u64).sum(),
        weight_bytes: total,
        file_bytes,
        files,
        seconds: started.elapsed(),
        has_images: source.vq.is_some(),
    })
}

fn output(options: &ConvertOptions, metadata: &[(String, MetaValue)], planned: &[Planned]) -> PathBuf {
    options.output.clone().unwrap_or_else(|| {
        let weights = planned.iter().map(|t| t.rows as u64 * t.cols as u64).sum();
        naming::file_name(metadata, "mmada", weights, options.types.recipe.name()).into()
    })
}

/// An opened checkpoint: everything but the weights is read.
struct Source {
    dir: PathBuf,
    config: Config,
    backbone: Checkpoint,
    vq: Option<(Checkpoint, Layout)>,
    tokenizer: TextTokenizer,
    roles: Roles,
    sampling: Sampling,
    notes: Vec<String>,
}

impl Source {
    fn open(options: &ConvertOptions) -> Result<Self> {
        let dir = options.checkpoint.clone();
        is_folder(&dir)?;
        let mut notes = Vec::new();
        let config = Config::read(&dir)?;
        let backbone = Checkpoint::open(&dir)?;
        let vq = image_tokenizer(options, &config, &mut notes)?;
        let tokenizer = TextTokenizer::read(&dir, &mut notes)?;
        let roles = Roles::read(&dir, &tokenizer, &config, &mut notes)?;
        let sampling = Sampling::read(&dir, &mut notes)?;
        Ok(Source { dir, config, backbone, vq, tokenizer, roles, sampling, notes })
    }

    /// Where a tensor's weights come from.
    fn rows<'a>(&'a self, tensor: &'a Planned) -> Result<CheckpointRows<'a>> {
        let checkpoint = if tensor.vq { self.vq.as_ref().map(|(c, _)| c) } else { Some(&self.backbone) };
        let checkpoint =
            checkpoint.ok_or_else(|| Error::Internal("an image tokenizer was planned without one".into()))?;
        CheckpointRows::new(checkpoint, tensor)
    }

    fn metadata(&self, options: &ConvertOptions, notes: &mut Vec<String>) -> Result<Vec<(String, MetaValue)>> {
        let rows = plan::embedding_rows(&self.config, &self.backbone)?;
        let chat_template = match &options.chat_template {
            Some(file) => Some(read_template(file)?),
            None => self.tokenizer.chat_template(&self.dir, self.config.family)?,
        };
        if chat_template.is_none() {
            notes.push("the checkpoint has no chat template: the file can be used with ready-made prompts only".into());
        }
        metadata(&Sources {
            name: &name(options)?,
            recipe: &options.types.recipe,
            config: &self.config,
            rows,
            code_offset: self.code_offset(options, rows)?,
            vq: self.vq.as_ref().map(|(_, layout)| layout),
            roles: &self.roles,
            sampling: &self.sampling,
            tokenizer: &self.tokenizer,
            chat_template,
        })
    }

    /// Where image codes begin, if there are any. Text and codes must both fit the embedding and not overlap.
    fn code_offset(&self, options: &ConvertOptions, rows: usize) -> Result<Option<u32>> {
        let (text, file) = (self.tokenizer.len(), self.tokenizer.file());
        if text as usize > rows {
            return Err(Error::format(file, format!("{text} tokens do not fit the embedding's {rows} rows")));
        }
        let Some(codes) = self.config.codebook_size else {
            return match options.image_code_offset {
                Some(_) => Err(Error::invalid("an image code offset was given, but the checkpoint has no image codes")),
                None => Ok(None),
            };
        };
        let offset = options.image_code_offset.unwrap_or(text);
        if offset < text {
            return Err(Error::invalid(format!(
                "the image code offset {offset} lies inside the {text} tokens of {file}"
            )));
        }
        if u64::from(offset) + u64::from(codes) > rows as u64 {
            let reason = format!("{codes} image codes from {offset} on do not fit the embedding's {rows} rows");
            return Err(Error::format(&self.config.file, reason));
        }
        Ok(Some(offset))
    }

    fn plan(&self, types: &TypeOptions, notes: &mut Vec<String>) -> Result<Vec<Planned>> {
        let mut planned = plan::backbone(&self.config, &self.backbone, types, notes)?;
        if let Some((checkpoint, layout)) = &self.vq {
            planned.extend(plan::image_tokenizer(layout, checkpoint, types, notes)?);
        }
        Ok(planned)
    }

    /// The output must not replace what it is made from.
    fn guard_inputs(&self, options: &ConvertOptions, output: &Path) -> Result<()> {
        let json =
            ["config.json", "tokenizer.json", "tokenizer_config.json", "mmada_tokens.json", "mmada_sampling.json"];
        let mut inputs: Vec<PathBuf> = json.map(|name| self.dir.join(name)).into();
        inputs.push(self.dir.join("chat_template.jinja"));
        inputs.extend(options.chat_template.clone());
        inputs.extend(options.imatrix.clone());
        for checkpoint in [Some(&self.backbone), self.vq.as_ref().map(|(c, _)| c)].into_iter().flatten() {
            inputs.push(checkpoint.origin().into());
            inputs.extend(checkpoint.files().map(Path::to_owned));
        }
        disk::keep_inputs(output, inputs.iter().map(PathBuf::as_path))
    }
}

fn is_folder(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path).map_err(|e| Error::io(path.display(), e))?;
    if found.is_dir() { Ok(()) } else { Err(Error::format(path.display(), "not a folder; a checkpoint is one")) }
}

/// Opens the image tokenizer and checks that its codes are the backbone's.
fn image_tokenizer(
    options: &ConvertOptions,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<Option<(Checkpoint, Layout)>> {
    let beside = options.checkpoint.join("vq");
    let dir = match &options.vq {
        Some(dir) => dir,
        None if beside.is_dir() => &beside,
        None => {
            if config.codebook_size.is_some() {
                notes.push(
                    "no image tokenizer was given (--vq DIR): the file will neither see nor draw pictures".into(),
                );
            }
            return Ok(None);
        }
    };
    is_folder(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let layout = Layout::derive(&checkpoint)?;
    let wrong = |reason: String| Err(Error::format(&config.file, reason));
    match config.codebook_size {
        None => return wrong("the checkpoint has no image codes, so it cannot have an image tokenizer".into()),
        Some(codes) if codes != layout.codebook_size() => {
            return wrong(format!(
                "codebook_size is {codes}, but {} has {} codes",
                dir.display(),
                layout.codebook_size()
            ));
        }
        Some(_) => {}
    }
    match config.num_vq_tokens {
        Some(n) if n.isqrt().pow(2) == n => Ok(Some((checkpoint, layout))),
        n => wrong(format!("num_vq_tokens is {}, not a square number", n.unwrap_or(0))),
    }
}

fn name(options: &ConvertOptions) -> Result<String> {
    if let Some(name) = &options.name {
        return Ok(name.clone());
    }
    let dir = &options.checkpoint;
    let full = dir.canonicalize().map_err(|e| Error::io(dir.display(), e))?;
    Ok(full.file_name().map_or_else(|| "mmada".to_owned(), |name| name.to_string_lossy().into_owned()))
}
