//! Pictures from text, and from a description that is thought out first.

use mmada::kernels::Kernels;
use mmada::prompt::split_thinking;

use super::api::{self, ImageRun, TextRun};
use super::cases::{DrawCase, ReasonedCase, TIE};
use super::fixture::{Fixture, fixtures};
use super::noise::Recorded;
use super::tensors::Tensors;

/// The cases of a folder that can be drawn here: with recorded draws, and pixels to size the picture by.
fn cases<T: serde::de::DeserializeOwned>(fixture: &Fixture, file: &str) -> Vec<T> {
    let cases = fixture.cases(file);
    if cases.is_empty() || !fixture.has_expected() {
        return Vec::new();
    }
    if !fixture.model().has_images() {
        fixture.skip("no image tokenizer");
        return Vec::new();
    }
    cases
}

fn check(fixture: &Fixture, name: &str, run: &ImageRun) {
    let masks = fixture.tensor(Tensors::bytes, &format!("{name}.masks"));
    assert_eq!(run.masks.len(), masks.shape[0], "{} {name}: steps", fixture.name);
    for (step, (got, expected)) in run.masks.iter().zip(masks.rows()).enumerate() {
        let expected: Vec<bool> = expected.iter().map(|m| *m != 0).collect();
        assert_eq!(*got, expected, "{} {name}: masked after step {step}", fixture.name);
    }
    let codes = fixture.tensor(Tensors::ids, &format!("{name}.codes")).data;
    assert_eq!(run.codes, codes, "{} {name}: codes", fixture.name);
}

/// The steps of a description, where no tie is near.
fn check_description(fixture: &Fixture, name: &str, case: &ReasonedCase, run: &TextRun) {
    let trace = fixture.tensor(Tensors::ids, &format!("{name}.text_trace"));
    let eos = fixture.model().vocabulary().eos;
    assert_eq!(trace.shape, [run.trace.len(), case.text_len + 1], "{} {name}: steps", fixture.name);
    for (step, (got, expected)) in run.trace.iter().zip(trace.rows()).enumerate() {
        let mut ids = [&case.prompt_ids, got.as_slice()].concat();
        ids.resize(case.text_len + 1, eos);
        assert_eq!(ids, expected, "{} {name}: step {step}", fixture.name);
    }
}

/// The description in `text_ids`: what was thought, or all of the text if there are no tags.
fn expected_description(fixture: &Fixture, case: &ReasonedCase, text_ids: &[u32]) -> String {
    let model = fixture.model();
    let region = &text_ids[case.prompt_ids.len()..][..case.gen_length];
    let end = region.iter().position(|id| model.vocabulary().is_end(*id)).unwrap_or(region.len());
    let text = model.tokenizer().unwrap().decode(&region[..end], true);
    let (thinking, answer) = split_thinking(&text);
    thinking.unwrap_or(answer).to_owned()
}

#[test]
fn pictures_have_the_golden_codes_with_the_recorded_draws() {
    for fixture in fixtures() {
        for (i, case) in cases::<DrawCase>(fixture, "t2i_cases.json").iter().enumerate() {
            let name = format!("t2i.{i}");
            let context = api::context(fixture, 1 + i % 3, Kernels::best());
            check(fixture, &name, &api::draw(fixture, &context, case, Recorded::of(fixture, &name)));
        }
    }
}

#[test]
fn reasoned_pictures_have_the_golden_description_and_codes() {
    for fixture in fixtures() {
        for (i, case) in cases::<ReasonedCase>(fixture, "r2i_cases.json").iter().enumerate() {
            let name = format!("r2i.{i}");
            let context = api::context(fixture, 2, Kernels::best());
            let text_ids = fixture.tensor(Tensors::ids, &format!("{name}.text_ids")).data;
            let from_ids = api::draw_from_ids(fixture, &context, case, &text_ids, Recorded::of(fixture, &name));
            check(fixture, &name, &from_ids);

            let noise = Recorded::of(fixture, &name);
            let (described, description, drawn) = api::reasoned(fixture, &context, case, noise);
            let expected = expected_description(fixture, case, &text_ids);
            assert_eq!(description, expected, "{} {name}: description", fixture.name);
            if case.margin_order > TIE {
                check_description(fixture, &name, case, &described);
                check(fixture, &name, &drawn);
            }
        }
    }
}
