//! What this build of the library can run on, and what it was built from.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::kernels::Kernels;
use crate::{kernels, mmap};

/// The version of the library: that of its package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where a context runs its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first graphics card that can; the processor where there is none.
    Auto,
    /// The default, for as long as the kernels for graphics cards have not been confirmed on one.
    #[default]
    Cpu,
    /// The graphics card of this number, counted from 0 as the driver does.
    Cuda(usize),
    /// The same with the kernels for every card since Ampere alone: for a card of Hopper on which those of its own go wrong in a
    /// way that the library did not find. No context of the process takes them on that card from then on, but for steps that
    /// one has recorded before.
    CudaAmpere(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// `auto`, `cpu`, `cuda` (the first one) or `cuda:1`; with `/ampere` behind it [`DeviceChoice::CudaAmpere`].
    ///
    /// # Errors
    /// `InvalidArgument`, naming those.
    fn from_str(s: &str) -> Result<Self, Error> {
        let (card, choice): (_, fn(usize) -> Self) = match s.strip_suffix("/ampere") {
            Some(card) => (card, DeviceChoice::CudaAmpere),
            None => (s, DeviceChoice::Cuda),
        };
        let index = match card {
            "auto" if card == s => return Ok(DeviceChoice::Auto),
            "cpu" if card == s => return Ok(DeviceChoice::Cpu),
            "cuda" => Some(0),
            _ => card
                .strip_prefix("cuda:")
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|n| n.parse().ok()),
        };
        let unknown = || Error::invalid(format!("device `{s}` is not one of auto, cpu, cuda or cuda:N"));
        index.map(choice).ok_or_else(unknown)
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::CudaAmpere(index) => write!(f, "cuda:{index}/ampere"),
        }
    }
}

/// A way to run the network, with the devices that it finds on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// `cpu` or `cuda`.
    pub name: &'static str,
    /// At least one for `cpu`.
    pub devices: Vec<Device>,
    /// One sentence that says why there are no devices, where there are none.
    pub unavailable: Option<String>,
}

/// A processor or a graphics card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What chooses it ([`DeviceChoice`]): `cpu`, `cuda:0`.
    pub id: String,
    /// What its maker calls it, or the architecture where it does not say.
    pub name: String,
    /// Bytes of memory that it works in, free or not; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// The instruction sets that there are kernels for, the slowest first: what `ContextOptions::instruction_set` takes.
    /// None for a graphics card.
    pub instruction_sets: Vec<&'static str>,
    /// A graphics card's compute capability, major and minor.
    pub compute_capability: Option<(i32, i32)>,
    /// One sentence that says why the kernels do not run on it, where they do not.
    pub refusal: Option<String>,
}

/// All backends that there are, the slowest first; what this build lacks has no devices and says so.
pub fn backends() -> Vec<Backend> {
    let processor = Device {
        id: "cpu".to_owned(),
        name: kernels::processor_name().unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH)),
        memory_bytes: mmap::physical_memory(),
        instruction_sets: Kernels::available().iter().map(Kernels::name).collect(),
        compute_capability: None,
        refusal: None,
    };
    vec![Backend { name: "cpu", devices: vec![processor], unavailable: None }, cuda()]
}

#[cfg(feature = "cuda")]
fn cuda() -> Backend {
    let device = |card: kernels::cuda::Card| Device {
        id: format!("cuda:{}", card.index),
        refusal: card.refusal(),
        name: card.name,
        memory_bytes: card.memory_bytes,
        instruction_sets: Vec::new(),
        compute_capability: Some(card.compute_capability),
    };
    let (cards, unavailable) = match kernels::cuda::cards() {
        Ok(cards) => (cards, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    Backend { name: "cuda", devices: cards.into_iter().map(device).collect(), unavailable }
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Backend {
    let unavailable = Some("this library was built without CUDA".to_owned());
    Backend { name: "cuda", devices: Vec::new(), unavailable }
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
    let features = [("capi", cfg!(feature = "capi")), ("cli", cfg!(feature = "cli")), ("cuda", cfg!(feature = "cuda"))];
    BuildInfo {
        version: VERSION,
        target: env!("MMADA_TARGET"),
        features: features.into_iter().filter(|&(_, built)| built).map(|(name, _)| name).collect(),
        profile: env!("MMADA_PROFILE"),
    }
}

impl fmt::Display for BuildInfo {
    /// One line: `0.1.0 x86_64-unknown-linux-gnu release cli`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.version, self.target, self.profile)?;
        self.features.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{Context, ContextOptions, Logger, Model};

    #[test]
    fn without_cuda_cards_are_refused_in_a_sentence_and_auto_is_the_processor() {
        const REASON: &str = "this library was built without CUDA";
        let cards = backends().into_iter().find(|backend| backend.name == "cuda").unwrap();
        assert_eq!((cards.devices.len(), cards.unavailable.as_deref()), (0, Some(REASON)));
        assert!(!build_info().features.contains(&"cuda"));
        let model = Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/mmada-shapes.gguf")).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        let logger = Logger::new(move |_, line: &str| heard.lock().unwrap().push(line.to_owned()));
        let on = |device| {
            Context::new(
                &model,
                ContextOptions { threads: 1, device, logger: Some(logger.clone()), ..Default::default() },
            )
        };
        let error = on(DeviceChoice::Cuda(1)).err().unwrap();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        assert_eq!(error.to_string(), format!("cuda:1 cannot be used: {REASON}"));
        let context = on(DeviceChoice::Auto).unwrap();
        assert_eq!((context.device(), context.gpu_layers()), ("cpu".to_owned(), 0));
        assert!(lines.lock().unwrap()[0].contains(&format!("running on the cpu: {REASON}")), "{lines:?}");
    }
}
