//! Runs of the reference implementation (tests/golden) on a card, with the random numbers that it drew: text, text with noise,
//! questions about pictures, drawings, reasoned drawings. The card rounds to bfloat16 what the reference computes in f32, so a
//! run may leave the reference's; where it does so first, from a canvas that is still the same, exact arithmetic has to say
//! that the two were near each other.

use std::collections::BTreeMap;

use mmada::kernels::Kernels;
use mmada::sampler::image::{guide as guide_codes, score};
use mmada::sampler::text::guide as guide_tokens;
use mmada::sampler::{Draw, Noise, Stage};
use mmada::{Context, SequenceRequest};

use crate::api::{self, ImageRun, TextRun};
use crate::cases::{DrawCase, ReasonedCase, Remask, TextCase};
use crate::fixture::{Fixture, fixtures};
use crate::noise::Recorded;
use crate::support::{Card, is_card};
use crate::tensors::Tensors;

/// The fixtures whose heads the kernels are for, and how many cases of a kind are run: of the larger one few over the
/// stand-in, which takes its time.
fn runnable() -> impl Iterator<Item = (&'static Fixture, usize)> {
    let cases = |name: &str| match name {
        "tiny" => Some(usize::MAX),
        "mmada-shapes" => Some(if is_card() { usize::MAX } else { 1 }),
        _ => None,
    };
    fixtures().iter().filter_map(move |fixture| Some((fixture, cases(&fixture.name)?)))
}

/// How far apart logits, logarithms of probabilities, shares of probability and scores may be that rounding takes for equal.
const NEAR: f64 = 0.05;

/// Runs that are the reference's to the end, and all.
#[derive(Default, Debug)]
struct Tally {
    same: usize,
    all: usize,
    furthest: f64,
}

impl Tally {
    fn add(&mut self, what: &str, difference: Option<f64>) {
        self.all += 1;
        match difference {
            None => self.same += 1,
            Some(distance) => {
                println!("{what}: leaves the reference where it is {distance:.4} away");
                assert!(distance <= NEAR, "{what}: {distance}");
                self.furthest = self.furthest.max(distance);
            }
        }
    }
}

/// Logits of some rows in exact arithmetic.
fn exact(cpu: &Context, ids: &[u32], rows: &[usize], vocab: std::ops::Range<u32>) -> Vec<f32> {
    cpu.logits(&[SequenceRequest { ids, rows, vocab }]).unwrap().remove(0)
}

/// How far the first step in which a text differs is from the reference's; none where all are the same.
fn text_distance(
    cpu: &Context,
    case: &TextCase,
    noise: &Recorded,
    run: &TextRun,
    expected: &[Vec<u32>],
) -> Option<f64> {
    let step = run.trace.iter().zip(expected).position(|(got, expected)| got != expected)?;
    let vocabulary = cpu.model().vocabulary();
    let masks = vec![vocabulary.mask; case.gen_length];
    let before = if step == 0 { &masks } else { &expected[step - 1] };
    let decided = |after: &[u32]| -> BTreeMap<usize, u32> {
        (0..before.len()).filter(|&i| before[i] != after[i]).map(|i| (i, after[i])).collect()
    };
    let (got, expected) = (decided(&run.trace[step]), decided(&expected[step]));
    let canvas = [case.prompt_ids.as_slice(), before].concat();
    let of = |position: usize, id: u32| {
        let row = [case.prompt_ids.len() + position];
        let mut logits = exact(cpu, &canvas, &row, 0..vocabulary.rows);
        if case.cfg_scale > 0.0 {
            let mut free = canvas.clone();
            free[..case.prompt_ids.len()].fill(vocabulary.mask);
            guide_tokens(&mut logits, &exact(cpu, &free, &row, 0..vocabulary.rows), case.cfg_scale);
        }
        let draw = Draw::new(Stage::Text, step, position);
        let logit = f64::from(logits[id as usize]);
        let most = logits.iter().fold(f64::NEG_INFINITY, |most, v| most.max(f64::from(*v)));
        let sum: f64 = logits.iter().map(|v| (f64::from(*v) - most).exp()).sum();
        let noisy = match case.temperature {
            0.0 => logit,
            temperature => logit - temperature * (-noise.token_uniform(draw, id).ln()).ln(),
        };
        let confidence = match case.remasking {
            Remask::LowConfidence => logit - most - sum.ln(),
            Remask::Random => f64::from(noise.order_uniform(draw)),
        };
        (noisy, confidence)
    };
    let mut distance: f64 = 0.0;
    for (position, id) in &got {
        if let Some(other) = expected.get(position).filter(|other| *other != id) {
            distance = distance.max((of(*position, *id).0 - of(*position, *other).0).abs());
        }
    }
    // who was decided by one alone was about as sure as who was by the other
    let alone = |a: &BTreeMap<usize, u32>, b: &BTreeMap<usize, u32>| -> Vec<f64> {
        a.iter().filter(|(position, _)| !b.contains_key(position)).map(|(p, id)| of(*p, *id).1).collect()
    };
    let (ours, theirs) = (alone(&got, &expected), alone(&expected, &got));
    assert_eq!(ours.len(), theirs.len(), "step {step} decides as many");
    ours.iter().zip(&theirs).for_each(|(a, b)| distance = distance.max((a - b).abs()));
    Some(distance)
}

fn text_case(tally: &mut Tally, card: &Card, fixture: &Fixture, name: &str, case: &TextCase, from_ids: bool) {
    let on_card = Context::new(fixture.model(), card.options()).unwrap();
    let run = match from_ids {
        true => api::text_from_ids(fixture, &on_card, case),
        false => api::text(fixture, &on_card, case, Recorded::of(fixture, name)),
    };
    let trace = fixture.tensor(Tensors::ids, &format!("{name}.trace"));
    let expected: Vec<Vec<u32>> = trace.rows().map(|row| row[case.prompt_ids.len()..].to_vec()).collect();
    assert_eq!(run.trace.len(), expected.len(), "{} {name}: steps", fixture.name);
    let cpu = api::context(fixture, 2, Kernels::best());
    let distance = text_distance(&cpu, case, &Recorded::of(fixture, name), &run, &expected);
    tally.add(&format!("{} {name}", fixture.name), distance);
}

/// The part of a drawing that both runs have begun with.
struct Picture<'a> {
    fixture: &'a Fixture,
    name: String,
    /// what is before the picture, and the same without a prompt
    prompt: Vec<u32>,
    steps: usize,
    guidance: f32,
    temperature: f32,
}

/// How far the first step in which a drawing differs is from the reference's; none where all are the same.
fn picture_distance(picture: &Picture, run: &ImageRun) -> Option<f64> {
    let Picture { fixture, name, prompt, .. } = picture;
    let masks = fixture.tensor(Tensors::bytes, &format!("{name}.masks"));
    let expected: Vec<Vec<bool>> = masks.rows().map(|row| row.iter().map(|m| *m != 0).collect()).collect();
    let codes = fixture.tensor(Tensors::ids, &format!("{name}.codes")).data;
    assert_eq!(run.masks.len(), expected.len(), "{} {name}: steps", fixture.name);
    let is_decided = |step: usize, i: usize| step == expected.len() - 1 || !expected[step][i];
    let differs = |step: usize| {
        run.masks[step] != expected[step] || (0..codes.len()).any(|i| is_decided(step, i) && run.codes[i] != codes[i])
    };
    let step = (0..expected.len()).find(|step| differs(*step))?;
    let (vocabulary, noise) = (fixture.model().vocabulary(), Recorded::of(fixture, name));
    // both are at this canvas
    let is_unknown = |i: usize| step == 0 || expected[step - 1][i];
    let ids = |i: usize| if is_unknown(i) { vocabulary.mask } else { vocabulary.image_id(codes[i]).unwrap() };
    let canvas: Vec<u32> = (0..codes.len()).map(ids).collect();
    let (soi, eoi) = ([vocabulary.soi.unwrap()], [vocabulary.eoi.unwrap()]);
    let framed = |prompt: &[u32]| [prompt, &soi[..], &canvas[..], &eoi[..]].concat();
    let free = [vocabulary.t2i.unwrap(), vocabulary.bos, vocabulary.eos];
    let cpu = api::context(fixture, 2, Kernels::best());
    let unknown: Vec<usize> = (0..codes.len()).filter(|&i| is_unknown(i)).collect();
    let of = |prompt: &[u32]| {
        let rows: Vec<usize> = unknown.iter().map(|i| prompt.len() + 1 + i).collect();
        exact(&cpu, &framed(prompt), &rows, vocabulary.image_ids())
    };
    let mut logits = of(prompt);
    if picture.guidance > 0.0 {
        guide_codes(&mut logits, &of(&free), picture.guidance);
    }
    let rows: Vec<Vec<f64>> = logits.chunks_exact(vocabulary.codes as usize).map(probabilities).collect();
    Some(furthest(picture, run, (&expected, &codes), step, &unknown, &rows, &noise))
}

fn probabilities(row: &[f32]) -> Vec<f64> {
    let most = row.iter().fold(f32::NEG_INFINITY, |most, v| most.max(*v));
    let e: Vec<f64> = row.iter().map(|v| f64::from(v - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

/// What is drawn may fall on any code that is no farther from it than this share of all probability.
const DRAWN: f64 = 0.03;

/// Of the codes that a step has decided otherwise how far what was drawn is from them, and of the positions that one run alone
/// has masked again how far their scores are from each other's, for any of the codes that may have been drawn.
fn furthest(
    picture: &Picture,
    run: &ImageRun,
    (masks, codes): (&[Vec<bool>], &[u32]),
    step: usize,
    unknown: &[usize],
    rows: &[Vec<f64>],
    noise: &Recorded,
) -> f64 {
    let mut temperature = mmada::sampler::image::Temperature::new(picture.temperature);
    let temperature = (0..=step).map(|step| temperature.at(step, picture.steps)).last().unwrap();
    let last = step + 1 == masks.len();
    let (mut distance, mut ours, mut theirs) = (0.0f64, Vec::new(), Vec::new());
    for (row, &i) in rows.iter().zip(unknown) {
        let draw = Draw::new(Stage::Image, step, i);
        let (u, mut before) = (noise.categorical_uniform(draw), 0.0);
        let away = row.iter().map(|p| (before += p, (before - p - u).max(u - before).max(0.0)).1).collect::<Vec<f64>>();
        let (kept, kept_there) = (last || !run.masks[step][i], last || !masks[step][i]);
        if kept && kept_there && run.codes[i] != codes[i] {
            distance = distance.max(away[run.codes[i] as usize]);
        }
        let drawn = row.iter().zip(&away).filter(|(_, away)| **away <= DRAWN);
        let scores = drawn.map(|(p, _)| f64::from(score(*p as f32, temperature, noise.gumbel_uniform(draw))));
        let (least, most) = scores.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), s| (a.min(s), b.max(s)));
        match (kept, kept_there) {
            (true, false) => ours.push(most),
            (false, true) => theirs.push(least),
            _ => {}
        }
    }
    ours.sort_by(f64::total_cmp);
    theirs.sort_by(f64::total_cmp);
    // the card kept the first and not the second
    ours.iter().zip(&theirs).fold(distance, |distance, (kept, masked)| distance.max(masked - kept))
}

#[test]
fn texts_on_a_card_are_the_references_until_two_choices_are_as_good_as_equal() {
    let card = Card::open();
    let mut tally = Tally::default();
    for (fixture, most) in runnable() {
        for (i, case) in fixture.cases::<TextCase>("text_cases.json").iter().enumerate().take(most) {
            text_case(&mut tally, &card, fixture, &format!("text.{i}"), case, false);
        }
        for (i, case) in fixture.cases::<TextCase>("mmu_cases.json").iter().enumerate().take(most) {
            text_case(&mut tally, &card, fixture, &format!("mmu.{i}"), case, true);
        }
        if fixture.name == "tiny" {
            for (i, case) in fixture.cases::<TextCase>("noisy_cases.json").iter().enumerate() {
                text_case(&mut tally, &card, fixture, &format!("noisy.{i}"), case, false);
            }
        }
    }
    println!("texts: {tally:?}");
    assert!(tally.all > 10 && 2 * tally.same > tally.all, "{tally:?}");
}

#[test]
fn drawings_on_a_card_are_the_references_until_a_draw_falls_between_two_codes() {
    let card = Card::open();
    let mut tally = Tally::default();
    for (fixture, _) in runnable() {
        if fixture.name != "tiny" && !is_card() {
            continue; // minutes
        }
        let on_card = Context::new(fixture.model(), card.options()).unwrap();
        for (i, case) in fixture.cases::<DrawCase>("t2i_cases.json").iter().enumerate() {
            let name = format!("t2i.{i}");
            let run = api::draw(fixture, &on_card, case, Recorded::of(fixture, &name));
            let (prompt, steps, temperature) = (case.prompt_ids.clone(), case.steps, case.temperature);
            let picture =
                Picture { fixture, name: name.clone(), prompt, steps, guidance: case.guidance_scale, temperature };
            tally.add(&format!("{} {name}", fixture.name), picture_distance(&picture, &run));
        }
        for (i, case) in fixture.cases::<ReasonedCase>("r2i_cases.json").iter().enumerate() {
            let name = format!("r2i.{i}");
            let text_ids = fixture.tensor(Tensors::ids, &format!("{name}.text_ids")).data;
            let run = api::draw_from_ids(fixture, &on_card, case, &text_ids, Recorded::of(fixture, &name));
            let (steps, temperature) = (case.image_steps, case.temperature);
            let picture = Picture {
                fixture,
                name: name.clone(),
                prompt: text_ids,
                steps,
                guidance: case.guidance_scale,
                temperature,
            };
            tally.add(&format!("{} {name}", fixture.name), picture_distance(&picture, &run));
        }
    }
    println!("drawings: {tally:?}");
    assert!(tally.all >= 5, "{tally:?}");
}
