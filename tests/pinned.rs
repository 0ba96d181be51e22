//! Answers with tokens that are given beforehand, against a generation written out from logits.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use mmada::{Context, ContextOptions, Error, Model, SequenceRequest, Slot, TextOptions};

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mmada-shapes.gguf")).unwrap())
}

fn context() -> Context {
    Context::new(model(), ContextOptions { threads: 2, ..Default::default() }).unwrap()
}

const PROMPT: [u32; 9] = [481, 5, 44, 130, 7, 260, 18, 9, 33];

/// The reference's sampling (greedy, unrestricted) of an answer with pinned tokens: the ids after every step.
fn written_out(context: &Context, options: &TextOptions) -> Vec<Vec<u32>> {
    let (mask, vocab) = (model().vocabulary().mask, 0..model().vocabulary().rows);
    let TextOptions { gen_length, steps, block_length, .. } = *options;
    let mut answer = vec![mask; gen_length];
    options.pinned.iter().for_each(|&(position, id)| answer[position] = id);
    let blocks = gen_length / block_length;
    let per_block = steps / blocks;
    let mut trace = Vec::new();
    for block in 0..blocks {
        let end = (block + 1) * block_length;
        let masked = answer[end - block_length..end].iter().filter(|&&id| id == mask).count();
        for step in 0..per_block {
            let count = masked / per_block + usize::from(step < masked % per_block);
            let ids = [&PROMPT[..], &answer].concat();
            let rows: Vec<usize> = (0..end).filter(|&i| answer[i] == mask).map(|i| PROMPT.len() + i).collect();
            let logits = context.logits(&[SequenceRequest { ids: &ids, rows: &rows, vocab: vocab.clone() }]).unwrap();
            let candidate = |(row, &at): (&[f32], &usize)| {
                let (id, top) = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).unwrap();
                let sum: f64 = row.iter().map(|l| (f64::from(*l) - f64::from(*top)).exp()).sum();
                (1.0 / sum, at - PROMPT.len(), id as u32)
            };
            let mut candidates: Vec<(f64, usize, u32)> =
                logits[0].chunks_exact(vocab.len()).zip(&rows).map(candidate).collect();
            candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            candidates[..count].iter().for_each(|&(_, at, id)| answer[at] = id);
            trace.push(answer.clone());
        }
    }
    trace
}

#[test]
fn a_canvas_with_pinned_tokens_is_filled_as_the_reference_would() {
    let context = context();
    let cases: [(usize, &[(usize, u32)]); 5] = [
        (12, &[(3, 77)]),
        (12, &[(11, 4), (0, 300), (6, 77), (7, 78)]),
        (24, &[(8, 1), (9, 2), (10, 3), (11, 4), (12, 5), (13, 6), (14, 7), (15, 8), (20, 9)]), // a whole block
        (3, &[(1, 250), (23, 481)]),
        (12, &[]),
    ];
    for (steps, pinned) in cases {
        let options = TextOptions {
            gen_length: 24,
            steps,
            block_length: 8,
            unrestricted: true,
            pinned: pinned.to_vec(),
            ..Default::default()
        };
        let expected = written_out(&context, &options);
        let mut generation = context.text_from_ids(PROMPT.to_vec(), options).unwrap();
        let given: BTreeMap<usize, u32> = pinned.iter().copied().collect();
        let standing = |canvas: &[Slot]| given.iter().all(|(&at, &id)| canvas[at] == Slot::Token(id));
        assert!(standing(generation.canvas()));
        assert_eq!(generation.canvas().iter().filter(|slot| **slot != Slot::Masked).count(), pinned.len());
        let mut changed = 0;
        for answer in expected {
            let step = generation.step().unwrap();
            assert_eq!(generation.sequence(0).unwrap()[PROMPT.len()..], answer, "{pinned:?}, step {}", step.index);
            assert!(standing(generation.canvas()));
            assert!(step.changed.iter().all(|change| !given.contains_key(&change.position)));
            changed += step.changed.len();
        }
        assert_eq!(changed, 24 - pinned.len());
        assert!(generation.is_done());
    }
}

#[test]
fn what_is_pinned_counts_as_written() {
    let context = context();
    let tokenizer = model().tokenizer().unwrap();
    let pin = |text: &str, at: usize| -> Vec<(usize, u32)> {
        let ids = tokenizer.encode(text, mmada::tokenizer::Special::Plain).unwrap();
        ids.into_iter().enumerate().map(|(i, id)| (at + i, id)).collect()
    };
    let base = TextOptions { gen_length: 16, steps: 16, block_length: 16, ..Default::default() };

    // all of it: nothing is left to do, and nothing is run
    let mut pinned = pin("a red circle", 0);
    let length = pinned.len();
    pinned.extend((length..16).map(|at| (at, model().vocabulary().eot)));
    let mut whole = context.text_from_ids(PROMPT.to_vec(), TextOptions { pinned, ..base.clone() }).unwrap();
    let step = whole.step().unwrap();
    assert!(step.done && step.changed.is_empty());
    assert_eq!(whole.text().unwrap().answer, "a red circle");

    // a stop text and an end token that were given end the answer as others do
    let options = TextOptions { pinned: pin("a red circle", 0), stop: vec!["circle".into()], ..base.clone() };
    let mut stopped = context.text_from_ids(PROMPT.to_vec(), options).unwrap();
    assert!(stopped.step().unwrap().done);
    assert_eq!(stopped.text().unwrap().answer, "a red");

    // what is forbidden may be given all the same, and guidance sees it too
    let red = pin("red", 5)[0];
    let options = TextOptions { pinned: vec![red], forbid: vec![red.1], cfg_scale: 1.0, ..base };
    let mut guided = context.text_from_ids(PROMPT.to_vec(), options).unwrap();
    while !guided.step().unwrap().done {}
    let slots = guided.canvas();
    assert_eq!(slots.iter().filter(|slot| **slot == Slot::Token(red.1)).count(), 1);
    assert_eq!(slots[5], Slot::Token(red.1));
}

#[test]
fn a_description_can_be_pinned_too() {
    let context = context();
    let (text, image) = model().draw_options(true);
    let options = TextOptions { pinned: vec![(2, 77), (5, 300)], ..text };
    let prompt = "a red circle".to_owned();
    let request = mmada::DrawRequest { prompt, think: true, width: 64, height: 64, count: 1, text: options, image };
    let mut generation = context.draw(request).unwrap();
    while !generation.is_done() {
        generation.step().unwrap();
        assert_eq!((generation.canvas()[2], generation.canvas()[5]), (Slot::Token(77), Slot::Token(300)));
    }
    generation.image(0).unwrap();
}

#[test]
fn tokens_that_cannot_be_pinned_are_refused_with_a_reason() {
    let context = context();
    let (mask, rows) = (model().vocabulary().mask, model().vocabulary().rows);
    let cases = [
        (
            vec![(16, 5)],
            "pinned holds the id 5 at position 16, but the answer has 16 positions, counted from 0".to_owned(),
        ),
        (vec![(usize::MAX, 5)], "but the answer has 16 positions".to_owned()),
        (vec![(0, rows)], format!("pinned holds the id {rows} at position 0, but the vocabulary has {rows} ids")),
        (vec![(3, 5), (4, mask)], format!("pinned holds the id {mask} at position 4, which is [MASK]")),
        (vec![(3, 9), (0, 1), (3, 5)], "pinned holds the id 9 at position 3, and another one at the same".to_owned()),
        (vec![(3, 5), (3, 5)], "and another one at the same position".to_owned()),
    ];
    for (pinned, reason) in cases {
        let options = TextOptions { gen_length: 16, steps: 4, block_length: 8, pinned, ..Default::default() };
        let error = context.text_from_ids(PROMPT.to_vec(), options).err().unwrap();
        assert!(matches!(error, Error::InvalidArgument(_)) && error.to_string().contains(&reason), "{error}");
    }
}
