//! The stand-in for NVIDIA's driver in a test's own process, and what a test decides and counts there.
//!
//! Other integration tests take it by `#[path = "cuda/library.rs"] mod library;`. A library that is opened by its path is
//! found again by its name: after [`Driver::open`] a process that asks for libcuda.so gets this one. Child processes get it
//! by `LD_LIBRARY_PATH` ([`folder`]).
#![allow(dead_code)] // not every test needs all of it

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

#[path = "build.rs"]
pub mod build;

/// The library, compiled if that has to be.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        // what the library has done stays, even if somebody closes it between two uses
        let linker = ["-shared", "-Wl,-soname,libcuda.so", "-Wl,-z,nodelete", "-Wl,-z,defs"];
        let made = build::build(&build::Output { name: "libcuda.so", own: "driver", linker: &linker, races: false });
        let by_version = made.with_file_name("libcuda.so.1");
        if !by_version.exists() {
            std::os::unix::fs::symlink(made.file_name().unwrap(), by_version).unwrap();
        }
        made
    })
}

/// The folder that a child process is to look for libraries in.
pub fn folder() -> &'static Path {
    path().parent().unwrap()
}

/// The driver, which one test at a time has to itself.
pub struct Driver {
    library: &'static libloading::Library,
    _alone: MutexGuard<'static, ()>,
}

impl Driver {
    /// With the settings of a new process, and nothing in use.
    pub fn open() -> Driver {
        static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
        static ALONE: Mutex<()> = Mutex::new(());
        // a test that has failed leaves nothing that `restart` does not drop
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: its constructors register kernels and settings, and touch nothing of this process
        let library = LIBRARY.get_or_init(|| unsafe { libloading::Library::new(path()) }.unwrap());
        let driver = Driver { library, _alone: alone };
        driver.restart();
        driver
    }

    /// Sets what the environment variable `MMADA_STANDIN_{name}` sets.
    pub fn set(&self, name: &str, value: impl ToString) {
        let name = CString::new(format!("MMADA_STANDIN_{name}")).unwrap();
        let value = CString::new(value.to_string()).unwrap();
        type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
        // SAFETY: the function is declared so in standin/driver/settings.cpp; both texts outlive the call
        let known = unsafe { self.library.get::<Set>(b"mmada_standin_set").unwrap()(name.as_ptr(), value.as_ptr()) };
        assert!(known == 1, "there is no setting {name:?}");
    }

    /// What has been counted since the start: see `Counters` in standin/driver/driver.h.
    pub fn count(&self, name: &str) -> u64 {
        let c_name = CString::new(name).unwrap();
        type Count = unsafe extern "C" fn(*const c_char) -> u64;
        // SAFETY: as above
        let count = unsafe { self.library.get::<Count>(b"mmada_standin_count").unwrap()(c_name.as_ptr()) };
        assert!(count != u64::MAX, "there is no counter {name}");
        count
    }

    /// What the driver had to say last, beyond a status.
    pub fn message(&self) -> String {
        // SAFETY: as above; a text that stays until the driver is called again, which this test alone does
        let text = unsafe {
            let message =
                self.library.get::<unsafe extern "C" fn() -> *const c_char>(b"mmada_standin_message").unwrap();
            CStr::from_ptr(message())
        };
        text.to_string_lossy().into_owned()
    }

    /// As if the process were new, but that messages are for [`Driver::message`]: nothing that the driver has given may be
    /// used any more.
    pub fn restart(&self) {
        // SAFETY: as above
        unsafe { self.library.get::<unsafe extern "C" fn()>(b"mmada_standin_restart").unwrap()() };
        self.set("QUIET", 1);
    }
}
