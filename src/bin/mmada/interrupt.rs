//! Ctrl-C. While a generation runs it is cancelled and the command unwinds, so that its files are cleaned up;
//! otherwise (reading input, opening a model) the program leaves at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::failure::{Failure, INTERRUPTED};

type Stop = Box<dyn Fn() + Send>;

static PRESSED: AtomicBool = AtomicBool::new(false);
/// What Ctrl-C does besides setting `PRESSED`. Held for as long as the program must not leave on its own accord.
static STOP: Mutex<Option<Stop>> = Mutex::new(None);

fn stop() -> MutexGuard<'static, Option<Stop>> {
    STOP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the handler. ctrlc calls it on a thread of its own, where locks and exits are allowed.
pub fn install() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        PRESSED.store(true, Ordering::SeqCst);
        match stop().as_ref() {
            Some(cancel) => cancel(),
            None => std::process::exit(INTERRUPTED.into()),
        }
    })
    .map_err(|e| Failure::Run(format!("cannot listen for Ctrl-C: {e}")))
}

/// `Interrupted` once Ctrl-C was pressed.
pub fn check() -> Result<(), Failure> {
    if PRESSED.load(Ordering::SeqCst) { Err(Failure::Interrupted) } else { Ok(()) }
}

/// As long as this lives, Ctrl-C calls `cancel` instead of leaving.
pub struct Guard(());

/// Sends Ctrl-C to `cancel` until the guard is dropped. One guard at a time.
pub fn cancels(cancel: impl Fn() + Send + 'static) -> Guard {
    *stop() = Some(Box::new(cancel));
    Guard(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        *stop() = None;
    }
}
