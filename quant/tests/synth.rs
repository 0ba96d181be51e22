//! Random models: that they run, and that their sizes are those of their shapes.

use mmada::gguf::{GgmlType, Header};
use mmada::prompt::Message;
use mmada::{Context, ContextOptions, DrawRequest, ImageOptions, Model, Role, TextOptions, TextRequest};
use mmada_quantize::{Recipe, Report, Shape, SynthOptions, VqShape, synth};
use tempfile::TempDir;

fn make(options: &SynthOptions) -> mmada::Result<Report> {
    synth(options, &mut |_| {})
}

fn recipe(name: &str) -> Recipe {
    Recipe::from_name(name).unwrap()
}

/// What a file of the shape would be.
fn dry(shape: Shape, name: &str) -> Report {
    make(&SynthOptions { dry_run: true, ..SynthOptions::new(shape, "nowhere/out.gguf", recipe(name)) }).unwrap()
}

fn text(steps: usize) -> TextOptions {
    TextOptions { gen_length: 16, steps, block_length: 16, ..Default::default() }
}

#[test]
fn a_tiny_model_answers_and_draws() {
    let folder = TempDir::new().unwrap();
    for name in ["F16", "Q4_K_M"] {
        let file = folder.path().join("tiny.gguf");
        let report = make(&SynthOptions::new(Shape::tiny(), &file, recipe(name))).unwrap();
        assert_eq!(report.file_bytes, std::fs::metadata(&file).unwrap().len());
        let model = Model::open(&file).unwrap();
        assert!(model.has_images());
        assert_eq!(model.image_size(), 8);
        let context = Context::new(&model, ContextOptions { threads: 1, ..Default::default() }).unwrap();

        let logits = context.hidden_states(&[5, 700, 300, 1023]).unwrap();
        let states: Vec<f32> = logits.into_iter().flatten().collect();
        let size = (states.iter().map(|x| x * x).sum::<f32>() / states.len() as f32).sqrt();
        assert!((0.2..20.0).contains(&size), "states of size {size}");

        let messages = vec![Message::new(Role::User, "What is the time?")];
        let request = TextRequest { messages, image: None, squash: false, thinking: false, options: text(4) };
        let mut answer = context.text(request).unwrap();
        while !answer.is_done() {
            answer.step().unwrap();
        }
        answer.text().unwrap();

        let image = ImageOptions { steps: 3, seed: 5, max_text_len: 40, ..Default::default() };
        let prompt = "the cat".into();
        let request = DrawRequest { prompt, think: false, width: 8, height: 8, count: 1, text: text(4), image };
        let mut drawing = context.draw(request).unwrap();
        while !drawing.is_done() {
            drawing.step().unwrap();
        }
        let picture = drawing.image(0).unwrap();
        assert_eq!((picture.width(), picture.height()), (8, 8));
    }
}

#[test]
fn the_bytes_depend_on_the_seed_and_on_nothing_else() {
    let folder = TempDir::new().unwrap();
    let bytes = |seed: u64, threads: usize| {
        let file = folder.path().join("m.gguf");
        make(&SynthOptions { seed, threads, ..SynthOptions::new(Shape::tiny(), &file, recipe("Q8_0")) }).unwrap();
        std::fs::read(file).unwrap()
    };
    let one = bytes(1, 1);
    assert!(one == bytes(1, 3));
    assert!(one != bytes(2, 1));
}

#[test]
fn few_rows_that_differ_come_again_in_a_file_of_the_same_size() {
    let folder = TempDir::new().unwrap();
    let (plain, few) = (folder.path().join("plain.gguf"), folder.path().join("few.gguf"));
    make(&SynthOptions::new(Shape::tiny(), &plain, recipe("Q8_0"))).unwrap();
    // the embedding has 1024 rows: the last time only some of them come
    let options = SynthOptions::new(Shape::tiny(), &few, recipe("Q8_0"));
    let mut last = (0, 1);
    synth(&SynthOptions { distinct_rows: Some(100), ..options }, &mut |event| {
        if let mmada_quantize::Progress::Bytes { done, total, .. } = event {
            last = (done.max(last.0), total);
        }
    })
    .unwrap();
    let [plain, few] = [plain, few].map(|file| std::fs::read(file).unwrap());
    assert_eq!(plain.len(), few.len());
    let header = Header::parse(&few, "few.gguf").unwrap();
    let tensor = header.tensor("token_embd.weight").unwrap();
    assert_eq!((tensor.dtype, tensor.cols(), tensor.rows()), (GgmlType::Q8_0, 256, 1024));
    let row = |file: &[u8], row: usize| tensor.data(file)[row * 272..][..272].to_vec();
    assert!((0..1024).all(|r| row(&few, r) == row(&plain, r % 100)));
    assert_ne!(row(&few, 0), row(&few, 99));
    assert!(last.0 <= last.1, "{last:?}");
}

#[test]
fn text_only_models_have_no_image_codes() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("text.gguf");
    let shape = Shape { codes: 0, vq: None, vocab: 512, kv_heads: 4, layers: 1, ..Shape::tiny() };
    make(&SynthOptions::new(shape, &file, GgmlType::BF16)).unwrap();
    let model = Model::open(&file).unwrap();
    assert!(!model.has_images());
    assert_eq!(model.tokenizer().unwrap().len(), 512);
    // Codes without an image tokenizer, too.
    let shape = Shape { vq: None, ..Shape::tiny() };
    make(&SynthOptions::new(shape, &file, GgmlType::BF16)).unwrap();
    let model = Model::open(&file).unwrap();
    assert_eq!((model.vocabulary().codes, model.has_images()), (256, false));
}

#[test]
fn the_8b_shape_has_the_sizes_that_the_recipes_promise() {
    const GIB: f64 = (1u64 << 30) as f64;
    let f16 = dry(Shape::mmada_8b(), "F16");
    assert_eq!(f16.weights / 1_000_000, 8178, "million weights");
    assert!(dry(Shape::mmada_8b(), "Q4_K_M").file_bytes as f64 <= 5.4 * GIB);
    // From the largest to the smallest, in the order in which the recipes stand.
    let writable = mmada_quantize::recipe::RECIPES.iter().filter(|r| mmada::tensor::can_quantize(r.base()));
    let sizes: Vec<(&str, u64)> = writable
        .filter(|r| r.name() != "BF16")
        .map(|r| (r.name(), dry(Shape::mmada_8b(), r.name()).file_bytes))
        .collect();
    assert!(sizes.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{sizes:?}");
    for (name, limit) in [("Q8_0", 8.2), ("Q6_K", 6.9), ("Q5_K_M", 6.2), ("Q4_K_S", 5.0)] {
        let size = dry(Shape::mmada_8b(), name).file_bytes as f64 / GIB;
        assert!(size < limit, "{name}: {size:.2} GiB");
    }
}

#[test]
fn shapes_that_no_model_can_have_are_refused_by_their_option() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("m.gguf");
    let tiny = Shape::tiny;
    let vq = |vq: VqShape| Shape { vq: Some(vq), ..tiny() };
    let of = || tiny().vq.unwrap();
    for (shape, word) in [
        (Shape { layers: 0, ..tiny() }, "--layers"),
        (Shape { d_model: 254, ..tiny() }, "--d-model"),
        (Shape { heads: 256, ..tiny() }, "--d-model"),
        (Shape { kv_heads: 3, ..tiny() }, "--kv-heads"),
        (Shape { vocab: 300, ..tiny() }, "--vocab"),
        (Shape { vocab: usize::MAX, ..tiny() }, "--vocab"),
        (Shape { codes: 100, ..tiny() }, "--codes"),
        (Shape { codes: 0, ..tiny() }, "--codes"),
        (Shape { tokens: 15, ..tiny() }, "--tokens"),
        (vq(VqShape { channels: 40, ..of() }), "--vq-channels"),
        (vq(VqShape { encoder_mult: vec![1], ..of() }), "levels"),
        (vq(VqShape { decoder_blocks: vec![1, 0], ..of() }), "--vq-blocks"),
    ] {
        let error = make(&SynthOptions::new(shape, &file, GgmlType::F16)).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    // Larger than any disk.
    let huge = Shape { layers: 1 << 14, d_model: 1 << 14, heads: 128, kv_heads: 128, d_ff: 1 << 22, ..tiny() };
    let error = make(&SynthOptions::new(huge, &file, GgmlType::F32)).unwrap_err().to_string();
    assert!(error.contains("the disk has only"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn rows_that_no_block_fills_are_noted() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("odd.gguf");
    let shape = Shape { d_model: 96, heads: 6, kv_heads: 3, d_ff: 100, vq: None, ..Shape::tiny() };
    let mut notes = Vec::new();
    synth(&SynthOptions::new(shape, &file, recipe("Q4_K_M")), &mut |event| {
        if let mmada_quantize::Progress::Note(note) = event {
            notes.push(note.to_owned());
        }
    })
    .unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let header = Header::parse(&bytes, "odd.gguf").unwrap();
    let dtype = |name: &str| header.tensor(name).unwrap().dtype;
    assert_eq!(dtype("blk.0.attn_q.weight"), GgmlType::Q5_0);
    assert_eq!(dtype("blk.0.ffn_down.weight"), GgmlType::F16);
    assert_eq!(dtype("output.weight"), GgmlType::Q8_0);
    assert!(notes.iter().any(|n| n.contains("blk.0.attn_q.weight") && n.contains("Q5_0")), "{notes:?}");
}
