//! What the benches share: how they take the time, and what the machine can do at most.

#![allow(dead_code)] // no bench uses all of it

pub mod peak;

use std::time::{Duration, Instant};

/// Runs that are made at least, however long they take.
const RUNS: usize = 3;

/// The shortest time of `work` in seconds, of as many runs as fit into `budget` seconds: on a machine that others use
/// too, the best of many runs is what repeats. With one thread it is the processor time of this process (the caller
/// only waits for its thread), which counts no time that others had; with more it is the wall time.
pub fn best(threads: usize, budget: f64, mut work: impl FnMut()) -> f64 {
    let (end, mut best) = (Instant::now() + Duration::from_secs_f64(budget), f64::INFINITY);
    for run in 0.. {
        if run >= RUNS && Instant::now() >= end {
            break;
        }
        let start = seconds(threads);
        work();
        best = best.min(seconds(threads) - start);
    }
    best
}

/// A clock: of this process's processor time for one thread, of wall time for more.
#[cfg(unix)]
fn seconds(threads: usize) -> f64 {
    let clock = if threads == 1 { libc::CLOCK_PROCESS_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable
    let status = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(status, 0, "the system has no such clock");
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// A clock of wall time.
#[cfg(not(unix))]
fn seconds(_threads: usize) -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// The most memory that this process had at a time since it was last asked for, without what is mapped of files, in GiB
/// (Linux, proc(5): `VmHWM` less `RssFile`, which only grows here). Memory that was given back to the allocator may be part
/// of it, as glibc keeps what it thinks will be asked for again: `MALLOC_MMAP_THRESHOLD_=131072` in the environment leaves
/// what is in use.
pub fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<f64> {
        status.lines().find_map(|l| l.strip_prefix(name))?.trim().strip_suffix(" kB")?.parse().ok()
    };
    let peak = (field("VmHWM:")? - field("RssFile:")?) / (1 << 20) as f64;
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    Some(peak)
}
