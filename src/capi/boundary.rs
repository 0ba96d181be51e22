//! What stands between C and the library: no panic passes, no pointer is believed before it is looked at.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::thread;

use super::error::{Failure, mmada_error, mmada_status};
use super::handle;

/// Runs `work`; what it fails with, a panic among it, becomes a status and, where `error` points somewhere, an object.
///
/// # Safety
/// `error` is null or points to a place for a pointer.
pub unsafe fn guard(error: *mut *mut mmada_error, work: impl FnOnce() -> Result<(), Failure>) -> mmada_status {
    let failure = match catch(work) {
        Ok(Ok(())) => return mmada_status::MMADA_OK,
        Ok(Err(failure)) => failure,
        Err(failure) => failure,
    };
    let status = failure.status;
    if !error.is_null() {
        // SAFETY: by the caller's promise
        unsafe { error.write_unaligned(handle::new::<mmada_error>(failure)) };
    }
    status
}

/// [`guard`] for functions that report no sentence.
pub fn guard_status(work: impl FnOnce() -> Result<(), Failure>) -> mmada_status {
    match catch(work) {
        Ok(Ok(())) => mmada_status::MMADA_OK,
        Ok(Err(failure)) | Err(failure) => failure.status,
    }
}

/// [`guard`] for functions that return a value, `otherwise` where there is none.
pub fn guard_value<T>(otherwise: T, work: impl FnOnce() -> Result<T, Failure>) -> T {
    match catch(work) {
        Ok(Ok(value)) => value,
        _ => otherwise,
    }
}

/// The result of `work`, or its panic as a failure.
fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    keep_panics_silent();
    let outer = INSIDE.replace(true);
    // A panic leaves no half-changed object behind that a later call could see: contexts overwrite their scratch
    // memory, and a generation whose step panicked refuses every further one (its lock is poisoned).
    let result = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(outer);
    result.map_err(|payload| Failure::panic(&message(payload)))
}

thread_local! {
    /// Whether this thread runs a call of this interface.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Where this thread's last panic happened.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The standard library reports a panic on stderr before it is caught. Inside this interface, and in the threads of
/// its contexts, it is noted for the error's sentence instead; panics of a host program go on as before.
fn keep_panics_silent() {
    static ONCE: Once = Once::new();
    if thread::panicking() {
        return; // a destructor of a host program in Rust: its hook cannot be changed now
    }
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = INSIDE.get() || thread::current().name().is_some_and(|name| name.starts_with("mmada-"));
            match ours {
                true => note(info.location().map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()))),
                false => previous(info),
            }
        }));
    });
}

/// Keeps the place of a panic. A thread that is ending may have lost its variables already (its host's own destructors
/// call this interface then): the sentence does without, because a panic in here would end the process.
fn note(place: String) {
    let _ = PLACE.try_with(|kept| kept.replace(place));
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let text = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "no message",
    };
    // a payload whose destructor panics again must not get through
    let text = text.to_owned();
    std::mem::forget(payload);
    match PLACE.try_with(RefCell::take) {
        Ok(place) if !place.is_empty() => format!("{text} ({place})"),
        _ => text,
    }
}
