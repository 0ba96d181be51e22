//! The image tokenizer, and the resizing before it.

use mmada::image::{Fit, RgbImage, fit, from_unit};
use mmada::kernels::Kernels;

use super::api;
use super::cases::ResizeCase;
use super::compare::{channels_last, close, same_bits};
use super::fixture::{Fixture, fixtures};
use super::tensors::{Tensor, Tensors};

/// Of a latent's maximum.
const LATENT_TOLERANCE: f32 = 1e-4;
/// Latents nearer to 0 may round to either bit.
const UNSURE: f32 = 1e-3;

/// The names of a folder's expected pictures, such as `vq.0`.
fn cases(fixture: &Fixture) -> Vec<String> {
    let cases = fixture.numbered("vq", "codes");
    if cases.is_empty() {
        fixture.skip("no vq.0.codes");
    } else if !fixture.model().has_images() {
        fixture.skip("no image tokenizer");
        return Vec::new();
    }
    cases
}

/// [channels, height, width] with the channels last, and the height and width.
fn picture(tensor: &Tensor<f32>) -> (Vec<f32>, usize, usize) {
    let &[channels, height, width] = tensor.shape.as_slice() else { panic!("shape {:?}", tensor.shape) };
    (channels_last(&tensor.data, channels), height, width)
}

#[test]
fn pictures_have_the_golden_latents_and_codes() {
    for fixture in fixtures() {
        for case in cases(fixture) {
            let (pixels, height, width) = picture(&fixture.tensor(Tensors::f32s, &format!("{case}.pixels")));
            let (latent, rows, cols) = picture(&fixture.tensor(Tensors::f32s, &format!("{case}.latent")));
            let codes = fixture.tensor(Tensors::ids, &format!("{case}.codes")).data;
            let channels = latent.len() / codes.len();
            for kernels in Kernels::available() {
                let what = format!("{} {case} {}", fixture.name, kernels.name());
                let encoded = api::context(fixture, 2, kernels).encode_latent(&pixels, height, width).unwrap();
                assert_eq!((encoded.height, encoded.width), (rows, cols), "{what}");
                close(&format!("{what} latent"), &encoded.latent, &latent, LATENT_TOLERANCE);
                for (at, (got, expected)) in encoded.codes.iter().zip(&codes).enumerate() {
                    let position = &latent[at * channels..][..channels];
                    let sure = position.iter().fold(0, |bits, v| bits << 1 | u32::from(v.abs() > UNSURE));
                    assert_eq!(got & sure, expected & sure, "{what}: code {at}");
                }
            }
            let [one, three] = [1, 3].map(|threads| {
                api::context(fixture, threads, Kernels::best()).encode_latent(&pixels, height, width).unwrap().latent
            });
            same_bits(&format!("{} {case} latent, 1 and 3 threads", fixture.name), &one, &three);
        }
    }
}

#[test]
fn codes_give_the_golden_pixels() {
    for fixture in fixtures() {
        for case in cases(fixture) {
            let (_, rows, cols) = picture(&fixture.tensor(Tensors::f32s, &format!("{case}.latent")));
            let codes = fixture.tensor(Tensors::ids, &format!("{case}.codes")).data;
            let (expected, height, width) = picture(&fixture.tensor(Tensors::f32s, &format!("{case}.decoded")));
            for kernels in Kernels::available() {
                let what = format!("{} {case} {}", fixture.name, kernels.name());
                let pixels = api::context(fixture, 2, kernels).decode_float(&codes, cols, rows).unwrap();
                assert_eq!(pixels.len(), expected.len(), "{what}");
                // [-1, 1] becomes [0, 1]: a step of a byte is 2/255 here.
                let worst = pixels.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 2.0 / 255.0 && !pixels.iter().any(|v| v.is_nan()), "{what}: off by {worst}");
                let (got, expected) = (from_unit(&pixels, width, height).unwrap(), from_unit(&expected, width, height));
                let steps = got.iter().zip(expected.unwrap().iter()).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(steps <= Some(1), "{what}: bytes differ by {steps:?}");
            }
            let [one, three] = [1, 3].map(|threads| {
                api::context(fixture, threads, Kernels::best()).decode_float(&codes, cols, rows).unwrap()
            });
            same_bits(&format!("{} {case} pixels, 1 and 3 threads", fixture.name), &one, &three);
        }
    }
}

#[test]
fn pictures_are_resized_as_the_golden_ones_to_the_last_bit() {
    for fixture in fixtures() {
        let cases = fixture.cases::<ResizeCase>("resize_cases.json");
        if cases.is_empty() || !fixture.has_expected() {
            continue;
        }
        for (i, case) in cases.into_iter().enumerate() {
            let input = fixture.tensor(Tensors::bytes, &format!("resize.{i}.input"));
            let expected = fixture.tensor(Tensors::bytes, &format!("resize.{i}.output")).data;
            let mode = match case.mode.as_str() {
                "crop" => Fit::Crop,
                "squash" => Fit::Squash,
                other => panic!("no such mode: {other}"),
            };
            let (height, width) = (input.shape[0] as u32, input.shape[1] as u32);
            let picture = RgbImage::from_raw(width, height, input.data).unwrap();
            let got = fit(&picture, case.size, mode).unwrap().into_raw();
            assert_eq!(got, expected, "{} resize {i}: {width}x{height} to {}", fixture.name, case.size);
        }
    }
}
