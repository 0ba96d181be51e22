//! Where the weights of the image tokenizer lie in the model file, with their shapes checked. They are read from
//! the mapped bytes when they are used.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Header, TensorInfo};
use crate::parallel::try_vec;
use crate::tensor::Matrix;

/// A vector of f32, one per channel.
#[derive(Clone, Debug)]
struct Floats {
    name: String,
    range: Range<usize>,
}

impl Floats {
    fn find(header: &Header, name: String, len: usize) -> Result<Floats> {
        let info = find(header, &name, &[len])?;
        if info.dtype != GgmlType::F32 {
            return Err(Error::unsupported(header.file(), format!("tensor {name} is {}, not F32", info.dtype)));
        }
        Ok(Floats { name, range: info.range.clone() })
    }

    /// A copy: a few hundred numbers, whose bytes in the file need not be aligned for f32.
    fn read(&self, bytes: &[u8]) -> Result<Vec<f32>> {
        let bytes = bytes.get(self.range.clone()).ok_or_else(|| outside(&self.name))?;
        let mut out = try_vec::<f32>(bytes.len() / 4, &self.name)?;
        for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        Ok(out)
    }
}

/// A convolution's weights [outputs, kernel * kernel * inputs], input channels fastest, and its bias.
#[derive(Clone, Debug)]
pub(super) struct ConvWeights {
    name: String,
    dtype: GgmlType,
    range: Range<usize>,
    bias: Floats,
    /// 1 or 3: the side of the window.
    pub kernel: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl ConvWeights {
    /// Finds `vq.{name}.weight` and `.bias`.
    pub fn find(header: &Header, name: &str, kernel: usize, inputs: usize, outputs: usize) -> Result<ConvWeights> {
        let weight = format!("vq.{name}.weight");
        let info = find(header, &weight, &[kernel * kernel * inputs, outputs])?;
        if !info.dtype.is_float() && info.dtype != GgmlType::Q8_0 {
            let reason = format!("tensor {weight} is {}; F32, F16, BF16 and Q8_0 are supported here", info.dtype);
            return Err(Error::unsupported(header.file(), reason));
        }
        let bias = Floats::find(header, format!("vq.{name}.bias"), outputs)?;
        Ok(ConvWeights { name: weight, dtype: info.dtype, range: info.range.clone(), bias, kernel, inputs, outputs })
    }

    pub fn matrix<'a>(&self, bytes: &'a [u8]) -> Result<Matrix<'a>> {
        let data = bytes.get(self.range.clone()).ok_or_else(|| outside(&self.name))?;
        Matrix::new(self.dtype, self.outputs, self.kernel * self.kernel * self.inputs, data)
            .ok_or_else(|| Error::Internal(format!("{} bytes do not hold tensor {}", data.len(), self.name)))
    }

    pub fn bias(&self, bytes: &[u8]) -> Result<Vec<f32>> {
        self.bias.read(bytes)
    }

    /// Where the weights begin in the file.
    #[cfg(feature = "cuda")]
    pub fn begin(&self) -> usize {
        self.range.start
    }
}

/// Scale and shift of a group normalization.
#[derive(Clone, Debug)]
pub(super) struct NormWeights {
    weight: Floats,
    bias: Floats,
}

impl NormWeights {
    /// Finds `vq.{name}.weight` and `.bias`.
    pub fn find(header: &Header, name: &str, channels: usize) -> Result<NormWeights> {
        let weight = Floats::find(header, format!("vq.{name}.weight"), channels)?;
        Ok(NormWeights { weight, bias: Floats::find(header, format!("vq.{name}.bias"), channels)? })
    }

    /// Where the scales begin in the file.
    #[cfg(feature = "cuda")]
    pub fn begin(&self) -> usize {
        self.weight.range.start
    }

    /// (weight, bias)
    pub fn read(&self, bytes: &[u8]) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((self.weight.read(bytes)?, self.bias.read(bytes)?))
    }
}

fn find<'a>(header: &'a Header, name: &str, dims: &[usize]) -> Result<&'a TensorInfo> {
    let info = header.tensor(name).ok_or_else(|| Error::format(header.file(), format!("tensor {name} is missing")))?;
    if info.dims != dims {
        let reason = format!("tensor {name} has shape {:?}, the metadata asks for {dims:?}", info.dims);
        return Err(Error::format(header.file(), reason));
    }
    Ok(info)
}

/// The header was checked against the file: only other bytes than the file's can end up here.
fn outside(name: &str) -> Error {
    Error::invalid(format!("tensor {name} lies outside the bytes given, which are not the model file's"))
}
