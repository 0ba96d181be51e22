//! Memory that is sized by a model or a request: asked for in a way that can fail, and counted against what a
//! context may use.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// A vector of `len` zeros (default values), or an error that says what could not be allocated.
pub fn try_vec<T: Clone + Default>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    try_resize(&mut v, len, what)?;
    Ok(v)
}

/// A cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line([u8; 64]);

/// Numbers that start at a cache line, so that vectors and tiles loaded from them never span two. They begin as zeros.
pub struct Aligned<T> {
    lines: Vec<Line>,
    kind: std::marker::PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Aligned { lines: Vec::new(), kind: std::marker::PhantomData }
    }
}

impl<T: bytemuck::Pod> Aligned<T> {
    /// Makes room for `len` numbers or more; those that are there stay.
    ///
    /// # Errors
    /// `OutOfMemory`, naming `what`.
    pub fn try_grow_to(&mut self, len: usize, what: &str) -> Result<()> {
        let lines = len.saturating_mul(size_of::<T>()).div_ceil(64);
        let more = lines.saturating_sub(self.lines.len());
        if more > 0 {
            try_reserve(&mut self.lines, more, what)?;
            self.lines.resize(lines, bytemuck::Zeroable::zeroed());
        }
        Ok(())
    }
}

impl<T: bytemuck::Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }
}

impl<T: bytemuck::Pod> std::ops::DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

/// An empty vector with room for `len` elements.
pub fn try_with_capacity<T>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    try_reserve(&mut v, len, what)?;
    Ok(v)
}

/// Makes room for `more` elements behind those that are there.
pub fn try_reserve<T>(v: &mut Vec<T>, more: usize, what: &str) -> Result<()> {
    v.try_reserve_exact(more).map_err(|_| {
        let bytes = v.len().saturating_add(more).saturating_mul(size_of::<T>());
        Error::OutOfMemory { what: what.to_owned(), bytes }
    })
}

/// Makes `v` `len` long; what is new is zero (the default value).
pub fn try_resize<T: Clone + Default>(v: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    try_reserve(v, len.saturating_sub(v.len()), what)?;
    v.resize(len, T::default());
    Ok(())
}

/// Makes `v` `len` long as [`try_resize`] does, but with room for more: for vectors that grow again and again.
pub fn try_grow<T: Clone + Default>(v: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    let more = len.saturating_sub(v.len());
    v.try_reserve(more)
        .map_err(|_| Error::OutOfMemory { what: what.to_owned(), bytes: len.saturating_mul(size_of::<T>()) })?;
    v.resize(len, T::default());
    Ok(())
}

/// Puts `items` behind the others; memory grows as a vector's does.
pub fn try_extend<T: Clone>(v: &mut Vec<T>, items: &[T], what: &str) -> Result<()> {
    v.try_reserve(items.len()).map_err(|_| {
        let bytes = v.len().saturating_add(items.len()).saturating_mul(size_of::<T>());
        Error::OutOfMemory { what: what.to_owned(), bytes }
    })?;
    v.extend_from_slice(items);
    Ok(())
}

/// Puts `item` behind the others; memory grows as a vector's does.
pub fn try_push<T>(v: &mut Vec<T>, item: T, what: &str) -> Result<()> {
    v.try_reserve(1).map_err(|_| {
        let bytes = v.len().saturating_mul(2 * size_of::<T>());
        Error::OutOfMemory { what: what.to_owned(), bytes }
    })?;
    v.push(item);
    Ok(())
}

/// A vector of what the iterator gives; its length need not be known.
pub fn try_collect<T>(items: impl IntoIterator<Item = T>, what: &str) -> Result<Vec<T>> {
    let items = items.into_iter();
    let mut v = try_with_capacity(items.size_hint().0, what)?;
    for item in items {
        try_push(&mut v, item, what)?;
    }
    Ok(v)
}

/// A copy of a text.
pub fn try_string(text: &str, what: &str) -> Result<String> {
    let mut s = String::new();
    s.try_reserve_exact(text.len()).map_err(|_| Error::OutOfMemory { what: what.to_owned(), bytes: text.len() })?;
    s.push_str(text);
    Ok(s)
}

/// Makes room for one more entry of a map.
pub fn try_reserve_entry<K: Eq + Hash, V>(map: &mut HashMap<K, V>, what: &str) -> Result<()> {
    map.try_reserve(1).map_err(|_| {
        let bytes = map.capacity().saturating_mul(2 * size_of::<(K, V)>());
        Error::OutOfMemory { what: what.to_owned(), bytes }
    })
}

/// A copy of `from`.
pub fn try_copy<T: Clone>(from: &[T], what: &str) -> Result<Vec<T>> {
    let mut v = try_with_capacity(from.len(), what)?;
    v.extend_from_slice(from);
    Ok(v)
}

/// Bytes written to memory that grows as a vector does.
#[derive(Default)]
pub struct Growing {
    pub bytes: Vec<u8>,
    /// The length for which there was no memory; 0 if there always was.
    pub refused: usize,
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.try_reserve(bytes.len()).is_err() {
            self.refused = self.bytes.len().saturating_add(bytes.len());
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes of buffers a context may have, and has. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Ledger>);

#[derive(Debug, Default)]
struct Ledger {
    /// None: as many as the system gives.
    limit: Option<usize>,
    used: AtomicUsize,
}

impl Budget {
    /// `None` for no limit.
    pub fn new(limit: Option<usize>) -> Self {
        Budget(Arc::new(Ledger { limit, used: AtomicUsize::new(0) }))
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Counts `bytes`, before they are allocated, until what is returned is dropped.
    ///
    /// # Errors
    /// `OutOfMemory` with `what` and the limit, if they are more than are left.
    pub fn take(&self, bytes: usize, what: &str) -> Result<Charge> {
        self.count(bytes, what)?;
        Ok(Charge { budget: Some(self.clone()), bytes })
    }

    fn count(&self, bytes: usize, what: &str) -> Result<()> {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| self.0.limit.is_none_or(|limit| sum <= limit));
        match self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => {
                let limit = self.0.limit.unwrap_or(usize::MAX);
                let what = format!("the context may have {limit} bytes of buffers and has {used}; {what}");
                Err(Error::OutOfMemory { what, bytes })
            }
        }
    }
}

/// Bytes of a budget, given back when this is dropped. The default is none.
#[derive(Debug, Default)]
pub struct Charge {
    budget: Option<Budget>,
    bytes: usize,
}

impl Charge {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts `bytes` more.
    ///
    /// # Errors
    /// As [`Budget::take`].
    pub fn grow(&mut self, bytes: usize, what: &str) -> Result<()> {
        if let Some(budget) = &self.budget {
            budget.count(bytes, what)?;
            self.bytes += bytes;
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(Budget(ledger)) = &self.budget {
            ledger.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_counts_until_it_is_dropped() {
        let budget = Budget::new(Some(1000));
        let first = budget.take(600, "one").unwrap();
        let error = budget.clone().take(401, "the logits").unwrap_err();
        assert_eq!(error.code(), 7);
        let want = "out of memory: the context may have 1000 bytes of buffers and has 600; the logits needs 401 bytes";
        assert_eq!(error.to_string(), want);
        let second = budget.take(400, "two").unwrap();
        assert_eq!((budget.used(), second.bytes()), (1000, 400));
        drop(first);
        assert_eq!(budget.used(), 400);
        assert!(budget.take(usize::MAX, "overflow").is_err());
        drop(second);
        assert_eq!(budget.used(), 0);
        drop(Charge::default());
        assert_eq!(Budget::default().take(usize::MAX, "all").unwrap().bytes(), usize::MAX);
    }

    #[test]
    fn a_request_that_cannot_be_met_is_an_error_that_says_what_for() {
        let error = try_vec::<u64>(usize::MAX / 16, "a canvas").unwrap_err().to_string();
        assert_eq!(error, format!("out of memory: a canvas needs {} bytes", usize::MAX / 16 * 8));
        let mut v = vec![1u8, 2, 3];
        assert!(try_resize(&mut v, usize::MAX, "bytes").is_err());
        try_resize(&mut v, 5, "bytes").unwrap();
        assert_eq!(v, [1, 2, 3, 0, 0]);
        assert_eq!(try_copy(&v, "a copy").unwrap(), v);
    }
}
