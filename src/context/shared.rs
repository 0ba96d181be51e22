//! Copies of a model's weights in other forms, which contexts share for as long as one of them is there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::Result;
use crate::memory::try_push;

/// Values by what they are for.
pub(super) struct Shared<K, T>(Mutex<Vec<(K, Weak<T>)>>);

impl<K, T> Default for Shared<K, T> {
    fn default() -> Self {
        Shared(Mutex::default())
    }
}

impl<K: PartialEq, T> Shared<K, T> {
    /// The value for `key`, made by `make` where there is none.
    ///
    /// # Errors
    /// Those of `make`; `OutOfMemory`.
    pub fn get(&self, key: K, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if let (_, Some(value)) = self.find(&key) {
            return Ok(value);
        }
        // Not locked while it is made: whoever waits for a pool's threads may be given another context to make meanwhile.
        let value = Arc::new(make()?);
        let (mut list, found) = self.find(&key);
        if let Some(first) = found {
            // two were made at once: one is kept
            return Ok(first);
        }
        try_push(&mut list, (key, Arc::downgrade(&value)), "a list of weights in memory")?;
        Ok(value)
    }

    /// Looks at the keys of values that are there.
    #[cfg(feature = "cuda")]
    pub fn keys<R>(&self, look: impl FnOnce(&mut dyn Iterator<Item = &K>) -> R) -> R {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(&mut list.iter().filter(|(_, value)| value.strong_count() > 0).map(|(key, _)| key))
    }

    #[allow(clippy::type_complexity)]
    fn find(&self, key: &K) -> (MutexGuard<'_, Vec<(K, Weak<T>)>>, Option<Arc<T>>) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|(_, value)| value.strong_count() > 0);
        let found = list.iter().find(|(other, _)| other == key).and_then(|(_, value)| value.upgrade());
        (list, found)
    }
}
