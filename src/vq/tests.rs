//! The layers against plain references on random odd sizes.

use super::attention::Attention;
use super::conv::Convolution;
use super::features::{Features, Scratch};
use super::norm::{Norm, group_norm};
use super::run::Run;
use super::weights::ConvWeights;
use super::{Config, Cost, ImageTokenizer, Levels};
use crate::gguf::{GgmlType, Header, MetaArray, MetaValue, TensorSpec, Writer};
use crate::kernels::Kernels;
use crate::kernels::conv::{Precision, Sampling};
use crate::memory::Budget;
use crate::parallel::{Exec, Threads};

/// Random numbers in about [-1, 1]; the same for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / 8_388_608.0 - 1.0
    }
    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
    fn features(&mut self, height: usize, width: usize, channels: usize) -> Features {
        Features { height, width, channels, data: self.floats(height * width * channels), sums: None }
    }
}

/// A file that holds F32 tensors by name, dims in ggml's order.
fn file(metadata: &[(&str, MetaValue)], tensors: &[(String, Vec<usize>, Vec<f32>)]) -> (Header, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vq.gguf");
    let spec = |t: &(String, Vec<usize>, Vec<f32>)| TensorSpec {
        name: format!("vq.{}", t.0),
        dtype: GgmlType::F32,
        dims: t.1.clone(),
    };
    let specs: Vec<_> = tensors.iter().map(spec).collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    let mut writer = Writer::create(&path, &metadata, &specs).unwrap();
    tensors.iter().for_each(|t| writer.write(bytemuck::cast_slice(&t.2)).unwrap());
    writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (Header::parse(&bytes, "vq.gguf").unwrap(), bytes)
}

fn swish(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Seven loops. `at` is the input with zeros around it, upsampled where asked for.
fn naive(x: &Features, norm: Option<&Norm>, w: &[f32], bias: &[f32], kernel: usize, sampling: Sampling) -> Vec<f64> {
    let (h, wd, c) = (x.height as isize, x.width as isize, x.channels);
    let value = |row: isize, column: isize, ch: usize| {
        if row < 0 || column < 0 || row >= h || column >= wd {
            return 0.0;
        }
        let v = f64::from(x.data[(row * wd + column) as usize * c + ch]);
        norm.map_or(v, |n| swish(v * f64::from(n.scale[ch]) + f64::from(n.shift[ch])))
    };
    let (out_h, out_w, stride, pad) = match sampling {
        Sampling::Same => (h, wd, 1, (kernel / 2) as isize),
        Sampling::Down => (h / 2, wd / 2, 2, 0),
        Sampling::Up => (2 * h, 2 * wd, 1, 1),
    };
    let mut out = Vec::new();
    for oy in 0..out_h {
        for ox in 0..out_w {
            for (o, b) in bias.iter().enumerate() {
                let mut sum = f64::from(*b);
                for ky in 0..kernel {
                    for kx in 0..kernel {
                        let (iy, ix) = (oy * stride + ky as isize - pad, ox * stride + kx as isize - pad);
                        let (iy, ix) =
                            if sampling == Sampling::Up { (iy.div_euclid(2), ix.div_euclid(2)) } else { (iy, ix) };
                        for ch in 0..c {
                            let weight = w[((o * kernel + ky) * kernel + kx) * c + ch];
                            sum += f64::from(weight) * value(iy, ix, ch);
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let max = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= tolerance * max, "element {i}: {g} is not {w}, off by {error:e} of {max}");
    }
}

/// Computes a convolution of random input both ways, stored and added, on every instruction set.
fn check_conv(sides: (usize, usize), channels: (usize, usize), kernel: usize, sampling: Sampling, normed: bool) {
    let threads = Threads::new(3).unwrap();
    let mut random = Random(0x9e37_79b9 + (sides.0 * 31 + sides.1) as u64);
    let x = random.features(sides.0, sides.1, channels.0);
    let window = kernel * kernel * channels.0;
    let (w, bias) = (random.floats(window * channels.1), random.floats(channels.1));
    let norm = Norm { scale: random.floats(channels.0), shift: random.floats(channels.0), swish: true };
    let norm = normed.then_some(&norm);
    let tensors = [
        ("c.weight".to_owned(), vec![window, channels.1], w.clone()),
        ("c.bias".to_owned(), vec![channels.1], bias.clone()),
    ];
    let (header, bytes) = file(&[], &tensors);
    let weights = ConvWeights::find(&header, "c", kernel, channels.0, channels.1).unwrap();
    let want = naive(&x, norm, &w, &bias, kernel, sampling);
    for kernels in Kernels::available() {
        let exec = Exec::new(&threads, kernels, None);
        let convolution = Convolution { exec: &exec, weights: &weights, x: &x, norm, sampling };
        // what rounding to bfloat16 (2^-9 of a factor) and to two of them makes is a matter of chance
        for (precision, tolerance) in PRECISIONS {
            let mut scratch = Scratch::default();
            scratch.precision = precision;
            let got = convolution.store(&bytes, &mut scratch).unwrap();
            assert_close(&got.data, &want, tolerance);
            assert_sums(&got);

            let mut sum = random.features(got.height, got.width, got.channels);
            let want: Vec<f64> = want.iter().zip(&sum.data).map(|(w, s)| w + f64::from(*s)).collect();
            convolution.add_to(&mut sum, &bytes, &mut scratch).unwrap();
            assert_close(&sum.data, &want, tolerance);
            assert_sums(&sum);
        }
    }
}

/// And how far results may be from the definition, as a part of the largest.
const PRECISIONS: [(Precision, f64); 3] =
    [(Precision::Exact, 3e-6), (Precision::Split, 2e-5), (Precision::Bf16, 1.5e-2)];

/// Of every channel, and behind them those of the squares.
fn sums(x: &Features) -> Vec<f64> {
    let mut sums = vec![0.0; 2 * x.channels];
    for pixel in x.data.chunks_exact(x.channels) {
        for (c, v) in pixel.iter().map(|v| f64::from(*v)).enumerate() {
            sums[c] += v;
            sums[x.channels + c] += v * v;
        }
    }
    sums
}

/// The sums that a convolution took are those of its results.
fn assert_sums(y: &Features) {
    let sums = y.sums.as_ref().expect("convolutions take sums");
    assert_eq!(sums.len(), 2 * y.channels);
    for c in 0..y.channels {
        let values = y.data[c..].iter().step_by(y.channels).map(|v| f64::from(*v));
        let (sum, size) = values.clone().fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
        let square: f64 = values.map(|v| v * v).sum();
        assert!((sums[c] - sum).abs() <= 1e-6 * size, "sum {c}: {} is not {sum}", sums[c]);
        assert!((sums[y.channels + c] - square).abs() <= 1e-6 * square, "square {c}");
    }
}

#[test]
fn convolutions_agree_with_seven_loops_on_whole_and_broken_tiles() {
    // whole tiles; several groups of outputs, strips and rows of the ring; outputs, channels and pixels left over
    let cases =
        [((32, 32), (64, 64)), ((17, 35), (33, 48)), ((2, 24), (96, 17)), ((5, 1), (1, 31)), ((4, 29), (20, 40))];
    for (sides, channels) in cases {
        for normed in [false, true] {
            check_conv(sides, channels, 3, Sampling::Same, normed);
            check_conv(sides, channels, 3, Sampling::Up, normed);
            check_conv(sides, channels, 1, Sampling::Same, normed);
            if sides.1 > 1 {
                check_conv(sides, channels, 3, Sampling::Down, normed);
            }
        }
    }
    check_conv((9, 34), (288, 160), 3, Sampling::Same, true);
    check_conv((7, 300), (320, 33), 3, Sampling::Down, true);
    check_conv((6, 290), (288, 64), 3, Sampling::Up, true);
}

#[test]
fn convolutions_do_not_depend_on_the_threads() {
    let mut random = Random(8);
    let (x, w, bias) = (random.features(61, 53, 40), random.floats(360 * 24), random.floats(24));
    let tensors = [("c.weight".to_owned(), vec![360, 24], w), ("c.bias".to_owned(), vec![24], bias)];
    let (header, bytes) = file(&[], &tensors);
    let weights = ConvWeights::find(&header, "c", 3, 40, 24).unwrap();
    for kernels in Kernels::available() {
        for (precision, sampling) in
            PRECISIONS.map(|p| p.0).into_iter().zip([Sampling::Up, Sampling::Down, Sampling::Same])
        {
            let results = [1, 2, 3, 7].map(|count| {
                let threads = Threads::new(count).unwrap();
                let exec = Exec::new(&threads, kernels, None);
                let convolution = Convolution { exec: &exec, weights: &weights, x: &x, norm: None, sampling };
                let mut scratch = Scratch::default();
                scratch.precision = precision;
                let y = convolution.store(&bytes, &mut scratch).unwrap();
                (y.data, y.sums)
            });
            assert!(results.iter().all(|result| *result == results[0]), "{} {precision:?}", kernels.name());
        }
    }
}

#[test]
fn convolutions_agree_with_seven_loops_on_odd_sizes() {
    for sides in [(1, 1), (1, 7), (5, 1), (3, 4), (7, 11), (9, 6)] {
        for normed in [false, true] {
            check_conv(sides, (5, 3), 3, Sampling::Same, normed);
            check_conv(sides, (3, 7), 1, Sampling::Same, normed);
            check_conv(sides, (2, 5), 3, Sampling::Up, normed);
            if sides.0 > 1 && sides.1 > 1 {
                check_conv(sides, (5, 2), 3, Sampling::Down, normed);
            }
        }
    }
}

#[test]
fn convolutions_agree_with_seven_loops_when_they_take_several_strips() {
    for sampling in [Sampling::Same, Sampling::Down, Sampling::Up] {
        check_conv((60, 71), (160, 2), 3, sampling, true);
    }
    check_conv((3, 2411), (128, 2), 3, Sampling::Same, true);
}

#[test]
fn group_norm_agrees_with_its_definition() {
    let threads = Threads::new(2).unwrap();
    let exec = Exec::new(&threads, Kernels::best(), None);
    let mut random = Random(77);
    for (height, width, channels, groups) in [(1, 1, 6, 3), (37, 61, 12, 4), (3, 5, 7, 7), (45, 47, 8, 1)] {
        let mut x = random.features(height, width, channels);
        x.data.iter_mut().enumerate().for_each(|(i, v)| *v = *v * 0.1 + (i % channels) as f32 * 3.0);
        let (weight, bias) = (random.floats(channels), random.floats(channels));
        x.sums = Some(sums(&x));
        let norm = group_norm(&exec, &x, (&weight, &bias), groups, 1e-6, true).unwrap();
        assert!(norm.swish);
        let affine = |(i, v): (usize, &f32)| v * norm.scale[i % channels] + norm.shift[i % channels];
        let got: Vec<f32> = x.data.iter().enumerate().map(affine).collect();

        let size = channels / groups;
        let moments: Vec<(f64, f64)> = (0..groups)
            .map(|g| {
                let member = |i: &usize| (i % channels) / size == g;
                let values: Vec<f64> = (0..x.data.len()).filter(member).map(|i| f64::from(x.data[i])).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64)
            })
            .collect();
        let want: Vec<f64> = (0..x.data.len())
            .map(|i| {
                let c = i % channels;
                let (mean, variance) = moments[c / size];
                let v = (f64::from(x.data[i]) - mean) / (variance + 1e-6).sqrt();
                v * f64::from(weight[c]) + f64::from(bias[c])
            })
            .collect();
        assert_close(&got, &want, 2e-5);
    }
}

#[test]
fn what_comes_of_a_run_has_memory_of_its_size() {
    let mut scratch = Scratch::default();
    let large = scratch.features(40, 40, 4).unwrap();
    scratch.recycle(large);
    let mut small = scratch.features(4, 4, 4).unwrap();
    small.data.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
    assert!(small.data.capacity() >= 40 * 40 * 4);
    let numbers = scratch.finish(small).unwrap();
    assert!(numbers.capacity() <= 2 * numbers.len());
    assert!(numbers.len() == 64 && numbers.iter().enumerate().all(|(i, v)| *v == i as f32));
}

#[test]
fn scratch_reuses_the_smallest_buffer_that_fits() {
    let mut scratch = Scratch::default();
    let (small, large) = (scratch.features(4, 4, 4).unwrap(), scratch.features(40, 40, 4).unwrap());
    let addresses = (small.data.as_ptr(), large.data.as_ptr());
    scratch.recycle(large);
    scratch.recycle(small);
    let again = scratch.features(8, 2, 4).unwrap();
    assert_eq!((again.data.as_ptr(), again.data.len()), (addresses.0, 64));
    assert_eq!(scratch.features(20, 20, 4).unwrap().data.as_ptr(), addresses.1);
    let error = scratch.features(usize::MAX / 2, 3, 1).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
}

/// Random tensors under the names of the published checkpoints.
struct Tensors {
    random: Random,
    list: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Tensors {
    fn conv(&mut self, name: &str, kernel: usize, inputs: usize, outputs: usize) {
        let window = kernel * kernel * inputs;
        let scale = (3.0 / window as f32).sqrt(); // keeps the variance
        let weight = self.random.floats(window * outputs).iter().map(|v| v * scale).collect();
        self.list.push((format!("{name}.weight"), vec![window, outputs], weight));
        self.list.push((format!("{name}.bias"), vec![outputs], self.random.floats(outputs)));
    }
    fn norm(&mut self, name: &str, channels: usize) {
        for part in ["weight", "bias"] {
            self.list.push((format!("{name}.{part}"), vec![channels], self.random.floats(channels)));
        }
    }
    fn block(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.norm(&format!("{name}.norm1"), inputs);
        self.conv(&format!("{name}.conv1"), 3, inputs, outputs);
        self.norm(&format!("{name}.norm2"), outputs);
        self.conv(&format!("{name}.conv2"), 3, outputs, outputs);
        if inputs != outputs {
            self.conv(&format!("{name}.nin_shortcut"), 1, inputs, outputs);
        }
    }
    fn attention(&mut self, name: &str, channels: usize) {
        self.norm(&format!("{name}.norm"), channels);
        ["q", "k", "v", "proj_out"].iter().for_each(|p| self.conv(&format!("{name}.{p}"), 1, channels, channels));
    }
    /// Levels as (inputs, outputs, blocks), and what is between two of them.
    fn half(&mut self, half: &str, levels: &[(usize, usize, usize, usize)], sampler: &str, last: usize) {
        for (i, &(level, inputs, outputs, blocks)) in levels.iter().enumerate() {
            for block in 0..blocks {
                self.block(
                    &format!("{half}.{level}.block.{block}"),
                    if block == 0 { inputs } else { outputs },
                    outputs,
                );
            }
            if i + 1 < levels.len() {
                self.conv(&format!("{half}.{level}.{sampler}.conv"), 3, outputs, outputs);
            }
        }
        let (half, _) = half.split_once('.').unwrap();
        let end = levels.last().unwrap().2;
        let middle = if half == "encoder" { end } else { levels[0].1 };
        self.block(&format!("{half}.mid.block_1"), middle, middle);
        self.attention(&format!("{half}.mid.attn_1"), middle);
        self.block(&format!("{half}.mid.block_2"), middle, middle);
        self.norm(&format!("{half}.norm_out"), end);
        self.conv(&format!("{half}.conv_out"), 3, end, last);
    }
}

/// A model of these sizes with random weights.
fn random_model(config: &Config) -> (ImageTokenizer, Vec<u8>) {
    let mut tensors = Tensors { random: Random(99), list: Vec::new() };
    let (z, top) = (config.z_channels, config.decoder.deepest());
    let mut inputs = config.channels;
    let walk = |(level, (&outputs, &blocks)): (usize, (&usize, &usize))| {
        (level, std::mem::replace(&mut inputs, outputs), outputs, blocks)
    };
    let sizes = &config.encoder;
    let levels: Vec<_> = sizes.channels.iter().zip(&sizes.blocks).enumerate().map(walk).collect();
    tensors.conv("encoder.conv_in", 3, 3, config.channels);
    tensors.half("encoder.down", &levels, "downsample", z);
    tensors.conv("encoder.quant_conv", 1, z, z);
    inputs = top;
    let walk = |(level, (&outputs, &blocks)): (usize, (&usize, &usize))| {
        (level, std::mem::replace(&mut inputs, outputs), outputs, blocks)
    };
    let sizes = &config.decoder;
    let levels: Vec<_> = sizes.channels.iter().zip(&sizes.blocks).enumerate().rev().map(walk).collect();
    tensors.conv("decoder.post_quant_conv", 1, z, z);
    tensors.conv("decoder.conv_in", 3, z, top);
    tensors.half("decoder.up", &levels, "upsample", 3);

    let number = |n: usize| MetaValue::U32(n as u32);
    let numbers = |v: &[usize]| MetaValue::Array(MetaArray::U32(v.iter().map(|&n| n as u32).collect()));
    let mult = |levels: &Levels| numbers(&levels.channels.iter().map(|c| c / config.channels).collect::<Vec<_>>());
    let metadata = [
        ("mmada.vq.channels", number(config.channels)),
        ("mmada.vq.z_channels", number(z)),
        ("mmada.vq.encoder.channel_mult", mult(&config.encoder)),
        ("mmada.vq.encoder.res_blocks", numbers(&config.encoder.blocks)),
        ("mmada.vq.decoder.channel_mult", mult(&config.decoder)),
        ("mmada.vq.decoder.res_blocks", numbers(&config.decoder.blocks)),
        ("mmada.vq.norm_groups", number(config.groups)),
        ("mmada.vq.norm_epsilon", MetaValue::F32(config.epsilon)),
    ];
    let (header, bytes) = file(&metadata, &tensors.list);
    let tokenizer = ImageTokenizer::from_header(&header, &bytes).unwrap().unwrap();
    assert_eq!(tokenizer.config(), config);
    (tokenizer, bytes)
}

fn sizes(z_channels: usize, encoder: (&[usize], &[usize]), decoder: (&[usize], &[usize])) -> Config {
    let levels = |(mult, blocks): (&[usize], &[usize])| Levels {
        channels: mult.iter().map(|m| m * 6).collect(),
        blocks: blocks.to_vec(),
    };
    let (encoder, decoder) = (levels(encoder), levels(decoder));
    Config { channels: 6, z_channels, encoder, decoder, groups: 3, epsilon: 1e-6 }
}

#[test]
fn networks_of_any_depth_run_within_their_estimate() {
    let configs = [
        sizes(1, (&[1], &[1]), (&[2], &[2])),
        sizes(13, (&[1, 2, 1, 3], &[2, 1, 1, 1]), (&[2, 1, 3, 1], &[1, 1, 2, 1])),
        sizes(5, (&[3, 1], &[1, 3]), (&[3, 2], &[1, 1])),
    ];
    for (config, count) in configs.iter().flat_map(|config| [1, 2, 16].map(|count| (config, count))) {
        let (tokenizer, bytes) = random_model(config);
        let threads = Threads::new(count).unwrap();
        let factor = config.downsampling();
        for (height, width) in [(1, 1), (3, 2), (1, 9)] {
            let within = |cost: Cost| Budget::new(Some(cost.scratch_bytes(count) as usize));
            let costs = (tokenizer.encode_cost(height, width), tokenizer.decode_cost(height, width));
            let (encode, decode) = (within(costs.0), within(costs.1));
            let exec = Exec::new(&threads, Kernels::best(), None);
            let (h, w) = (height * factor, width * factor);
            let pixels = Random(1).features(h, w, 3);
            let encoded = tokenizer.encode_latent(&exec.within(&encode), &bytes, &pixels.data, h, w, false).unwrap();
            assert_eq!((encoded.height, encoded.width), (height, width));
            assert_eq!(encoded.latent.len(), height * width * config.z_channels);
            assert!(encoded.latent.iter().all(|v| v.is_finite()));
            let exec = exec.within(&decode);
            let picture = tokenizer.decode_float(&exec, &bytes, &encoded.codes, height, width, false).unwrap();
            assert_eq!(picture.len(), h * w * 3);
            assert!(picture.iter().all(|v| v.is_finite()) && picture.iter().any(|v| *v != picture[0]));
        }
    }
}

#[test]
fn a_picture_of_512_pixels_takes_less_than_600_megabytes() {
    // the 8B's sizes with an eighth of its channels, so that everything but windows is an eighth or less
    const PART: usize = 8;
    let of_8b = |mult: [usize; 5]| mult.iter().map(|m| m * 128 / PART).collect();
    let config = Config {
        channels: 128 / PART,
        z_channels: 13,
        encoder: Levels { channels: of_8b([1, 2, 2, 4, 4]), blocks: vec![4, 3, 4, 3, 4] },
        decoder: Levels { channels: of_8b([1, 1, 2, 2, 4]), blocks: vec![4, 4, 3, 4, 3] },
        groups: 8,
        epsilon: 1e-6,
    };
    let (tokenizer, bytes) = random_model(&config);
    // an eighth of a ring's channels would fill as many bytes with more pixels
    for cost in [tokenizer.encode_cost(32, 32), tokenizer.decode_cost(32, 32)] {
        assert!(cost.shared_bytes as usize <= 590_000_000 / PART, "{cost:?} is too much");
        assert!(cost.thread_bytes as usize <= 2 << 20, "{cost:?} is too much for a thread");
    }
    // what is counted as it is allocated stays within what was said, and is not much less
    let pixels = Random(3).floats(512 * 512 * 3);
    for (fast, count) in [(true, 1), (true, 16), (false, 16)] {
        let threads = Threads::new(count).unwrap();
        let exec = Exec::new(&threads, Kernels::best(), None);
        let (encode, decode) = (tokenizer.encode_cost(32, 32), tokenizer.decode_cost(32, 32));
        let within = |cost: Cost, part: u64| Budget::new(Some((cost.scratch_bytes(count) / part) as usize));
        let budget = within(encode, 1);
        let encoded = tokenizer.encode_latent(&exec.within(&budget), &bytes, &pixels, 512, 512, fast).unwrap();
        let budget = within(decode, 1);
        tokenizer.decode(&exec.within(&budget), &bytes, &encoded.codes, 32, 32, fast).unwrap();
        let budget = within(decode, 2);
        assert!(tokenizer.decode(&exec.within(&budget), &bytes, &encoded.codes, 32, 32, fast).is_err());
    }
}

#[test]
fn the_cost_counts_every_product_of_the_network() {
    let config = sizes(2, (&[1], &[1]), (&[1], &[1]));
    let (tokenizer, _) = random_model(&config);
    let (n, c, z) = (5 * 7, 6, 2);
    let block = 2 * n * 9 * c * c;
    let middle = 2 * block + 4 * n * c * c + 2 * n * n * c;
    let encode = n * 9 * 3 * c + block + middle + n * 9 * c * z + n * z * z;
    let decode = n * z * z + n * 9 * z * c + middle + block + n * 9 * c * 3;
    assert_eq!(tokenizer.encode_cost(5, 7).multiply_adds, encode);
    assert_eq!(tokenizer.decode_cost(5, 7).multiply_adds, decode);
    assert_eq!(tokenizer.decode_cost(usize::MAX, 2).multiply_adds, u64::MAX);
}

#[test]
fn attention_agrees_with_its_definition_over_several_tiles_of_queries() {
    let (height, width, c) = (41, 43, 4); // 1763 positions: their scores are more than one tile's
    let mut tensors = Tensors { random: Random(4242), list: Vec::new() };
    tensors.attention("a", c);
    let (header, bytes) = file(&[], &tensors.list);
    let weights: Vec<&[f32]> = tensors.list.iter().map(|t| &t.2[..]).collect();
    let &[norm_w, norm_b, q_w, q_b, k_w, k_b, v_w, v_b, p_w, p_b] = &weights[..] else { panic!() };

    let threads = Threads::new(2).unwrap();
    let exec = Exec::new(&threads, Kernels::best(), None);
    let mut x = Random(17).features(height, width, c);
    x.sums = Some(sums(&x));
    let n = x.positions();
    let linear = |w: &[f32], b: &[f32], x: &[f64]| -> Vec<f64> {
        let row = |(o, b): (usize, &f32)| f64::from(*b) + (0..c).map(|i| f64::from(w[o * c + i]) * x[i]).sum::<f64>();
        b.iter().enumerate().map(row).collect()
    };
    let norm = group_norm(&exec, &x, (norm_w, norm_b), 2, 1e-6, false).unwrap();
    let at = |i: usize| f64::from(x.data[i]) * f64::from(norm.scale[i % c]) + f64::from(norm.shift[i % c]);
    let h: Vec<Vec<f64>> = (0..n).map(|p| (0..c).map(|ch| at(p * c + ch)).collect()).collect();
    let (k, v): (Vec<_>, Vec<_>) = h.iter().map(|h| (linear(k_w, k_b, h), linear(v_w, v_b, h))).unzip();
    let mut want = Vec::new();
    for (p, h) in h.iter().enumerate() {
        let q = linear(q_w, q_b, h);
        let score = |k: &Vec<f64>| (q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (c as f64).sqrt()).exp();
        let scores: Vec<f64> = k.iter().map(score).collect();
        let sum: f64 = scores.iter().sum();
        let mean = |ch: usize| scores.iter().zip(&v).map(|(s, v)| s / sum * v[ch]).sum::<f64>();
        let out = linear(p_w, p_b, &(0..c).map(mean).collect::<Vec<_>>());
        want.extend(out.iter().enumerate().map(|(ch, o)| o + f64::from(x.data[p * c + ch])));
    }

    let mut config = sizes(1, (&[1], &[1]), (&[1], &[1]));
    config.groups = 2;
    let attention = Attention::find(&header, "a", c).unwrap();
    let mut run = Run { exec: &exec, bytes: &bytes, config: &config, scratch: Scratch::default() };
    let got = attention.run(&mut run, x).unwrap();
    assert_close(&got.data, &want, 3e-6);
}
