//! A model file, opened: shared by any number of contexts and threads.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::generate::{Defaults, ImageOptions, TextOptions};
use crate::gguf::{Architecture, Header};
use crate::mmap::Mapping;
use crate::model::{Config, Transformer};
use crate::prompt::{ChatTemplate, Vocabulary};
use crate::tokenizer::Tokenizer;
use crate::vq::ImageTokenizer;

/// How a model file is brought into memory.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Map the file (the default): opening touches only the header, pages come in when they are used, and processes
    /// that open the same file share them. Otherwise the whole file is read.
    pub mmap: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions { mmap: true }
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
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let (file, header) = load(path, options.mmap)?;
        let transformer = Transformer::from_header(&header)?;
        let vocabulary = Vocabulary::from_header(&header, file.bytes())?;
        let defaults = Defaults::from_header(&header)?;
        let images = ImageTokenizer::from_header(&header, file.bytes())?;
        let image_size = image_size(&header, &vocabulary, images.as_ref())?;
        let inner =
            Inner { file, header, transformer, vocabulary, defaults, images, image_size, text: OnceLock::new() };
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

    pub(super) fn transformer(&self) -> &Transformer {
        &self.inner.transformer
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

/// The file's bytes and header; of a split file, which may be opened by any of its parts, those of all parts.
fn load(path: &Path, mmap: bool) -> Result<(Mapping, Header)> {
    let file = if mmap { Mapping::open(path)? } else { Mapping::read(path)? };
    let header = Header::parse(file.bytes(), &path.display().to_string())?;
    let Some(paths) = header.parts(path)? else { return Ok((file, header)) };
    drop(file);
    let (file, ranges) = Mapping::open_parts(&paths, mmap)?;
    let mut headers = Vec::new();
    for (path, range) in paths.iter().zip(&ranges) {
        let part = file.bytes().get(range.clone()).unwrap_or_default();
        headers.push(Header::parse(part, &path.display().to_string())?);
    }
    let offsets: Vec<usize> = ranges.iter().map(|range| range.start).collect();
    let header = Header::join(&headers, &offsets)?;
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
