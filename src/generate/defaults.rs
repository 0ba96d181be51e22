//! What is used where the caller says nothing: written into the model file by the converter, and else what suits
//! the published 8B checkpoints.

use super::{ImageOptions, TextOptions};
use crate::error::{Error, Result};
use crate::gguf::{Architecture, Header};
use crate::sampler::Schedule;

/// Defaults of an answer or a description (`mmada.sampling.TASK.*`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextDefaults {
    pub gen_length: usize,
    pub steps: usize,
    pub block_length: usize,
    pub temperature: f32,
}

/// Defaults of a picture's sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageDefaults {
    pub steps: usize,
    pub guidance_scale: f32,
    pub temperature: f32,
    pub schedule: Schedule,
}

/// A model's defaults for every task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    pub text: TextDefaults,
    pub text_think: TextDefaults,
    pub image_question: TextDefaults,
    pub image_question_think: TextDefaults,
    /// The most tokens of a text to draw, its two leading special tokens included.
    pub max_text_len: usize,
    pub draw: ImageDefaults,
    /// Reasoned drawing: tokens from bos to the last eos before the picture.
    pub text_len: usize,
    pub draw_think_text: TextDefaults,
    pub draw_think_image: ImageDefaults,
}

impl Default for Defaults {
    /// Those of the 8B checkpoints.
    fn default() -> Self {
        let text = TextDefaults { gen_length: 512, steps: 256, block_length: 128, temperature: 0.0 };
        let draw = ImageDefaults { steps: 15, guidance_scale: 3.5, temperature: 1.0, schedule: Schedule::Cosine };
        Defaults {
            text,
            text_think: text,
            image_question: text,
            image_question_think: text,
            max_text_len: 512,
            draw,
            text_len: 512,
            draw_think_text: TextDefaults { gen_length: 256, steps: 128, block_length: 64, temperature: 0.0 },
            draw_think_image: draw,
        }
    }
}

impl Defaults {
    /// Those of LLaDA's `generate.py`, for its models of text.
    fn llada() -> Self {
        let text = TextDefaults { gen_length: 128, steps: 128, block_length: 32, temperature: 0.0 };
        Defaults { text, text_think: text, ..Self::default() }
    }

    /// Reads `mmada.sampling.*`; what the file leaves out is the 8B's, or LLaDA's in a
    /// `llada` file.
    ///
    /// # Errors
    /// `Format` for a value of the wrong type, or that no request could have (a length of 0, steps that do not
    /// divide, a temperature below 0, an unknown schedule).
    pub fn from_header(header: &Header) -> Result<Self> {
        let reader = Reader { header };
        let d = match header.architecture()? {
            Architecture::Mmada => Self::default(),
            Architecture::Llada => Self::llada(),
        };
        Ok(Defaults {
            text: reader.text("text", d.text)?,
            text_think: reader.text("text_think", d.text_think)?,
            image_question: reader.text("image_question", d.image_question)?,
            image_question_think: reader.text("image_question_think", d.image_question_think)?,
            max_text_len: reader.length("draw.max_text_len", d.max_text_len)?,
            draw: reader.image("draw", d.draw)?,
            text_len: reader.length("draw_think.text_len", d.text_len)?,
            draw_think_text: reader.text("draw_think.text", d.draw_think_text)?,
            draw_think_image: reader.image("draw_think.image", d.draw_think_image)?,
        })
    }

    /// The options of an answer: to a text or, with `image`, to a question about a picture.
    pub fn text_options(&self, thinking: bool, image: bool) -> TextOptions {
        TextOptions::from(match (thinking, image) {
            (false, false) => self.text,
            (true, false) => self.text_think,
            (false, true) => self.image_question,
            (true, true) => self.image_question_think,
        })
    }

    /// The options of a drawing: of its description (used with `think` only) and of the picture.
    pub fn draw_options(&self, think: bool) -> (TextOptions, ImageOptions) {
        let d = if think { self.draw_think_image } else { self.draw };
        let image = ImageOptions {
            steps: d.steps,
            guidance: d.guidance_scale,
            temperature: d.temperature,
            schedule: d.schedule,
            max_text_len: self.max_text_len,
            text_len: self.text_len,
            ..ImageOptions::bare()
        };
        (self.draw_think_text.into(), image)
    }
}

impl From<TextDefaults> for TextOptions {
    fn from(d: TextDefaults) -> Self {
        TextOptions {
            gen_length: d.gen_length,
            steps: d.steps,
            block_length: d.block_length,
            temperature: f64::from(d.temperature),
            ..TextOptions::bare()
        }
    }
}

/// More than any model takes: a damaged file must not make every request run for years.
const MAX_LENGTH: usize = 1 << 20;

struct Reader<'a> {
    header: &'a Header,
}

impl Reader<'_> {
    /// A number of tokens or of steps.
    fn length(&self, name: &str, default: usize) -> Result<usize> {
        let length = self.header.opt_usize(&key(name))?.unwrap_or(default);
        if length > MAX_LENGTH {
            let reason = format_args!("metadata {} is {length}, more than {MAX_LENGTH}", key(name));
            return Err(Error::format(self.header.file(), reason));
        }
        Ok(length)
    }

    fn real(&self, name: &str, default: f32) -> Result<f32> {
        Ok(self.header.opt_f32(&key(name))?.unwrap_or(default))
    }

    fn text(&self, task: &str, default: TextDefaults) -> Result<TextDefaults> {
        let read = TextDefaults {
            gen_length: self.length(&format!("{task}.gen_length"), default.gen_length)?,
            steps: self.length(&format!("{task}.steps"), default.steps)?,
            block_length: self.length(&format!("{task}.block_length"), default.block_length)?,
            temperature: self.real(&format!("{task}.temperature"), default.temperature)?,
        };
        TextOptions::from(read).check_numbers().map_err(|error| self.refuse(task, error))?;
        Ok(read)
    }

    fn image(&self, task: &str, default: ImageDefaults) -> Result<ImageDefaults> {
        let schedule = match self.header.opt_str(&key(&format!("{task}.schedule")))? {
            Some(name) => name.parse().map_err(|error| self.refuse(task, error))?,
            None => default.schedule,
        };
        let read = ImageDefaults {
            steps: self.length(&format!("{task}.steps"), default.steps)?,
            guidance_scale: self.real(&format!("{task}.guidance_scale"), default.guidance_scale)?,
            temperature: self.real(&format!("{task}.temperature"), default.temperature)?,
            schedule,
        };
        let options = ImageOptions {
            steps: read.steps,
            guidance: read.guidance_scale,
            temperature: read.temperature,
            ..ImageOptions::bare()
        };
        options.check().map_err(|error| self.refuse(task, error))?;
        Ok(read)
    }

    fn refuse(&self, task: &str, error: Error) -> Error {
        Error::format(self.header.file(), format_args!("metadata {}: {error}", key(&format!("{task}.*"))))
    }
}

fn key(name: &str) -> String {
    format!("mmada.sampling.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{MetaValue, Writer};

    fn header(metadata: &[(&str, MetaValue)]) -> Header {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let keys = metadata.iter().map(|(k, v)| (format!("mmada.sampling.{k}"), v.clone()));
        let metadata: Vec<(String, MetaValue)> =
            std::iter::once(("general.architecture".to_owned(), "mmada".into())).chain(keys).collect();
        Writer::create(&path, &metadata, &[]).unwrap().finish().unwrap();
        Header::parse(&std::fs::read(path).unwrap(), "m.gguf").unwrap()
    }

    #[test]
    fn a_file_without_defaults_has_those_of_the_8b() {
        let defaults = Defaults::from_header(&header(&[])).unwrap();
        assert_eq!(defaults, Defaults::default());
        let options = defaults.text_options(true, true);
        assert_eq!((options.gen_length, options.steps, options.block_length), (512, 256, 128));
        assert_eq!(defaults.draw_options(false).1, ImageOptions::default());
    }

    #[test]
    fn what_the_file_says_replaces_the_8bs_value_for_its_task_alone() {
        let defaults = Defaults::from_header(&header(&[
            ("text_think.gen_length", MetaValue::U32(48)),
            ("text_think.steps", MetaValue::U64(24)),
            ("text_think.block_length", MetaValue::U32(48)),
            ("text_think.temperature", MetaValue::F32(0.5)),
            ("draw.max_text_len", MetaValue::U32(32)),
            ("draw_think.text_len", MetaValue::U32(159)),
            ("draw_think.text.steps", MetaValue::U32(64)),
            ("draw_think.image.schedule", MetaValue::String("pow2".to_owned())),
            ("draw_think.image.guidance_scale", MetaValue::F32(3.0)),
        ]))
        .unwrap();
        let think = defaults.text_options(true, false);
        assert_eq!((think.gen_length, think.steps, think.block_length, think.temperature), (48, 24, 48, 0.5));
        assert_eq!(defaults.text_options(false, false), Defaults::default().text_options(false, false));
        let (text, image) = defaults.draw_options(true);
        assert_eq!((text.gen_length, text.steps), (256, 64));
        assert_eq!(
            (image.schedule, image.guidance, image.max_text_len, image.text_len),
            (Schedule::Pow(2.0), 3.0, 32, 159)
        );
        assert_eq!(defaults.draw_options(false).1.schedule, Schedule::Cosine);
    }

    #[test]
    fn impossible_defaults_are_named_with_their_file() {
        for (name, value, reason) in [
            ("text.steps", MetaValue::U32(255), "text.*"),
            ("image_question.gen_length", MetaValue::U32(0), "image_question.*"),
            ("text.steps", MetaValue::U64(1 << 60), "is 1152921504606846976, more than"),
            ("draw.steps", MetaValue::U32(u32::MAX), "is 4294967295, more than"),
            ("draw.schedule", MetaValue::String("sine".to_owned()), "\"sine\""),
            ("draw.temperature", MetaValue::F32(f32::NAN), "temperature"),
            ("draw.steps", MetaValue::String("many".to_owned()), "mmada.sampling.draw.steps"),
        ] {
            let error = Defaults::from_header(&header(&[(name, value)])).unwrap_err().to_string();
            assert!(error.starts_with("m.gguf: ") && error.contains(reason), "{error}");
        }
    }
}
