//! States of the sampler: what data files may hold, and what is made of them.

use std::fs;
use std::path::{Path, PathBuf};

use mmada::prompt::{chat, draw, image_question};
use mmada::tokenizer::Special;
use mmada::{Context, ContextOptions, Message, Model};
use mmada_quantize::states::{
    Sample, State, StateOptions, Task, collect_states, own_samples, read_samples, sample_states,
};
use tempfile::TempDir;

fn model() -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mmada-shapes.gguf")).unwrap()
}

fn context(model: &Model, threads: usize) -> Context {
    Context::new(model, ContextOptions { threads, ..ContextOptions::default() }).unwrap()
}

/// A folder with a picture and a file of this name.
fn folder(name: &str, content: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let pixels = (0..70 * 80).flat_map(|i| pixel(i % 80, i / 80)).collect();
    let picture = mmada::image::RgbImage::from_raw(80, 70, pixels).unwrap();
    mmada::image::save(&picture, dir.path().join("p.png")).unwrap();
    let file = dir.path().join(name);
    fs::write(&file, content).unwrap();
    (dir, file)
}

/// A red disk on white, so that the model has seen the like.
fn pixel(x: u32, y: u32) -> [u8; 3] {
    let (dx, dy) = (f64::from(x) - 40.0, f64::from(y) - 35.0);
    if dx.hypot(dy) < 20.0 { [220, 30, 40] } else { [250, 250, 250] }
}

const ALL: &str = r#"{"prompt": "What color comes after red?", "answer": "orange"}
{"task": "think", "prompt": "What is 17 + 25?", "answer": "<think>17 + 25 = 42</think>42"}

{"prompt": "What color is the circle?", "answer": "red", "image": "p.png", "other": [1]}
{"prompt": "What shape is it?", "answer": "<think>It is round.</think>circle", "image": "p.png"}
{"prompt": "a red circle on a white background", "image": "p.png"}
{"task": "draw", "prompt": "a blue square"}
{"prompt": "Say something."}
"#;

/// What must hold of every state, whatever it was made of.
fn check(model: &Model, state: &State) {
    let vocabulary = model.vocabulary();
    let draws = state.task == Task::Draw;
    let vocab = if draws { vocabulary.image_ids() } else { 0..vocabulary.text };
    assert_eq!(state.vocab, vocab);
    assert!(!state.masked.is_empty() && state.masked.is_sorted_by(|a, b| a < b));
    assert!(state.masked.iter().all(|&place| state.ids[place] == vocabulary.mask));
    assert_eq!(state.truth.len(), state.masked.len());
    assert!(state.truth.iter().all(|id| vocab.contains(id) && *id != vocabulary.mask), "{:?}", state.truth);
    assert!((1..=state.masked.len()).contains(&state.commit), "{} of {}", state.commit, state.masked.len());
    let masks = state.ids.iter().filter(|&&id| id == vocabulary.mask).count();
    assert!(state.ratio > 0.0 && state.ratio <= 1.0);
    if draws {
        let tokens = (model.image_size() / model.downsampling().unwrap()).pow(2);
        let codes = |ids: &[u32]| ids[ids.len() - 1 - tokens..ids.len() - 1].to_vec();
        assert_eq!(masks, state.masked.len());
        assert_eq!(state.ratio, masks as f32 / tokens as f32);
        let other = state.unconditional.as_ref().expect("the demo model draws with guidance");
        assert_eq!(codes(&state.ids), codes(&other.ids));
        assert_eq!(other.ids.last(), vocabulary.eoi.as_ref());
        let tokenizer = model.tokenizer().unwrap();
        let empty = draw(tokenizer, vocabulary, "", 32).unwrap().ids;
        assert_eq!(other.ids[..empty.len()], empty);
        let places = |ids: &[u32], masked: &[usize]| masked.iter().map(|m| ids.len() - m).collect::<Vec<_>>();
        assert_eq!(places(&state.ids, &state.masked), places(&other.ids, &other.masked));
    } else {
        assert!(state.unconditional.is_none());
        // behind the current block nothing is known yet
        let last = *state.masked.last().unwrap();
        let options = model.text_options(state.task.thinks(), state.task.asks_about_picture());
        let block = options.block_length;
        assert!(
            (state.ids.len() - last).is_multiple_of(block) || masks == state.masked.len() || last < state.ids.len()
        );
    }
}

fn states_of(model: &Model, samples: &[Sample], options: &StateOptions) -> Vec<State> {
    let context = context(model, 1);
    samples.iter().enumerate().flat_map(|(n, sample)| sample_states(&context, sample, n, options).unwrap()).collect()
}

#[test]
fn every_task_gives_states_with_its_layout() {
    let model = model();
    let (_dir, file) = folder("all.jsonl", ALL);
    let samples = read_samples(&[file]).unwrap();
    use Task::{Chat, Draw, Question, Think, ThinkQuestion};
    assert_eq!(
        samples.iter().map(|s| s.task).collect::<Vec<_>>(),
        [Chat, Think, Question, ThinkQuestion, Draw, Draw, Chat]
    );
    let states = states_of(&model, &samples, &StateOptions { per_sample: 3, seed: 5, cancel: None });
    assert_eq!(states.len(), 3 * samples.len());
    let (tokenizer, vocabulary, template) =
        (model.tokenizer().unwrap(), model.vocabulary(), model.chat_template().unwrap());
    for state in &states {
        check(&model, state);
        let sample = &samples[state.sample];
        assert_eq!(state.task, sample.task);
        let messages = [Message::user(&sample.prompt)];
        let prompt = match sample.task {
            Draw => draw(tokenizer, vocabulary, &sample.prompt, 32).unwrap().ids,
            task if task.asks_about_picture() => {
                let codes: Vec<u32> = state.ids[2..66].iter().map(|&id| vocabulary.image_code(id).unwrap()).collect();
                image_question(tokenizer, vocabulary, template, &codes, &messages, task.thinks()).unwrap()
            }
            task => chat(tokenizer, vocabulary, template, &messages, task.thinks()).unwrap(),
        };
        assert_eq!(state.ids[..prompt.len()], prompt);
        // known and masked tokens together are the answer that was given
        if let (Some(answer), false) = (&sample.answer, sample.task == Draw) {
            let mut ids = state.ids.clone();
            state.masked.iter().zip(&state.truth).for_each(|(&place, &id)| ids[place] = id);
            let mut whole = tokenizer.encode(answer, Special::Plain).unwrap();
            whole.push(vocabulary.eot);
            assert_eq!(ids[prompt.len()..][..whole.len()], whole, "{answer}");
            assert!(ids[prompt.len() + whole.len()..].iter().all(|&id| id == vocabulary.eos));
        }
    }
}

#[test]
fn a_model_without_data_makes_states_of_its_own_life() {
    let model = model();
    let context = context(&model, 2);
    let options = StateOptions { per_sample: 2, seed: 9, cancel: None };
    let mut told = Vec::new();
    let states = collect_states(&context, &[], &options, &mut |done, of| {
        told.push((done, of));
        Ok(())
    })
    .unwrap();
    let samples = own_samples(&model);
    assert_eq!(told, (0..=samples.len()).map(|n| (n, samples.len())).collect::<Vec<_>>());
    assert_eq!(states.len(), 2 * samples.len());
    for task in Task::ALL {
        let of_task: Vec<&State> = states.iter().filter(|state| state.task == task).collect();
        assert!(of_task.len() >= 8, "{}", task.name());
    }
    states.iter().for_each(|state| check(&model, state));
}
