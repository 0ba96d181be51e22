//! What C callers get is what Rust callers get, bit for bit.

use std::collections::BTreeMap;

use mmada::tokenizer::Special;
use mmada::{
    Context, ContextOptions, DrawRequest, Generation, Message, Model, Remasking, RgbImage, ScoreRequest,
    SequenceRequest, Slot, TextOptions, TextRequest,
};

use super::support::{model, program, succeed};

/// Lines of values.c by their first words.
type Lines = BTreeMap<String, String>;

fn join<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn pixels(image: &RgbImage) -> String {
    let sum = image.as_raw().iter().fold(2166136261u32, |sum, &v| (sum ^ u32::from(v)).wrapping_mul(16777619));
    format!("{} {} {sum}", image.width(), image.height())
}

fn finish(generation: &mut Generation) -> usize {
    let mut changes = 0;
    loop {
        let step = generation.step().unwrap();
        changes += if step.stage == mmada::Stage::Image { step.changed.len() } else { 0 };
        if step.done {
            return changes;
        }
    }
}

fn tokens(model: &Model, lines: &mut Lines) {
    let tokenizer = model.tokenizer().unwrap();
    let text = "a star <|eot_id|> left";
    let special = tokenizer.encode(text, Special::Parse).unwrap();
    lines.insert("plain".into(), join(&tokenizer.encode(text, Special::Plain).unwrap()));
    lines.insert("special".into(), join(&special));
    lines.insert("back".into(), tokenizer.decode(&special, true));
    let chat = [Message::system("Be brief."), Message::user("What is 17 + 25?"), Message::assistant("42")];
    lines.insert("chat".into(), join(&model.prompt_ids(&chat, true).unwrap()));
}

fn scores(model: &Model, context: &Context, lines: &mut Lines) {
    let prompt = model.prompt_ids(&[Message::user("What is 17 + 25?")], false).unwrap();
    let answer = model.tokenizer().unwrap().encode("42", Special::Plain).unwrap();
    let request = ScoreRequest { prompt: prompt.clone(), answer, samples: 5, seed: 7, cfg_scale: 0.0 };
    let score = context.score(&request).unwrap();
    lines.insert("score".into(), format!("{} {}", score.log_likelihood.to_bits(), score.samples));
    let logits = context.logits(&[SequenceRequest { ids: &prompt, rows: &[3, 0], vocab: 10..15 }]).unwrap();
    lines.insert("logits".into(), join(&logits[0].iter().map(|v| v.to_bits()).collect::<Vec<_>>()));
}

fn drawing(model: &Model, context: &Context, lines: &mut Lines) {
    let (mut text, mut image) = model.draw_options(true);
    (text.seed, image.seed) = (11, 11);
    let (width, height, prompt) = (model.image_size(), model.image_size(), "a circle and a star".to_owned());
    let mut generation =
        context.draw(DrawRequest { prompt, think: true, width, height, count: 2, text, image }).unwrap();
    lines.insert("changes".into(), finish(&mut generation).to_string());
    lines.insert("description".into(), generation.description().unwrap().unwrap());
    lines.insert("codes".into(), join(generation.codes(1).unwrap()));
    let picture = generation.image(1).unwrap();
    for name in ["picture", "decoded", "through PNG"] {
        lines.insert(name.into(), pixels(&picture));
    }
    lines.insert("encoded".into(), join(&context.encode_image(&picture).unwrap()));
}

fn answer(model: &Model, context: &Context, lines: &mut Lines) {
    let options = TextOptions {
        gen_length: 24,
        steps: 12,
        block_length: 8,
        temperature: 0.5,
        cfg_scale: 0.5,
        seed: 5,
        remasking: Remasking::Random,
        stop: vec!["black".into()],
        pinned: vec![(2, 77)],
        ..model.text_options(false, false)
    };
    let prompt = model.prompt_ids(&[Message::user("Count.")], false).unwrap();
    let mut generation = context.text_from_ids(prompt, options).unwrap();
    finish(&mut generation);
    let canvas = generation.canvas().iter().map(|slot| match slot {
        Slot::Masked => u32::MAX,
        Slot::Token(id) => *id,
    });
    lines.insert("canvas".into(), join(&canvas.collect::<Vec<_>>()));
    lines.insert("answer".into(), join(&generation.text().unwrap().ids));
}

fn thinking(model: &Model, context: &Context, lines: &mut Lines) {
    let messages = vec![Message::user("What is 17 + 25?")];
    let options = model.text_options(true, false);
    let request = TextRequest { messages, image: None, squash: false, thinking: true, options };
    let mut generation = context.text(request).unwrap();
    finish(&mut generation);
    let answer = generation.text().unwrap();
    lines.insert("raw".into(), answer.raw);
    lines.insert("thinking".into(), answer.thinking.unwrap());
    lines.insert("said".into(), answer.answer);
    lines.insert("warnings".into(), "NULL".into());
}

#[test]
fn c_programs_get_what_rust_programs_get() {
    let model = Model::open(model()).unwrap();
    let context = Context::new(&model, ContextOptions { threads: 1, ..Default::default() }).unwrap();
    let mut lines = Lines::new();
    tokens(&model, &mut lines);
    scores(&model, &context, &mut lines);
    drawing(&model, &context, &mut lines);
    answer(&model, &context, &mut lines);
    thinking(&model, &context, &mut lines);
    let mut text: Vec<String> = lines.iter().map(|(name, value)| format!("{name} {value}").trim_end().into()).collect();
    let output = succeed(program("values").arg(super::support::model()));
    let output = String::from_utf8(output.stdout).unwrap();
    let mut got: Vec<String> = output.lines().map(|line| line.trim_end().into()).collect();
    text.sort();
    got.sort();
    assert_eq!(got, text);
}
