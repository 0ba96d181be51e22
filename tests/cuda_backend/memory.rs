//! Memory that runs out on a card after a generation has begun, wherever the driver says so: the step fails and has changed
//! nothing, and can be taken again.

use mmada::{Context, DrawFromIds, Error, Generation, TextOptions};

use crate::library::Driver;
use crate::support::{Card, cpu, demo, run};

/// An error that says which card had how much left.
fn names_the_card(error: &Error) -> bool {
    let text = error.to_string();
    matches!(error, Error::OutOfMemory { .. }) && text.contains("cuda:0 (Stand-in)")
}

fn answer(context: &Context) -> Generation {
    let options = TextOptions { gen_length: 12, block_length: 12, steps: 6, ..Default::default() };
    context.text_from_ids(vec![3, 4, 5], options).unwrap()
}

/// Two small pictures: the first step runs one for both, the second needs memory for two.
fn drawing(context: &Context) -> Generation {
    let (vocabulary, side) = (demo().vocabulary(), 2 * demo().downsampling().unwrap());
    let (_, image) = demo().draw_options(false);
    let image = mmada::ImageOptions { steps: 3, ..image };
    let unconditional = vec![vocabulary.t2i.unwrap(), vocabulary.bos, vocabulary.eos];
    let prompt = (0..20).chain([vocabulary.eos]).collect();
    context.draw_from_ids(DrawFromIds { prompt, unconditional, width: side, height: side, count: 2, image }).unwrap()
}

fn codes(generation: &Generation) -> Vec<Vec<u32>> {
    (0..2).map(|i| generation.codes(i).unwrap().to_vec()).collect()
}

#[test]
fn a_step_that_finds_no_memory_says_what_was_asked_and_what_was_free_and_can_be_taken_again() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let expected = codes(&run(drawing(&card.context(None))));
    let context = card.context(None);
    let mut generation = drawing(&context);
    generation.step().unwrap();
    let mut failures = 0;
    // each of the allocations that the second step makes
    for call in 1.. {
        driver.set("FAIL_ALLOCATION", call);
        let Err(error) = generation.step() else { break };
        let text = error.to_string();
        assert!(names_the_card(&error) && text.contains(" needs ") && text.ends_with(" bytes"), "{text}");
        let is_pinned = text.contains("memory that cuda:0 (Stand-in) reaches");
        assert!(
            is_pinned || text.contains("on cuda:0 (Stand-in), which has ") && text.contains("bytes free"),
            "{text}"
        );
        failures += 1;
    }
    driver.set("FAIL_ALLOCATION", 0);
    assert!(failures > 20, "{failures} allocations");
    assert_eq!(codes(&run(generation)), expected);
    // another one on the same context
    assert_eq!(codes(&run(drawing(&context))), expected);
}

#[test]
fn what_is_free_is_what_the_card_has_left_when_others_have_taken_the_rest() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let context = card.context(None);
    let mut generation = answer(&context);
    generation.step().unwrap();
    driver.set("MEMORY", driver.count("bytes") + (1 << 16));
    // a request too large for that beside a generation that goes on in what it has
    let error = context.logits(&[mmada::SequenceRequest { ids: &[7; 600], rows: &[0], vocab: 0..9 }]).unwrap_err();
    assert!(names_the_card(&error), "{error}");
    let text = error.to_string();
    let free: u64 = text.split("which has ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    let asked: u64 = text.split(" needs ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    assert!(asked > free, "{text}");
    while !generation.step().unwrap().done {}
    assert_eq!(generation.text().unwrap().ids, run(answer(&cpu())).text().unwrap().ids);
}

/// Makes the `call`th call of a kind fail for want of memory, from 1 on until none does, and counts.
fn each_of(driver: &Driver, setting: &str, attempt: &mut dyn FnMut() -> mmada::Result<()>) -> usize {
    for call in 1.. {
        driver.set(setting, if setting == "FAIL_LAUNCH" { format!("{call}:2") } else { call.to_string() });
        let Err(error) = attempt() else {
            driver.set(setting, if setting == "FAIL_LAUNCH" { "0:2" } else { "0" });
            return call - 1;
        };
        assert!(names_the_card(&error) && error.to_string().contains("bytes free, could not "), "{error}");
    }
    unreachable!("calls end")
}

#[test]
fn kernels_that_there_is_no_memory_to_translate_are_translated_when_there_is() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let mut context = None;
    let new = &mut || Context::new(demo(), card.options()).map(|made| context = Some(made));
    assert!(each_of(driver, "FAIL_MODULE", new) > 0);
    let context = context.unwrap();
    let mut generation = answer(&context);
    // what an attempt has translated stays
    assert!(each_of(driver, "FAIL_MODULE", &mut || generation.step().map(drop)) > 2);
    assert_eq!(run(generation).text().unwrap().ids, run(answer(&cpu())).text().unwrap().ids);
}

#[test]
fn launches_that_there_is_no_memory_for_fail_the_step_alone() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let context = card.context(None);
    let mut generation = answer(&context);
    let first = each_of(driver, "FAIL_LAUNCH", &mut || generation.step().map(drop));
    // what cannot be recorded runs as it is
    let recorded = each_of(driver, "FAIL_LAUNCH", &mut || generation.step().map(drop));
    generation.step().unwrap();
    let repeated = each_of(driver, "FAIL_LAUNCH", &mut || generation.step().map(drop));
    assert!(first > 20 && (recorded, repeated) == (0, 1), "{first}, {recorded}, {repeated}");
    assert_eq!(run(generation).text().unwrap().ids, run(answer(&cpu())).text().unwrap().ids);
    drop(context);
    for what in ["allocations", "pinned", "objects", "contexts"] {
        assert_eq!(driver.count(what), 0, "{what} are left");
    }
}

#[test]
fn steps_that_there_is_no_memory_to_record_run_as_they_are() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let context = card.context(None);
    let mut generation = answer(&context);
    let mut steps = 0;
    loop {
        driver.set("FAIL_GRAPH", 1);
        steps += 1;
        if generation.step().unwrap().done {
            break;
        }
    }
    assert!(steps > 2);
    assert_eq!(driver.count("graph_launches"), 0);
    assert_eq!(generation.text().unwrap().ids, run(answer(&cpu())).text().unwrap().ids);
    // and are recorded once there is
    driver.set("FAIL_GRAPH", 0);
    run(answer(&context));
    assert!(driver.count("graph_launches") > 2);
    drop((generation, context));
    assert_eq!(driver.count("objects"), 0);
}
