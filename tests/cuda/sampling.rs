//! The tokens that masked positions would take, and the codes of pictures: what src/sampler chooses, with confidences that
//! have the same bits.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use mmada::sampler::choose::{Choice, Rule, consider};
use mmada::sampler::text::{Candidate, Forbidden};
use mmada::sampler::{Confidence, Draw, Philox, Remasking, Stage, image};

use crate::arguments;
use crate::device::{Device, Memory, races};
use crate::support::{Random, portable};

const NOTHING_LEFT: i32 = -1;
const NOT_FINITE: i32 = -2;

/// `ChoiceState` of sampling.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct State {
    sum: f64,
    score: f64,
    top: f32,
    logit: f32,
    id: i32,
    unused: u32,
}

const SEED: u64 = u64::MAX - 1; // a sequence number carries over

fn draws(stage: Stage, rows: usize) -> Vec<Draw> {
    (0..rows).map(|i| Draw { stage, sequence: i % 3, step: 7 * i, position: 1000 - i }).collect()
}

fn places<'a>(device: &'a Device, draws: &[Draw]) -> Memory<'a, u32> {
    let place = |d: &Draw| {
        let key = SEED.wrapping_add(d.sequence as u64);
        [key as u32, (key >> 32) as u32, d.step as u32, d.position as u32]
    };
    device.upload(&draws.iter().flat_map(place).collect::<Vec<u32>>())
}

/// Rows of logits of the ids from `first` on, and how they are looked at.
struct Text {
    rows: usize,
    first: u32,
    width: usize,
    logits: Vec<f32>,
    /// empty where nothing guides
    unconditional: Vec<f32>,
    forbidden: Vec<Range<u32>>,
    temperature: f64,
    sums: bool,
}

impl Text {
    fn new(rows: usize, first: u32, width: usize) -> Self {
        let logits = Random(width as u64).floats(rows * width).iter().map(|v| v * 4.0).collect();
        let (unconditional, forbidden) = (Vec::new(), Vec::new());
        Text { rows, first, width, logits, unconditional, forbidden, temperature: 0.0, sums: true }
    }

    /// Columns of all rows.
    fn slice(&self, of: &[f32], columns: Range<usize>) -> Vec<f32> {
        of.chunks(self.width).flat_map(|row| &row[columns.clone()]).copied().collect()
    }

    /// Ids and confidences, the ids coming `step` at a time.
    fn on_device(&self, device: &Device, step: usize) -> (Vec<i32>, Vec<f64>) {
        let rows = self.rows;
        let states = device.memory::<State>(rows);
        let pairs: Vec<i32> = self.forbidden.iter().flat_map(|r| [r.start as i32, r.end as i32]).collect();
        let (pairs, places) = (device.upload(&pairs), places(device, &draws(Stage::Text, rows)));
        device.launch("choose_begin", [rows.div_ceil(256), 1, 1], 256, 0, arguments![&states, rows as i32]);
        for start in (0..self.width).step_by(step) {
            let columns = start..self.width.min(start + step);
            let logits = device.upload(&self.slice(&self.logits, columns.clone()));
            let guide = (!self.unconditional.is_empty())
                .then(|| device.upload(&self.slice(&self.unconditional, columns.clone())));
            let arguments = arguments![
                &logits,
                guide.as_ref(),
                1.3f64,
                columns.len() as i32,
                self.first + start as u32,
                &pairs,
                self.forbidden.len() as i32,
                self.temperature,
                i32::from(self.sums),
                &places,
                &states
            ];
            device.launch("choose_update", [rows, 1, 1], 256, 0, arguments);
        }
        let (ids, confidence) = (device.memory::<i32>(rows), device.memory::<f64>(rows));
        let arguments = arguments![&states, rows as i32, &ids, &confidence];
        device.launch("choose_end", [rows.div_ceil(256), 1, 1], 256, 0, arguments);
        (ids.download(), confidence.download())
    }

    fn on_processor(&self) -> Vec<Candidate> {
        let (forbidden, noise) = (Forbidden::new(self.forbidden.iter().cloned()).unwrap(), Philox::new(SEED));
        let remasking = if self.sums { Remasking::LowConfidence } else { Remasking::Random };
        let rule =
            Rule { temperature: self.temperature, remasking, cfg_scale: 1.3, forbidden: &forbidden, noise: &noise };
        let (draws, mut choices) = (draws(Stage::Text, self.rows), vec![Choice::default(); self.rows]);
        let (mut logits, ids) = (self.logits.clone(), self.first..self.first + self.width as u32);
        portable(|exec| consider(exec, &mut logits, &self.unconditional, ids, &draws, rule, &mut choices).unwrap());
        choices.iter().zip(&draws).map(|(choice, draw)| choice.candidate(*draw, rule).unwrap()).collect()
    }

    fn compare(&self, device: &Device, step: usize) {
        let (ids, confidence) = self.on_device(device, step);
        for (row, expected) in self.on_processor().iter().enumerate() {
            let what = format!("row {row} of {} ids at {}, {step} at a time", self.width, self.temperature);
            assert_eq!(ids[row], expected.id as i32, "{what}");
            let expected = if self.sums { expected.confidence } else { 0.0 };
            assert_eq!(confidence[row].to_bits(), expected.to_bits(), "{what}: {}, not {expected}", confidence[row]);
        }
    }
}

#[test]
fn choices_are_those_of_the_processor_however_many_ids_come_together() {
    let device = Device::new();
    for (first, width, step) in
        [(0, 1, 1024), (7, 300, 1024), (1000, 2500, 1024), (1001, 5000, 4096), (3, 18_000, 18_432)]
    {
        if races() && width > 2500 {
            continue;
        }
        for (temperature, sums) in [(0.0, true), (0.8, true), (30.0, false), (0.0, false)] {
            Text { temperature, sums, ..Text::new(3, first, width) }.compare(&device, step);
        }
    }
}

#[test]
fn guided_choices_and_those_without_forbidden_ids_are_those_of_the_processor() {
    let device = Device::new();
    let (first, width) = (999u32, 3000);
    let some = vec![990..1010, 1500..1501, 3100..3500, 3998..4100];
    let most: Vec<Range<u32>> = (0..450).map(|i| 9 * i..9 * i + 8).collect();
    for forbidden in [vec![], some, most] {
        for temperature in [0.0, 1.0] {
            for guided in [false, true] {
                let unconditional = if guided { Random(8).floats(3 * width) } else { vec![] };
                let forbidden = forbidden.clone();
                Text { unconditional, forbidden, temperature, ..Text::new(3, first, width) }.compare(&device, 1024);
            }
        }
    }
}

#[test]
fn of_equal_logits_the_first_that_is_allowed_is_taken_and_huge_ones_do_not_overflow() {
    let device = Device::new();
    for temperature in [0.0, 0.5] {
        for value in [0.0f32, -1e30, 3e38, 88.0] {
            let mut text = Text::new(2, 50, 2100);
            text.temperature = temperature;
            text.logits[..2100].fill(value);
            // larger from part to part, and far apart
            text.logits[2100..].iter_mut().enumerate().for_each(|(i, v)| *v = value + (i / 700) as f32 * 400.0);
            text.forbidden = vec![0..53, 60..61];
            text.compare(&device, 1024);
        }
    }
}

#[test]
fn a_row_with_no_choice_or_with_nan_or_infinity_says_so_and_leaves_others_alone() {
    let device = Device::new();
    for (temperature, sums) in [(0.0, true), (1.0, true), (0.0, false), (1.0, false)] {
        let width = 1500;
        let mut text = Text { temperature, sums, ..Text::new(5, 0, width) };
        text.logits[..width].fill(f32::NEG_INFINITY);
        text.logits[width + 577] = f32::NAN; // is not forgotten when more ids come
        text.logits[2 * width + 30] = f32::INFINITY;
        text.logits[3 * width + 1400] = f32::NAN;
        for step in [1024, 2048] {
            let (ids, confidence) = text.on_device(&device, step);
            assert_eq!(ids[..4], [NOTHING_LEFT, NOT_FINITE, NOT_FINITE, NOT_FINITE]);
            assert_eq!(confidence[..4], [0.0; 4]);
            assert!(ids[4] >= 0 && (confidence[4] > 0.0) == sums && confidence[4] <= 1.0);
        }
        // what must not be chosen may be anything
        text.forbidden = std::iter::once(577..578).collect();
        assert!(text.on_device(&device, 1024).0[1] >= 0);
        let all = 0..width as u32;
        text.forbidden = vec![all];
        assert_eq!(text.on_device(&device, 1024).0, [NOTHING_LEFT; 5]);
    }
}

/// Codes and confidences of rows of logits, and with `over` where probabilities lie over the logits.
fn codes(
    device: &Device,
    logits: &[f32],
    guide: &[f32],
    codes: usize,
    margin: bool,
    over: bool,
) -> (Vec<u32>, Vec<f32>) {
    let rows = logits.len() / codes;
    let (logits, scratch) = (device.upload(logits), device.memory::<f32>(logits.len()));
    let guide = (!guide.is_empty()).then(|| device.upload(guide));
    let places = places(device, &draws(Stage::Image, rows));
    let (sampled, confidence) = (device.memory::<u32>(rows), device.memory::<f32>(rows));
    let scratch = if over { &logits } else { &scratch };
    let (codes, margin) = (codes as i32, i32::from(margin));
    let arguments = arguments![&logits, guide.as_ref(), 2.5f32, codes, margin, &places, scratch, &sampled, &confidence];
    device.launch("sample_codes", [rows, 1, 1], 256, 0, arguments);
    (sampled.download(), confidence.download())
}

#[test]
fn codes_are_sampled_as_the_processor_samples_them() {
    let device = Device::new();
    for (count, rows) in [(1, 2), (37, 12), (256, 12), (2049, 12), (8192, 12)] {
        if races() && count > 256 {
            continue;
        }
        for (margin, guided) in [(false, false), (false, true), (true, true)] {
            let mut rng = Random(count as u64);
            let mut logits = rng.floats(rows * count);
            logits[0] = 500.0; // all other probabilities of the row are zero
            if count > 1 {
                logits[rows * count - 1] = f32::NEG_INFINITY; // cannot be sampled
            }
            let guide = if guided { rng.floats(rows * count) } else { vec![] };
            let confidence = if margin { Confidence::Margin } else { Confidence::Probability };
            let rule = image::Rule { guidance: 2.5, confidence, noise: &Philox::new(SEED) };
            let (mut expected, draws) = (Vec::new(), draws(Stage::Image, rows));
            portable(|exec| {
                image::sample(exec, &mut logits.clone(), &guide, count, &draws, rule, &mut expected).unwrap();
            });
            for over in [false, true] {
                let (sampled, confidence) = codes(&device, &logits, &guide, count, margin, over);
                for (row, expected) in expected.iter().enumerate() {
                    assert_eq!(sampled[row], expected.code, "row {row} of {count}");
                    assert_eq!(confidence[row].to_bits(), expected.confidence.to_bits(), "row {row} of {count}");
                }
            }
        }
    }
}

#[test]
fn a_row_of_codes_that_is_not_finite_says_so_and_leaves_others_alone() {
    let device = Device::new();
    let count = 300;
    let mut logits = Random(5).floats(4 * count);
    logits[277] = f32::NAN;
    logits[count + 30] = f32::INFINITY;
    logits[2 * count..3 * count].fill(f32::NEG_INFINITY);
    let (sampled, confidence) = codes(&device, &logits, &[], count, false, false);
    assert_eq!(sampled[..3], [u32::MAX; 3]);
    assert!(sampled[3] < 300 && confidence[3] > 0.0);
}
