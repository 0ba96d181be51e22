//! Checkpoints of the published layout on a card: what the reference implementation computed (tests/golden).

use mmada::gguf::GgmlType;
use mmada::{Context, Error, Model, SequenceRequest};
use mmada_quantize::{ConvertOptions, convert};

use crate::support::{Card, close, data};
use crate::tensors::Tensors;

#[test]
fn logits_of_floats_are_those_of_the_reference() {
    let card = Card::open();
    let folder = tempfile::tempdir().unwrap();
    for (name, dtype) in [("tiny", GgmlType::F32), ("tiny", GgmlType::F16)] {
        let checkpoint = data(&format!("tests/golden/{name}"));
        let expected = Tensors::read(&checkpoint.join("expected.safetensors")).unwrap();
        let file = folder.path().join(format!("{name}.gguf"));
        convert(&ConvertOptions::new(checkpoint, &file, dtype), &mut |_| {}).unwrap();
        let model = Model::open(&file).unwrap();
        let context = Context::new(&model, card.options()).unwrap();
        let cases = (0..).map(|i| format!("forward.{i}")).take_while(|case| expected.has(&format!("{case}.logits")));
        let cases: Vec<String> = cases.collect();
        assert!(cases.len() > 2, "{name}");
        for case in cases {
            let ids = expected.ids(&format!("{case}.input_ids")).unwrap().data;
            let rows: Vec<usize> = (0..ids.len()).collect();
            let batch = [SequenceRequest { ids: &ids, rows: &rows, vocab: 0..model.vocabulary().rows }];
            let got = context.logits(&batch).unwrap();
            // products, attention and their inputs are rounded to 8 bits
            close(&got[0], &expected.f32s(&format!("{case}.logits")).unwrap().data, 0.02);
        }
    }
}

#[test]
fn a_model_that_the_kernels_are_not_for_is_refused_by_name() {
    let card = Card::open();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("grouped.gguf");
    convert(&ConvertOptions::new(data("tests/golden/grouped"), &file, GgmlType::F16), &mut |_| {}).unwrap();
    let error = Context::new(&Model::open(&file).unwrap(), card.options()).err().unwrap();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("grouped.gguf: the CUDA kernels are not for heads of 16 elements"), "{error}");
}
