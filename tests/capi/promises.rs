//! The promises of the header, each kept by a part of a C program that says nothing.

use super::support::{model, program, silently};

/// A part of `promises.c`.
fn part(name: &str) {
    silently(program("promises").arg(name).arg(model()));
}

#[test]
fn options_that_cannot_be_are_a_status_and_a_sentence() {
    part("bad_options");
}

#[test]
fn results_that_are_not_there_and_steps_after_the_end_are_a_status_and_a_sentence() {
    part("bad_times");
}

#[test]
fn structs_of_other_sizes_are_read_if_they_are_of_another_version_and_refused_if_not() {
    part("struct_sizes");
}

#[test]
fn a_freed_handle_is_told_where_its_memory_still_says_so() {
    part("freed_handles");
}

#[test]
fn a_panic_is_a_status_and_is_not_printed() {
    if cfg!(debug_assertions) {
        part("panics");
    }
}

#[test]
fn the_destructors_of_a_thread_that_is_ending_may_free_and_cancel_and_nothing_crashes() {
    part("ending_threads");
}

#[test]
fn a_quarter_of_a_mebibyte_of_stack_is_enough_for_a_caller() {
    part("small_stacks");
}

#[test]
fn each_context_tells_its_own_logger_and_no_other() {
    part("loggers");
}

#[test]
fn devices_are_listed_and_chosen_by_name_and_one_that_is_not_there_is_said_to_be_missing() {
    part("devices");
}

#[test]
fn a_step_is_cancelled_by_a_thread_and_by_a_signal_handler_and_the_context_goes_on() {
    part("cancelling");
}

#[test]
fn threads_that_meet_at_a_generation_are_told_to_come_later_and_change_nothing() {
    part("busy");
}

#[test]
fn eight_threads_with_four_contexts_on_one_model_draw_what_one_draws() {
    part("stress");
}

#[test]
fn the_parent_of_a_fork_goes_on_and_the_child_is_told() {
    part("forking");
}

#[test]
fn a_model_is_opened_by_path_descriptor_and_memory_and_opening_can_be_watched_and_stopped() {
    part("opening");
}

#[test]
fn a_context_keeps_to_its_memory_limit() {
    part("memory_limits");
}

#[test]
fn the_library_is_loaded_and_unloaded_a_hundred_times_and_leaves_nothing_behind() {
    silently(program("unload").arg(super::support::library()).arg(model()));
}

#[test]
fn an_allocation_that_fails_is_an_error_and_leaks_nothing() {
    silently(program("failing").arg(model()));
}
