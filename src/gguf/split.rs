//! Files split in parts, as llama.cpp's `gguf-split` makes them: `NAME-00001-of-00003.gguf` and so on. Every part is
//! a GGUF file with the keys `split.no`, `split.count` and `split.tensors.count` (of all parts together); all other
//! metadata stands in the first one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use super::writer::{TensorSpec, Writer};
use super::{Header, MetaValue, Value};
use crate::error::{Error, Result};
use crate::memory::{try_push, try_reserve_entry};

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";

/// The names have five digits, and the format's numbers sixteen bits.
const MAX_PARTS: usize = 65535;

/// The name of part `number` (from 1 on) of `count`: `PREFIX-00001-of-00003.gguf`.
pub fn split_path(prefix: &Path, number: usize, count: usize) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(format!("-{number:05}-of-{count:05}.gguf"));
    name.into()
}

/// Prefix, number and count of a name that `split_path` makes; `None` for others.
pub fn parse_split_path(path: &Path) -> Option<(PathBuf, usize, usize)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| if s.len() == 5 { s.parse::<usize>().ok() } else { None };
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=count).contains(&number).then(|| (path.with_file_name(prefix), number, count))
}

/// Whether a key speaks of the splitting rather than of the model.
pub fn is_split_key(key: &str) -> bool {
    matches!(key, NUMBER_KEY | COUNT_KEY | TENSORS_KEY)
}

impl Header {
    /// The paths of all parts of the file that this one, which lies at `path`, is a part of; `None` for a file that is
    /// not split.
    ///
    /// # Errors
    /// `Format` where the file says that it is a part and its name does not say of what.
    pub fn parts(&self, path: &Path) -> Result<Option<Vec<PathBuf>>> {
        let Some(count) = self.part_count()? else { return Ok(None) };
        match parse_split_path(path) {
            Some((prefix, _, named)) if named == count => {
                Ok(Some((1..=count).map(|n| split_path(&prefix, n, count)).collect()))
            }
            _ => {
                let reason = format!(
                    "this is one of {count} parts, whose names must end in -00001-of-{count:05}.gguf to be found"
                );
                Err(self.unfit(reason))
            }
        }
    }

    /// Whether the file is one of several parts.
    ///
    /// # Errors
    /// `Format` where the number of parts is none.
    pub fn is_split(&self) -> Result<bool> {
        Ok(self.part_count()?.is_some())
    }

    fn part_count(&self) -> Result<Option<usize>> {
        match self.opt_usize(COUNT_KEY)? {
            None | Some(0 | 1) => Ok(None),
            Some(count) if count <= MAX_PARTS => Ok(Some(count)),
            Some(count) => Err(self.unfit(format!("{COUNT_KEY} is {count}, more than {MAX_PARTS}"))),
        }
    }

    /// The header of the whole file. `parts` are the headers of its parts in order, `offsets` where each part's bytes
    /// begin among those of all.
    ///
    /// # Errors
    /// `Format` for parts that do not belong together: another number or count, a tensor that occurs twice or lacks.
    pub fn join(mut parts: Vec<Header>, offsets: &[usize]) -> Result<Header> {
        const WHAT: &str = "the list of a model's tensors";
        if parts.is_empty() || parts.len() != offsets.len() {
            return Err(Error::Internal("parts of a file without offsets".into()));
        }
        let (mut tensors, mut names) = (Vec::new(), HashMap::new());
        let all = parts.len();
        for (i, (part, &offset)) in parts.iter_mut().zip(offsets).enumerate() {
            let (number, count) = (part.usize(NUMBER_KEY)?, part.usize(COUNT_KEY)?);
            if (number, count) != (i, all) {
                let (number, i) = (number.saturating_add(1), i + 1);
                return Err(part.unfit(format!("this is part {number} of {count}, not part {i} of {all}")));
            }
            for mut tensor in std::mem::take(&mut part.tensors) {
                let overflow = || part.unfit("the parts are larger than can be addressed".into());
                let end = tensor.range.end.checked_add(offset).ok_or_else(overflow)?;
                tensor.range = tensor.range.start + offset..end;
                try_reserve_entry(&mut names, WHAT)?;
                match names.entry(tensor.name.clone()) {
                    Entry::Occupied(_) => {
                        return Err(part.unfit(format!("tensor {} stands in another part too", tensor.name)));
                    }
                    Entry::Vacant(slot) => slot.insert(tensors.len()),
                };
                try_push(&mut tensors, tensor, WHAT)?;
            }
        }
        let first = parts.swap_remove(0);
        match first.opt_usize(TENSORS_KEY)? {
            Some(n) if n != tensors.len() => {
                let found = tensors.len();
                Err(first.unfit(format!("{TENSORS_KEY} is {n}, but the parts hold {found} tensors")))
            }
            _ => Ok(Header { tensors, names, ..first }),
        }
    }

    fn unfit(&self, reason: String) -> Error {
        Error::format(&self.file, reason)
    }

    /// The metadata without the keys of splitting, as the writer takes it. `bytes` is the file that was parsed.
    pub fn owned_metadata(&self, bytes: &[u8]) -> Result<Vec<(String, MetaValue)>> {
        let kept = self.metadata.iter().filter(|(key, _): &&(String, Value)| !is_split_key(key));
        kept.map(|(key, _)| Ok((key.clone(), self.owned(bytes, key)?))).collect()
    }
}

/// Writes a file in one or several parts; like `Writer`, nothing has its name before everything is whole.
pub struct SplitWriter {
    parts: Vec<Writer>,
    current: usize,
}

impl SplitWriter {
    /// `parts` are the paths and tensors of each part, in order. A single part gets no keys of splitting.
    ///
    /// # Errors
    /// As `Writer::create`; `InvalidArgument` for no parts or too many.
    pub fn create(metadata: &[(String, MetaValue)], parts: &[(PathBuf, Vec<TensorSpec>)]) -> Result<SplitWriter> {
        let own = part_metadata(metadata, parts)?;
        let writers = parts.iter().zip(&own).map(|((path, specs), own)| Writer::create(path, own, specs));
        Ok(SplitWriter { parts: writers.collect::<Result<_>>()?, current: 0 })
    }

    /// The bytes of the files that `create` would make, without making them.
    ///
    /// # Errors
    /// As `create`, for what is wrong with names, shapes and numbers.
    pub fn sizes(metadata: &[(String, MetaValue)], parts: &[(PathBuf, Vec<TensorSpec>)]) -> Result<Vec<u64>> {
        let own = part_metadata(metadata, parts)?;
        parts.iter().zip(&own).map(|((path, specs), own)| Writer::size(path, own, specs)).collect()
    }

    /// The next bytes of the current tensor; see `Writer::write`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        while self.current + 1 < self.parts.len() && self.parts[self.current].next().is_none() {
            self.current += 1;
        }
        self.parts[self.current].write(bytes)
    }

    /// Waits until every part is on the disk, then gives all of them their names.
    ///
    /// # Errors
    /// As `Writer::finish`; no part has its name then, unless giving one its name is what failed.
    pub fn finish(mut self) -> Result<()> {
        for part in &mut self.parts {
            part.seal()?;
        }
        self.parts.into_iter().try_for_each(Writer::finish)
    }
}

/// The metadata of each part.
fn part_metadata(
    metadata: &[(String, MetaValue)],
    parts: &[(PathBuf, Vec<TensorSpec>)],
) -> Result<Vec<Vec<(String, MetaValue)>>> {
    let count = u16::try_from(parts.len()).ok().filter(|&n| n > 0);
    let count = count
        .ok_or_else(|| Error::invalid(format_args!("a file can have 1 to {MAX_PARTS} parts, not {}", parts.len())))?;
    if count == 1 {
        return Ok(vec![metadata.to_vec()]);
    }
    let tensors: usize = parts.iter().map(|(_, tensors)| tensors.len()).sum();
    let tensors = i32::try_from(tensors).map_err(|_| Error::invalid("too many tensors for a split file"))?;
    let number = |number: u16| {
        let kept = metadata.iter().filter(|(key, _)| number == 0 || key == super::ALIGNMENT_KEY);
        let mut own: Vec<(String, MetaValue)> = kept.cloned().collect();
        own.push((NUMBER_KEY.into(), number.into()));
        own.push((COUNT_KEY.into(), count.into()));
        own.push((TENSORS_KEY.into(), tensors.into()));
        own
    };
    Ok((0..count).map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;

    fn spec(name: &str, cols: usize) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: GgmlType::F32, dims: vec![cols] }
    }

    /// Three parts, the second without tensors; their paths.
    fn write(folder: &Path) -> Vec<PathBuf> {
        let path = |n| split_path(&folder.join("m"), n, 3);
        let parts =
            [(path(1), vec![spec("a", 5), spec("b", 3)]), (path(2), vec![]), (path(3), vec![spec("c", 70_001)])];
        let metadata = [("general.name".to_owned(), MetaValue::from("m")), ("list".into(), vec![1u32, 2].into())];
        let mut writer = SplitWriter::create(&metadata, &parts).unwrap();
        for (_, specs) in &parts {
            for spec in specs {
                let floats: Vec<u8> = (0..spec.dims[0]).flat_map(|i| (i as f32).to_le_bytes()).collect();
                writer.write(&floats[..4]).unwrap();
                writer.write(&floats[4..]).unwrap();
            }
        }
        assert!(!path(1).exists());
        writer.finish().unwrap();
        parts.map(|p| p.0).into()
    }

    fn headers(paths: &[PathBuf]) -> Vec<Header> {
        paths.iter().map(|p| Header::parse(&std::fs::read(p).unwrap(), &p.display().to_string()).unwrap()).collect()
    }

    #[test]
    fn parts_are_found_from_any_of_them_and_make_one_header() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path());
        let headers = headers(&paths);
        for (header, path) in headers.iter().zip(&paths) {
            assert_eq!(header.parts(path).unwrap().unwrap(), paths);
        }
        let contents: Vec<Vec<u8>> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
        let offsets = [0, contents[0].len(), contents[0].len() + contents[1].len()];
        let whole = Header::join(headers, &offsets).unwrap();
        let bytes = contents.concat();
        assert_eq!(whole.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let c = whole.tensor("c").unwrap().data(&bytes);
        assert_eq!(c[4 * 70_000..], 70_000f32.to_le_bytes());
        assert_eq!(whole.usizes(&bytes, "list").unwrap(), [1, 2]);
        let keys: Vec<String> = whole.owned_metadata(&bytes).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["general.name", "list"]);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path());
        let all = headers(&paths);
        let refused = |list: &[usize]| {
            let list: Vec<Header> = list.iter().map(|&i| all[i].clone()).collect();
            Header::join(list.clone(), &vec![0; list.len()]).unwrap_err().to_string()
        };
        assert!(refused(&[0, 2, 1]).ends_with("this is part 3 of 3, not part 2 of 3"));
        assert!(refused(&[0, 1]).ends_with("this is part 1 of 3, not part 1 of 2"));
        let mut twice = all.clone();
        twice[2].tensors = all[0].tensors.clone();
        let e = Header::join(twice, &[0, 0, 0]).unwrap_err().to_string();
        assert!(e.contains("00003-of-00003") && e.ends_with("tensor a stands in another part too"), "{e}");
        let mut fewer = all.clone();
        fewer[2].tensors.clear();
        let e = Header::join(fewer, &[0, 0, 0]).unwrap_err().to_string();
        assert!(e.ends_with("split.tensors.count is 3, but the parts hold 2 tensors"), "{e}");
        assert!(Header::join(all.clone(), &[0, 0, usize::MAX]).is_err());
        let e = all[0].parts(Path::new("renamed.gguf")).unwrap_err().to_string();
        assert!(e.contains("one of 3 parts"), "{e}");
    }

    #[test]
    fn names_of_parts_are_told_from_others() {
        let parsed = |name: &str| parse_split_path(Path::new(name));
        assert_eq!(parsed("a/m-00002-of-00010.gguf"), Some((PathBuf::from("a/m"), 2, 10)));
        for name in ["m.gguf", "m-2-of-10.gguf", "m-00000-of-00010.gguf", "m-00011-of-00010.gguf", "-of-.gguf", ""] {
            assert_eq!(parsed(name), None, "{name}");
        }
        assert_eq!(split_path(Path::new("a/m"), 2, 10), PathBuf::from("a/m-00002-of-00010.gguf"));
    }
}
