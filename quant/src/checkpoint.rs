//! A checkpoint's tensors, wherever they lie: one safetensors or PyTorch file, or shards with an index. Only headers
//! are read on opening; weights are read on demand into buffers of the caller's, so that a conversion's memory does
//! not grow with the checkpoint (mapped shards would count, page by page, as the process's memory).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mmada::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::json::Object;
use crate::torch;

/// The element type of a tensor in a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceType {
    F32,
    F16,
    BF16,
    /// No type of a weight; its name.
    Other(String),
}

/// Where a tensor lies. Its bytes are inside the file (checked on opening) unless `problem` says otherwise.
#[derive(Clone, Debug)]
pub struct Entry {
    pub dtype: SourceType,
    /// Slowest dimension first, as PyTorch writes shapes.
    pub shape: Vec<usize>,
    pub shard: usize,
    /// First byte in the shard.
    pub offset: u64,
    /// Why it cannot be read, should it be needed.
    pub problem: Option<String>,
}

struct Shard {
    path: PathBuf,
    file: File,
}

/// The tensors of a checkpoint, by name.
pub struct Checkpoint {
    /// The index, or the only file: where a missing tensor is missing from.
    origin: String,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

/// What a folder may hold, in the order in which it is looked for (names that Hugging Face's libraries write).
const FILES: &[&str] = &[
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
];

impl Checkpoint {
    /// Opens the checkpoint in a folder: the first of `FILES`, else its only `.safetensors`, else its only `.bin`.
    ///
    /// # Errors
    /// `Io` and `Format` errors name the file: a missing shard, a truncated one, a shard without a tensor that the
    /// index says it has.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = find(dir)?;
        if path.extension().is_some_and(|e| e == "json") {
            Self::open_index(dir, &path)
        } else {
            Self::open_file(&path)
        }
    }

    fn open_file(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(&origin, e))?;
        let entries = read_header(&file, path, 0)?.into_iter().collect();
        Ok(Checkpoint { origin, shards: vec![Shard { path: path.to_owned(), file }], entries })
    }

    fn open_index(dir: &Path, index: &Path) -> Result<Self> {
        let map = weight_map(index)?;
        let mut shards = Vec::new();
        let mut entries = BTreeMap::new();
        for name in map.values().collect::<BTreeSet<_>>() {
            let path = dir.join(name);
            let wanted = || map.iter().filter(|(_, shard)| *shard == name).map(|(tensor, _)| tensor);
            let file = File::open(&path).map_err(|e| match e.kind() {
                ErrorKind::NotFound => {
                    let first = wanted().next().map_or("", String::as_str);
                    let others = wanted().count() - 1;
                    Error::format(
                        path.display(),
                        format!("the shard is missing: it holds {first} and {others} more tensors"),
                    )
                }
                _ => Error::io(path.display(), e),
            })?;
            let mut header: BTreeMap<_, _> = read_header(&file, &path, shards.len())?.into_iter().collect();
            for tensor in wanted() {
                let (tensor, entry) = header.remove_entry(tensor).ok_or_else(|| {
                    Error::format(
                        path.display(),
                        format!("tensor {tensor} is missing, though the index says it is here"),
                    )
                })?;
                entries.insert(tensor, entry);
            }
            shards.push(Shard { path, file });
        }
        Ok(Checkpoint { origin: index.display().to_string(), shards, entries })
    }

    /// The index or the only file.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn get(&self, tensor: &str) -> Option<&Entry> {
        self.entries.get(tensor)
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The entry of `tensor`, which must have this shape and a type that can be converted.
    pub fn expect(&self, tensor: &str, shape: &[usize]) -> Result<&Entry> {
        let entry =
            self.get(tensor).ok_or_else(|| Error::format(&self.origin, format!("tensor {tensor} is missing")))?;
        let file = self.shards[entry.shard].path.display();
        if entry.shape != shape {
            return Err(Error::format(
                file,
                format!("tensor {tensor} has shape {:?}, expected {shape:?}", entry.shape),
            ));
        }
        if let SourceType::Other(name) = &entry.dtype {
            return Err(Error::unsupported(
                file,
                format!("tensor {tensor} has type {name}; f32, f16 and bf16 can be read"),
            ));
        }
        match &entry.problem {
            Some(problem) => Err(Error::unsupported(file, format!("tensor {tensor} {problem}"))),
            None => Ok(entry),
        }
    }

    /// The file that `entry` lies in.
    pub fn file_of(&self, entry: &Entry) -> &Path {
        &self.shards[entry.shard].path
    }

    /// Every file that is read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|s| s.path.as_path())
    }

    /// Fills `buffer` with the entry's bytes from `start` on.
    pub fn read(&self, entry: &Entry, start: u64, buffer: &mut [u8]) -> Result<()> {
        let shard = &self.shards[entry.shard];
        let mut file = &shard.file;
        file.seek(SeekFrom::Start(entry.offset.saturating_add(start)))
            .and_then(|_| file.read_exact(buffer))
            .map_err(|e| Error::io(shard.path.display(), e))
    }
}

/// The file to open in `dir`.
fn find(dir: &Path) -> Result<PathBuf> {
    let listing = std::fs::read_dir(dir).map_err(|e| Error::io(dir.display(), e))?;
    let mut names = BTreeSet::new();
    for entry in listing {
        names.insert(entry.map_err(|e| Error::io(dir.display(), e))?.file_name());
    }
    if let Some(name) = FILES.iter().find(|name| names.iter().any(|n| n == *name)) {
        return Ok(dir.join(name));
    }
    for extension in ["safetensors", "bin"] {
        let mut candidates = names.iter().filter(|n| Path::new(n).extension().is_some_and(|e| e == extension));
        match (candidates.next(), candidates.next()) {
            (Some(only), None) => return Ok(dir.join(only)),
            (Some(_), Some(_)) => {
                let reason = format!("holds several .{extension} files and no index that says which to read");
                return Err(Error::format(dir.display(), reason));
            }
            _ => {}
        }
    }
    Err(Error::format(dir.display(), "holds no weights: no .safetensors and no .bin file"))
}

/// Tensor -> shard's file name.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let object = Object::read(index)?;
    let map = object.required("weight_map", object.object("weight_map")?)?;
    let mut shards = BTreeMap::new();
    for tensor in map.keys() {
        let shard = map.required(tensor, map.str(tensor)?)?;
        // Shards lie beside their index; anything else would read where the user did not point.
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            return Err(map.wrong(tensor, format!("is \"{shard}\", which is no file name")));
        }
        shards.insert(tensor.to_owned(), shard.to_owned());
    }
    if shards.is_empty() {
        return Err(object.wrong("weight_map", "names no tensors"));
    }
    Ok(shards)
}

fn read_header(file: &File, path: &Path, shard: usize) -> Result<Vec<(String, Entry)>> {
    let name = path.display().to_string();
    if path.extension().is_some_and(|e| e == "safetensors") {
        safetensors_header(file, &name, shard)
    } else {
        torch::tensors(file, &name, shard)
    }
}

/// The safetensors header: an u64 length, JSON, then the tensors' bytes.
fn safetensors_header(mut file: &File, name: &str, shard: usize) -> Result<Vec<(String, Entry)>> {
    const MAX_HEADER: u64 = 100_000_000; // the format's own limit
    let io = |e| Error::io(name, e);
    let file_len = file.metadata().map_err(io)?.len();
    let mut length = [0u8; 8];
    if file_len < 8 {
        return Err(Error::format(name, format!("has {file_len} bytes, too few for a safetensors file")));
    }
    file.read_exact(&mut length).map_err(io)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER {
        return Err(Error::format(name, "not a safetensors file: its header would be larger than the format allows"));
    }
    if header_len > file_len - 8 {
        let reason =
            format!("its header needs {} bytes but the file ends at {file_len} (truncated download?)", header_len + 8);
        return Err(Error::format(name, reason));
    }
    let mut header = vec![0u8; header_len as usize];
    file.read_exact(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| Error::format(name, format!("its safetensors header is malformed: {e}")))?;
    let data = 8 + header_len;
    let mut entries = Vec::new();
    for tensor in metadata.offset_keys() {
        let Some(info) = metadata.info(&tensor) else { continue };
        let (start, end) = info.data_offsets;
        let (start, end) = (data.saturating_add(start as u64), data.saturating_add(end as u64));
        if end > file_len {
            return Err(Error::format(
                name,
                format!(
                    "tensor {tensor} needs bytes {start}..{end} but the file ends at {file_len} (truncated download?)"
                ),
            ));
        }
        let dtype = match info.dtype {
            Dtype::F32 => SourceType::F32,
            Dtype::F16 => SourceType::F16,
            Dtype::BF16 => SourceType::BF16,
            other => SourceType::Other(other.to_string()),
        };
        entries.push((tensor, Entry { dtype, shape: info.shape.clone(), shard, offset: start, problem: None }));
    }
    Ok(entries)
}
