//! What a card of Hopper (compute capability 9.0) has of its own: kernels that are taken where they pay, and left alone where
//! they go wrong.

use mmada::kernels::cuda::allow_hopper;
use mmada::{Context, ContextOptions, DeviceChoice, Error, SequenceRequest};
use mmada_quantize::Shape;

use crate::library::Driver;
use crate::support::{Card, close, cpu, demo, pass, random, refused, warnings};

/// The driver anew, of a version, with such a card.
fn begin(driver: &Driver, version: &str) {
    driver.restart();
    driver.set("CAPABILITY", "9.0");
    driver.set("DRIVER", version);
}

#[test]
fn a_card_of_hopper_multiplies_weights_that_were_unpacked() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let plain = card.context(None);
    let (ids, rows) = (vec![9; 80], [0, 79]);
    let batch = [SequenceRequest { ids: &ids, rows: &rows, vocab: 5..200 }];
    let expected = plain.logits(&batch).unwrap();
    let bytes = driver.count("bytes");
    drop(plain);
    for (version, unpacked) in [("12.0", true), ("11.8", false)] {
        begin(driver, version);
        let context = card.context(None);
        let got = context.logits(&batch).unwrap();
        // the same sums in the same order
        let bits = |rows: &[Vec<f32>]| rows.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&expected));
        assert_eq!(driver.count("bytes") > bytes + (4 << 20), unpacked, "with a driver of {version}");
    }
}

#[test]
fn weights_of_groups_of_16_are_multiplied_in_bfloat16_by_a_card_of_hopper() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    begin(driver, "12.0");
    let folder = tempfile::tempdir().unwrap();
    let sizes = Shape { layers: 1, d_model: 256, heads: 4, kv_heads: 4, d_ff: 256, vq: None, ..Shape::tiny() };
    let model = random(folder.path(), "q6_k", sizes);
    let on_card = Context::new(&model, card.options()).unwrap();
    let on_cpu = Context::new(&model, ContextOptions::default()).unwrap();
    for (tokens, large) in [(70, true), (20, false)] {
        let ran = || [driver.count("ran product_bf16_128_sm90"), driver.count("ran product_Q6_K_blocks")];
        let before = ran();
        let (ids, rows) = ((0..tokens as u32).map(|i| i * 5 % 300).collect::<Vec<_>>(), [0, tokens - 1]);
        let batch = [SequenceRequest { ids: &ids, rows: &rows, vocab: 0..200 }];
        for (got, expected) in on_card.logits(&batch).unwrap().iter().zip(&on_cpu.logits(&batch).unwrap()) {
            close(got, expected, 0.02);
        }
        let [in_bf16, in_int8] = [0, 1].map(|i| ran()[i] - before[i]);
        // what comes after attention is of two rows alone
        assert!(in_int8 > 0 && (in_bf16 > 0) == large, "{in_bf16} and {in_int8} products of {tokens} tokens");
    }
}

#[test]
fn long_sequences_attend_by_a_kernel_of_their_own_on_a_card_of_hopper() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    let config = demo().config();
    let kernel = format!("ran attention_{}_sm90", config.head_dim);
    let others = format!("attention_{}", 64 + 128 - config.head_dim);
    for (version, has_hopper) in [("12.0", true), ("11.8", false)] {
        begin(driver, version);
        let context = card.context(None);
        let checks = driver.count(&kernel);
        assert_eq!(checks, u64::from(has_hopper));
        // what the model does not use is not translated for it
        for kernel in [format!("ran {others}"), format!("ran {others}_sm90")] {
            assert_eq!(driver.count(&kernel), 0, "{kernel}");
        }
        for tokens in [130, 127] {
            let before = driver.count(&kernel);
            let (ids, rows) = ((0..tokens as u32).map(|i| i * 7 % 150).collect::<Vec<u32>>(), [0, tokens - 1]);
            let batch = [SequenceRequest { ids: &ids, rows: &rows, vocab: 0..200 }];
            close(&context.logits(&batch).unwrap()[0], &cpu().logits(&batch).unwrap()[0], 0.02);
            // the last layer has the queries that were asked for alone
            let layers = if has_hopper && tokens >= 128 { config.layers as u64 - 1 } else { 0 };
            assert_eq!(driver.count(&kernel) - before, layers, "{tokens} tokens with a driver of {version}");
        }
    }
}

#[test]
fn attention_for_hopper_that_comes_out_wrong_is_left_alone_with_a_sentence() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    begin(driver, "12.0");
    driver.set("SKIP_KERNEL", format!("attention_{}_sm90", demo().config().head_dim));
    let (logger, lines) = warnings();
    let context = Context::new(demo(), ContextOptions { logger: Some(logger), ..card.options() }).unwrap();
    let left_alone = |line: &String| line.contains("left alone") && line.contains("attentions come out wrong");
    assert_eq!(lines.lock().unwrap().iter().filter(|line| left_alone(line)).count(), 1);
    let ran = || driver.count("ran attention_64_sm90") + driver.count("ran attention_128_sm90");
    let before = ran();
    pass(&context, 130).unwrap();
    assert_eq!(ran(), before);
}

#[test]
fn kernels_for_hopper_that_end_the_context_are_not_tried_again() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    for kernel in [format!("attention_{}_sm90", demo().config().head_dim), "product_bf16_256_sm90".to_owned()] {
        begin(driver, "12.0");
        driver.set("FAIL_KERNEL", format!("{kernel}:719")); // CUDA_ERROR_LAUNCH_FAILED, as after a trap
        driver.set("RECOVERS", 1);
        allow_hopper(0, true);
        let (logger, lines) = warnings();
        let options = || ContextOptions { logger: Some(logger.clone()), ..card.options() };
        let context = Context::new(demo(), options()).unwrap();
        let left_alone = |line: &String| line.contains("left alone") && line.contains("CUDA_ERROR_LAUNCH_FAILED");
        assert_eq!(lines.lock().unwrap().iter().filter(|line| left_alone(line)).count(), 1, "{kernel}");
        pass(&context, 130).unwrap();
        drop(context);
        pass(&Context::new(demo(), options()).unwrap(), 130).unwrap();
        assert_eq!(driver.count(&format!("ran {kernel}")), 1);
    }
}

#[test]
fn where_a_driver_gives_no_other_context_the_error_says_how_to_do_without_kernels_for_hopper() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    begin(driver, "12.0");
    driver.set("FAIL_KERNEL", "product_bf16_128_sm90:719");
    let error = refused(card.options());
    let text = error.to_string();
    assert!(
        matches!(error, Error::Device { .. }) && text.starts_with("cuda:0: kernels for Hopper have ended"),
        "{text}"
    );
    assert!(text.contains("CUDA_ERROR_LAUNCH_FAILED") && text.ends_with("with the device cuda:0/ampere"), "{text}");
    pass(&cpu(), 4).unwrap();
}

#[test]
fn a_card_of_hopper_that_is_lost_in_a_pass_is_opened_again_without_kernels_of_its_own() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    begin(driver, "12.0");
    let context = card.context(None);
    let kernel = format!("attention_{}_sm90", demo().config().head_dim);
    driver.set("FAIL_KERNEL", format!("{kernel}:719"));
    driver.set("RECOVERS", 1);
    pass(&context, 130).unwrap_err();
    drop(context);
    let before = driver.count(&format!("ran {kernel}"));
    pass(&card.context(None), 130).unwrap();
    assert_eq!(driver.count(&format!("ran {kernel}")), before);
}

#[test]
fn kernels_for_hopper_can_be_left_alone_by_choice() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    begin(driver, "12.0");
    let device: DeviceChoice = "cuda:0/ampere".parse().unwrap();
    assert_eq!((device, device.to_string()), (DeviceChoice::CudaAmpere(0), "cuda:0/ampere".to_owned()));
    let kernel = format!("ran attention_{}_sm90", demo().config().head_dim);
    let context = Context::new(demo(), ContextOptions { device, ..card.options() }).unwrap();
    pass(&context, 130).unwrap();
    assert_eq!(driver.count(&kernel), 0);
    drop(context);
    allow_hopper(0, true);
    // and by contexts that have used them before
    let first = card.context(None);
    pass(&first, 130).unwrap();
    let products = || driver.count("ran product_blocks_sm90") + driver.count("ran product_bf16_256_sm90");
    let before = (driver.count(&kernel), products());
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    let second = Context::new(demo(), ContextOptions { device, ..card.options() }).unwrap();
    for context in [&first, &second] {
        pass(context, 130).unwrap();
        assert_eq!((driver.count(&kernel), products()), before);
    }
}
