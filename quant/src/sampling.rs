//! Defaults for sampling that go into the file: the 8B's, with `mmada_sampling.json` of the checkpoint laid over them.

use std::path::Path;

use mmada::gguf::MetaValue;
use mmada::{Error, Result};

use crate::json::Object;

const FILE: &str = "mmada_sampling.json";

#[derive(Clone, Debug)]
struct Text {
    gen_length: u32,
    steps: u32,
    block_length: u32,
    temperature: f32,
}

#[derive(Clone, Debug)]
struct Image {
    steps: u32,
    guidance_scale: f32,
    temperature: f32,
    schedule: String,
}

/// The defaults of every task.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// text, text_think, image_question, image_question_think
    text: Vec<(&'static str, Text)>,
    draw_max_text_len: u32,
    draw: Image,
    draw_think_text_len: u32,
    draw_think_text: Text,
    draw_think_image: Image,
}

impl Default for Sampling {
    /// What the released 8B checkpoints are run with.
    fn default() -> Self {
        let text = Text { gen_length: 512, steps: 256, block_length: 128, temperature: 0.0 };
        let image = Image { steps: 15, guidance_scale: 3.5, temperature: 1.0, schedule: "cosine".into() };
        Sampling {
            text: ["text", "text_think", "image_question", "image_question_think"]
                .map(|task| (task, text.clone()))
                .into(),
            draw_max_text_len: 512,
            draw: image.clone(),
            draw_think_text_len: 512,
            draw_think_text: Text { gen_length: 256, steps: 128, block_length: 64, temperature: 0.0 },
            draw_think_image: image,
        }
    }
}

impl Sampling {
    /// Reads the checkpoint's defaults. Keys that are not known are named in `notes`.
    ///
    /// # Errors
    /// `Format` for values of the wrong kind and for combinations that no generation accepts.
    pub fn read(dir: &Path, notes: &mut Vec<String>) -> Result<Self> {
        let mut sampling = Self::default();
        let Some(file) = Object::read_if_present(&dir.join(FILE))? else { return Ok(sampling) };
        for (task, text) in &mut sampling.text {
            if let Some(object) = file.object(task)? {
                text.overlay(&object, notes)?;
            }
        }
        if let Some(draw) = file.object("draw")? {
            sampling.draw_max_text_len = count(&draw, "max_text_len", sampling.draw_max_text_len)?;
            sampling.draw.overlay(&draw, &["max_text_len"], notes)?;
        }
        if let Some(draw) = file.object("draw_think")? {
            unknown(&draw, &["text_len", "text", "image"], notes);
            sampling.draw_think_text_len = count(&draw, "text_len", sampling.draw_think_text_len)?;
            if let Some(text) = draw.object("text")? {
                sampling.draw_think_text.overlay(&text, notes)?;
            }
            if let Some(image) = draw.object("image")? {
                sampling.draw_think_image.overlay(&image, &[], notes)?;
            }
        }
        let tasks: Vec<&str> = sampling.text.iter().map(|(task, _)| *task).chain(["draw", "draw_think"]).collect();
        unknown(&file, &tasks, notes);
        Ok(sampling)
    }

    /// The metadata of the file: `mmada.sampling.*`.
    pub fn metadata(&self) -> Vec<(String, MetaValue)> {
        let mut out = Vec::new();
        for (task, text) in &self.text {
            text.put(task, &mut out);
        }
        put(&mut out, "draw", "max_text_len", MetaValue::U32(self.draw_max_text_len));
        self.draw.put("draw", &mut out);
        put(&mut out, "draw_think", "text_len", MetaValue::U32(self.draw_think_text_len));
        self.draw_think_text.put("draw_think.text", &mut out);
        self.draw_think_image.put("draw_think.image", &mut out);
        out
    }
}

fn put(out: &mut Vec<(String, MetaValue)>, task: &str, key: &str, value: MetaValue) {
    out.push((format!("mmada.sampling.{task}.{key}"), value));
}

impl Text {
    fn overlay(&mut self, o: &Object, notes: &mut Vec<String>) -> Result<()> {
        unknown(o, &["gen_length", "steps", "block_length", "temperature"], notes);
        self.gen_length = count(o, "gen_length", self.gen_length)?;
        self.steps = count(o, "steps", self.steps)?;
        self.block_length = count(o, "block_length", self.block_length)?;
        self.temperature = not_negative(o, "temperature", self.temperature)?;
        let Text { gen_length, steps, block_length, .. } = *self;
        if !gen_length.is_multiple_of(block_length) {
            return Err(o.wrong("block_length", format!("({block_length}) does not divide gen_length ({gen_length})")));
        }
        let blocks = gen_length / block_length;
        if !steps.is_multiple_of(blocks) {
            return Err(o.wrong("steps", format!("({steps}) is not a multiple of the number of blocks ({blocks})")));
        }
        Ok(())
    }

    fn put(&self, task: &str, out: &mut Vec<(String, MetaValue)>) {
        put(out, task, "gen_length", MetaValue::U32(self.gen_length));
        put(out, task, "steps", MetaValue::U32(self.steps));
        put(out, task, "block_length", MetaValue::U32(self.block_length));
        put(out, task, "temperature", MetaValue::F32(self.temperature));
    }
}

impl Image {
    fn overlay(&mut self, o: &Object, also: &[&str], notes: &mut Vec<String>) -> Result<()> {
        unknown(o, &[&["steps", "guidance_scale", "temperature", "schedule"], also].concat(), notes);
        self.steps = count(o, "steps", self.steps)?;
        self.guidance_scale = not_negative(o, "guidance_scale", self.guidance_scale)?;
        self.temperature = not_negative(o, "temperature", self.temperature)?;
        if let Some(schedule) = o.str("schedule")? {
            if !is_schedule(schedule) {
                return Err(o.wrong("schedule", format!("is \"{schedule}\", expected cosine, linear, sigmoid or powP")));
            }
            self.schedule = schedule.to_owned();
        }
        Ok(())
    }

    fn put(&self, task: &str, out: &mut Vec<(String, MetaValue)>) {
        put(out, task, "steps", MetaValue::U32(self.steps));
        put(out, task, "guidance_scale", MetaValue::F32(self.guidance_scale));
        put(out, task, "temperature", MetaValue::F32(self.temperature));
        put(out, task, "schedule", MetaValue::String(self.schedule.clone()));
    }
}

fn is_schedule(name: &str) -> bool {
    let power = |p: &str| p.parse::<f32>().is_ok_and(|p| p > 0.0 && p.is_finite());
    matches!(name, "cosine" | "linear" | "sigmoid") || name.strip_prefix("pow").is_some_and(power)
}

fn count(o: &Object, key: &str, default: u32) -> Result<u32> {
    match o.u32(key)?.unwrap_or(default) {
        0 => Err(o.wrong(key, "is 0")),
        n => Ok(n),
    }
}

fn not_negative(o: &Object, key: &str, default: f32) -> Result<f32> {
    let x = o.f64(key)?.map_or(default, |x| x as f32);
    if x >= 0.0 && x.is_finite() { Ok(x) } else { Err(o.wrong(key, format!("is {x}, expected 0 or more"))) }
}

fn unknown(o: &Object, known: &[&str], notes: &mut Vec<String>) {
    for key in o.keys().filter(|key| !known.contains(key)) {
        let Error::Format { file, reason } = o.wrong(key, "is not known and ignored") else { continue };
        notes.push(format!("{file}: {reason}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (Result<Sampling>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), json).unwrap();
        let mut notes = Vec::new();
        (Sampling::read(dir.path(), &mut notes), notes)
    }

    #[test]
    fn what_the_checkpoint_leaves_out_is_the_8bs() {
        let (sampling, notes) = read(
            r#"{"text": {"steps": 64}, "draw": {"schedule": "pow2.5", "colour": 1}, "draw_think": {"image": {"steps": 7}}}"#,
        );
        let values = sampling.unwrap().metadata();
        let get = |key: &str| values.iter().find(|(k, _)| k == &format!("mmada.sampling.{key}")).unwrap().1.clone();
        assert_eq!(get("text.steps"), MetaValue::U32(64));
        assert_eq!(get("text.gen_length"), MetaValue::U32(512));
        assert_eq!(get("text_think.steps"), MetaValue::U32(256));
        assert_eq!(get("draw.schedule"), MetaValue::String("pow2.5".into()));
        assert_eq!(get("draw.guidance_scale"), MetaValue::F32(3.5));
        assert_eq!(get("draw_think.image.steps"), MetaValue::U32(7));
        assert_eq!(get("draw_think.text.block_length"), MetaValue::U32(64));
        assert_eq!(values.len(), 4 * 4 + 5 + 1 + 4 + 4);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("draw.colour"), "{notes:?}");
    }

    #[test]
    fn defaults_that_no_generation_accepts_are_refused() {
        for (json, word) in [
            (r#"{"text": {"gen_length": 100}}"#, "text.block_length"),
            (r#"{"text_think": {"steps": 255}}"#, "text_think.steps"),
            (r#"{"draw": {"schedule": "pow-1"}}"#, "draw.schedule"),
            (r#"{"draw": {"steps": 0}}"#, "draw.steps"),
            (r#"{"draw_think": {"image": {"temperature": -1}}}"#, "draw_think.image.temperature"),
            (r#"{"draw_think": 3}"#, "draw_think"),
            (r#"[]"#, "array"),
            (r#"{"#, "JSON"),
        ] {
            let error = read(json).0.unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains(word), "{error}");
        }
    }
}
