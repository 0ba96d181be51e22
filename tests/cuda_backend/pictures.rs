//! The demo model's image tokenizer on a card, beside the processor.

use mmada::{Canceller, Context, Error, Message, TextRequest};

use crate::support::{Card, close, cpu, demo, run};

/// Codes of a picture in some order.
fn codes(n: usize) -> Vec<u32> {
    let size = demo().vocabulary().codes;
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) % size).collect()
}

#[test]
fn pictures_are_decoded_as_on_the_processor() {
    let card = Card::open();
    let context = card.context(None);
    for (width, height) in [(8, 8), (3, 5)] {
        let codes = codes(width * height);
        let got = context.decode_float(&codes, width, height).unwrap();
        close(&got, &cpu().decode_float(&codes, width, height).unwrap(), 0.02);
    }
}

#[test]
fn pictures_are_encoded_to_the_codes_of_the_processor() {
    let card = Card::open();
    // only the output on the card: the image tokenizer is there all the same
    let context = card.context(Some(0));
    let picture = cpu().decode_image(&codes(64), 8, 8).unwrap();
    assert_eq!(context.encode_image(&picture).unwrap(), cpu().encode_image(&picture).unwrap());
    let pixels: Vec<f32> = (0..24 * 16 * 3).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    let latent = |context: &Context| context.encode_latent(&pixels, 16, 24).unwrap();
    let (got, expected) = (latent(&context), latent(&cpu()));
    assert_eq!((got.height, got.width, &got.codes), (expected.height, expected.width, &expected.codes));
    close(&got.latent, &expected.latent, 0.002);
}

#[test]
fn a_question_about_a_picture_is_answered_as_on_the_processor() {
    let card = Card::open();
    let picture = cpu().decode_image(&codes(64), 8, 8).unwrap();
    let answer = |context: &Context| {
        let options =
            mmada::TextOptions { gen_length: 8, block_length: 8, steps: 4, ..demo().text_options(false, true) };
        let (messages, image) = (vec![Message::user("Describe the image.")], Some(picture.clone()));
        run(context.text(TextRequest { messages, image, squash: false, thinking: false, options }).unwrap())
    };
    assert_eq!(answer(&card.context(None)).text().unwrap().ids, answer(&cpu()).text().unwrap().ids);
}

#[test]
fn a_picture_that_the_card_has_no_memory_for_is_an_error_and_smaller_ones_go_on() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let context = card.context(None);
    let few = codes(4);
    context.decode_image(&few, 2, 2).unwrap();
    driver.set("FAIL_ALLOCATION", 4);
    let error = context.decode_image(&codes(64), 8, 8).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }) && error.to_string().contains("on cuda:0"), "{error}");
    context.decode_image(&few, 2, 2).unwrap();
    let bad = context.decode_image(&[u32::MAX; 4], 2, 2).unwrap_err();
    assert!(matches!(bad, Error::InvalidArgument(_)), "{bad}");
}

#[test]
fn convolutions_that_come_out_wrong_are_an_error_and_the_rest_goes_on() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    driver.set("SKIP_KERNEL", "convolve_BF16");
    let context = card.context(None);
    let error = context.decode_image(&codes(4), 2, 2).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error}");
    assert!(error.to_string().contains("convolutions come out wrong on it"), "{error}");
    context.logits(&[mmada::SequenceRequest { ids: &[5, 6], rows: &[1], vocab: 0..9 }]).unwrap();
    driver.set("SKIP_KERNEL", "");
    context.decode_image(&codes(4), 2, 2).unwrap();
}

#[test]
fn contexts_on_one_card_share_the_weights_of_the_image_tokenizer() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let (first, second) = (card.context(None), card.context(None));
    let (codes, before) = (codes(4), driver.count("bytes"));
    let decode = |context: &Context| context.decode_float(&codes, 2, 2).unwrap();
    let expected = decode(&first);
    let weights = driver.count("bytes") - before;
    assert_eq!(decode(&second), expected);
    let both = driver.count("bytes") - before;
    assert!(both < weights + weights / 10, "{both} bytes for two, {weights} for one");
    drop(first);
    assert_eq!(decode(&second), expected);
    drop(second);
    assert_eq!(driver.count("allocations"), 0);
}

#[test]
fn a_cancelled_picture_can_be_followed_by_another_and_all_memory_is_given_back() {
    let card = Card::open();
    let context = card.context(None);
    let canceller = Canceller::default();
    canceller.cancel();
    let error = context.clone().with_canceller(canceller).decode_image(&codes(4), 2, 2).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    context.decode_image(&codes(4), 2, 2).unwrap();
    drop(context);
    if let Some(driver) = card.driver() {
        for what in ["allocations", "pinned", "objects", "contexts"] {
            assert_eq!(driver.count(what), 0, "{what} are left");
        }
    }
}
