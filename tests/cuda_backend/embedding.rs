//! Programs in C that ask for a card: child processes, which find the stand-in where they look for the driver.

use std::process::Command;

use crate::c_programs::{model, program, silently};
use crate::library;
use crate::support::is_card;

/// A part of `tests/capi/card.c`, which says nothing if all is well.
fn part(name: &str, settings: &[(&str, &str)]) {
    if is_card() {
        return; // there is neither a compiler nor the shared library where a card is
    }
    let mut command: Command = program("card");
    command.arg(name).arg(model()).env("LD_LIBRARY_PATH", library::folder());
    silently(command.envs(settings.iter().copied()));
}

#[test]
fn the_stand_in_lies_where_child_processes_look() {
    assert!(is_card() || library::folder().join("libcuda.so.1").exists());
}

#[test]
fn c_programs_are_told_what_a_context_runs_on_and_how_far_copying_weights_has_come() {
    part("said_of_it", &[]);
}

#[test]
fn c_programs_get_the_answers_and_codes_of_the_processor_with_the_same_seed() {
    part("answers_alike", &[]);
}

#[test]
fn c_programs_are_told_of_a_card_that_fails_and_go_on_with_the_processor() {
    // after the check of the card, in the first or second step
    part("lost", &[("MMADA_STANDIN_FAIL_LAUNCH", "80:719"), ("MMADA_STANDIN_QUIET", "1")]);
}
