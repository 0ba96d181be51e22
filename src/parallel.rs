//! The threads of a context: a rayon pool of its own (never the global one), and what a kernel needs to run.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::kernels::Kernels;

/// A thread pool. Results never depend on how many threads it has: work is split over outputs, never over
/// the terms of a sum.
pub struct Threads {
    pool: rayon::ThreadPool,
}

impl Threads {
    /// `count` 0 means one thread per available core.
    pub fn new(count: usize) -> Result<Self> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n if n > 1024 => return Err(Error::invalid(format!("{n} threads were asked for, the limit is 1024"))),
            n => n,
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("mmada-{i}"))
            .build()
            .map_err(|e| Error::Internal(format!("cannot start {count} threads: {e}")))?;
        Ok(Threads { pool })
    }

    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }
}

/// Everything a kernel call needs besides its operands: threads, the instruction set, and the flag that stops it.
#[derive(Clone, Copy)]
pub struct Exec<'a> {
    pub threads: &'a Threads,
    pub kernels: &'static Kernels,
    cancel: Option<&'a AtomicBool>,
}

impl<'a> Exec<'a> {
    pub fn new(threads: &'a Threads, kernels: &'static Kernels, cancel: Option<&'a AtomicBool>) -> Self {
        Exec { threads, kernels, cancel }
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
        self.threads.pool.install(work)
    }
}

/// A vector of `len` zeros (default values), or an error that says what could not be allocated.
pub fn try_vec<T: Clone + Default>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { what: what.to_owned(), bytes: len.saturating_mul(size_of::<T>()) })?;
    v.resize(len, T::default());
    Ok(v)
}
