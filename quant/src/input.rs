//! A GGUF file as a source of rows. Only headers are mapped: weights are read on demand into buffers of the caller's,
//! so that memory does not grow with the file (mapped weights would count, page by page, as the process's memory).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mmada::gguf::{GgmlType, Header, MetaValue, TensorInfo};
use mmada::kernels::Kernels;
use mmada::mmap::Mapping;
use mmada::tensor::can_dequantize;
use mmada::{Error, Result};

use crate::rows::{Rows, Scratch};

/// A file, or all parts of a split one.
pub struct Input {
    /// Of all parts together; tensors' ranges count through them.
    pub header: Header,
    metadata: Vec<(String, MetaValue)>,
    parts: Vec<Part>,
}

struct Part {
    path: PathBuf,
    file: Mutex<File>,
    range: Range<usize>,
}

impl Input {
    /// Opens the file at `path`; of a split file any part will do.
    ///
    /// # Errors
    /// `Io` and `Format` name the file or part at fault.
    pub fn open(path: &Path) -> Result<Input> {
        let first = parse(path)?;
        let paths = first.1.parts(path)?.unwrap_or_else(|| vec![path.to_owned()]);
        let (mut parts, mut headers, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        let (mut metadata, mut end) = (Vec::new(), 0usize);
        for path in paths {
            let (mapping, header) = parse(&path)?;
            if parts.is_empty() {
                metadata = header.owned_metadata(mapping.bytes())?;
            }
            let start = end;
            let too_large = || Error::unsupported(path.display(), "the parts are larger than this machine can address");
            end = start.checked_add(mapping.bytes().len()).ok_or_else(too_large)?;
            let file = File::open(&path).map_err(|e| Error::io(path.display(), e))?;
            parts.push(Part { path, file: Mutex::new(file), range: start..end });
            headers.push(header);
            offsets.push(start);
        }
        let header = if parts.len() == 1 { headers.remove(0) } else { Header::join(headers, &offsets)? };
        Ok(Input { header, metadata, parts })
    }

    /// The metadata, without what says how the file is split.
    pub fn metadata(&self) -> &[(String, MetaValue)] {
        &self.metadata
    }

    /// The files that are read.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// Of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.range.end as u64)
    }

    pub fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// The number of the part, from 0 on, that a tensor lies in.
    pub fn part_of(&self, tensor: &TensorInfo) -> usize {
        self.parts.iter().position(|part| part.range.contains(&tensor.range.start)).unwrap_or(0)
    }

    pub fn rows<'a>(&'a self, tensor: &'a TensorInfo) -> Result<GgufRows<'a>> {
        let row_bytes = tensor.dtype.row_bytes(tensor.cols());
        let row_bytes = row_bytes.ok_or_else(|| Error::Internal(format!("{} was not checked", tensor.name)))?;
        Ok(GgufRows { part: &self.parts[self.part_of(tensor)], tensor, row_bytes })
    }
}

fn parse(path: &Path) -> Result<(Mapping, Header)> {
    let mapping = Mapping::open(path)?;
    let header = Header::parse(mapping.bytes(), &path.display().to_string())?;
    Ok((mapping, header))
}

/// The rows of a tensor in a GGUF file.
pub struct GgufRows<'a> {
    part: &'a Part,
    tensor: &'a TensorInfo,
    row_bytes: usize,
}

impl Rows for GgufRows<'_> {
    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
        let io = |e| Error::io(self.part.path.display(), e);
        let start = self.tensor.range.start - self.part.range.start + first * self.row_bytes;
        let mut file = self.part.file.lock().map_err(|_| Error::Internal("a reading thread panicked".into()))?;
        file.seek(SeekFrom::Start(start as u64)).map_err(io)?;
        file.read_exact(buffer).map_err(io)
    }

    fn decode(&self, _: usize, bytes: &[u8], _: &mut Scratch, out: &mut [f32]) -> Result<()> {
        if can_dequantize(self.tensor.dtype) {
            return Kernels::best().dequantize(self.tensor.dtype, bytes, out);
        }
        // Integers and types without a decoder can only be copied; there is nothing to look at.
        out.fill(0.0);
        Ok(())
    }

    fn stored_as(&self) -> Option<GgmlType> {
        Some(self.tensor.dtype)
    }

    fn fault(&self, row: usize, reason: &str) -> Error {
        let file = self.part.path.display();
        Error::format(file, format!("tensor {}, row {row}: {reason}", self.tensor.name))
    }
}
