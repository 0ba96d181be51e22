//! `expected.safetensors`, typed.

use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// A tensor of expected numbers.
pub struct Tensor<T> {
    pub shape: Vec<usize>,
    pub data: Vec<T>,
}

impl<T> Tensor<T> {
    /// The part at `index` of the first dimension.
    pub fn at(&self, index: usize) -> &[T] {
        let size: usize = self.shape[1..].iter().product();
        &self.data[index * size..][..size]
    }

    pub fn rows(&self) -> impl Iterator<Item = &[T]> {
        (0..self.shape[0]).map(|i| self.at(i))
    }
}

struct Raw {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// All tensors of a file.
pub struct Tensors {
    file: String,
    tensors: HashMap<String, Raw>,
}

impl Tensors {
    /// `None` when there is no such file.
    pub fn read(path: &Path) -> Option<Self> {
        let file = path.display().to_string();
        if !path.exists() {
            return None;
        }
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{file}: {e}"));
        let parsed = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        let raw = |(name, view): (String, safetensors::tensor::TensorView)| {
            (name, Raw { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() })
        };
        Some(Tensors { tensors: parsed.tensors().into_iter().map(raw).collect(), file })
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn get<T, const N: usize>(&self, name: &str, dtype: Dtype, read: fn([u8; N]) -> T) -> Option<Tensor<T>> {
        let raw = self.tensors.get(name)?;
        assert_eq!(raw.dtype, dtype, "{}: {name}", self.file);
        let (chunks, rest) = raw.bytes.as_chunks::<N>();
        assert!(rest.is_empty() && chunks.len() == raw.shape.iter().product::<usize>(), "{}: {name}", self.file);
        Some(Tensor { shape: raw.shape.clone(), data: chunks.iter().map(|c| read(*c)).collect() })
    }

    pub fn f32s(&self, name: &str) -> Option<Tensor<f32>> {
        self.get(name, Dtype::F32, f32::from_le_bytes)
    }
    pub fn f64s(&self, name: &str) -> Option<Tensor<f64>> {
        self.get(name, Dtype::F64, f64::from_le_bytes)
    }
    pub fn bytes(&self, name: &str) -> Option<Tensor<u8>> {
        self.get(name, Dtype::U8, |[b]| b)
    }
    /// Token ids and codes: stored as i32, never negative.
    pub fn ids(&self, name: &str) -> Option<Tensor<u32>> {
        self.get(name, Dtype::I32, |b| u32::try_from(i32::from_le_bytes(b)).expect("ids are not negative"))
    }
}
