//! Whole models of quantized weights on cards before Hopper, which multiply blocks as they lie in the file, and on Hopper,
//! which unpacks them first.

use mmada::{Context, ContextOptions, Model, SequenceRequest, TextOptions};
use mmada_quantize::Shape;

use crate::beside;
use crate::support::{Card, close, random};

/// Recipes, with kernels that a card before Hopper runs for them and one that Hopper does.
const RECIPES: [(&str, [&str; 2]); 3] = [
    ("Q4_K_M", ["product_Q4_K_wide", "unpack_Q4_K_wide"]),
    ("Q6_K", ["product_Q6_K_blocks", "unpack_Q6_K_bf16"]),
    ("IQ4_NL", ["product_IQ4_NL_wide", "unpack_IQ4_NL_wide"]),
];

/// Compares the logits of a batch, and a generation.
fn compare(model: &Model, on_card: &Context) {
    let on_cpu = Context::new(model, ContextOptions { threads: 2, ..Default::default() }).unwrap();
    let vocabulary = model.vocabulary();
    let long: Vec<u32> = (0..70).map(|i| if i % 4 == 3 { vocabulary.mask } else { i * 37 % vocabulary.text }).collect();
    let vocab = 0..vocabulary.rows;
    let batch = [
        SequenceRequest { ids: &long, rows: &[0, 33, 69], vocab: vocab.clone() },
        SequenceRequest { ids: &long[..5], rows: &[3], vocab },
    ];
    let (got, expected) = (on_card.logits(&batch).unwrap(), on_cpu.logits(&batch).unwrap());
    for (got, expected) in got.iter().zip(&expected) {
        // as for float weights: attention is in bfloat16, and what it rounds goes through all products behind it
        close(got, expected, 0.02);
    }
    let options = TextOptions { gen_length: 8, block_length: 8, steps: 4, ..Default::default() };
    let counts = beside::text(on_card, &on_cpu, long[..12].to_vec(), options);
    assert!(counts.decided == 8 && counts.furthest < 0.1, "{counts:?}");
}

#[test]
fn quantized_models_give_the_logits_of_the_processor_and_generate_on_every_kind_of_card() {
    let card = Card::open();
    let folder = tempfile::tempdir().unwrap();
    for (recipe, kernels) in RECIPES {
        let model = random(folder.path(), recipe, Shape { vq: None, ..Shape::tiny() });
        let Some(driver) = card.driver() else {
            compare(&model, &Context::new(&model, card.options()).unwrap());
            continue;
        };
        for ((capability, version), kernel) in [("8.6", "11.8"), ("9.0", "12.0")].into_iter().zip(kernels) {
            driver.restart();
            driver.set("CAPABILITY", capability);
            driver.set("DRIVER", version);
            compare(&model, &Context::new(&model, card.options()).unwrap());
            assert!(driver.count(&format!("ran {kernel}")) > 0, "{recipe} did not run {kernel}");
        }
    }
}
