//! One denoising step, and a whole picture's decoding, on the demo model or on the file in `MMADA_MODEL`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mmada::{Context, ContextOptions, Model, SequenceRequest};

fn model() -> Model {
    let path = std::env::var("MMADA_MODEL").unwrap_or_else(|_| "models/mmada-shapes.gguf".into());
    Model::open(path).unwrap()
}

/// Ids of the whole text vocabulary in turn, masks in the second half.
fn ids(model: &Model, n: usize) -> Vec<u32> {
    let v = model.vocabulary();
    (0..n).map(|i| if i < n / 2 { (i as u32 * 7) % v.text } else { v.mask }).collect()
}

fn steps(c: &mut Criterion) {
    let model = model();
    let text = model.vocabulary().text;
    let codes = model.vocabulary().image_ids();
    for threads in [1, 0] {
        let context = Context::new(&model, ContextOptions { threads, ..Default::default() }).unwrap();
        let name = format!("{} threads, {}", context.threads(), context.instruction_set());
        for n in [128, 512, 1024] {
            let ids = ids(&model, n);
            let rows: Vec<usize> = (n / 2..n / 2 + 32).collect();
            let batch = [SequenceRequest { ids: &ids, rows: &rows, vocab: 0..text }];
            let logits = context.logits(&batch).unwrap();
            assert!(logits[0].iter().all(|v| v.is_finite()));
            c.bench_function(&format!("text step, {n} tokens, {name}"), |b| {
                b.iter(|| black_box(context.logits(&batch).unwrap()))
            });
        }
        let side = model.image_size() / model.downsampling().unwrap();
        let tokens = side * side;
        let (conditional, plain) = (ids(&model, 33 + tokens), ids(&model, 5 + tokens));
        let (first, second): (Vec<usize>, Vec<usize>) = ((32..32 + tokens).collect(), (4..4 + tokens).collect());
        let batch = [
            SequenceRequest { ids: &conditional, rows: &first, vocab: codes.clone() },
            SequenceRequest { ids: &plain, rows: &second, vocab: codes.clone() },
        ];
        c.bench_function(&format!("image step with guidance, {tokens} codes, {name}"), |b| {
            b.iter(|| black_box(context.logits(&batch).unwrap()))
        });
        let picture: Vec<u32> = (0..tokens as u32).map(|i| (i * 31) % codes.len() as u32).collect();
        c.bench_function(&format!("decode a picture of {tokens} codes, {name}"), |b| {
            b.iter(|| black_box(context.decode_image(&picture, side, side).unwrap()))
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = steps
}
criterion_main!(benches);
