//! The stand-in itself: it finds the defects that it is there to find. With a card there is nothing to test: the kernels are
//! the stand-in's own, and it cannot be built where only the test programs are.

use crate::arguments;
use crate::card;
use crate::device::{Argument, Device, Processor, races};

/// Exit statuses: with a message of the stand-in's, and at a race.
const MESSAGE: Option<i32> = Some(97);
const RACE: Option<i32> = Some(98);

/// Memory of so many ones.
fn ones(device: &Processor, floats: usize) -> Argument {
    let x = device.allocate(4 * floats);
    device.write(x, bytemuck::cast_slice(&vec![1.0f32; floats]));
    x.into()
}

/// Runs a defective kernel on `floats` floats.
fn ending(kernel: &str, floats: usize, threads: usize, n: i32) -> (String, Option<i32>) {
    let device = Processor::quiet();
    let x = ones(&device, floats);
    device.failed_launch(kernel, threads, &[x, n.into()])
}

fn assert_message((message, status): (String, Option<i32>), expected: &str) {
    assert!(status == MESSAGE && message.contains(expected), "{status:?}: {message}");
}

#[test]
fn a_write_past_the_end_of_memory_ends_the_device() {
    if card::is_there() {
        return;
    }
    // by a signal, at the page behind; the sanitizer makes a status of it
    assert!(ending("defect_past_the_end", 128, 32, 128).1.is_none_or(|status| status != 0));
    // within the alignment it is seen afterwards
    assert_message(ending("defect_past_the_end", 127, 32, 127 - 31), "past the end of memory of 508 bytes");
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_found() {
    if card::is_there() {
        return;
    }
    assert_message(ending("defect_barrier_for_some", 128, 64, 33), "wait at __syncthreads");
}

#[test]
fn a_shuffle_that_some_lanes_never_reach_is_found() {
    if card::is_there() {
        return;
    }
    assert_message(ending("defect_divergent_shuffle", 128, 32, 30), "lanes of a warp are at different operations");
}

#[test]
fn a_launch_that_is_not_the_kernels_is_refused() {
    if card::is_there() {
        return;
    }
    let device = Processor::quiet();
    let x = ones(&device, 32);
    assert_message(
        device.failed_launch("right_in_warp", 32, &[x]),
        "the arguments of right_in_warp do not have the sizes",
    );
    assert_message(Processor::quiet().failed_launch("no_such_kernel", 32, &[]), "there is no kernel no_such_kernel");
    assert_message(ending("right_in_warp", 32, 20, 1), "a block is not of 1 to 32 whole warps");
}

#[test]
fn a_copy_on_its_way_has_not_arrived() {
    if card::is_there() {
        return;
    }
    let device = Device::new();
    let x = device.upload(&[1.0f32; 128]);
    device.launch("defect_early_read", [1, 1, 1], 32, 0, arguments![&x, 32]);
    let x = x.download();
    assert!(x.iter().step_by(4).all(|v| v.is_nan()) && x[1..].iter().step_by(4).all(|v| *v == 1.0));
}

#[test]
fn races_are_found_where_they_are_looked_for() {
    if card::is_there() {
        return;
    }
    if !races() {
        return;
    }
    for (kernel, threads) in [("defect_race", 64), ("defect_race_in_warp", 32)] {
        let (message, status) = ending(kernel, 64, threads, 1);
        assert!(status == RACE && message.contains("data race") && message.contains(kernel), "{status:?}: {message}");
    }
}

#[test]
fn what_syncwarp_orders_is_no_race() {
    if card::is_there() {
        return;
    }
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

#[test]
fn a_product_of_a_warpgroup_is_there_once_it_is_waited_for_and_not_before() {
    if card::is_there() {
        return;
    }
    let device = Device::new();
    // two bfloat16 of 1 to a word
    let one = 0x3f80_3f80;
    for (kernel, expected) in [("right_wgmma", 17.0), ("defect_wgmma_early_read", f32::NAN)] {
        let x = device.memory::<f32>(128);
        device.launch(kernel, [1, 1, 1], 128, 0, arguments![&x, one]);
        let x = x.download();
        assert!(x.iter().all(|v| *v == expected || v.is_nan() && expected.is_nan()), "{kernel}: {x:?}");
    }
}

#[test]
fn operands_in_registers_and_in_rows_of_columns_are_multiplied_as_matrices() {
    if card::is_there() {
        return;
    }
    let device = Device::new();
    let x = device.memory::<f32>(64 * 64);
    device.launch("right_wgmma_transposed", [1, 1, 1], 128, 0, arguments![&x, 0]);
    let (a, b) = (|row: i32, k: i32| row % 17 - k + row / 17, |k: i32, c: i32| k * 3 - c % 13 + c / 8);
    let product = |i: i32| (0..16).map(|k| a(i / 64, k) * b(k, i % 64)).sum::<i32>() as f32;
    assert_eq!(x.download(), (0..64 * 64).map(product).collect::<Vec<f32>>());
}

#[test]
fn products_of_warpgroups_that_are_not_waited_for_or_not_fenced_are_found() {
    if card::is_there() {
        return;
    }
    for (kernel, message) in [
        ("defect_wgmma_unfenced", "without wgmma.fence"),
        ("defect_wgmma_shifted", "does not begin where the swizzle does"),
        ("defect_wgmma_wait_of_some", "threads of a warpgroup are at different operations"),
        ("defect_wgmma_written", "an accumulator of wgmma was written"),
        ("defect_wgmma_operand_written", "a first operand of wgmma in registers was written"),
        ("defect_wgmma_transposed_shifted", "atoms do not begin where the swizzle does"),
    ] {
        assert_message(ending(kernel, 64 * 64, 128, 1), message);
    }
    let overwritten = ending("defect_wgmma_overwritten", 128, 128, 1);
    if races() {
        assert!(overwritten.1 == RACE, "{overwritten:?}");
    } else {
        assert_message(overwritten, "shared memory was written while wgmma was reading it");
    }
    assert_message(ending("right_wgmma", 128, 64, 1), "a warpgroup of fewer than 128 threads");
}

#[test]
fn an_mbarrier_orders_what_was_written_before_and_waits_for_all() {
    if card::is_there() {
        return;
    }
    let device = Device::new();
    let numbers: Vec<f32> = (0..128).map(|i| i as f32).collect();
    for _ in 0..3 {
        let x = device.upload(&numbers);
        device.launch("right_mbarrier", [1, 1, 1], 64, 0, arguments![&x, 0]);
        let expected: Vec<f32> = (0..32).map(|i| ((i + 1) % 32 * 4) as f32).collect();
        assert_eq!(x.download()[..32], expected);
    }
    assert_message(ending("defect_mbarrier_unfenced", 128, 64, 1), "without fence.proxy.async");
    assert_message(ending("defect_mbarrier_too_few", 128, 64, 1), "some for an mbarrier");
}

/// A matrix of 20 rows of 40 floats, which are their numbers, and a tensor map of it in boxes of 8 rows.
fn numbered(device: &Processor) -> (Argument, Argument) {
    let numbers: Vec<f32> = (0..800).map(|i| i as f32).collect();
    let at = device.allocate(4 * numbers.len());
    device.write(at, bytemuck::cast_slice(&numbers));
    (at.into(), Argument::of_bytes(device.tensor_map(at, 20, 160, 8)))
}

#[test]
fn a_bulk_copy_swizzles_its_box_and_fills_it_up_with_zeros() {
    if card::is_there() {
        return;
    }
    let device = Device::new();
    if !device.has_hopper() {
        return;
    }
    let numbers: Vec<f32> = (0..800).map(|i| i as f32).collect();
    let from = device.upload(&numbers);
    let map = device.tensor_map(&from, 160, 8);
    // columns are bytes; in each order of the threads
    for (column, row) in [(0, 0), (32, 12), (16, 17), (96, -3), (-64, 19), (160, 0)] {
        let x = device.memory::<f32>(256);
        device.launch("right_box", [1, 1, 1], 64, 0, arguments![&x, &map, column, row]);
        let expected = (0..256).map(|i| match (row + i / 32, column / 4 + i % 32) {
            (r @ 0..20, c @ 0..40) => (40 * r + c) as f32,
            _ => 0.0,
        });
        assert_eq!(x.download(), expected.collect::<Vec<_>>(), "the box at {column}, {row}");
    }
    if !races() {
        let x = device.memory::<f32>(256);
        device.launch("defect_box_early_read", [1, 1, 1], 64, 0, arguments![&x, &map, 0, 0]);
        assert!(x.download().iter().all(|v| v.is_nan()));
    }
}

#[test]
fn bulk_copies_that_are_not_waited_for_or_not_where_they_should_be_are_found() {
    if card::is_there() {
        return;
    }
    for (kernel, message) in [
        ("defect_box_too_many_bytes", "some for an mbarrier"),
        ("defect_box_too_few_bytes", "a block ends while its bulk copies are on their way"),
        ("defect_box_unfenced_barrier", "without fence.proxy.async after its initialization"),
        ("defect_box_shifted", "does not begin where the swizzle does"),
        ("defect_box_overwritten", "written while a bulk copy was on its way"),
    ] {
        let device = Processor::quiet();
        let (x, map) = numbered(&device);
        let found = device.failed_launch(kernel, 64, &[x, map, 0.into(), 0.into()]);
        assert!(found.0.contains(message) || races() && found.1 == RACE, "{kernel}: {found:?}");
    }
    if races() {
        let device = Processor::quiet();
        let (x, map) = numbered(&device);
        let (message, status) = device.failed_launch("defect_box_early_read", 64, &[x, map, 0.into(), 0.into()]);
        assert!(status == RACE && message.contains("data race"), "{status:?}: {message}");
    }
    let device = Processor::quiet();
    let (x, map) = numbered(&device);
    assert_message(device.failed_launch("defect_box_half_waited", 64, &[x, map]), "before copies that it waits for");
    let device = Processor::quiet();
    let (x, _) = numbered(&device);
    let no_map = Argument::of_bytes(vec![1; 128]);
    let found = device.failed_launch("right_box", 64, &[x, no_map, 0.into(), 0.into()]);
    assert_message(found, "that cuTensorMapEncodeTiled has not written");
}

#[test]
fn copies_that_arrive_by_themselves_are_not_fenced_for_products() {
    if card::is_there() {
        return;
    }
    let device = Device::new();
    let x = device.upload(&[0.0f32; 128]);
    device.launch("right_copied_operand", [1, 1, 1], 128, 0, arguments![&x, 0]);
    assert_eq!(x.download(), [0.0; 128]);
    assert_message(ending("defect_copied_operand_unfenced", 128, 128, 0), "without fence.proxy.async");
}
