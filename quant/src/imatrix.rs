//! Importance matrices in llama.cpp's GGUF format: for each matrix NAME the sums of the squares of what it was
//! multiplied with, `NAME.in_sum2`, column by column, and how many rows of activations that were, `NAME.counts`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mmada::gguf::{Header, MetaValue, TensorInfo};
use mmada::mmap::Mapping;
use mmada::parallel::try_vec;
use mmada::tensor::dequantize;
use mmada::{Error, Result};

pub(crate) const SUMS: &str = ".in_sum2";
pub(crate) const COUNTS: &str = ".counts";

/// Ours says which states of the sampler it was collected on; llama.cpp's knows only of text read from left to right.
pub(crate) const OWN_KEY_PREFIX: &str = "mmada.imatrix.";

/// How much an error counts, by tensor and column.
pub struct Imatrix {
    file: PathBuf,
    /// Mean squares of the activations. Tensors that nothing went through are left out.
    weights: BTreeMap<String, Vec<f32>>,
    /// Tensors that nothing went through.
    unused: Vec<String>,
    datasets: Vec<String>,
    chunks: Option<u32>,
    /// Collected on the sampler's own states.
    own: bool,
}

impl Imatrix {
    /// Reads an importance matrix.
    ///
    /// # Errors
    /// `Io` and `Format` name the file: not GGUF, not an importance matrix, sums without counts, numbers that no sum
    /// of squares can be.
    pub fn read(path: &Path) -> Result<Imatrix> {
        let file = Mapping::open(path)?;
        if is_legacy(file.bytes()) {
            let reason = "is an importance matrix in llama.cpp's older format; its llama-imatrix makes a GGUF file of it: \
                          llama-imatrix --in-file OLD.dat -o NEW.gguf";
            return Err(bad(path, reason.into()));
        }
        let header = Header::parse(file.bytes(), &path.display().to_string())?;
        match header.opt_str("general.type")? {
            Some("imatrix") => {}
            Some(other) => return Err(bad(path, format!("is of type {other}, not an importance matrix"))),
            None => return Err(bad(path, "is a GGUF file, but not an importance matrix".into())),
        }
        let mut matrix = Imatrix {
            file: path.to_owned(),
            weights: BTreeMap::new(),
            unused: vec![],
            datasets: header
                .opt_strings(file.bytes(), "imatrix.datasets")?
                .unwrap_or_default()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            chunks: header.opt_u32("imatrix.chunk_count")?,
            own: header.metadata.iter().any(|(key, _)| key.starts_with(OWN_KEY_PREFIX)),
        };
        for info in &header.tensors {
            if let Some(name) = info.name.strip_suffix(SUMS) {
                let counts = header.require_tensor(&format!("{name}{COUNTS}"))?;
                matrix.insert(name, info, counts, file.bytes())?;
            }
        }
        if matrix.weights.is_empty() {
            return Err(bad(path, "says nothing of any tensor".into()));
        }
        Ok(matrix)
    }

    fn insert(&mut self, name: &str, sums: &TensorInfo, counts: &TensorInfo, bytes: &[u8]) -> Result<()> {
        if sums.rows() != 1 || counts.cols() * counts.rows() != 1 {
            let n = sums.rows();
            return Err(bad(&self.file, format!("{name} has {n} rows of sums: this model has no experts")));
        }
        let mut weights = self.floats(sums, bytes)?;
        let count = self.floats(counts, bytes)?.first().copied().unwrap_or(f32::NAN);
        if !(count.is_finite() && count >= 0.0) {
            return Err(bad(&self.file, format!("{} is {count}, which counts nothing", counts.name)));
        }
        if let Some((i, x)) = weights.iter().enumerate().find(|(_, x)| !(x.is_finite() && **x >= 0.0)) {
            return Err(bad(&self.file, format!("{} is {x} in column {i}, which is no sum of squares", sums.name)));
        }
        if count == 0.0 || weights.iter().all(|&x| x == 0.0) {
            self.unused.push(name.to_owned());
            return Ok(());
        }
        weights.iter_mut().for_each(|x| *x /= count);
        self.weights.insert(name.to_owned(), weights);
        Ok(())
    }

    fn floats(&self, info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>> {
        let mut values = try_vec(info.cols() * info.rows(), &info.name)?;
        dequantize(info.dtype, info.data(bytes), &mut values).map_err(|e| bad(&self.file, e.to_string()))?;
        Ok(values)
    }

    /// Compares with a model's matrices, given as (name, columns), and notes what the user should know.
    ///
    /// # Errors
    /// `Format` names the first mismatch: a tensor that the model does not have, or other columns than the model's.
    pub fn check<'a>(&self, matrices: impl Iterator<Item = (&'a str, usize)>, notes: &mut Vec<String>) -> Result<()> {
        let model: BTreeMap<&str, usize> = matrices.collect();
        for name in self.weights.keys().chain(&self.unused) {
            if !model.contains_key(name.as_str()) {
                let reason = format!("is of another model: it has {name}, which the model does not have");
                return Err(bad(&self.file, reason));
            }
        }
        for (name, weights) in &self.weights {
            let (has, needs) = (weights.len(), model.get(name.as_str()).copied().unwrap_or(0));
            if has != needs {
                let reason = format!("is of another model: {name} has {has} columns there and {needs} in the model");
                return Err(bad(&self.file, reason));
            }
        }
        let shown = self.file.display();
        if !self.own {
            notes.push(format!(
                "{shown} was collected on text read from left to right, not on the states of a masked diffusion \
                 sampler: a matrix of `mmada-quantize imatrix` fits better"
            ));
        }
        let expected = |name: &&str| name.starts_with("blk.") && !self.weights.contains_key(*name);
        let missing: Vec<&str> = model.keys().copied().filter(expected).collect();
        if let Some(first) = missing.first() {
            let n = missing.len();
            notes.push(format!("{shown} says nothing of {n} matrices, as of {first}: they are quantized without"));
        }
        Ok(())
    }

    /// The importance of the columns of a tensor.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.weights.get(name).map(Vec::as_slice)
    }

    /// What llama-quantize notes in its files.
    pub fn metadata(&self) -> Vec<(String, MetaValue)> {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = u32::try_from(self.weights.len()).unwrap_or(u32::MAX);
        let mut out = vec![
            ("quantize.imatrix.file".to_owned(), MetaValue::String(name)),
            ("quantize.imatrix.entries_count".to_owned(), entries.into()),
        ];
        if !self.datasets.is_empty() {
            out.push(("quantize.imatrix.dataset".into(), MetaValue::String(self.datasets.join(", "))));
        }
        out.extend(self.chunks.map(|n| ("quantize.imatrix.chunks_count".to_owned(), n.into())));
        out
    }
}

/// Whether a file begins as llama.cpp's older importance matrices (`.dat`): the number of tensors, then of each the
/// length of its name, the name, two counts and sums, all numbers i32 or f32.
fn is_legacy(bytes: &[u8]) -> bool {
    // Of tensors, and bytes of a name: no model has more, and GGUF's magic is a larger number.
    const MOST: i32 = 100_000;
    const LONGEST: i32 = 256;
    let number = |at: usize| Some(i32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let begins = || {
        let (count, length) = (number(0)?, number(4)?);
        let in_range = (1..=MOST).contains(&count) && (1..=LONGEST).contains(&length);
        let name = bytes.get(8..8 + usize::try_from(length).ok().filter(|_| in_range)?)?;
        let (calls, values) = (number(8 + name.len())?, number(12 + name.len())?);
        Some(calls >= 0 && values > 0 && name.iter().all(u8::is_ascii_graphic))
    };
    begins().unwrap_or(false)
}

fn bad(file: &Path, reason: String) -> Error {
    Error::format(file.display(), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_is_recognised_and_its_error_says_how_to_convert_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("imatrix.dat");
        let mut bytes = Vec::new();
        for name in ["blk.0.attn_q.weight", "blk.0.ffn_up.weight"] {
            let numbers = [name.len() as i32].map(i32::to_le_bytes);
            bytes.extend(numbers.as_flattened());
            bytes.extend(name.bytes());
            bytes.extend([7i32, 3].map(i32::to_le_bytes).as_flattened());
            bytes.extend([0.25f32, 1.5, 3.0].map(f32::to_le_bytes).as_flattened());
        }
        bytes.splice(0..0, 2i32.to_le_bytes());
        let said = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            Imatrix::read(&file).err().unwrap().to_string()
        };
        let error = said(&bytes);
        assert!(error.contains("imatrix.dat") && error.contains("llama-imatrix --in-file"), "{error}");
        // What only begins like it, or is something else, is no GGUF file as ever.
        for other in [&bytes[..20], b"\x02\0\0\0\x05\0\0\0a\nb\0c\x01\0\0\0\x01\0\0\0", b"GGUX", b""] {
            assert!(!said(other).contains("llama-imatrix"), "{other:?}");
        }
    }
}
