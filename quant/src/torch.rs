//! PyTorch `.bin` files: a zip whose entries are stored uncompressed, a pickle (`data.pkl`) that describes the
//! tensors, and one entry per storage (`data/KEY`). Format: torch/serialization.py, `_save` and `_load`.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use mmada::{Error, Result};
use zip::{CompressionMethod, ZipArchive};

use crate::checkpoint::{Entry, SourceType};
use crate::pickle::{self, PickledTensor, StorageType};

/// A state dict's description of its tensors takes a few hundred bytes each.
const MAX_PICKLE: u64 = 256 << 20;

/// An entry of the archive: where its bytes lie in the file.
struct Stored {
    start: u64,
    len: u64,
    index: usize,
}

/// The tensors of the state dict in `file`, by name. `shard` is the number that the entries are to carry.
///
/// # Errors
/// `Format` where the file is no such zip or is damaged, `Unsupported` where it is more than a state dict.
pub fn tensors(file: &File, name: &str, shard: usize) -> Result<Vec<(String, Entry)>> {
    let mut magic = [0u8; 2];
    let mut start = file;
    start.read_exact(&mut magic).map_err(|_| Error::format(name, "is too short to be a PyTorch file"))?;
    if magic[0] == 0x80 {
        return Err(Error::unsupported(name, "is in the format of PyTorch before 1.6; save it again with a newer one"));
    }
    let bad_zip = |e| Error::format(name, format!("not a readable PyTorch zip file ({e}; truncated download?)"));
    let mut archive = ZipArchive::new(file).map_err(bad_zip)?;
    let mut entries = HashMap::new();
    let mut root = None;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(bad_zip)?;
        let entry_name = entry.name().map_err(bad_zip)?.into_owned();
        if entry.compression() != CompressionMethod::Stored {
            return Err(Error::unsupported(name, format!("its entry {entry_name} is compressed")));
        }
        let start = entry.data_start().ok_or_else(|| Error::format(name, format!("no data for {entry_name}")))?;
        if let Some(folder) = entry_name.strip_suffix("data.pkl") {
            root = Some(folder.to_owned());
        }
        entries.insert(entry_name, Stored { start, len: entry.size(), index });
    }
    let root = root.ok_or_else(|| Error::format(name, "not a PyTorch state dict: the zip file has no data.pkl"))?;
    let mut read = |suffix: &str| -> Result<Option<Vec<u8>>> {
        let Some(stored) = entries.get(&format!("{root}{suffix}")) else { return Ok(None) };
        if stored.len > MAX_PICKLE {
            return Err(Error::format(
                name,
                format!("{suffix} has {} bytes, more than a state dict needs", stored.len),
            ));
        }
        let mut bytes = Vec::new();
        let entry = archive.by_index(stored.index).map_err(bad_zip)?;
        entry.take(MAX_PICKLE).read_to_end(&mut bytes).map_err(|e| Error::format(name, format!("{suffix}: {e}")))?;
        Ok(Some(bytes))
    };
    if read("byteorder")?.is_some_and(|order| order != b"little") {
        return Err(Error::unsupported(name, "was saved on a big-endian machine"));
    }
    let pickle = read("data.pkl")?.unwrap_or_default();
    let dict = pickle::state_dict(&pickle).map_err(|reason| Error::format(name, reason))?;
    let mut tensors = Vec::with_capacity(dict.len());
    for (tensor, pickled) in dict {
        let stored = entries.get(&format!("{root}data/{}", pickled.key)).ok_or_else(|| {
            Error::format(name, format!("tensor {tensor} lies in data/{}, which the file lacks", pickled.key))
        })?;
        let entry = place(&pickled, stored, shard)
            .ok_or_else(|| Error::format(name, format!("tensor {tensor} reaches outside its storage")))?;
        tensors.push((tensor, entry));
    }
    Ok(tensors)
}

/// Where a tensor's bytes lie; `None` where they would lie outside its storage.
fn place(t: &PickledTensor, stored: &Stored, shard: usize) -> Option<Entry> {
    let (dtype, size) = match t.dtype {
        StorageType::F32 => (SourceType::F32, 4),
        StorageType::F16 => (SourceType::F16, 2),
        StorageType::BF16 => (SourceType::BF16, 2),
        StorageType::Other(name, size) => (SourceType::Other(name.to_owned()), size),
    };
    let len = t.shape.iter().try_fold(size, |n: u64, &d| n.checked_mul(d))?;
    let offset = t.offset.checked_mul(size)?;
    let storage_bytes = t.storage_len.checked_mul(size)?;
    let contiguous = is_contiguous(&t.shape, &t.strides);
    if storage_bytes > stored.len || contiguous && offset.checked_add(len)? > storage_bytes {
        return None;
    }
    Some(Entry {
        dtype,
        shape: t.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?,
        shard,
        offset: stored.start.checked_add(offset)?,
        problem: (!contiguous).then(|| format!("has strides {:?}, only contiguous tensors can be read", t.strides)),
    })
}

/// Row-major without gaps. The stride of a dimension of one element says nothing.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    shape.iter().zip(strides).rev().all(|(&d, &stride)| {
        let fits = d == 1 || stride == expected;
        expected = expected.saturating_mul(d);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguity_looks_at_the_dimensions_that_matter() {
        assert!(is_contiguous(&[3, 5], &[5, 1]));
        assert!(!is_contiguous(&[3, 5], &[1, 3]));
        assert!(is_contiguous(&[7, 4, 1, 1], &[4, 1, 4, 4]), "channels-last 1x1 convolutions");
        assert!(!is_contiguous(&[7, 4, 3, 3], &[36, 1, 12, 4]), "channels-last 3x3 convolutions");
        assert!(is_contiguous(&[], &[]));
    }
}
