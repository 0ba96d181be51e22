//! The demo model, on the processor and on a card.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use crate::library::Driver;
use mmada::kernels::cuda::allow_hopper;
use mmada::{Context, ContextOptions, DeviceChoice, Error, Generation, LogLevel, Logger, Model, SequenceRequest};
use mmada_quantize::{Recipe, Shape, SynthOptions, synth};

/// A card that is there, or a stand-in for its driver, which one test at a time has to itself.
pub struct Card {
    driver: Option<Driver>,
}

impl Card {
    pub fn open() -> Card {
        let driver = (!is_card()).then(Driver::open);
        // whatever the test before has found out
        allow_hopper(0, true);
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
pub fn is_card() -> bool {
    std::env::var_os("MMADA_CUDA_CARD").is_some()
}

/// A file of the repository, or of the folder that `MMADA_TEST_DATA` names.
pub fn data(path: &str) -> PathBuf {
    let root = std::env::var_os("MMADA_TEST_DATA").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(root).join(path)
}

/// The command line that these tests were built with, or what `MMADA_TEST_PROGRAM` names: on another machine it lies elsewhere.
pub fn program() -> PathBuf {
    std::env::var_os("MMADA_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_mmada").into()).into()
}

pub fn demo() -> &'static Model {
    static DEMO: OnceLock<Model> = OnceLock::new();
    DEMO.get_or_init(|| Model::open(data("models/mmada-shapes.gguf")).unwrap())
}

/// A context of the demo model on the processor.
pub fn cpu() -> Context {
    Context::new(demo(), ContextOptions { threads: 2, ..Default::default() }).unwrap()
}

/// A model of random weights with all that the tests need, and no image tokenizer.
pub fn random(folder: &Path, recipe: &str, shape: Shape) -> Model {
    let file = folder.join(format!("{recipe}.gguf"));
    synth(&SynthOptions::new(shape, &file, Recipe::from_name(recipe).unwrap()), &mut |_| ()).unwrap();
    Model::open(&file).unwrap()
}

/// Runs a pass over a few tokens.
pub fn pass(context: &Context, tokens: usize) -> mmada::Result<()> {
    let ids = vec![7; tokens];
    context.logits(&[SequenceRequest { ids: &ids, rows: &[0], vocab: 0..40 }]).map(|_| ())
}

/// The error of a context of the demo model that cannot be.
pub fn refused(options: ContextOptions) -> Error {
    Context::new(demo(), options).err().expect("a context that cannot be")
}

/// Who hears warnings, and what it has heard.
pub fn warnings() -> (Logger, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let heard = lines.clone();
    let logger = Logger::new(move |level, line: &str| {
        if level == LogLevel::Warn {
            heard.lock().unwrap().push(line.to_owned());
        }
    });
    (logger, lines)
}

pub fn run(mut generation: Generation) -> Generation {
    while !generation.step().unwrap().done {}
    generation
}

/// The difference is no more than a share of the size, as a whole, and nowhere many times that.
pub fn close(got: &[f32], expected: &[f32], share: f64) {
    assert_eq!(got.len(), expected.len());
    let size = |of: &mut dyn Iterator<Item = f64>| (of.map(|v| v * v).sum::<f64>() / expected.len() as f64).sqrt();
    let whole = size(&mut expected.iter().map(|v| f64::from(*v)));
    let off = size(&mut got.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    assert!(off <= share * whole, "off by {off} of {whole}");
    for (i, (a, b)) in got.iter().zip(expected).map(|(a, b)| (f64::from(*a), f64::from(*b))).enumerate() {
        assert!((a - b).abs() <= 8.0 * share * (whole + b.abs()), "number {i} is {a}, not {b} (of size {whole})");
    }
}
