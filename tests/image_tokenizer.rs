//! The image tokenizer and the resizing in front of it against the numbers of the reference implementation.
//! The model files are built here from the checkpoints' tensors, independently of the converter.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use mmada::error::Error;
use mmada::gguf::{GgmlType, Header, MetaArray, MetaValue, TensorSpec, Writer};
use mmada::image::{Fit, RgbImage, fit};
use mmada::kernels::Kernels;
use mmada::parallel::{Exec, Threads};
use mmada::vq::ImageTokenizer;
use safetensors::SafeTensors;

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder)
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data())
}

/// A model file's parts, to be changed before they are written.
struct Parts {
    metadata: HashMap<String, MetaValue>,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl Parts {
    /// The image tokenizer of a checkpoint: convolutions as [outputs, ky kx inputs] in F16, the rest in F32.
    fn of(folder: &str) -> Parts {
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(golden(folder).join("vq/config.json")).unwrap()).unwrap();
        let number = |v: &serde_json::Value| v.as_u64().unwrap() as u32;
        let numbers = |half: &str, key: &str| {
            MetaValue::Array(MetaArray::U32(json[half][key].as_array().unwrap().iter().map(number).collect()))
        };
        let z = number(&json["z_channels"]);
        let metadata = [
            ("general.architecture", MetaValue::String("mmada".into())),
            ("mmada.vq.channels", MetaValue::U32(number(&json["ch"]))),
            ("mmada.vq.z_channels", MetaValue::U32(z)),
            ("mmada.vq.encoder.channel_mult", numbers("encoder", "ch_mult")),
            ("mmada.vq.encoder.res_blocks", numbers("encoder", "num_res_blocks")),
            ("mmada.vq.decoder.channel_mult", numbers("decoder", "ch_mult")),
            ("mmada.vq.decoder.res_blocks", numbers("decoder", "num_res_blocks")),
            ("mmada.vq.norm_groups", MetaValue::U32(32)),
            ("mmada.vq.norm_epsilon", MetaValue::F32(1e-6)),
            ("mmada.image.codebook_size", MetaValue::U32(1 << z)),
        ];
        let file = fs::read(golden(folder).join("vq/model.safetensors")).unwrap();
        let checkpoint = SafeTensors::deserialize(&file).unwrap();
        let mut tensors = Vec::new();
        for (name, view) in checkpoint.tensors() {
            if !name.starts_with("quantize.") {
                tensors.push(convert(&name, view.shape(), bytemuck::pod_collect_to_vec(view.data())));
            }
        }
        Parts { metadata: metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(), tensors }
    }

    fn write(&self) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vq.gguf");
        let specs: Vec<_> = self.tensors.iter().map(|t| t.0.clone()).collect();
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut writer = Writer::create(&path, &metadata, &specs).unwrap();
        self.tensors.iter().for_each(|t| writer.write(&t.1).unwrap());
        writer.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        Model { header: Header::parse(&bytes, "vq.gguf").unwrap(), bytes }
    }
}

fn convert(name: &str, shape: &[usize], values: Vec<half::f16>) -> (TensorSpec, Vec<u8>) {
    let name = format!("vq.{name}");
    match *shape {
        [len] => {
            let bytes = values.iter().flat_map(|v| v.to_f32().to_le_bytes()).collect();
            (TensorSpec { name, dtype: GgmlType::F32, dims: vec![len] }, bytes)
        }
        [outputs, inputs, height, width] => {
            let area = height * width;
            let at = |o: usize, k: usize, i: usize| values[(o * inputs + i) * area + k];
            let bytes = (0..outputs)
                .flat_map(|o| (0..area).flat_map(move |k| (0..inputs).map(move |i| (o, k, i))))
                .flat_map(|(o, k, i)| at(o, k, i).to_le_bytes())
                .collect();
            (TensorSpec { name, dtype: GgmlType::F16, dims: vec![area * inputs, outputs] }, bytes)
        }
        _ => panic!("{name} has shape {shape:?}"),
    }
}

struct Model {
    header: Header,
    bytes: Vec<u8>,
}

impl Model {
    fn tokenizer(&self) -> Result<Option<ImageTokenizer>, Error> {
        ImageTokenizer::from_header(&self.header, &self.bytes)
    }
}

/// [c, h, w] to [h, w, c].
fn channels_last(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let [c, h, w] = *shape else { panic!("{shape:?}") };
    (0..h * w * c).map(|i| values[(i % c) * h * w + i / c]).collect()
}

fn largest_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max)
}

fn meets_the_reference(folder: &str) {
    let model = Parts::of(folder).write();
    let tokenizer = model.tokenizer().unwrap().unwrap();
    let threads = Threads::new(0).unwrap();
    let exec = Exec::new(&threads, Kernels::best(), None);
    let file = fs::read(golden(folder).join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    let mut cases = 0;
    while let Ok(pixels) = expected.tensor(&format!("vq.{cases}.pixels")) {
        let named = |what: &str| format!("vq.{cases}.{what}");
        let [_, height, width] = *pixels.shape() else { panic!("{:?}", pixels.shape()) };
        let input = channels_last(&floats(&expected, &named("pixels")), pixels.shape());
        let got = tokenizer.encode_latent(&exec, &model.bytes, &input, height, width, false).unwrap();
        // in pairs of bfloat16, where the processor is fast at them: codes are the same
        let fast = tokenizer.encode_latent(&exec, &model.bytes, &input, height, width, true).unwrap();

        let shape = expected.tensor(&named("latent")).unwrap().shape().to_vec();
        assert_eq!(shape, [tokenizer.config().z_channels, got.height, got.width]);
        let latent = channels_last(&floats(&expected, &named("latent")), &shape);
        let max = latent.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let codes: Vec<i32> = bytemuck::pod_collect_to_vec(expected.tensor(&named("codes")).unwrap().data());
        for encoded in [&got, &fast] {
            let error = largest_error(&encoded.latent, &latent) / max;
            assert!(error <= 1e-4, "{folder} latent {cases} is off by {error:e} of its maximum");
            for (i, (got, &want)) in encoded.codes.iter().zip(&codes).enumerate() {
                let here = &latent[i * shape[0]..][..shape[0]];
                let certain = here.iter().fold(0, |bits, v| bits << 1 | u32::from(v.abs() > 1e-3));
                assert_eq!(got & certain, want as u32 & certain, "{folder} code {cases}, position {i}");
            }
        }

        let codes: Vec<u32> = codes.iter().map(|&c| c as u32).collect();
        let picture = tokenizer.decode_float(&exec, &model.bytes, &codes, got.height, got.width, false).unwrap();
        let decoded = channels_last(&floats(&expected, &named("decoded")), &[3, height, width]);
        // [-1, 1] is twice as wide as the 255 steps of a pixel.
        let error = largest_error(&picture, &decoded) / 2.0 * 255.0;
        assert!(error <= 1.0, "{folder} picture {cases} is off by {error} of 255 steps");
        let relative = largest_error(&picture, &decoded) / decoded.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(relative <= 1e-4, "{folder} picture {cases} is off by {relative:e} of its maximum");

        // products in bfloat16, where the processor is fast at them: nothing that an eye could see
        let fast = tokenizer.decode_float(&exec, &model.bytes, &codes, got.height, got.width, true).unwrap();
        let squares = fast.iter().zip(&decoded).map(|(a, b)| f64::from((a - b) / 2.0 * 255.0).powi(2)).sum::<f64>();
        let error = (squares / fast.len() as f64).sqrt();
        assert!(error <= 1.0, "{folder} fast picture {cases} is off by {error} of 255 steps (root of the mean square)");

        let rgb = tokenizer.decode(&exec, &model.bytes, &codes, got.height, got.width, false).unwrap();
        for (byte, v) in rgb.as_raw().iter().zip(&decoded) {
            let want = ((v + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0;
            assert!((f32::from(*byte) - want.trunc()).abs() <= 1.0);
        }
        cases += 1;
    }
    assert!(cases > 1, "{folder} has no cases");
}

#[test]
fn the_tiny_model_encodes_and_decodes_as_the_reference_does() {
    meets_the_reference("tiny");
}

#[test]
fn the_demo_model_encodes_and_decodes_as_the_reference_does() {
    meets_the_reference("mmada-shapes");
}

#[test]
fn pictures_are_resized_to_the_byte_as_the_reference_does() {
    let file = fs::read(golden("tiny").join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(golden("tiny").join("resize_cases.json")).unwrap()).unwrap();
    assert!(!cases.is_empty());
    for (i, case) in cases.iter().enumerate() {
        let input = expected.tensor(&format!("resize.{i}.input")).unwrap();
        let [height, width, 3] = *input.shape() else { panic!("{:?}", input.shape()) };
        let image = RgbImage::from_raw(width as u32, height as u32, input.data().to_vec()).unwrap();
        let mode = if case["mode"] == "squash" { Fit::Squash } else { Fit::Crop };
        let got = fit(&image, case["size"].as_u64().unwrap() as usize, mode).unwrap();
        let want = expected.tensor(&format!("resize.{i}.output")).unwrap();
        assert_eq!(want.shape(), [got.height() as usize, got.width() as usize, 3]);
        assert!(got.as_raw() == want.data(), "case {i}, {width}x{height}, differs");
    }
}

fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let model = Parts::of("tiny").write();
    let tokenizer = model.tokenizer().unwrap().unwrap();
    let (height, width) = (36, 132); // no square
    let pixels = noise(height * width * 3);
    let mut results = Vec::new();
    for count in [1, 2, 5] {
        let threads = Threads::new(count).unwrap();
        let exec = Exec::new(&threads, Kernels::best(), None);
        let encoded = tokenizer.encode_latent(&exec, &model.bytes, &pixels, height, width, true).unwrap();
        assert_eq!((encoded.height, encoded.width), (9, 33));
        let picture = tokenizer.decode_float(&exec, &model.bytes, &encoded.codes, 9, 33, true).unwrap();
        assert_eq!(picture.len(), pixels.len());
        let bits: Vec<u32> = encoded.latent.iter().chain(&picture).map(|v| v.to_bits()).collect();
        results.push((encoded.codes, bits));
    }
    assert!(results[0] == results[1] && results[0] == results[2]);
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_a_reason() {
    let model = Parts::of("tiny").write();
    let tokenizer = model.tokenizer().unwrap().unwrap();
    let threads = Threads::new(1).unwrap();
    let exec = Exec::new(&threads, Kernels::best(), None);
    let refused = |e: Error, part: &str| {
        assert!(matches!(e, Error::InvalidArgument(_)) && e.to_string().contains(part), "{e}");
    };
    let pixels = noise(16 * 18 * 3);
    refused(tokenizer.encode_latent(&exec, &model.bytes, &pixels, 16, 18, true).unwrap_err(), "multiples of 4");
    refused(tokenizer.encode_latent(&exec, &model.bytes, &pixels, 0, 16, true).unwrap_err(), "multiples of 4");
    refused(tokenizer.encode_latent(&exec, &model.bytes, &pixels, 16, 16, true).unwrap_err(), "no picture of 16x16");
    let mut codes = vec![3u32; 12];
    refused(tokenizer.decode(&exec, &model.bytes, &codes, 3, 5, false).unwrap_err(), "12 codes");
    refused(tokenizer.decode(&exec, &model.bytes, &[], 0, 0, false).unwrap_err(), "0 codes");
    codes[7] = 256;
    refused(tokenizer.decode(&exec, &model.bytes, &codes, 3, 4, false).unwrap_err(), "code 256 at position 7");
    codes[7] = 255;
    assert_eq!(tokenizer.decode(&exec, &model.bytes, &codes, 3, 4, true).unwrap().dimensions(), (16, 12));
    refused(tokenizer.decode(&exec, &model.bytes[..1000], &codes, 3, 4, false).unwrap_err(), "not the model file's");

    let flag = AtomicBool::new(true);
    let cancelled = Exec::new(&threads, Kernels::best(), Some(&flag));
    assert!(matches!(tokenizer.decode(&cancelled, &model.bytes, &codes, 3, 4, true), Err(Error::Cancelled)));
}

#[test]
fn a_file_whose_image_tokenizer_is_damaged_is_refused_with_a_reason() {
    type Damage = fn(&mut Parts);
    fn tensor(parts: &mut Parts, name: &str) -> usize {
        parts.tensors.iter().position(|t| t.0.name == name).unwrap()
    }
    fn number(parts: &mut Parts, key: &str, value: u32) {
        parts.metadata.insert(format!("mmada.{key}"), MetaValue::U32(value));
    }
    fn numbers(parts: &mut Parts, key: &str, values: &[u32]) {
        parts.metadata.insert(format!("mmada.{key}"), MetaValue::Array(MetaArray::U32(values.to_vec())));
    }
    let cases: &[(&str, Damage)] = &[
        ("vq.encoder.mid.attn_1.k.weight is missing", |p| {
            let at = tensor(p, "vq.encoder.mid.attn_1.k.weight");
            p.tensors.remove(at);
        }),
        ("vq.decoder.norm_out.bias is missing", |p| {
            let at = tensor(p, "vq.decoder.norm_out.bias");
            p.tensors.remove(at);
        }),
        ("vq.encoder.conv_in.weight has shape [32, 27], the metadata asks for [27, 32]", |p| {
            let at = tensor(p, "vq.encoder.conv_in.weight");
            p.tensors[at].0.dims.reverse();
        }),
        ("vq.decoder.conv_out.bias is F16, not F32", |p| {
            let at = tensor(p, "vq.decoder.conv_out.bias");
            p.tensors[at].0.dtype = GgmlType::F16;
            p.tensors[at].1.truncate(6);
        }),
        ("vq.decoder.mid.attn_1.q.weight is Q4_0", |p| {
            let at = tensor(p, "vq.decoder.mid.attn_1.q.weight");
            p.tensors[at].0.dtype = GgmlType::Q4_0;
            p.tensors[at].1.truncate(64 * 2 * 18);
        }),
        ("mmada.vq.z_channels is missing", |p| drop(p.metadata.remove("mmada.vq.z_channels"))),
        ("z_channels is 40", |p| number(p, "vq.z_channels", 40)),
        ("codebook_size is 255", |p| number(p, "image.codebook_size", 255)),
        ("do not split in 0 groups", |p| number(p, "vq.norm_groups", 0)),
        ("do not split in 31 groups", |p| number(p, "vq.norm_groups", 31)),
        ("norm_epsilon is NaN", |p| {
            p.metadata.insert("mmada.vq.norm_epsilon".into(), MetaValue::F32(f32::NAN));
        }),
        ("channels", |p| number(p, "vq.channels", 0)),
        ("not within 1 to", |p| number(p, "vq.channels", u32::MAX)),
        ("has 3 entries and mmada.vq.encoder.res_blocks has 2", |p| numbers(p, "vq.encoder.res_blocks", &[1, 2])),
        ("res_blocks holds 0", |p| numbers(p, "vq.encoder.res_blocks", &[1, 0, 1])),
        ("encoder has 3 levels, the decoder has 2", |p| {
            numbers(p, "vq.decoder.res_blocks", &[1, 1]);
            numbers(p, "vq.decoder.channel_mult", &[1, 2]);
        }),
        ("mmada.vq.decoder.channel_mult is", |p| number(p, "vq.decoder.channel_mult", 1)),
    ];
    for (part, damage) in cases {
        let mut parts = Parts::of("tiny");
        damage(&mut parts);
        let error = parts.write().tokenizer().err().unwrap_or_else(|| panic!("`{part}` was not noticed"));
        let sentence = error.to_string();
        assert!(sentence.starts_with("vq.gguf: ") && sentence.contains(part), "`{sentence}` lacks `{part}`");
    }

    let mut parts = Parts::of("tiny");
    parts.metadata.retain(|key, _| !key.starts_with("mmada.vq."));
    assert!(parts.write().tokenizer().unwrap().is_none());
}
