//! What this build of the library can run on, and what it was built from.

#![forbid(unsafe_code)]

use crate::kernels::Kernels;
use crate::{kernels, mmap};

/// The version of the library: that of its package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A way to run the network, with the devices that it finds on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// `cpu`.
    pub name: &'static str,
    /// At least one for `cpu`.
    pub devices: Vec<Device>,
}

/// A processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What its maker calls it, or the architecture where it does not say.
    pub name: String,
    /// Bytes of memory that it works in, free or not; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// The instruction sets that there are kernels for, the slowest first: what `ContextOptions::instruction_set` takes.
    pub instruction_sets: Vec<&'static str>,
}

/// All backends of this build that this machine can run, the slowest first.
pub fn backends() -> Vec<Backend> {
    let processor = Device {
        name: kernels::processor_name().unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH)),
        memory_bytes: mmap::physical_memory(),
        instruction_sets: Kernels::available().iter().map(Kernels::name).collect(),
    };
    vec![Backend { name: "cpu", devices: vec![processor] }]
}

/// What the library was built as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// [`VERSION`].
    pub version: &'static str,
    /// The platform that it was built for: `x86_64-unknown-linux-gnu`.
    pub target: &'static str,
    /// Optional parts that were built in, in the order of the alphabet.
    pub features: Vec<&'static str>,
    /// `release`, or `debug` with checks for overflow.
    pub profile: &'static str,
}

/// What this library was built as.
pub fn build_info() -> BuildInfo {
    let features = [("capi", cfg!(feature = "capi")), ("cli", cfg!(feature = "cli"))];
    BuildInfo {
        version: VERSION,
        target: env!("MMADA_TARGET"),
        features: features.into_iter().filter(|&(_, built)| built).map(|(name, _)| name).collect(),
        profile: env!("MMADA_PROFILE"),
    }
}

impl std::fmt::Display for BuildInfo {
    /// One line: `0.1.0 x86_64-unknown-linux-gnu release cli`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.version, self.target, self.profile)?;
        self.features.iter().try_for_each(|name| write!(f, " {name}"))
    }
}
