//! The same seed on a card and on the processor: which tokens of the demo model are others, how many, and by how little. The
//! README states the counts, which a run with `--nocapture` prints.

use mmada::prompt;
use mmada::{ImageOptions, Message, TextOptions};

use crate::beside::{self, Counts};
use crate::support::{Card, cpu, demo};

#[test]
fn answers_are_those_of_the_processor_but_for_tokens_that_are_as_good_as_equal() {
    let card = Card::open();
    let (on_card, on_cpu) = (card.context(None), cpu());
    let mut counts = Counts::default();
    for (question, thinking) in [
        ("What is 17 + 25?", false),
        ("Sort 2 0 9.", false),
        ("Spell red backwards.", false),
        ("What is 47 - 9?", true),
    ] {
        let prompt = on_card.prompt_ids(&[Message::user(question)], thinking).unwrap();
        let options =
            TextOptions { gen_length: 24, block_length: 24, steps: 12, ..demo().text_options(thinking, false) };
        counts.add(beside::text(&on_card, &on_cpu, prompt, options));
    }
    println!("text: {counts:?}");
    assert!(counts.decided > 40, "{counts:?}");
    assert!(counts.others * 50 <= counts.decided && counts.furthest <= 0.05, "{counts:?}");
    assert!(counts.moved * 10 <= counts.decided && counts.moved_furthest <= 0.05, "{counts:?}");
}

#[test]
fn codes_are_those_of_the_processor_but_for_draws_that_fall_between_two_of_them() {
    let card = Card::open();
    let (on_card, on_cpu) = (card.context(None), cpu());
    let (_, recommended) = demo().draw_options(false);
    let side = demo().image_size() / demo().downsampling().unwrap();
    let mut counts = Counts::default();
    for (text, seed, guidance) in [
        ("a yellow star above a purple ring on a black background", 2, recommended.guidance),
        ("a red circle left of a blue square on a white background", 3, recommended.guidance),
        ("a large yellow star on a black background", 4, 0.0),
    ] {
        let options = ImageOptions { steps: 6, seed, guidance, ..recommended.clone() };
        let (tokenizer, vocabulary) = (demo().tokenizer().unwrap(), demo().vocabulary());
        let prompt = prompt::draw(tokenizer, vocabulary, text, options.max_text_len).unwrap().ids;
        counts.add(beside::drawing(&on_card, &on_cpu, prompt, side, options));
    }
    println!("drawings: {counts:?}");
    assert!(counts.decided > 500, "{counts:?}");
    assert!(counts.others * 20 <= counts.decided && counts.furthest <= 0.05, "{counts:?}");
    assert!(counts.moved * 50 <= counts.decided && counts.moved_furthest <= 0.1, "{counts:?}");
}
