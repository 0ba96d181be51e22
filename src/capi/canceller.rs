//! Stopping a long call that is no generation.

use super::arguments::Out;
use super::boundary::guard;
use super::error::{Failure, mmada_error, mmada_status};
use super::handle::{self, Object};
use crate::generate::Canceller;

/// Stops a call that it is given to: a score, a forward. (A generation has `mmada_generation_cancel`.) Owned by whoever
/// made it; free it with `mmada_canceller_free`.
pub struct mmada_canceller {
    _opaque: [u8; 0],
}

impl Object for mmada_canceller {
    type Value = Canceller;
    const MAGIC: u64 = handle::magic(b"canceller");
    const NAME: &'static str = "canceller";
}

/// Makes a canceller.
///
/// Owned by the caller on success: `*canceller`. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_canceller_new(
    canceller: *mut *mut mmada_canceller,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            Out::new(canceller, "the canceller")?.give(Canceller::new());
            Ok(())
        })
    }
}

/// Stops the calls that have this canceller within one layer of the network, and every later one: they fail with
/// MMADA_CANCELLED. Threads: any, and signal handlers: it stores to one atomic and does nothing else.
/// Returns MMADA_NULL_POINTER or MMADA_INVALID_HANDLE for what is no canceller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_canceller_cancel(canceller: *const mmada_canceller) -> mmada_status {
    // SAFETY: NULL or a handle, as for every function of the interface
    match unsafe { handle::peek(canceller) } {
        Ok(canceller) => {
            canceller.cancel();
            mmada_status::MMADA_OK
        }
        Err(status) => status,
    }
}

/// Frees a canceller. NULL is harmless. Threads: any, once no call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_canceller_free(canceller: *mut mmada_canceller) {
    // SAFETY: NULL or a handle, as for every function of the interface
    unsafe { handle::free(canceller) }
}

/// The caller's canceller; one that nobody cancels for NULL.
///
/// # Safety
/// `canceller` is NULL or a handle.
pub unsafe fn canceller_or_new(canceller: *const mmada_canceller) -> Result<Canceller, Failure> {
    // SAFETY: the caller's promise is the same
    Ok(unsafe { handle::optional(canceller) }?.cloned().unwrap_or_default())
}
