//! The threads of a context: a rayon pool of its own (never the global one), and what a kernel needs to run.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::kernels::Kernels;
pub use crate::memory::try_vec;
use crate::memory::{Budget, Charge};

/// Far more than help, and so few that starting them does no harm.
const MAX_THREADS: usize = 1024;

/// The number of threads that `count` asks for: 0 means one per available core.
///
/// # Errors
/// `InvalidArgument` for so many that starting them could exhaust the machine.
pub fn thread_count(count: usize) -> Result<usize> {
    match count {
        0 => Ok(thread::available_parallelism().map_or(1, |n| n.get())),
        n if n > MAX_THREADS => Err(Error::invalid(format!("{n} threads were asked for, the limit is {MAX_THREADS}"))),
        n => Ok(n),
    }
}

/// A thread pool. Results never depend on how many threads it has: work is split over outputs, never over
/// the terms of a sum.
///
/// The threads are those of the process that made them: a process forked from it has none of them, and whoever waited
/// for one there would wait for ever. So [`Threads::check`] comes before any work.
pub struct Threads {
    /// Some until it is dropped.
    pool: Option<rayon::ThreadPool>,
    handles: Vec<JoinHandle<()>>,
    count: usize,
    process: u32,
}

/// What Rust gives its threads, unless the environment says otherwise.
const STACK_BYTES: usize = 2 << 20;

impl Threads {
    /// `count` 0 means one thread per available core.
    pub fn new(count: usize) -> Result<Self> {
        let count = thread_count(count)?;
        let mut handles = Vec::new();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .spawn_handler(|worker| {
                let builder = thread::Builder::new().name(format!("mmada-{}", worker.index())).stack_size(STACK_BYTES);
                handles.push(builder.spawn(|| worker.run())?);
                Ok(())
            })
            .build();
        match pool {
            Ok(pool) => Ok(Threads { pool: Some(pool), handles, count, process: std::process::id() }),
            Err(e) => {
                join(handles); // those that did start have been told to end
                Err(Error::Internal(format!("cannot start {count} threads: {e}")))
            }
        }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// An error in a process that was forked from the one that the threads run in.
    pub fn check(&self) -> Result<()> {
        match self.is_here() {
            true => Ok(()),
            false => Err(Error::Forked),
        }
    }

    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for Threads {
    /// Ends the threads and waits until they are gone, so that a library can be unloaded afterwards. In a forked process
    /// there are none: telling them to end could wait for a lock that one of them held at the fork, so what is left of
    /// the pool (some kilobytes) stays.
    fn drop(&mut self) {
        let (pool, handles) = (self.pool.take(), mem::take(&mut self.handles));
        if self.is_here() {
            drop(pool);
            join(handles);
        } else {
            mem::forget((pool, handles));
        }
    }
}

/// Waits for threads that end, unless it is one of them that waits.
fn join(handles: Vec<JoinHandle<()>>) {
    let this = thread::current().id();
    for handle in handles.into_iter().filter(|handle| handle.thread().id() != this) {
        let _ = handle.join(); // a panic in a thread has reached its caller already
    }
}

/// Everything a kernel call needs besides its operands: threads, the instruction set, and the flag that stops it.
#[derive(Clone, Copy)]
pub struct Exec<'a> {
    pub threads: &'a Threads,
    pub kernels: &'static Kernels,
    cancel: Option<&'a AtomicBool>,
    budget: Option<&'a Budget>,
}

impl<'a> Exec<'a> {
    pub fn new(threads: &'a Threads, kernels: &'static Kernels, cancel: Option<&'a AtomicBool>) -> Self {
        Exec { threads, kernels, cancel, budget: None }
    }

    /// Buffers that the work needs count against `budget`.
    pub fn within(self, budget: &'a Budget) -> Self {
        Exec { budget: Some(budget), ..self }
    }

    /// Counts `bytes` of buffers before they are allocated; see [`Budget::take`].
    pub fn take(&self, bytes: usize, what: &str) -> Result<Charge> {
        self.budget.map_or_else(|| Ok(Charge::default()), |budget| budget.take(bytes, what))
    }

    /// An error once the caller has cancelled. Looked at between layers and between the parts of a convolution.
    pub fn check(&self) -> Result<()> {
        match self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// Runs `work` inside the pool, so that rayon's iterators use this context's threads.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads.pool {
            Some(pool) => pool.install(work),
            None => work(), // not reached: the pool is there until it is dropped
        }
    }
}
