//! The tokens that masked positions would take.

use mmada::sampler::choose::{Choice, Rule, consider};
use mmada::sampler::text::Forbidden;
use mmada::sampler::{Draw, Philox, Remasking, Stage};

use crate::arguments;
use crate::device::{Argument, Device};
use crate::support::{Random, portable};

/// Ids, relative to the first of a row, and confidences.
fn chosen(
    device: &Device,
    logits: &[f32],
    guide: &[f32],
    scale: f64,
    width: usize,
    forbidden: &[i32],
) -> (Vec<i32>, Vec<f64>) {
    let rows = logits.len() / width;
    let (on_device, ranges) = (device.upload(logits), device.upload(forbidden));
    let unconditional = (!guide.is_empty()).then(|| device.upload(guide));
    let (ids, confidence) = (device.memory::<i32>(rows), device.memory::<f64>(rows));
    device.launch(
        "choose",
        [rows, 1, 1],
        256,
        0,
        arguments![
            &on_device,
            unconditional.as_ref().map_or(Argument::from(0u64), Argument::from),
            (scale + 1.0) as f32,
            width as i32,
            &ranges,
            forbidden.len() as i32 / 2,
            &ids,
            &confidence
        ],
    );
    (ids.download(), confidence.download())
}

#[test]
fn choices_and_their_probabilities_are_those_of_the_processor() {
    let device = Device::new();
    for (width, guided, forbidden) in [
        (1, false, vec![]),
        (300, true, vec![0..7, 10..11, 250..300]),
        (1111, false, vec![5..9, 11..500]),
        (4000, true, vec![]),
    ] {
        let rows = 4;
        let mut rng = Random(width as u64);
        let mut logits: Vec<f32> = rng.floats(rows * width).iter().map(|v| v * 4.0).collect();
        let guide: Vec<f32> = if guided { rng.floats(rows * width) } else { vec![] };
        if width > 1000 && !guided {
            // equals: the first that is allowed wins
            (logits[3], logits[700], logits[900]) = (1e4, 1e4, 1e4);
            (logits[width + 1], logits[width + 600]) = (3e38, 3e38);
        }
        let first = 1000u32;
        let pairs: Vec<i32> = forbidden.iter().flat_map(|range| [range.start, range.end]).collect();
        let (ids, confidence) = chosen(&device, &logits, &guide, 1.5, width, &pairs);

        let ranges = forbidden.iter().map(|range| first + range.start as u32..first + range.end as u32);
        let (forbidden, noise) = (Forbidden::new(ranges).unwrap(), Philox::new(0));
        let rule = Rule {
            temperature: 0.0,
            remasking: Remasking::LowConfidence,
            cfg_scale: 1.5,
            forbidden: &forbidden,
            noise: &noise,
        };
        let draws: Vec<Draw> = (0..rows).map(|i| Draw::new(Stage::Text, 0, i)).collect();
        let mut choices = vec![Choice::default(); rows];
        let vocab = first..first + width as u32;
        portable(|exec| consider(exec, &mut logits, &guide, vocab, &draws, rule, &mut choices).unwrap());
        let expected = choices.iter().zip(&draws).map(|(choice, draw)| choice.candidate(*draw, rule).unwrap());
        for ((id, confidence), expected) in ids.iter().zip(&confidence).zip(expected) {
            assert_eq!(*id as u32 + first, expected.id, "of {width}");
            assert!((confidence / expected.confidence - 1.0).abs() < 1e-12, "{confidence}, not {expected:?}");
        }
    }
}

#[test]
fn a_row_with_no_choice_or_with_nan_or_infinity_says_so_and_leaves_others_alone() {
    let device = Device::new();
    let width = 600;
    let mut logits = Random(5).floats(4 * width);
    logits[..width].fill(f32::NEG_INFINITY);
    logits[width + 577] = f32::NAN;
    logits[2 * width + 30] = f32::INFINITY;
    let (ids, confidence) = chosen(&device, &logits, &[], 0.0, width, &[]);
    assert_eq!(ids[..3], [-1, -2, -2]);
    assert!(ids[3] >= 0 && confidence[3] > 0.0 && confidence[3] <= 1.0);
    // what must not be chosen may be anything
    let (ids, _) = chosen(&device, &logits, &[], 0.0, width, &[577, 578]);
    assert!(ids[1] >= 0);
    // all is forbidden
    let (ids, _) = chosen(&device, &logits, &[], 0.0, width, &[0, width as i32]);
    assert_eq!(ids, [-1; 4]);
}
