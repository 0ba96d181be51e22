//! Fixture folders: found, converted, and opened.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mmada::Model;
use mmada::gguf::GgmlType;
use serde::de::DeserializeOwned;

use super::api;
use super::tensors::Tensors;

/// A checkpoint with expected numbers.
pub struct Fixture {
    pub name: String,
    folder: PathBuf,
    pub expected: Option<Tensors>,
    converted: OnceLock<Result<Model, String>>,
}

/// In the repository, or in the folder that `MMADA_TEST_DATA` names.
fn own_folder() -> PathBuf {
    let root = std::env::var_os("MMADA_TEST_DATA").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("tests/golden")
}

/// Where converted checkpoints go: cargo's folder, unless this runs where nothing was built.
fn scratch() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    if folder.exists() { folder } else { std::env::temp_dir() }
}

/// The folders to be tested, in order. An error for one that is no checkpoint.
pub fn folders() -> Vec<Result<PathBuf, String>> {
    let mut folders: Vec<_> = ["tiny", "mmada-shapes", "grouped"].map(|name| own_folder().join(name)).into();
    let named = std::env::var_os("MMADA_GOLDEN").unwrap_or_default();
    folders.extend(std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()));
    let check = |folder: PathBuf| match folder.join("config.json").is_file() {
        true => Ok(folder),
        false if folder.is_dir() => Err(format!("{}: holds no config.json", folder.display())),
        false => Err(format!("{}: no such folder", folder.display())),
    };
    folders.into_iter().map(check).collect()
}

/// All fixtures. Folders that are no checkpoint are left to the test that is about them.
pub fn fixtures() -> &'static [Fixture] {
    static ALL: OnceLock<Vec<Fixture>> = OnceLock::new();
    ALL.get_or_init(|| folders().into_iter().flatten().map(Fixture::new).collect())
}

#[test]
fn every_folder_that_is_named_is_a_checkpoint() {
    let bad: Vec<String> = folders().into_iter().filter_map(Result::err).collect();
    assert!(bad.is_empty(), "MMADA_GOLDEN: {}", bad.join("; "));
}

impl Fixture {
    fn new(folder: PathBuf) -> Self {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let expected = Tensors::read(&folder.join("expected.safetensors"));
        Fixture { name, folder, expected, converted: OnceLock::new() }
    }

    /// The cases in a file of the folder; none, with a line that says so, when there is no such file.
    pub fn cases<T: DeserializeOwned>(&self, file: &str) -> Vec<T> {
        let path = self.folder.join(file);
        if !path.exists() {
            self.skip(&format!("no {file}"));
            return Vec::new();
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let cases: Vec<T> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if cases.is_empty() {
            self.skip(&format!("no cases in {file}"));
        }
        cases
    }

    /// Says on standard error that a part is not tested here. Our own folder `tiny` has every part.
    pub fn skip(&self, reason: &str) {
        assert_ne!(self.folder, own_folder().join("tiny"), "{reason}");
        let test = std::thread::current().name().unwrap_or("golden").to_owned();
        let mut stderr = std::io::stderr(); // not eprintln!, which a passing test does not show
        let _ = writeln!(stderr, "skipped for {}: {test}: {reason}", self.folder.display());
    }

    /// Whether there are expected tensors at all; says so if not.
    pub fn has_expected(&self) -> bool {
        if self.expected.is_none() {
            self.skip("no expected.safetensors");
        }
        self.expected.is_some()
    }

    /// A tensor that a case comes with.
    pub fn tensor<T>(&self, get: fn(&Tensors, &str) -> Option<T>, name: &str) -> T {
        let expected = self.expected.as_ref().unwrap_or_else(|| panic!("{}: no expected.safetensors", self.name));
        get(expected, name).unwrap_or_else(|| panic!("{}: expected.safetensors has no {name}", self.name))
    }

    /// `PREFIX.0`, `PREFIX.1` and so on, as many as have a tensor called `PREFIX.I.SUFFIX`.
    pub fn numbered(&self, prefix: &str, suffix: &str) -> Vec<String> {
        let Some(expected) = &self.expected else { return Vec::new() };
        let names = (0..).map(|i| format!("{prefix}.{i}"));
        names.take_while(|name| expected.has(&format!("{name}.{suffix}"))).collect()
    }

    /// The checkpoint as a model file in f32, converted at first use.
    pub fn model(&self) -> &Model {
        let converted = self.converted.get_or_init(|| self.convert().map_err(|e| e.to_string()));
        converted.as_ref().unwrap_or_else(|e| panic!("{} cannot be converted: {e}", self.folder.display()))
    }

    fn convert(&self) -> mmada::Result<Model> {
        let index = fixtures().iter().position(|f| f.folder == self.folder).unwrap_or_default();
        let name = format!("golden-{index}.gguf"); // replaced whole by every run: another run keeps what it has mapped
        let path = scratch().join(name);
        let vq = Some(self.folder.join("vq")).filter(|vq| vq.is_dir());
        api::convert(&self.folder, vq.as_deref(), GgmlType::F32, &path)?;
        let model = Model::open(&path)?;
        model.tokenizer()?;
        Ok(model)
    }
}
