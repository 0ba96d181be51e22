//! What is fast. One folder per instruction set, all with the same functions; `portable` is the specification.

use crate::parallel::Exec;
use crate::tensor::Matrix;

/// The kernels of one instruction set.
pub struct Kernels {
    name: &'static str,
}

static PORTABLE: Kernels = Kernels { name: "portable" };

impl Kernels {
    /// The best the processor has.
    pub fn best() -> &'static Kernels {
        &PORTABLE
    }
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// What a product does with its results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Epilogue {
    /// y = w x
    Store,
    /// y += w x
    Add,
}

/// `y[j * y_stride + i] (=|+=) sum_k w[i, k] * x[j * k_len + k]` for all rows i of `w` and the `n` rows j of `x`.
/// F32, F16 and BF16 weights only; f32 arithmetic. Results do not depend on the number of threads.
pub fn matmul_f32(exec: &Exec, w: &Matrix, x: &[f32], y: &mut [f32], y_stride: usize, epilogue: Epilogue) {
    let (k, n) = (w.cols(), x.len() / w.cols());
    let _ = exec;
    let mut row = vec![0.0f32; k];
    for i in 0..w.rows() {
        for (c, v) in row.iter_mut().enumerate() {
            *v = match w.dtype() {
                crate::gguf::GgmlType::F32 => f32::from_le_bytes(w.row(i)[c * 4..][..4].try_into().unwrap()),
                crate::gguf::GgmlType::F16 => {
                    half::f16::from_le_bytes(w.row(i)[c * 2..][..2].try_into().unwrap()).to_f32()
                }
                _ => half::bf16::from_le_bytes(w.row(i)[c * 2..][..2].try_into().unwrap()).to_f32(),
            };
        }
        for j in 0..n {
            let s: f32 = row.iter().zip(&x[j * k..][..k]).map(|(a, b)| a * b).sum();
            let out = &mut y[j * y_stride + i];
            *out = if epilogue == Epilogue::Add { *out + s } else { s };
        }
    }
}
