//! What goes wrong with a card: one error that names it, and everything else goes on. Most of it is only to be had from the
//! stand-in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mmada::{Canceller, Context, ContextOptions, DeviceChoice, Error, SequenceRequest};
use mmada_quantize::Shape;

use crate::support::{Card, close, cpu, demo, pass, random, refused, warnings};

#[test]
fn a_card_that_is_not_there_is_named_with_those_that_are() {
    let card = Card::open();
    let error = refused(ContextOptions { device: DeviceChoice::Cuda(63), ..card.options() });
    assert!(
        matches!(error, Error::InvalidArgument(_)) && error.to_string().contains("cuda:63 is not there"),
        "{error}"
    );
}

#[test]
fn without_a_usable_card_one_sentence_says_why_and_auto_takes_the_processor() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    for (setting, value, expected) in [
        ("DRIVER", "11.7", "is of version 11.7, 11.8 (driver 520) or later is needed"),
        ("DEVICES", "0", "finds no device"),
        ("CAPABILITY", "7.5", "has compute capability 7.5, 8.0 is needed"),
    ] {
        driver.restart();
        driver.set(setting, value);
        let error = refused(card.options()).to_string();
        assert!(error.contains(expected) && error.starts_with("cuda:0 ") && error.lines().count() == 1, "{error}");
        let (logger, lines) = warnings();
        let options = ContextOptions { device: DeviceChoice::Auto, logger: Some(logger), ..card.options() };
        let context = Context::new(demo(), options).unwrap();
        assert_eq!(context.device(), "cpu");
        let lines = lines.lock().unwrap();
        assert!(
            lines.len() == 1 && lines[0].contains("running on the cpu") && lines[0].contains(expected),
            "{lines:?}"
        );
        pass(&context, 3).unwrap();
    }
}

#[test]
fn auto_takes_the_first_card() {
    let card = Card::open();
    let context = Context::new(demo(), ContextOptions { device: DeviceChoice::Auto, ..card.options() }).unwrap();
    assert!(context.device().starts_with("cuda:0 "));
}

#[test]
fn the_second_of_two_cards_can_be_chosen() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    driver.set("DEVICES", 2);
    let context = Context::new(demo(), ContextOptions { device: DeviceChoice::Cuda(1), ..card.options() }).unwrap();
    assert!(context.device().starts_with("cuda:1 "));
    pass(&context, 2).unwrap();
}

#[test]
fn weights_that_do_not_fit_are_an_error_that_names_what_was_asked_and_what_was_free() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    driver.set("MEMORY", 4 << 20);
    let layers = demo().config().layers;
    let error = refused(ContextOptions { gpu_layers: Some(layers), ..card.options() });
    let text = error.to_string();
    assert!(matches!(error, Error::OutOfMemory { bytes, .. } if bytes > 4 << 20), "{text}");
    assert!(text.contains("the model's weights on cuda:0") && text.contains("bytes free"), "{text}");
    assert_eq!(driver.count("allocations"), 0);
    pass(&cpu(), 3).unwrap();
}

#[test]
fn a_model_larger_than_the_card_keeps_its_first_layers_on_the_processor() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let all = demo().config().layers;
    let mut last = all;
    let mut between = 0;
    // around what is spared for others and the buffers of a batch
    for mebibytes in (300..=400).rev().step_by(2) {
        driver.restart();
        driver.set("MEMORY", mebibytes << 20);
        let context = card.context(None);
        let layers = context.gpu_layers();
        assert!(layers <= last && (mebibytes < 400 || layers == all), "{layers} layers in {mebibytes} MiB");
        last = layers;
        if (1..all).contains(&layers) {
            between += 1;
            pass(&context, 5).unwrap();
        }
    }
    assert!(between > 0 && last == 0);
}

#[test]
fn a_request_too_large_for_the_card_fails_and_smaller_ones_go_on() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let context = card.context(None);
    pass(&context, 4).unwrap();
    driver.set("FAIL_ALLOCATION", 3);
    let error = pass(&context, 200).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }) && error.to_string().contains("on cuda:0"), "{error}");
    pass(&context, 4).unwrap();
    pass(&cpu(), 4).unwrap();
}

#[test]
fn a_lost_card_is_an_error_of_its_contexts_and_of_nobody_else() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let context = card.context(None);
    driver.set("FAIL_LAUNCH", "9:719"); // CUDA_ERROR_LAUNCH_FAILED
    for _ in 0..2 {
        let error = pass(&context, 4).unwrap_err();
        assert!(matches!(error, Error::Device { .. }) && error.code() == 12, "{error}");
        assert!(error.to_string().starts_with("cuda:0 (") && error.to_string().contains("CUDA_ERROR_"), "{error}");
    }
    pass(&cpu(), 4).unwrap();
    drop(context);
}

#[test]
fn two_contexts_on_one_card_share_the_weights_and_give_everything_back() {
    let card = Card::open();
    let first = card.context(None);
    let weights = card.driver().map(|driver| driver.count("bytes"));
    let second = card.context(None);
    if let (Some(driver), Some(weights)) = (card.driver(), weights) {
        assert!(weights > 5 << 20 && driver.count("bytes") < weights + (1 << 20));
    }
    pass(&first, 3).unwrap();
    drop(first);
    pass(&second, 3).unwrap();
    drop(second);
    if let Some(driver) = card.driver() {
        for what in ["allocations", "pinned", "objects", "contexts"] {
            assert_eq!(driver.count(what), 0, "{what} are left");
        }
    }
}

#[test]
fn progress_of_the_upload_is_told_and_can_stop_it() {
    let card = Card::open();
    let (last, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (seen, all) = (last.clone(), total.clone());
    let tell = move |done: u64, of: u64| {
        assert!(done >= seen.swap(done, Ordering::Relaxed) && done <= of);
        all.store(of, Ordering::Relaxed);
        true
    };
    drop(Context::new(demo(), ContextOptions { progress: Some(Arc::new(tell)), ..card.options() }).unwrap());
    assert!(total.load(Ordering::Relaxed) > 5 << 20);
    assert_eq!(last.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
    let stop = |_: u64, _: u64| false;
    let options = ContextOptions { progress: Some(Arc::new(stop)), ..card.options() };
    assert!(matches!(refused(options), Error::Cancelled));
    if let Some(driver) = card.driver() {
        assert_eq!(driver.count("allocations"), 0);
    }
    pass(&card.context(None), 2).unwrap();
}

#[test]
fn a_cancelled_pass_can_be_followed_by_another() {
    let card = Card::open();
    let context = card.context(None);
    let canceller = Canceller::default();
    canceller.cancel();
    let error = pass(&context.clone().with_canceller(canceller), 5).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    pass(&context, 5).unwrap();
}

#[test]
fn steps_that_come_again_are_repeated_as_graphs() {
    let card = Card::open();
    let context = card.context(None);
    let options = mmada::TextOptions { gen_length: 12, block_length: 12, steps: 12, ..Default::default() };
    let mut generation = context.text_from_ids(vec![3, 4, 5], options.clone()).unwrap();
    let mut expected = cpu().text_from_ids(vec![3, 4, 5], options).unwrap();
    let mut steps = 1;
    while !generation.step().unwrap().done {
        steps += 1;
    }
    while !expected.step().unwrap().done {}
    assert!(steps > 3);
    assert_eq!(generation.text().unwrap().ids, expected.text().unwrap().ids);
    if let Some(driver) = card.driver() {
        // the first step runs as it is, the second is recorded, and from then on it is repeated
        assert_eq!(driver.count("graph_launches"), steps - 1);
    }
}

#[test]
fn steps_go_on_right_after_other_work_has_moved_the_memory_that_they_were_recorded_with() {
    let card = Card::open();
    let context = card.context(None);
    let options = mmada::TextOptions { gen_length: 12, block_length: 12, steps: 12, ..Default::default() };
    let mut generation = context.text_from_ids(vec![3, 4, 5], options.clone()).unwrap();
    let mut expected = cpu().text_from_ids(vec![3, 4, 5], options).unwrap();
    let mut length = 40;
    loop {
        let (got, expected) = (generation.step().unwrap(), expected.step().unwrap());
        assert_eq!(got.done, expected.done);
        if got.done {
            break;
        }
        if got.index % 4 == 3 {
            // longer each time, with more logits
            let (ids, rows) = (vec![7; length], (0..length).collect::<Vec<_>>());
            context.logits(&[SequenceRequest { ids: &ids, rows: &rows, vocab: 0..demo().vocabulary().rows }]).unwrap();
            length *= 2;
        }
    }
    assert_eq!(generation.text().unwrap().ids, expected.text().unwrap().ids);
}

#[test]
fn a_batch_may_have_more_tokens_than_the_longest_sequence() {
    let card = Card::open();
    let folder = tempfile::tempdir().unwrap();
    let short =
        Shape { layers: 1, d_model: 64, heads: 1, kv_heads: 1, d_ff: 64, context: 32, vq: None, ..Shape::tiny() };
    let model = random(folder.path(), "q8_0", short);
    let (on_card, on_cpu) =
        [card.options(), ContextOptions::default()].map(|o| Context::new(&model, o).unwrap()).into();
    let ids: Vec<u32> = (0..32).map(|i| i * 5 % 700).collect();
    for count in [3, 1] {
        let batch = vec![SequenceRequest { ids: &ids, rows: &[0, 31], vocab: 0..300 }; count];
        for (got, expected) in on_card.logits(&batch).unwrap().iter().zip(&on_cpu.logits(&batch).unwrap()) {
            close(got, expected, 0.02);
        }
    }
}

#[test]
fn a_second_context_has_the_layers_of_the_first_where_the_card_has_room_for_one_copy() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let all = demo().config().layers;
    let has_all = |mebibytes: &u64| {
        driver.restart();
        driver.set("MEMORY", mebibytes << 20);
        card.context(None).gpu_layers() == all
    };
    let least = (300..500).find(has_all).expect("enough for all layers");
    driver.restart();
    driver.set("MEMORY", least << 20);
    let (first, second) = (card.context(None), card.context(None));
    assert_eq!((first.gpu_layers(), second.gpu_layers()), (all, all));
    pass(&first, 3).unwrap();
    pass(&second, 3).unwrap();
}
