//! Requests through the library's public interface, with a record of what every step changed.

use std::path::Path;

use mmada::gguf::GgmlType;
use mmada::kernels::Kernels;
use mmada::prompt::Message;
use mmada::sampler::{Confidence, Remasking, Stage};
use mmada::{Compute, Context, ContextOptions, DrawFromIds, DrawRequest, Generation, ImageOptions};
use mmada::{TextOptions, TextRequest};
use mmada_quantize::ConvertOptions;

use super::cases::{DrawCase, ReasonedCase, Remask, TextCase};
use super::fixture::Fixture;
use super::noise::Recorded;

/// Converts a checkpoint as the tool does.
pub fn convert(folder: &Path, vq: Option<&Path>, dtype: GgmlType, output: &Path) -> mmada::Result<()> {
    let options = ConvertOptions { vq: vq.map(Path::to_owned), ..ConvertOptions::new(folder, output, dtype) };
    mmada_quantize::convert(&options, &mut |_| {}).map(drop)
}

/// A context for a fixture's model that computes as the reference does.
pub fn context(fixture: &Fixture, threads: usize, kernels: &Kernels) -> Context {
    let instruction_set = Some(kernels.name().to_owned());
    let options = ContextOptions { threads, compute: Compute::Exact, instruction_set, ..Default::default() };
    Context::new(fixture.model(), options).unwrap()
}

/// The reference's sampling: nothing forbidden, no early end.
fn text_options(case: &TextCase) -> TextOptions {
    let remasking = match case.remasking {
        Remask::LowConfidence => Remasking::LowConfidence,
        Remask::Random => Remasking::Random,
    };
    TextOptions {
        gen_length: case.gen_length,
        steps: case.steps,
        block_length: case.block_length,
        temperature: case.temperature,
        cfg_scale: case.cfg_scale,
        remasking,
        seed: 0,
        stop: Vec::new(),
        forbid: Vec::new(),
        allow_only: None,
        pinned: Vec::new(),
        unrestricted: true,
    }
}

/// What a text stage did.
pub struct TextRun {
    /// The answer's positions after every step; masks are the mask's id.
    pub trace: Vec<Vec<u32>>,
}

impl TextRun {
    /// The finished answer.
    pub fn ids(&self) -> &[u32] {
        self.trace.last().map_or(&[], Vec::as_slice)
    }
}

/// Takes all steps of the text stage, and builds the answer from the changes that the steps report.
fn run_text(fixture: &Fixture, generation: &mut Generation, gen_length: usize, steps: usize) -> TextRun {
    let mask = fixture.model().vocabulary().mask;
    let mut answer = vec![mask; gen_length];
    let mut trace = Vec::new();
    for index in 1..=steps {
        let step = generation.step().unwrap();
        assert_eq!((step.stage, step.index, step.total), (Stage::Text, index, steps), "{}", fixture.name);
        for change in &step.changed {
            assert_eq!((change.sequence, answer[change.position]), (0, mask), "{}: committed twice", fixture.name);
            answer[change.position] = change.id;
        }
        let prefix = answer.iter().position(|id| *id == mask).unwrap_or(gen_length);
        assert_eq!(step.prefix, prefix, "{}: prefix of step {index}", fixture.name);
        trace.push(answer.clone());
    }
    TextRun { trace }
}

/// Answers a question given as text.
pub fn text(fixture: &Fixture, context: &Context, case: &TextCase, noise: Recorded) -> TextRun {
    let request = TextRequest {
        messages: vec![Message::user(&case.prompt)],
        image: None,
        squash: false,
        thinking: case.thinking,
        options: text_options(case),
    };
    let mut generation = context.text(request).unwrap().with_noise(Box::new(noise));
    let run = run_text(fixture, &mut generation, case.gen_length, case.steps);
    assert!(generation.is_done(), "{}: not done after {} steps", fixture.name, case.steps);
    run
}

/// Answers a prompt given as ids: a question about a picture with the reference's codes.
pub fn text_from_ids(fixture: &Fixture, context: &Context, case: &TextCase) -> TextRun {
    let mut generation = context.text_from_ids(case.prompt_ids.clone(), text_options(case)).unwrap();
    let run = run_text(fixture, &mut generation, case.gen_length, case.steps);
    assert!(generation.is_done(), "{}: not done after {} steps", fixture.name, case.steps);
    run
}

/// How a picture is sampled.
pub struct Sampling<'a> {
    pub steps: usize,
    pub guidance: f32,
    pub temperature: f32,
    pub schedule: &'a str,
}

impl Sampling<'_> {
    fn options(&self, max_text_len: usize, text_len: usize) -> ImageOptions {
        ImageOptions {
            steps: self.steps,
            guidance: self.guidance,
            temperature: self.temperature,
            schedule: self.schedule.parse().unwrap(),
            confidence: Confidence::Probability,
            seed: 0,
            max_text_len,
            text_len,
        }
    }
}

/// What an image stage did.
pub struct ImageRun {
    /// Which positions were masked again after every step.
    pub masks: Vec<Vec<bool>>,
    pub codes: Vec<u32>,
}

/// Takes all steps of the image stage.
fn run_image(fixture: &Fixture, generation: &mut Generation, before: usize, steps: usize) -> ImageRun {
    let vocabulary = fixture.model().vocabulary();
    let mut masks = Vec::new();
    for index in 1..=steps {
        let step = generation.step().unwrap();
        assert_eq!((step.stage, step.index, step.total), (Stage::Image, index, steps), "{}", fixture.name);
        let sequence = generation.sequence(0).unwrap();
        let image = &sequence[before + 1..sequence.len() - 1];
        masks.push(image.iter().map(|id| *id == vocabulary.mask).collect());
    }
    assert!(generation.is_done(), "{}: not done after {steps} steps", fixture.name);
    ImageRun { masks, codes: generation.codes(0).unwrap().to_vec() }
}

/// Draws from a text.
pub fn draw(fixture: &Fixture, context: &Context, case: &DrawCase, noise: Recorded) -> ImageRun {
    let side = context.model().image_size();
    let sampling = Sampling {
        steps: case.steps,
        guidance: case.guidance_scale,
        temperature: case.temperature,
        schedule: &case.schedule,
    };
    let (text, _) = context.model().draw_options(false);
    let image = sampling.options(case.max_text_len, case.max_text_len);
    let request =
        DrawRequest { prompt: case.prompt.clone(), think: false, width: side, height: side, count: 1, text, image };
    let mut generation = context.draw(request).unwrap().with_noise(Box::new(noise));
    run_image(fixture, &mut generation, case.prompt_ids.len(), case.steps)
}

fn reasoned_sampling(case: &ReasonedCase) -> Sampling<'_> {
    Sampling {
        steps: case.image_steps,
        guidance: case.guidance_scale,
        temperature: case.temperature,
        schedule: &case.schedule,
    }
}

/// Describes, then draws. The description as text is what the library says it is.
pub fn reasoned(
    fixture: &Fixture,
    context: &Context,
    case: &ReasonedCase,
    noise: Recorded,
) -> (TextRun, String, ImageRun) {
    let side = context.model().image_size();
    let text = TextOptions {
        gen_length: case.gen_length,
        steps: case.steps,
        block_length: case.block_length,
        unrestricted: true,
        ..Default::default()
    };
    let image = reasoned_sampling(case).options(case.text_len, case.text_len);
    let request =
        DrawRequest { prompt: case.prompt.clone(), think: true, width: side, height: side, count: 1, text, image };
    let mut generation = context.draw(request).unwrap().with_noise(Box::new(noise));
    let described = run_text(fixture, &mut generation, case.gen_length, case.steps);
    let drawn = run_image(fixture, &mut generation, case.text_len + 1, case.image_steps);
    let description = generation.description().unwrap().expect("a reasoned drawing has a description");
    (described, description, drawn)
}

/// The image stage of a reasoned drawing alone, from the reference's description.
pub fn draw_from_ids(
    fixture: &Fixture,
    context: &Context,
    case: &ReasonedCase,
    text_ids: &[u32],
    noise: Recorded,
) -> ImageRun {
    let (side, vocabulary) = (context.model().image_size(), context.model().vocabulary());
    let request = DrawFromIds {
        prompt: text_ids.to_vec(),
        unconditional: vec![vocabulary.t2i.unwrap(), vocabulary.bos, vocabulary.eos],
        width: side,
        height: side,
        count: 1,
        image: reasoned_sampling(case).options(case.text_len, case.text_len),
    };
    let mut generation = context.draw_from_ids(request).unwrap().with_noise(Box::new(noise));
    run_image(fixture, &mut generation, text_ids.len(), case.image_steps)
}
