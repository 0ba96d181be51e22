//! Text, questions about pictures, and text with noise, step by step.

use mmada::kernels::Kernels;

use super::api::{self, TextRun};
use super::cases::{TIE, TextCase};
use super::fixture::{Fixture, fixtures};
use super::noise::Recorded;
use super::tensors::Tensors;

/// Compares the answer, and every step where no tie is near.
fn check(fixture: &Fixture, name: &str, case: &TextCase, run: &TextRun) {
    let what = format!("{} {name} ({})", fixture.name, case.prompt);
    assert_eq!(run.ids(), case.output_ids, "{what}: answer");
    if fixture.expected.is_none() || case.margin_order <= TIE {
        return;
    }
    let trace = fixture.tensor(Tensors::ids, &format!("{name}.trace"));
    assert_eq!(trace.shape, [run.trace.len(), case.prompt_ids.len() + case.gen_length], "{what}: steps");
    for (step, (got, expected)) in run.trace.iter().zip(trace.rows()).enumerate() {
        let (prompt, answer) = expected.split_at(case.prompt_ids.len());
        assert_eq!(prompt, case.prompt_ids, "{what}: prompt");
        assert_eq!(got, answer, "{what}: step {step}");
    }
}

#[test]
fn answers_come_token_by_token_as_the_golden_ones_for_any_number_of_threads() {
    for fixture in fixtures() {
        for (i, case) in fixture.cases::<TextCase>("text_cases.json").iter().enumerate() {
            let context = api::context(fixture, 1 + i % 3, Kernels::best());
            let run = api::text(fixture, &context, case, Recorded::default());
            check(fixture, &format!("text.{i}"), case, &run);
        }
    }
}

#[test]
fn questions_about_pictures_are_answered_as_the_golden_ones() {
    for fixture in fixtures() {
        let context = api::context(fixture, 2, Kernels::best());
        for (i, case) in fixture.cases::<TextCase>("mmu_cases.json").iter().enumerate() {
            let name = format!("mmu.{i}");
            check(fixture, &name, case, &api::text_from_ids(fixture, &context, case));
            // The prompt's codes are the picture's.
            let vocabulary = fixture.model().vocabulary();
            let codes: Vec<u32> = case.prompt_ids.iter().filter_map(|id| vocabulary.image_code(*id)).collect();
            if let (Some(image), Some(expected)) = (case.image, &fixture.expected) {
                let of_image = expected.ids(&format!("vq.{image}.codes")).map(|t| t.data);
                assert!(of_image.is_none_or(|of_image| of_image == codes), "{} {name}: codes", fixture.name);
            }
        }
    }
}

#[test]
fn noise_and_random_remasking_give_the_golden_answers_with_the_recorded_draws() {
    for fixture in fixtures() {
        let cases = fixture.cases::<TextCase>("noisy_cases.json");
        if cases.is_empty() || !fixture.has_expected() {
            continue;
        }
        let context = api::context(fixture, 2, Kernels::best());
        for (i, case) in cases.iter().enumerate() {
            let name = format!("noisy.{i}");
            let run = api::text(fixture, &context, case, Recorded::of(fixture, &name));
            check(fixture, &name, case, &run);
        }
    }
}
