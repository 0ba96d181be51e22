//! The demo model, on the processor and on a card.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::library::Driver;
use mmada::{Context, ContextOptions, DeviceChoice, Generation, Model};

/// A card that is there, or a stand-in for its driver, which one test at a time has to itself.
pub struct Card {
    driver: Option<Driver>,
}

impl Card {
    pub fn open() -> Card {
        let driver = (!is_card()).then(Driver::open);
        Card { driver }
    }

    /// What stands in for the driver: tests of failures need it.
    pub fn driver(&self) -> Option<&Driver> {
        self.driver.as_ref()
    }

    pub fn options(&self) -> ContextOptions {
        ContextOptions { threads: 2, device: DeviceChoice::Cuda(0), ..Default::default() }
    }

    /// A context of the demo model on the first card.
    pub fn context(&self, gpu_layers: Option<usize>) -> Context {
        Context::new(demo(), ContextOptions { gpu_layers, ..self.options() }).unwrap()
    }
}

/// Whether the tests run on a card.
fn is_card() -> bool {
    std::env::var_os("MMADA_CUDA_CARD").is_some()
}

/// A file of the repository, or of the folder that `MMADA_TEST_DATA` names.
fn data(path: &str) -> PathBuf {
    let root = std::env::var_os("MMADA_TEST_DATA").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(root).join(path)
}

pub fn demo() -> &'static Model {
    static DEMO: OnceLock<Model> = OnceLock::new();
    DEMO.get_or_init(|| Model::open(data("models/mmada-shapes.gguf")).unwrap())
}

/// A context of the demo model on the processor.
pub fn cpu() -> Context {
    Context::new(demo(), ContextOptions { threads: 2, ..Default::default() }).unwrap()
}

pub fn run(mut generation: Generation) -> Generation {
    while !generation.step().unwrap().done {}
    generation
}

/// All differ by no more than a share of their size as a whole.
pub fn close(got: &[f32], expected: &[f32], share: f32) {
    assert_eq!(got.len(), expected.len());
    let size = (expected.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / expected.len() as f64).sqrt() as f32;
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= share * size.max(b.abs()), "number {i} is {a}, not {b} (of size {size})");
    }
}
