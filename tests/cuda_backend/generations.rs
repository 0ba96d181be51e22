//! The demo model on a card, beside the processor.

use mmada::{
    Context, ContextOptions, DeviceChoice, DrawRequest, Generation, Message, ScoreRequest, SequenceRequest,
    TextOptions, TextRequest,
};

use crate::support::{Card, close, cpu, demo, run};

fn ids(n: usize) -> Vec<u32> {
    let v = demo().vocabulary();
    (0..n).map(|i| if i % 3 == 2 { v.mask } else { (i as u32 * 37 + 11) % v.text }).collect()
}

#[test]
fn logits_of_several_sequences_are_those_of_the_processor() {
    let card = Card::open();
    let (long, short) = (ids(70), ids(3));
    let (rows, all) = ([69, 0, 33, 69], [0, 1, 2]);
    let vocab = 5..demo().vocabulary().rows - 3;
    let batch = [
        SequenceRequest { ids: &long, rows: &rows, vocab: vocab.clone() },
        SequenceRequest { ids: &short, rows: &all, vocab },
        SequenceRequest { ids: &short, rows: &[1], vocab: 0..9 },
    ];
    let expected = cpu().logits(&batch).unwrap();
    let got = card.context(None).logits(&batch).unwrap();
    for (got, expected) in got.iter().zip(&expected) {
        close(got, expected, 0.02);
    }
}

#[test]
fn hidden_states_and_inputs_of_matrices_are_those_of_the_processor() {
    let card = Card::open();
    let ids = ids(21);
    let (got, expected) = (card.context(None).hidden_states(&ids).unwrap(), cpu().hidden_states(&ids).unwrap());
    assert_eq!((got.len(), expected.len()), (demo().config().layers + 1, got.len()));
    for (got, expected) in got.iter().zip(&expected) {
        close(got, expected, 0.02);
    }
    let batch = [SequenceRequest { ids: &ids, rows: &[3], vocab: 0..1 }];
    let inputs = |context: &Context| {
        let mut seen = Vec::new();
        let mut see = |input: &mmada::model::MatrixInput| seen.push((input.layer, input.matrices, input.x.to_vec()));
        context.observe_inputs(&batch, &mut see).unwrap();
        seen
    };
    let (got, expected) = (inputs(&card.context(None)), inputs(&cpu()));
    assert!(got.len() > demo().config().layers && got.len() == expected.len());
    for ((layer, matrices, got), (_, same, expected)) in got.iter().zip(&expected) {
        assert_eq!(matrices, same, "layer {layer:?}");
        close(got, expected, 0.04);
    }
}

fn text(context: &Context, options: TextOptions) -> Generation {
    let messages = vec![Message::user("What is 17 + 25?")];
    context.text(TextRequest { messages, image: None, squash: false, thinking: false, options }).unwrap()
}

fn few_steps() -> TextOptions {
    TextOptions { gen_length: 16, block_length: 8, steps: 8, ..demo().text_options(false, false) }
}

#[test]
fn the_same_seed_gives_the_same_answer_as_on_the_processor() {
    let card = Card::open();
    let variants = [
        few_steps(),
        TextOptions { temperature: 0.7, seed: 5, ..few_steps() },
        TextOptions { cfg_scale: 0.5, remasking: mmada::Remasking::Random, seed: 9, ..few_steps() },
    ];
    let context = card.context(None);
    for options in variants {
        let (got, expected) = (run(text(&context, options.clone())), run(text(&cpu(), options)));
        assert_eq!(got.text().unwrap().ids, expected.text().unwrap().ids);
    }
}

#[test]
fn tokens_that_are_forbidden_are_not_chosen_on_a_card() {
    let card = Card::open();
    let expected = run(text(&cpu(), few_steps())).text().unwrap().ids;
    let forbid = vec![expected[0]];
    let options = TextOptions { forbid: forbid.clone(), ..few_steps() };
    let got = run(text(&card.context(None), options.clone())).text().unwrap().ids;
    assert!(!got.contains(&forbid[0]));
    assert_eq!(got, run(text(&cpu(), options)).text().unwrap().ids);
}

fn draw(context: &Context, side: usize, count: usize, steps: usize) -> Generation {
    let (text, image) = demo().draw_options(false);
    let (width, height) = (side, side);
    let image = mmada::ImageOptions { steps, ..image };
    let prompt = "a red circle left of a blue square on a white background".into();
    context.draw(DrawRequest { prompt, think: false, width, height, count, text, image }).unwrap()
}

#[test]
fn codes_are_sampled_with_the_random_numbers_of_the_processor() {
    let card = Card::open();
    // the first step is decided by the same logits; later ones follow what it decided
    let first = |context: &Context| {
        let mut generation = draw(context, demo().image_size(), 2, 6);
        let step = generation.step().unwrap();
        step.changed.iter().map(|change| (change.sequence, change.position, change.id)).collect::<Vec<_>>()
    };
    let (got, expected) = (first(&card.context(None)), first(&cpu()));
    let same = got.iter().filter(|change| expected.contains(change)).count();
    // a code whose share of the sum ends within rounding of the uniform may be its neighbour, and so who is kept
    assert!(same * 10 >= expected.len() * 9 && got.len().abs_diff(expected.len()) <= 1, "{got:?}\n{expected:?}");
}

#[test]
fn guided_drawings_of_any_size_come_out_alike_whether_steps_are_repeated_as_graphs_or_not() {
    let card = Card::open();
    let context = card.context(None);
    assert!(demo().draw_options(false).1.guidance > 0.0);
    let side = demo().downsampling().unwrap();
    for codes in [7, 10] {
        let drawn = || run(draw(&context, codes * side, 1, 4)).codes(0).unwrap().to_vec();
        let before = card.driver().map(|driver| driver.count("graph_launches"));
        let first = drawn();
        assert_eq!(first.len(), codes * codes);
        assert!([drawn(), drawn()].iter().all(|again| *again == first));
        if let (Some(driver), Some(before)) = (card.driver(), before) {
            // every step ran once as it was, then once while it was recorded, then as a graph
            assert!(driver.count("graph_launches") >= before + 8, "{}", driver.count("graph_launches") - before);
        }
    }
}

#[test]
fn layers_are_split_between_processor_and_card() {
    let card = Card::open();
    let ids = ids(20);
    let batch = [SequenceRequest { ids: &ids, rows: &[19, 4], vocab: 0..400 }];
    let expected = cpu().logits(&batch).unwrap();
    let layers = demo().config().layers;
    for on in [0, 1, layers - 1, layers + 7] {
        let context = card.context(Some(on));
        assert_eq!(context.gpu_layers(), on.min(layers));
        close(&context.logits(&batch).unwrap()[0], &expected[0], 0.02);
    }
    let (got, expected) = (run(text(&card.context(Some(2)), few_steps())), run(text(&cpu(), few_steps())));
    assert_eq!(got.text().unwrap().ids, expected.text().unwrap().ids);
}

#[test]
fn scores_are_those_of_the_processor() {
    let card = Card::open();
    let request = ScoreRequest { prompt: ids(12), answer: vec![30, 31, 32], samples: 2, seed: 3, cfg_scale: 0.0 };
    let (got, expected) = (card.context(None).score(&request).unwrap(), cpu().score(&request).unwrap());
    assert!((got.log_likelihood - expected.log_likelihood).abs() < 0.02 * expected.log_likelihood.abs());
}

#[test]
fn a_context_says_what_it_runs_on() {
    let card = Card::open();
    assert_eq!((cpu().device(), cpu().gpu_layers()), ("cpu".to_owned(), 0));
    let context = card.context(None);
    assert!(context.device().starts_with("cuda:0 ("), "{}", context.device());
    assert_eq!(context.gpu_layers(), demo().config().layers);
    let cards = mmada::backends().into_iter().find(|b| b.name == "cuda").unwrap();
    assert!(cards.devices[0].memory_bytes > 0 && cards.devices[0].id == "cuda:0" && cards.unavailable.is_none());
}

#[test]
fn options_of_the_processor_are_refused_on_a_card_and_choose_the_processor_where_it_is_free() {
    let _card = Card::open();
    let options = [
        ContextOptions { pack: true, ..Default::default() },
        ContextOptions { compute: mmada::Compute::Exact, ..Default::default() },
        ContextOptions { instruction_set: Some("portable".into()), ..Default::default() },
    ];
    for options in options {
        let device = DeviceChoice::Cuda(0);
        let error = Context::new(demo(), ContextOptions { device, ..options.clone() }).err().unwrap();
        assert!(error.to_string().contains("only the cpu has that"), "{error}");
        let device = DeviceChoice::Auto;
        assert_eq!(Context::new(demo(), ContextOptions { device, ..options }).unwrap().device(), "cpu");
    }
}
