//! Converting whole checkpoints and reading the files back.

mod support;

use mmada::gguf::GgmlType;
use mmada::tensor::quantize;
use mmada::{Context, ContextOptions, Model};
use mmada_quantize::{ConvertOptions, Override, Progress, TensorRule, convert};
use support::{Fixture, Sizes, TYPES, Tensors, backbone_name, golden, read_tensors};

/// The type of a backbone matrix of the golden checkpoint, whose rows fill every kind of block.
fn expected_type(wanted: GgmlType, name: &str) -> GgmlType {
    let outer = matches!(name, "token_embd.weight" | "output.weight");
    if outer && !wanted.is_float() { GgmlType::Q8_0 } else { wanted }
}

#[test]
fn every_backbone_tensor_is_there_in_its_type_with_its_values() {
    let source = read_tensors(&golden());
    for dtype in TYPES {
        let out = Fixture::tiny().convert(dtype);
        for (name, tensor) in &source {
            let target = backbone_name(name);
            let info = out.header.tensor(&target).unwrap_or_else(|| panic!("{dtype}: no {target}"));
            let reversed: Vec<usize> = tensor.shape.iter().rev().copied().collect();
            assert_eq!(info.dims, reversed, "{target}");
            let values = tensor.values();
            if tensor.shape.len() == 1 {
                assert_eq!(info.dtype, GgmlType::F32, "{target}");
                assert_eq!(out.values(&target), values, "{target}");
                continue;
            }
            assert_eq!(info.dtype, expected_type(dtype, &target), "{target}");
            let mut bytes = vec![0; info.range.len()];
            quantize(info.dtype, &values, &mut bytes).unwrap();
            assert!(info.data(&out.bytes) == bytes, "{dtype}: {target}");
            if matches!(dtype, GgmlType::F32 | GgmlType::BF16) {
                assert_eq!(out.values(&target), values, "{target} is bf16 and loses nothing");
            }
        }
        let vq = read_tensors(&golden().join("vq")).keys().filter(|name| !name.starts_with("quantize.")).count();
        assert_eq!(out.header.tensors.len(), source.len() + vq);
        assert_eq!(out.report.tensors, source.len() + vq);
        assert_eq!(out.report.file_bytes, out.bytes.len() as u64);
        assert!(out.notes.is_empty(), "{:?}", out.notes);
    }
}

#[test]
fn the_image_tokenizer_is_f16_with_its_convolutions_reordered() {
    let source = read_tensors(&golden().join("vq"));
    for dtype in [GgmlType::F32, GgmlType::Q4_0] {
        let out = Fixture::tiny().convert(dtype);
        for (name, tensor) in source.iter().filter(|(name, _)| !name.starts_with("quantize.")) {
            let target = format!("vq.{name}");
            let (values, written) = (tensor.values(), out.values(&target));
            let &[outputs, inputs, height, width] = tensor.shape.as_slice() else {
                assert_eq!(out.dtype(&target), GgmlType::F32, "{target}");
                assert_eq!(written, values, "{target}");
                continue;
            };
            assert_eq!(out.dtype(&target), GgmlType::F16, "{target}");
            let dims = &out.header.tensor(&target).unwrap().dims;
            assert_eq!(dims, &[height * width * inputs, outputs], "{target}");
            for o in 0..outputs {
                for i in 0..inputs {
                    for y in 0..height {
                        for x in 0..width {
                            let from = values[((o * inputs + i) * height + y) * width + x];
                            let to = written[((o * height + y) * width + x) * inputs + i];
                            assert_eq!(from, to, "{target} [{o}, {i}, {y}, {x}]");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_metadata_says_everything_about_the_model() {
    let out = Fixture::tiny().convert(GgmlType::Q4_K);
    let h = &out.header;
    assert_eq!(h.str("general.architecture").unwrap(), "mmada");
    assert_eq!(h.str("general.name").unwrap(), "fixture");
    for (key, n) in [
        ("general.file_type", 14),
        ("general.alignment", 32),
        ("mmada.block_count", 2),
        ("mmada.context_length", 4096),
        ("mmada.embedding_length", 256),
        ("mmada.feed_forward_length", 512),
        ("mmada.vocab_size", 768),
        ("mmada.attention.head_count", 4),
        ("mmada.attention.head_count_kv", 4),
        ("mmada.attention.key_length", 64),
        ("mmada.rope.dimension_count", 64),
        ("mmada.image.code_offset", 498),
        ("mmada.image.codebook_size", 256),
        ("mmada.image.token_count", 16),
        ("mmada.token.bos", 480),
        ("mmada.token.eos", 481),
        ("mmada.token.pad", 482),
        ("mmada.token.soi", 483),
        ("mmada.token.eoi", 484),
        ("mmada.token.sov", 485),
        ("mmada.token.eov", 486),
        ("mmada.token.t2i", 487),
        ("mmada.token.mmu", 488),
        ("mmada.token.t2v", 489),
        ("mmada.token.v2v", 490),
        ("mmada.token.lvg", 491),
        ("mmada.token.ipad", 492),
        ("mmada.token.r2i", 493),
        ("mmada.token.start_header", 494),
        ("mmada.token.end_header", 495),
        ("mmada.token.eot", 496),
        ("mmada.token.mask", 497),
        ("mmada.vq.channels", 32),
        ("mmada.vq.z_channels", 8),
        ("mmada.vq.norm_groups", 32),
        ("mmada.sampling.text.gen_length", 512),
        ("mmada.sampling.draw.steps", 15),
        ("mmada.sampling.draw_think.text_len", 512),
        ("tokenizer.ggml.bos_token_id", 480),
        ("tokenizer.ggml.eos_token_id", 481),
        ("tokenizer.ggml.mask_token_id", 497),
        ("tokenizer.ggml.padding_token_id", 481),
    ] {
        assert_eq!(h.usize(key).unwrap(), n, "{key}");
    }
    assert!(!h.bool("mmada.attention.causal").unwrap());
    assert!(!h.bool("tokenizer.ggml.add_bos_token").unwrap());
    assert_eq!(h.f32("mmada.attention.layer_norm_rms_epsilon").unwrap(), 1e-5);
    assert_eq!(h.f32("mmada.rope.freq_base").unwrap(), 500000.0);
    assert_eq!(h.f32("mmada.vq.norm_epsilon").unwrap(), 1e-6);
    assert_eq!(h.str("mmada.sampling.draw.schedule").unwrap(), "cosine");
    for (key, list) in [
        ("mmada.vq.encoder.channel_mult", [1, 2, 2]),
        ("mmada.vq.encoder.res_blocks", [1, 2, 1]),
        ("mmada.vq.decoder.channel_mult", [1, 1, 2]),
        ("mmada.vq.decoder.res_blocks", [2, 1, 1]),
    ] {
        assert_eq!(h.usizes(&out.bytes, key).unwrap(), list, "{key}");
    }
    let json = std::fs::read_to_string(golden().join("tokenizer.json")).unwrap();
    assert_eq!(h.str("tokenizer.huggingface.json").unwrap(), json, "a complete tokenizer is kept as it is");
    assert_eq!(h.str("tokenizer.chat_template").unwrap(), mmada::prompt::MMADA_CHAT_TEMPLATE);
    assert_eq!(h.str("tokenizer.ggml.model").unwrap(), "gpt2");
    let tokens = h.strings(&out.bytes, "tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens[0], tokens[496]), (498, "!", "<|eot_id|>"));
    assert_eq!(h.usizes(&out.bytes, "tokenizer.ggml.token_type").unwrap()[495..], [3, 3, 3]);
    assert_eq!(h.strings(&out.bytes, "tokenizer.ggml.merges").unwrap()[0], "Ġ a");
}

#[test]
fn the_checkpoints_sampling_defaults_are_kept() {
    let fixture = Fixture::tiny();
    fixture.write("mmada_sampling.json", r#"{"draw": {"steps": 12, "guidance_scale": 3}, "text": {"steps": 8}}"#);
    let out = fixture.convert(GgmlType::F16);
    assert_eq!(out.header.usize("mmada.sampling.draw.steps").unwrap(), 12);
    assert_eq!(out.header.f32("mmada.sampling.draw.guidance_scale").unwrap(), 3.0);
    assert_eq!(out.header.usize("mmada.sampling.text.steps").unwrap(), 8);
    assert_eq!(out.header.usize("mmada.sampling.text_think.steps").unwrap(), 256);
}

#[test]
fn a_dry_run_tells_of_every_tensor_and_of_the_size_and_writes_nothing() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options(GgmlType::Q4_K);
    options.overrides = vec![Override::parse("general.author=str:nobody").unwrap()];
    let told = |options: &ConvertOptions| {
        let mut lines = Vec::new();
        let report = convert(options, &mut |event| {
            if let Progress::Tensor(line) = event {
                lines.push((line.spec.clone(), line.from, line.bytes));
            }
        });
        (lines, report.unwrap().file_bytes)
    };
    options.dry_run = true;
    let (lines, bytes) = told(&options);
    assert!(!fixture.output().exists() && !lines.is_empty());
    options.dry_run = false;
    assert_eq!(told(&options), (lines, bytes));
    assert_eq!(std::fs::metadata(fixture.output()).unwrap().len(), bytes);
}

#[test]
fn metadata_is_changed_as_asked_for_and_keeps_its_type() {
    let fixture = Fixture::tiny();
    let mut options = fixture.options(GgmlType::F16);
    let change = |text: &str| Override::parse(text).unwrap();
    options.overrides = vec![change("general.name=str:Another"), change("mmada.test=int:7")];
    let out = fixture.convert_with(&options);
    assert_eq!(out.header.str("general.name").unwrap(), "Another");
    assert_eq!(out.header.u32("mmada.test").unwrap(), 7);
    let fixture = Fixture::tiny();
    let mut options = fixture.options(GgmlType::F16);
    options.overrides = vec![change("general.name=int:5")];
    assert!(fixture.refusal(&options).contains("general.name"));
}

#[test]
fn the_output_bytes_depend_on_neither_threads_nor_sharding() {
    let (sharded, single) = (Fixture::tiny(), Fixture::tiny());
    single.edit_backbone(|_| {});
    for dtype in [GgmlType::Q4_K, GgmlType::BF16] {
        let mut options = sharded.options(dtype);
        options.threads = 1;
        let one = sharded.convert_with(&options).bytes;
        options.threads = 5;
        assert!(sharded.convert_with(&options).bytes == one, "threads");
        assert!(single.convert(dtype).bytes == one, "one file");
    }
}

#[test]
fn odd_sizes_fall_back_to_types_whose_blocks_fit_and_say_so() {
    // Rows of 96 fill blocks of 32, rows of 100 none; 512 fill the large blocks.
    let sizes = Sizes { layers: 2, d: 96, heads: 6, kv_heads: 2, mlp: 100, rows: 754, tied: false };
    let fixture = Fixture::of_sizes(&sizes);
    let out = fixture.convert(GgmlType::Q4_K);
    assert_eq!(out.header.usize("mmada.attention.head_count_kv").unwrap(), 2);
    assert_eq!(out.header.tensor("blk.1.attn_k.weight").unwrap().dims, [96, 32]);
    assert_eq!(out.dtype("blk.0.attn_q.weight"), GgmlType::Q5_0);
    assert_eq!(out.dtype("blk.0.ffn_down.weight"), GgmlType::F16);
    let said = |tensor: &str, dtype: &str| out.notes.iter().any(|n| n.contains(tensor) && n.contains(dtype));
    assert!(said("blk.0.attn_q.weight and 11 more", "Q5_0"), "{:?}", out.notes);
    assert!(said("blk.0.ffn_down.weight and 1 more", "F16"), "{:?}", out.notes);
    assert!(out.notes.iter().any(|n| n.contains("--vq")), "no image tokenizer: {:?}", out.notes);
    assert!(!out.report.has_images && out.header.get("mmada.vq.channels").is_none());
    // Image codes are part of the vocabulary all the same.
    assert_eq!(out.header.usize("mmada.image.code_offset").unwrap(), 498);
    check_values(&fixture, &out, 0.07);
    let out = fixture.convert(GgmlType::Q4_0);
    assert_eq!(out.dtype("blk.0.attn_q.weight"), GgmlType::Q4_0);
    assert_eq!(out.dtype("token_embd.weight"), GgmlType::Q8_0);
    check_values(&fixture, &out, 0.2);
}

#[test]
fn tied_weights_have_no_output_matrix() {
    let fixture = Fixture::of_sizes(&Sizes { layers: 1, d: 64, heads: 2, kv_heads: 1, mlp: 32, rows: 754, tied: true });
    let out = fixture.convert(GgmlType::F32);
    assert!(out.header.tensor("output.weight").is_none());
    assert!(out.header.bool("mmada.weight_tying").unwrap());
    check_values(&fixture, &out, 0.0);
}

/// Every tensor is within `tolerance` of the source; all weights are between -1 and 1.
fn check_values(fixture: &Fixture, out: &support::Output, tolerance: f32) {
    let source: Tensors = read_tensors(fixture.dir.path());
    for (name, tensor) in source {
        let target = backbone_name(&name);
        let (values, written) = (tensor.values(), out.values(&target));
        assert_eq!(values.len(), written.len());
        let worst = values.iter().zip(&written).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{target}: off by {worst}");
    }
}

#[test]
fn tensors_that_no_one_uses_are_left_out_and_named() {
    let fixture = Fixture::tiny();
    fixture.edit_backbone(|t| drop(t.insert("model.rotary.inv_freq".into(), support::Random(1).tensor(&[3]))));
    let out = fixture.convert(GgmlType::F16);
    assert!(out.notes.iter().any(|n| n.contains("model.rotary.inv_freq")), "{:?}", out.notes);
    assert!(out.bytes == Fixture::tiny().convert(GgmlType::F16).bytes);
}

#[test]
fn the_image_tokenizer_may_lie_elsewhere_and_codes_may_be_moved() {
    let (fixture, elsewhere) = (Fixture::tiny(), Fixture::tiny());
    std::fs::remove_dir_all(fixture.path("vq")).unwrap();
    let mut options = fixture.options(GgmlType::Q8_0);
    options.vq = Some(elsewhere.path("vq"));
    let out = fixture.convert_with(&options);
    assert!(out.bytes == elsewhere.convert(GgmlType::Q8_0).bytes);
    options.image_code_offset = Some(512);
    options.chat_template = Some(fixture.path("own.jinja"));
    fixture.write("own.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let out = fixture.convert_with(&options);
    assert_eq!(out.header.usize("mmada.image.code_offset").unwrap(), 512);
    assert!(out.header.str("tokenizer.chat_template").unwrap().contains("m.content"));
}

#[test]
fn a_text_only_checkpoint_keeps_its_own_chat_template() {
    let sizes = Sizes { layers: 1, d: 64, heads: 2, kv_heads: 2, mlp: 32, rows: 512, tied: false };
    let fixture = Fixture::of_sizes(&sizes);
    fixture.edit("config.json", |c| {
        c["model_type"] = "llada".into();
        c.as_object_mut().unwrap().retain(|key, _| !key.starts_with("codebook") && !key.starts_with("num_vq"));
    });
    let out = fixture.convert(GgmlType::BF16);
    assert!(out.header.get("mmada.image.code_offset").is_none());
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden().join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(out.header.str("tokenizer.chat_template").unwrap(), config["chat_template"].as_str().unwrap());
    assert!(out.notes.is_empty(), "{:?}", out.notes);
}

#[test]
fn a_checkpoint_converted_to_parts_with_an_8_bit_image_tokenizer_sees_and_draws_nearly_as_the_whole_one() {
    let shapes = golden().with_file_name("mmada-shapes");
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    convert(&ConvertOptions::new(&shapes, &whole, GgmlType::F16), &mut |_| {}).unwrap();
    let mut options = ConvertOptions::new(&shapes, folder.path().join("split.gguf"), GgmlType::F16);
    options.split_max_size = Some(4_000_000);
    options.types.tensor_types = vec![TensorRule::parse(r"^vq\.=q8_0").unwrap()];
    let mut notes = Vec::new();
    let report = convert(&options, &mut |progress| {
        if let Progress::Note(note) = progress {
            notes.push(note.to_owned());
        }
    });
    let report = report.unwrap();
    assert!(report.files.len() > 2 && report.files.iter().all(|file| file.is_file()), "{report:?}");
    let sizes: u64 = report.files.iter().map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(sizes, report.file_bytes);
    assert!(notes.iter().any(|note| note.contains("vq.encoder.conv_in.weight is stored as F16")), "{notes:?}");

    let contexts = [&whole, &report.files[1]]
        .map(|file| Context::new(&Model::open(file).unwrap(), ContextOptions::default()).unwrap());
    let small = contexts[1].model().header().tensors.iter().filter(|t| t.name.starts_with("vq."));
    assert!(small.filter(|t| t.dtype == GgmlType::Q8_0).count() > 20);
    let codes: Vec<u32> = (0..64u32).map(|i| i.wrapping_mul(2_654_435_761) >> 7 & 255).collect();
    let [exact, rounded] = [0, 1].map(|i| contexts[i].decode_image(&codes, 8, 8).unwrap());
    let difference: i64 =
        exact.as_raw().iter().zip(rounded.as_raw()).map(|(a, b)| (i64::from(*a) - i64::from(*b)).abs()).sum();
    let mean = difference as f64 / exact.as_raw().len() as f64;
    assert!(mean > 0.0 && mean < 2.0, "the pixels differ by {mean} of 255");
    let [exact, rounded] = [0, 1].map(|i| contexts[i].encode_image(&exact).unwrap());
    let same = exact.iter().zip(&rounded).filter(|(a, b)| a == b).count();
    assert!(same >= 60, "{same} of 64 codes are the same");
}
