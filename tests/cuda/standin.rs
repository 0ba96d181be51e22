//! The stand-in itself: it finds the defects that it is there to find.

use crate::arguments;
use crate::device::{Device, races};

/// How the device ends by itself: with a message, or at a race.
const MESSAGE: Option<i32> = Some(97);
const RACE: Option<i32> = Some(98);

/// Runs a defective kernel on 64 floats; returns how the device ended.
fn ending(kernel: &str, threads: usize, n: i32) -> Option<i32> {
    let device = Device::new();
    let x = device.upload(&[1.0f32; 128]).argument();
    device.failed_launch(kernel, threads, &[x, n.into()])
}

#[test]
fn a_write_past_the_end_of_memory_ends_the_device() {
    // by a signal, at the page behind; the sanitizer makes a status of it
    assert!(ending("defect_past_the_end", 32, 128).is_none_or(|status| status != 0));
    // within the alignment it is seen afterwards
    let device = Device::new();
    let x = device.upload(&[1.0f32; 127]).argument();
    assert_eq!(device.failed_launch("defect_past_the_end", 32, &[x, (127 - 31).into()]), MESSAGE);
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_found() {
    assert_eq!(ending("defect_barrier_for_some", 64, 33), MESSAGE);
}

#[test]
fn a_shuffle_that_some_lanes_never_reach_is_found() {
    assert_eq!(ending("defect_divergent_shuffle", 32, 30), MESSAGE);
}

#[test]
fn a_launch_with_other_arguments_than_the_kernel_has_is_refused() {
    let device = Device::new();
    let x = device.upload(&[1.0f32; 32]).argument();
    assert_eq!(device.failed_launch("right_in_warp", 32, &[x]), MESSAGE);
    let device = Device::new();
    assert_eq!(device.failed_launch("no_such_kernel", 32, &[]), MESSAGE);
}

#[test]
fn a_copy_on_its_way_has_not_arrived() {
    let device = Device::new();
    let x = device.upload(&[1.0f32; 128]);
    device.launch("defect_early_read", [1, 1, 1], 32, 0, arguments![&x, 32]);
    let x = x.download();
    assert!(x.iter().step_by(4).all(|v| v.is_nan()) && x[1..].iter().step_by(4).all(|v| *v == 1.0));
}

#[test]
fn races_are_found_where_they_are_looked_for() {
    if !races() {
        return;
    }
    assert_eq!(ending("defect_race", 64, 1), RACE);
    assert_eq!(ending("defect_race_in_warp", 32, 1), RACE);
}

#[test]
fn what_syncwarp_orders_is_no_race() {
    let device = Device::new();
    let numbers: Vec<f32> = (0..32).map(|i| i as f32).collect();
    // in each order of the threads
    for _ in 0..3 {
        let x = device.upload(&numbers);
        device.launch("right_in_warp", [1, 1, 1], 32, 0, arguments![&x, 5]);
        let expected: Vec<f32> = (0..32).map(|i| ((i + 5) % 32) as f32).collect();
        assert_eq!(x.download(), expected);
    }
}
