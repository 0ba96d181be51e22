//! States of the sampler: what data files may hold, and what is made of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mmada::gguf::GgmlType;
use mmada::prompt::{chat, draw, image_question};
use mmada::tokenizer::Special;
use mmada::{Context, ContextOptions, Message, Model};
use mmada_quantize::states::{
    Picture, Sample, State, StateOptions, Task, collect_states, own_samples, read_samples, sample_states,
};
use mmada_quantize::{ConvertOptions, convert};
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
        // All rows are of one block; behind it nothing is known, before it everything.
        let options = model.text_options(state.task.thinks(), state.task.asks_about_picture());
        let (block, len) = (options.block_length, state.ids.len());
        let behind = |place: &usize| (len - 1 - place) / block;
        let blocks = behind(&state.masked[0]);
        assert!(state.masked.iter().all(|place| behind(place) == blocks));
        assert!(state.ids[len - blocks * block..].iter().all(|&id| id == vocabulary.mask));
        assert_eq!(masks, state.masked.len() + blocks * block);
        let length = (masks as f32 / state.ratio).round() as usize;
        assert!(length.is_multiple_of(block) && length <= options.gen_length, "{length}");
        assert!((state.ratio - masks as f32 / length as f32).abs() < 1e-6);
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

/// A model with the numbers of the 8B checkpoints: blocks of 128 tokens in answers of 512, two tokens a step.
fn with_long_answers() -> (TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny");
    let file = dir.path().join("tiny.gguf");
    convert(&ConvertOptions::new(golden, &file, GgmlType::F32), &mut |_| {}).unwrap();
    let model = Model::open(&file).unwrap();
    (dir, model)
}

#[test]
fn the_blocks_before_the_current_one_hold_the_answer_and_short_answers_keep_their_usual_length_while_masks_are_common()
{
    let (_dir, model) = with_long_answers();
    let (vocabulary, tokenizer) = (model.vocabulary(), model.tokenizer().unwrap());
    let prompt = "Tell me a story.";
    let start = {
        let template = model.chat_template().unwrap();
        chat(tokenizer, vocabulary, template, &[Message::user(prompt)], false).unwrap().len()
    };
    let long = "The cat sat on the mat, and then it ate a very small blue fish. ".repeat(17);
    for (answer, visited) in [(long.as_str(), 512), ("Once upon a time.", 128)] {
        let sample = Sample {
            task: Task::Chat,
            prompt: prompt.into(),
            answer: Some(answer.into()),
            picture: None,
            origin: "a test".into(),
        };
        let ids = tokenizer.encode(answer, Special::Plain).unwrap();
        assert!((ids.len() + 1).next_multiple_of(128).min(512) == visited, "{}", ids.len());
        let mut lengths = Vec::new();
        for state in states_of(&model, &[sample], &StateOptions { per_sample: 12, seed: 3, cancel: None }) {
            check(&model, &state);
            assert_eq!(state.commit, 2);
            let truth = |n: usize| match n.cmp(&ids.len()) {
                std::cmp::Ordering::Less => ids[n],
                std::cmp::Ordering::Equal => vocabulary.eot,
                std::cmp::Ordering::Greater => vocabulary.eos,
            };
            for (n, &id) in state.ids[start..].iter().enumerate() {
                assert!(id == vocabulary.mask || id == truth(n), "{n}");
            }
            state.masked.iter().zip(&state.truth).for_each(|(&place, &id)| assert_eq!(id, truth(place - start)));
            // The sampler stops where the end and all before it are known.
            let first = state.ids[start..].iter().position(|&id| id == vocabulary.mask).unwrap();
            assert!(first <= ids.len() && first < visited, "{first}");
            lengths.push((state.ratio, state.ids.len() - start));
        }
        for (ratio, length) in &lengths {
            match visited == 512 || *ratio > 0.75 {
                true => assert_eq!(*length, 512, "at {ratio}"),
                false => assert!((visited..512).contains(length), "{length} at {ratio}"),
            }
        }
        let spread = |low: f32| lengths.iter().any(|(ratio, _)| (low..low + 0.25).contains(ratio));
        assert!([0.0, 0.25, 0.5, 0.75].into_iter().all(spread), "{lengths:?}");
    }
}

#[test]
fn mask_ratios_of_every_task_are_spread_over_the_whole_range() {
    let model = model();
    let picture = |_: usize| Some(Picture::Drawn("a yellow star on a white background".into()));
    let samples: Vec<Sample> = (0..10)
        .map(|n| {
            let task = Task::ALL[n % 5];
            let answer = (task != Task::Draw).then(|| format!("The answer to question {n} is not so short."));
            let picture = (task == Task::Draw || task.asks_about_picture()).then(|| picture(n)).flatten();
            Sample { task, prompt: format!("What is {n} + 4?"), answer, picture, origin: "a test".into() }
        })
        .collect();
    let states = states_of(&model, &samples, &StateOptions { per_sample: 5, seed: 1, cancel: None });
    for task in Task::ALL {
        let mut ratios: Vec<f32> = states.iter().filter(|s| s.task == task).map(|s| s.ratio).collect();
        ratios.sort_by(f32::total_cmp);
        assert_eq!(ratios.len(), 10);
        for (n, ratio) in ratios.iter().enumerate() {
            let (low, high) = (n as f32 / 10.0 - 0.13, (n + 1) as f32 / 10.0 + 0.13); // a step settles up to a tenth
            assert!((low..high).contains(ratio), "{}: {ratios:?}", task.name());
        }
    }
}

#[test]
fn states_are_the_same_for_the_same_seed_whatever_the_threads_and_others_for_another() {
    let model = model();
    let (_dir, file) = folder("all.jsonl", ALL);
    let make = |seed, threads| {
        let options = StateOptions { per_sample: 2, seed, cancel: None };
        collect_states(&context(&model, threads), std::slice::from_ref(&file), &options, &mut |_, _| Ok(())).unwrap()
    };
    let first = make(4, 1);
    assert!(first == make(4, 3));
    assert!(first != make(5, 1));
}

#[test]
fn the_positions_that_are_known_are_those_that_the_model_is_surest_of() {
    let model = model();
    let context = context(&model, 2);
    let (_dir, file) = folder("a.jsonl", r#"{"prompt": "What is 17 + 25?", "answer": "42"}"#);
    let samples = read_samples(&[file]).unwrap();
    let options = StateOptions { per_sample: 6, seed: 2, cancel: None };
    for state in sample_states(&context, &samples[0], 0, &options).unwrap() {
        let mask = model.vocabulary().mask;
        let block = model.text_options(false, false).block_length;
        let start = state.ids.len() - block;
        let mut blank = state.clone();
        blank.ids[start..].fill(mask);
        blank.masked = (start..start + block).collect();
        let logits = blank.logits(&context).unwrap();
        let sure = |place: usize| {
            let row = &logits[(place - start) * state.vocab.len()..][..state.vocab.len()];
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            1.0 / row.iter().map(|&l| f64::from(l - top).exp()).sum::<f64>()
        };
        let known = (start..start + block).filter(|place| !state.masked.contains(place));
        let least = known.map(sure).fold(1.0, f64::min);
        // but one that is left for the end of the answer not to be complete
        let surer = state.masked.iter().filter(|&&place| sure(place) > least + 1e-9).count();
        assert!(surer <= 1, "{surer} at {}", state.ratio);
    }
}

#[test]
fn plain_texts_are_paragraphs_that_continue_their_beginning() {
    let text = "First here. Then there.
And so on.


  
Only one sentence of some words

word
";
    let (_dir, file) = folder("book.txt", text);
    let samples = read_samples(std::slice::from_ref(&file)).unwrap();
    let parts: Vec<(&str, Option<&str>)> = samples.iter().map(|s| (s.prompt.as_str(), s.answer.as_deref())).collect();
    assert_eq!(
        parts,
        [
            ("First here.", Some("Then there.\nAnd so on.")),
            ("Only one", Some("sentence of some words")),
            ("word", None)
        ]
    );
    let lines: Vec<String> = [1, 6, 8].map(|n| format!("{}: line {n}", file.display())).into();
    assert_eq!(samples.iter().map(|s| s.origin.clone()).collect::<Vec<_>>(), lines);
    assert!(samples.iter().all(|s| s.task == Task::Chat));
    // The same in JSON lines, without an extension to tell.
    let (_dir, file) = folder("book", r#"{"answer": "First here. Then there."}"#);
    let samples = read_samples(&[file]).unwrap();
    assert_eq!((samples[0].prompt.as_str(), samples[0].answer.as_deref()), ("First here.", Some("Then there.")));
}

#[test]
fn lines_that_cannot_be_are_one_sentence_with_file_and_line() {
    let good = r#"{"prompt": "a", "answer": "b"}"#;
    for (line, reason) in [
        ("{", "not valid JSON"),
        ("[1, 2]", "expected a JSON object, found an array"),
        ("{}", "prompt is missing"),
        (r#"{"prompt": 5}"#, "prompt is 5, expected a string"),
        (r#"{"prompt": "a", "answer": ["b"]}"#, "answer is an array, expected a string"),
        (r#"{"prompt": "  ", "image": "p.png"}"#, "prompt is missing"),
        (r#"{"prompt": "a", "task": "sing"}"#, "task is \"sing\", expected one of chat, think"),
        (r#"{"prompt": "a", "answer": "b", "image": "q.png"}"#, "q.png is no file"),
        (r#"{"prompt": "a", "task": "question"}"#, "image is missing"),
        (r#"{"prompt": "a", "task": "chat", "image": "p.png"}"#, "image does not go with the task chat"),
        (r#"{"prompt": "a", "answer": "b", "task": "draw"}"#, "answer does not go with the task draw"),
        (r#"{"task": "think", "answer": "b"}"#, "prompt is missing"),
    ] {
        let (_dir, file) = folder("data.jsonl", &format!("{good}\n\n{line}\n"));
        let error = read_samples(std::slice::from_ref(&file)).expect_err(line).to_string();
        assert!(error.starts_with(&format!("{}: line 3: ", file.display())), "{error}");
        assert!(error.contains(reason) && !error.contains('\n'), "{line}: {error}");
    }
    for (name, content) in [("a.txt", " \n\n"), ("a.jsonl", "")] {
        let (_dir, file) = folder(name, content);
        assert!(read_samples(&[file]).unwrap_err().to_string().ends_with("holds no data"));
    }
    let (_dir, file) = folder("latin.txt", "x");
    fs::write(&file, b"caf\xe9").unwrap();
    assert!(read_samples(&[file]).unwrap_err().to_string().contains("not a UTF-8 text file"));
}

#[test]
fn samples_that_do_not_fit_the_model_are_named() {
    let model = model();
    let context = context(&model, 1);
    let refusal = |line: &str, options: StateOptions| {
        let (_dir, file) = folder("data.jsonl", line);
        let samples = read_samples(&[file]).unwrap();
        sample_states(&context, &samples[0], 0, &options).expect_err(line).to_string()
    };
    let long = format!("{{\"prompt\": \"{}\", \"answer\": \"b\"}}", "7 ".repeat(2500));
    let error = refusal(&long, StateOptions::default());
    assert!(error.contains("data.jsonl: line 1: a prompt of") && error.contains("context is 4096"), "{error}");
    let line = r#"{"prompt": "a", "answer": "b"}"#;
    assert!(refusal(line, StateOptions { per_sample: 0, ..StateOptions::default() }).contains("0 states"));
    let cancel = Some(Arc::new(AtomicBool::new(true)));
    assert_eq!(refusal(line, StateOptions { cancel, ..StateOptions::default() }), "cancelled");
    let (dir, file) = folder("data.jsonl", r#"{"prompt": "a", "answer": "b", "image": "p.png"}"#);
    let samples = read_samples(&[file]).unwrap();
    fs::write(dir.path().join("p.png"), b"no picture").unwrap();
    let error = sample_states(&context, &samples[0], 0, &StateOptions::default()).unwrap_err().to_string();
    assert!(error.contains("p.png: is not a picture"), "{error}");
}
