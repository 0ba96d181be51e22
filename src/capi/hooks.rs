//! A panic on purpose, for the tests. Debug builds only: neither the header nor an installed library has it.

use super::boundary::guard;
use super::context::mmada_context;
use super::error::{mmada_error, mmada_status};
use super::handle;

/// Panics: in a thread of `context` or, if that is NULL, in the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_debug_panic(
    context: *const mmada_context,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: NULL or handles, as for every function of the interface
    unsafe {
        guard(error, || match handle::optional(context)? {
            Some(context) => {
                context.run(|| panic!("on purpose, in a thread of the context"));
                Ok(())
            }
            None => panic!("on purpose, in the caller's thread"),
        })
    }
}
