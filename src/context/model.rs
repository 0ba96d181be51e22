//! A model file, opened: shared by any number of contexts and threads.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::shared::Shared;
use crate::error::{Error, Result};
use crate::generate::{Defaults, ImageOptions, TextOptions};
use crate::gguf::{Architecture, Header, parse_split_path};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Gpu;
use crate::mmap::{Mapping, Progress};
#[cfg(feature = "cuda")]
use crate::model::CudaWeights;
use crate::model::{Compute, Config, PackedWeights, Transformer};
use crate::parallel::Exec;
use crate::prompt::{self, ChatTemplate, Message, Vocabulary};
use crate::tokenizer::Tokenizer;
#[cfg(feature = "cuda")]
use crate::vq::CudaConvs;
use crate::vq::ImageTokenizer;

/// How a model file is brought into memory.
#[derive(Clone)]
pub struct OpenOptions {
    /// Map the file (the default): opening touches only the header, pages come in when they are used, and processes
    /// that open the same file share them. Otherwise the whole file is read.
    pub mmap: bool,
    /// Called with the bytes that are there and all bytes: after every 8 MiB of a file that is read, once of one that
    /// is mapped. If it returns false, opening fails with [`Error::Cancelled`].
    pub progress: Option<Progress>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions { mmap: true, progress: None }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.progress.as_ref().map(|_| "function");
        f.debug_struct("OpenOptions").field("mmap", &self.mmap).field("progress", &progress).finish()
    }
}

/// A model file, opened and checked. Cloning is cheap; all methods may run in many threads at once.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    file: Mapping,
    header: Header,
    transformer: Transformer,
    vocabulary: Vocabulary,
    defaults: Defaults,
    images: Option<ImageTokenizer>,
    /// Pixels along a side of the picture that the model was trained on.
    image_size: usize,
    text: OnceLock<Text>,
    /// by instruction set and arithmetic
    packed: Shared<(&'static str, Compute), PackedWeights>,
    /// by card and first layer
    #[cfg(feature = "cuda")]
    on_cards: Shared<(usize, usize), CudaWeights>,
    /// of the image tokenizer, by card
    #[cfg(feature = "cuda")]
    convs_on_cards: Shared<usize, CudaConvs>,
}

/// Built when first used: a vocabulary of 126 thousand entries takes longer to index than the file to open.
struct Text {
    tokenizer: Tokenizer,
    /// `None` in a `llada` file without one: models that answer no questions.
    template: Option<ChatTemplate>,
}

impl Model {
    /// Maps the GGUF file at `path` and checks its header: metadata, names, shapes and extents of all tensors.
    ///
    /// Errors name the file: no such file, not GGUF, cut off, another architecture, a tensor that is missing or of
    /// another shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// [`Model::open`] with options.
    ///
    /// # Errors
    /// As [`Model::open`]; `Cancelled` if the progress function says so, `OutOfMemory` for a file that is read.
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let (file, header) = load(path.as_ref(), options)?;
        Self::from_parts(file, header)
    }

    /// [`Model::open_with`] for a file that is open already, by whatever way the process came to it. It is taken from
    /// its beginning, and its position is not moved. `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`Model::open_with`]; `Unsupported` for a part of a split file, whose other parts only a path leads to.
    pub fn open_file(file: File, name: &str, options: &OpenOptions) -> Result<Self> {
        let file = Mapping::load(file, name, options.mmap, options.progress.as_ref())?;
        Self::whole(file, name)
    }

    /// A model whose file's bytes are in memory, where they stay unchanged for the rest of the process; nothing is
    /// copied. They begin at an address that is a multiple of 32. `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`Model::open_file`]; `InvalidArgument` for an address that is no multiple of 32.
    pub fn from_memory(bytes: &'static [u8], name: &str) -> Result<Self> {
        if bytes.as_ptr().align_offset(MEMORY_ALIGNMENT) != 0 {
            return Err(Error::invalid(format_args!(
                "{name}: the bytes of a model in memory must begin at a multiple of {MEMORY_ALIGNMENT}, not at {:p}",
                bytes.as_ptr()
            )));
        }
        Self::whole(Mapping::lend(bytes), name)
    }

    /// Of a file that is not split.
    fn whole(file: Mapping, name: &str) -> Result<Self> {
        let header = Header::parse(file.bytes(), name)?;
        if header.is_split()? {
            let reason = "this is one part of a split file; such files are opened by the path of one of their parts";
            return Err(Error::unsupported(name, reason));
        }
        Self::from_parts(file, header)
    }

    fn from_parts(file: Mapping, header: Header) -> Result<Self> {
        let transformer = Transformer::from_header(&header)?;
        let vocabulary = Vocabulary::from_header(&header, file.bytes())?;
        let defaults = Defaults::from_header(&header)?;
        let images = ImageTokenizer::from_header(&header, file.bytes())?;
        let image_size = image_size(&header, &vocabulary, images.as_ref())?;
        let inner = Inner {
            file,
            header,
            transformer,
            vocabulary,
            defaults,
            images,
            image_size,
            text: OnceLock::new(),
            packed: Shared::default(),
            #[cfg(feature = "cuda")]
            on_cards: Shared::default(),
            #[cfg(feature = "cuda")]
            convs_on_cards: Shared::default(),
        };
        Ok(Model { inner: Arc::new(inner) })
    }

    /// The file's metadata and tensor infos.
    pub fn header(&self) -> &Header {
        &self.inner.header
    }

    /// The file's bytes; ranges of the header's tensors point into them.
    pub fn bytes(&self) -> &[u8] {
        self.inner.file.bytes()
    }

    /// The path as given, for messages.
    pub fn file(&self) -> &str {
        self.inner.header.file()
    }

    /// Sizes of the backbone.
    pub fn config(&self) -> &Config {
        &self.inner.transformer.config
    }

    /// The vocabulary's partition and the ids with a role.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.inner.vocabulary
    }

    /// The sampling numbers that the file recommends.
    pub fn defaults(&self) -> &Defaults {
        &self.inner.defaults
    }

    /// The file's recommended options for text (`image`: a question about a picture).
    pub fn text_options(&self, thinking: bool, image: bool) -> TextOptions {
        self.inner.defaults.text_options(thinking, image)
    }

    /// The file's recommended options for drawing: the description's (used with `think`) and the picture's.
    pub fn draw_options(&self, think: bool) -> (TextOptions, ImageOptions) {
        self.inner.defaults.draw_options(think)
    }

    /// Whether the file holds an image tokenizer, so that the model can see and draw.
    pub fn has_images(&self) -> bool {
        self.inner.images.is_some() && !self.inner.vocabulary.image_ids().is_empty()
    }

    /// The image tokenizer's sizes and weights, if the file has one.
    pub fn images(&self) -> Option<&ImageTokenizer> {
        self.inner.images.as_ref()
    }

    /// Pixels along each side of the pictures that the model was trained on; 0 without an image tokenizer.
    pub fn image_size(&self) -> usize {
        self.inner.image_size
    }

    /// Pixels per image token along a side, if the file has an image tokenizer.
    pub fn downsampling(&self) -> Option<usize> {
        self.inner.images.as_ref().map(|t| t.config().downsampling())
    }

    /// The text tokenizer. Built from the file at the first call, which takes a moment for a large vocabulary.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        Ok(&self.text()?.tokenizer)
    }

    /// The layout of conversations.
    ///
    /// # Errors
    /// `Unsupported` for a model of text that came without one.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.text()?.template.as_ref().ok_or_else(|| {
            let reason = "the model has no chat template (tokenizer.chat_template), so it cannot be asked questions";
            Error::unsupported(self.file(), reason)
        })
    }

    /// The ids of a chat, up to where the answer begins: what [`Context::text`](super::Context::text) puts before it.
    /// With `thinking` the instruction to think first is part of it.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty chat, or thinking without a message of the user; `Format` if the file's tokenizer
    /// or chat template is damaged.
    pub fn prompt_ids(&self, messages: &[Message], thinking: bool) -> Result<Vec<u32>> {
        prompt::chat(self.tokenizer()?, self.vocabulary(), self.chat_template()?, messages, thinking)
    }

    /// An error if the file behind the mapped bytes became shorter since it was opened.
    pub(super) fn check_file(&self) -> Result<()> {
        self.inner.file.check()
    }

    pub(super) fn transformer(&self) -> &Transformer {
        &self.inner.transformer
    }

    /// The weights packed for the instruction set of `exec`: those of another context where there is one like it.
    ///
    /// # Errors
    /// `OutOfMemory`; `Io` or `Format` if the file became shorter.
    pub(super) fn packed(&self, exec: &Exec, compute: Compute) -> Result<Arc<PackedWeights>> {
        self.inner.packed.get((exec.kernels.name(), compute), || {
            self.check_file()?;
            PackedWeights::new(exec, &self.transformer().weights, self.bytes(), compute)
        })
    }

    /// The weights of the layers from `first` on, on a card: those of another context where there is one like it.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`; `Cancelled` if `progress` says so; `Io` or `Format` if the file became shorter.
    #[cfg(feature = "cuda")]
    pub(super) fn on_card(
        &self,
        gpu: &Arc<Gpu>,
        first: usize,
        progress: Option<&Progress>,
    ) -> Result<Arc<CudaWeights>> {
        let progress = progress.map(|progress| &**progress as &dyn Fn(u64, u64) -> bool);
        // a card that was lost and is opened again is another one
        self.inner.on_cards.get((Arc::as_ptr(gpu) as usize, first), || {
            self.check_file()?;
            CudaWeights::new(gpu, self.transformer(), self.bytes(), first, progress)
        })
    }

    /// The image tokenizer's weights on a card, for the contexts that use them there.
    #[cfg(feature = "cuda")]
    pub(super) fn convs_on_card(&self, gpu: &Arc<Gpu>) -> Result<Arc<CudaConvs>> {
        self.inner.convs_on_cards.get(Arc::as_ptr(gpu) as usize, || Ok(CudaConvs::default()))
    }

    /// The first layer of those that contexts have on a card, if any has.
    #[cfg(feature = "cuda")]
    pub(super) fn first_on_card(&self, gpu: &Arc<Gpu>) -> Option<usize> {
        let card = Arc::as_ptr(gpu) as usize;
        self.inner.on_cards.keys(|keys| keys.filter(|key| key.0 == card).map(|key| key.1).min())
    }

    fn text(&self) -> Result<&Text> {
        if let Some(text) = self.inner.text.get() {
            return Ok(text);
        }
        let h = &self.inner.header;
        let architecture = h.architecture()?;
        let tokenizer = match architecture {
            Architecture::Mmada => Tokenizer::from_json(h.str("tokenizer.huggingface.json")?, h.file())?,
            Architecture::Llada => Tokenizer::from_ggml(h, self.bytes())?,
        };
        self.inner.vocabulary.check_tokenizer(&tokenizer, h.file())?;
        let template = match h.opt_str("tokenizer.chat_template")? {
            Some(source) => Some(ChatTemplate::new(source, h.file())?),
            None => (architecture == Architecture::Mmada).then(ChatTemplate::mmada),
        };
        // two threads may build it at once; one of the two is kept
        Ok(self.inner.text.get_or_init(|| Text { tokenizer, template }))
    }
}

/// Where a model in memory begins: what GGUF aligns tensors to unless it says otherwise.
const MEMORY_ALIGNMENT: usize = 32;

/// The file's bytes and header; of a split file, which may be opened by any of its parts, those of all parts.
fn load(path: &Path, options: &OpenOptions) -> Result<(Mapping, Header)> {
    let (mmap, progress) = (options.mmap, options.progress.as_ref());
    let name = path.display().to_string();
    // Only a name like that can be a part's: its header is looked at before anything is read.
    let paths = match parse_split_path(path) {
        Some(_) => Header::parse(Mapping::open(path)?.bytes(), &name)?.parts(path)?,
        None => None,
    };
    let Some(paths) = paths else {
        let file = Mapping::open_with(path, mmap, progress)?;
        let header = Header::parse(file.bytes(), &name)?;
        header.parts(path)?; // an error for a part under another name
        return Ok((file, header));
    };
    let (file, ranges) = Mapping::open_parts(&paths, mmap, progress)?;
    let mut headers = Vec::new();
    for (path, range) in paths.iter().zip(&ranges) {
        let part = file.bytes().get(range.clone()).unwrap_or_default();
        headers.push(Header::parse(part, &path.display().to_string())?);
    }
    let offsets: Vec<usize> = ranges.iter().map(|range| range.start).collect();
    let header = Header::join(headers, &offsets)?;
    Ok((file, header))
}

/// `sqrt(image tokens) * downsampling`, checked against the vocabulary.
fn image_size(h: &Header, vocabulary: &Vocabulary, images: Option<&ImageTokenizer>) -> Result<usize> {
    let Some(images) = images else { return Ok(0) };
    let (config, codes) = (images.config(), vocabulary.image_ids().len());
    if codes != config.codebook_size() {
        let made = config.codebook_size();
        let reason = format!("the image tokenizer makes {made} codes but the vocabulary has {codes}");
        return Err(Error::format(h.file(), reason));
    }
    let tokens = h.usize("mmada.image.token_count")?;
    let side = tokens.isqrt();
    match side.checked_mul(config.downsampling()) {
        Some(pixels) if side > 0 && side * side == tokens && pixels <= 1 << 14 => Ok(pixels),
        _ => Err(Error::format(h.file(), format!("mmada.image.token_count {tokens} is not the square of a side"))),
    }
}
