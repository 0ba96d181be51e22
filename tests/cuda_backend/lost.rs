//! A card whose context an error has ended: whoever holds it is told so, whatever is called, and nobody else is harmed.

use mmada::{Context, ContextOptions, DeviceChoice, Error, SequenceRequest, TextOptions};

use crate::library::Driver;
use crate::support::{Card, close, cpu, demo, warnings};

/// Logits of a few tokens.
fn logits(context: &Context) -> mmada::Result<Vec<f32>> {
    context.logits(&[SequenceRequest { ids: &[5, 6, 7, 8], rows: &[2], vocab: 0..300 }]).map(|mut rows| rows.remove(0))
}

fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Device { .. }) && error.code() == 12 && error.to_string().starts_with("cuda:0 (Stand-in): ")
}

/// A context whose card fails while a generation runs on it, which is given too.
fn lost(card: &Card, driver: &Driver) -> (Context, mmada::Generation) {
    let context = card.context(None);
    let options = TextOptions { gen_length: 12, block_length: 12, steps: 12, ..Default::default() };
    let mut generation = context.text_from_ids(vec![3, 4, 5], options).unwrap();
    generation.step().unwrap();
    driver.set("FAIL_LAUNCH", "9:719"); // CUDA_ERROR_LAUNCH_FAILED
    let error = generation.step().unwrap_err();
    assert!(is_lost(&error) && error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    (context, generation)
}

#[test]
fn whatever_is_asked_of_a_lost_card_fails_with_its_name_and_what_it_was_asked_for_earlier_stays() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let other = card.context(Some(1));
    let (context, mut generation) = lost(&card, driver);
    let before = generation.text().unwrap().ids;
    for _ in 0..2 {
        for error in [
            generation.step().unwrap_err(),
            logits(&context).unwrap_err(),
            logits(&other).unwrap_err(),
            context.decode_image(&[1; 4], 2, 2).unwrap_err(),
        ] {
            assert!(is_lost(&error), "{error}");
        }
    }
    assert_eq!(generation.text().unwrap().ids, before);
    logits(&cpu()).unwrap();
}

#[test]
fn while_a_lost_card_is_held_new_contexts_are_told_and_auto_takes_the_processor() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    driver.set("RECOVERS", 1);
    let (context, generation) = lost(&card, driver);
    let refused = || {
        let error = Context::new(demo(), card.options()).err().expect("a card that is lost");
        assert!(is_lost(&error) && error.to_string().contains("free all that still uses it"), "{error}");
    };
    refused();
    let (logger, lines) = warnings();
    let auto = ContextOptions { device: DeviceChoice::Auto, logger: Some(logger), ..card.options() };
    assert_eq!(Context::new(demo(), auto).unwrap().device(), "cpu");
    assert!(
        lines.lock().unwrap().concat().contains("running on the cpu: cuda:0 (Stand-in): an error has ended"),
        "{lines:?}"
    );
    // a generation holds its context's card too
    drop(context);
    refused();
    drop(generation);
    let context = card.context(None);
    close(&logits(&context).unwrap(), &logits(&cpu()).unwrap(), 0.02);
    assert_eq!(driver.count("contexts"), 1);
}

#[test]
fn a_card_that_does_not_begin_anew_is_refused_with_what_the_driver_says_and_the_processor_goes_on() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    drop(lost(&card, driver));
    for _ in 0..2 {
        let error = Context::new(demo(), card.options()).err().expect("a card that is lost");
        assert!(is_lost(&error) && error.to_string().contains("could not be started"), "{error}");
    }
    assert_eq!(driver.count("contexts"), 0);
    logits(&cpu()).unwrap();
}
