//! Writes GGUF v3 files: the header at once, the tensors' bytes as they come, under a temporary name until whole.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::reader::tensor_bytes;
use super::value::{MetaValue, put_string};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMS, is_alignment};
use crate::error::{Error, Result};

/// ggml keeps names in 64 bytes with a zero at the end; longer names would shut other readers out.
const MAX_TENSOR_NAME: usize = 63;
/// Bytes of a write. Linux 6.18 on ext4 takes pieces of 256 KiB at two to three times the speed of a megabyte or more,
/// which it puts into larger units of its page cache (measured with dd as well).
const BUFFER: usize = 1 << 18;
/// Bytes that are written before the disk is asked to begin with them. Left to itself, Linux waits until a tenth of the
/// memory is full of them, or half a minute, and `finish` then waits for all.
const FLUSH: usize = if cfg!(test) { 1 << 16 } else { 1 << 26 };

/// A tensor that is going to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: GgmlType,
    /// In ggml's order, the fastest first: a matrix is `[cols, rows]`.
    pub dims: Vec<usize>,
}

/// A file that is being written, as `NAME.part` beside the target. `finish` gives it its name; without it the
/// partial file is removed on drop.
pub struct Writer {
    target: PathBuf,
    part: PathBuf,
    /// `None` once finished.
    out: Option<BufWriter<File>>,
    /// Name and bytes of each tensor.
    tensors: Vec<(String, usize)>,
    alignment: usize,
    /// The tensor that the next bytes belong to, and how many of its bytes are written.
    current: usize,
    written: usize,
    /// Bytes since the disk was asked to begin, and who asks it.
    waiting: usize,
    flusher: Option<Flusher>,
}

/// A thread that brings what was written to the disk while more is written.
struct Flusher {
    wake: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Flusher {
    /// `None` if there can be no thread: `finish` has more to wait for then.
    fn start(file: &File) -> Option<Flusher> {
        let file = file.try_clone().ok()?;
        let (wake, woken) = sync_channel(1);
        let flush = move || woken.iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().name("gguf-flush".into()).spawn(flush).ok()?;
        Some(Flusher { wake, thread })
    }

    /// One that is at work already has no need of being told twice.
    fn wake(&self) {
        let _ = self.wake.try_send(());
    }

    /// Waits for its end. An error of the disk is told once per file, so what this one was told counts.
    fn join(self) -> io::Result<()> {
        drop(self.wake);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the flushing thread panicked")))
    }
}

impl Writer {
    /// Writes the header and makes room for the tensors. The tensors are laid out in the order given, each at a
    /// multiple of `general.alignment` (32 if `metadata` does not have it).
    ///
    /// # Errors
    /// `InvalidArgument` for names or shapes that the format cannot hold; `Io` if the folder is missing, another
    /// process is writing the same file, or the disk is full.
    pub fn create(path: impl AsRef<Path>, metadata: &[(String, MetaValue)], tensors: &[TensorSpec]) -> Result<Writer> {
        let target = path.as_ref().to_owned();
        let Layout { header, sizes, alignment, total } = layout(&target, metadata, tensors)?;
        let (part, file) = create_part(&target)?;
        let names = tensors.iter().map(|t| t.name.clone());
        let mut writer = Writer {
            target,
            part,
            out: Some(BufWriter::with_capacity(BUFFER, file)),
            tensors: names.zip(sizes).collect(),
            alignment,
            current: 0,
            written: 0,
            waiting: 0,
            flusher: None,
        };
        let file = writer.out.as_ref().map(|out| out.get_ref());
        file.map_or(Ok(()), |file| file.set_len(total)).map_err(|e| Error::io(writer.part.display(), e))?;
        writer.put(&header)?;
        Ok(writer)
    }

    /// The bytes of the file that `create` would make for the same arguments.
    ///
    /// # Errors
    /// `InvalidArgument` as `create`.
    pub fn size(path: impl AsRef<Path>, metadata: &[(String, MetaValue)], tensors: &[TensorSpec]) -> Result<u64> {
        layout(path.as_ref(), metadata, tensors).map(|layout| layout.total)
    }

    /// The name of the tensor that the next bytes belong to and the bytes it still lacks; `None` when all are written.
    pub fn next(&self) -> Option<(&str, usize)> {
        self.tensors.get(self.current).map(|(name, size)| (name.as_str(), size - self.written))
    }

    /// The next bytes of the current tensor: all or a part. Padding at a tensor's end is added here.
    ///
    /// # Errors
    /// `InvalidArgument` for more bytes than the tensor still lacks; nothing is written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let target = self.target.display();
        let Some((name, size)) = self.tensors.get(self.current) else {
            return Err(Error::invalid(format_args!("{target}: bytes after the last tensor")));
        };
        let (size, lacks, given) = (*size, size - self.written, bytes.len());
        if given > lacks {
            return Err(Error::invalid(format_args!(
                "{target}: tensor {name} takes {lacks} more bytes but {given} were given"
            )));
        }
        self.put(bytes)?;
        self.written += given;
        if self.written == size {
            let padding = size.next_multiple_of(self.alignment) - size;
            self.put(&vec![0; padding])?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// A whole tensor. It must be the next one.
    ///
    /// # Errors
    /// `InvalidArgument` if another tensor is next or unfinished, or for a wrong number of bytes.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.next() {
            Some((next, lacks)) if next == name && lacks == bytes.len() => self.write(bytes),
            Some((next, lacks)) => Err(Error::invalid(format_args!(
                "{}: next are {lacks} bytes of tensor {next} but {} of {name} were given",
                self.target.display(),
                bytes.len()
            ))),
            None => Err(Error::invalid(format_args!("{}: tensor {name} after the last", self.target.display()))),
        }
    }

    /// Waits until everything is on the disk and gives the file its name, replacing what had it.
    ///
    /// # Errors
    /// `InvalidArgument` if a tensor lacks bytes; the partial file is removed then, as on every error.
    pub fn finish(mut self) -> Result<()> {
        self.seal()?;
        std::fs::rename(&self.part, &self.target).map_err(|e| Error::io(self.target.display(), e))?;
        self.out = None;
        sync_folder(&self.target);
        Ok(())
    }

    /// Waits until everything is on the disk, still under the temporary name.
    pub(super) fn seal(&mut self) -> Result<()> {
        if let Some((name, lacks)) = self.next() {
            let target = self.target.display();
            return Err(Error::invalid(format_args!("{target}: tensor {name} lacks {lacks} bytes")));
        }
        let flushed = self.flusher.take().map_or(Ok(()), Flusher::join);
        let synced = match self.out.as_mut() {
            Some(out) => out.flush().and_then(|()| out.get_ref().sync_all()),
            None => Ok(()),
        };
        flushed.and(synced).map_err(|e| Error::io(self.target.display(), e))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let part = self.part.display();
        let Some(out) = self.out.as_mut() else {
            return Err(Error::Internal(format!("{part}: written after its end")));
        };
        for piece in bytes.chunks(BUFFER) {
            out.write_all(piece).map_err(|e| Error::io(&part, e))?;
            self.waiting += piece.len();
            if self.waiting >= FLUSH {
                self.waiting = 0;
                if self.flusher.is_none() {
                    self.flusher = Flusher::start(out.get_ref());
                }
                self.flusher.iter().for_each(Flusher::wake);
            }
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Nothing of this one goes on after it, even if the file is of no use.
        let _ = self.flusher.take().map(Flusher::join);
        if let Some(out) = self.out.take() {
            // What is buffered is of no use; it must not be written to a full disk once more.
            let (file, _) = out.into_parts();
            drop(file);
            // Nothing can be told to anyone from here; a file that cannot be removed stays.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

struct Layout {
    header: Vec<u8>,
    sizes: Vec<usize>,
    alignment: usize,
    /// Bytes of the whole file.
    total: u64,
}

/// Everything that can be wrong with the request is found here, before a file exists.
fn layout(target: &Path, metadata: &[(String, MetaValue)], tensors: &[TensorSpec]) -> Result<Layout> {
    let bad = |reason: std::fmt::Arguments<'_>| Error::invalid(format_args!("{}: {reason}", target.display()));
    unique(metadata.iter().map(|(key, _)| key.as_str()))
        .map_err(|key| bad(format_args!("metadata {key:?} is empty, too long or given twice")))?;
    unique(tensors.iter().map(|t| t.name.as_str()))
        .map_err(|name| bad(format_args!("tensor {name:?} is empty, too long or given twice")))?;
    let alignment = match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some((_, MetaValue::U32(n))) if is_alignment(*n as usize) => *n as usize,
        Some((_, v)) => return Err(bad(format_args!("{ALIGNMENT_KEY} is {v:?}, not a u32 power of two from 8 on"))),
    };

    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(key, &mut header);
        value.put(&mut header);
    }
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut offset = 0usize;
    for TensorSpec { name, dtype, dims } in tensors {
        if name.len() > MAX_TENSOR_NAME {
            return Err(bad(format_args!("the name of tensor {name} is longer than {MAX_TENSOR_NAME} bytes")));
        }
        if !(1..=MAX_DIMS).contains(&dims.len()) {
            return Err(bad(format_args!("tensor {name} has {} dimensions, not 1 to {MAX_DIMS}", dims.len())));
        }
        let refused = |reason| bad(format_args!("tensor {name} of type {dtype} and shape {dims:?}: {reason}"));
        let size = tensor_bytes(*dtype, dims).map_err(refused)?;
        put_string(name, &mut header);
        header.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|&d| header.extend((d as u64).to_le_bytes()));
        header.extend((*dtype as u32).to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        let end = offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(alignment));
        offset = end.ok_or_else(|| refused("the file's size overflows"))?;
        sizes.push(size);
    }
    header.resize(header.len().next_multiple_of(alignment), 0);
    let total = (header.len() as u64).checked_add(offset as u64);
    let total = total.ok_or_else(|| bad(format_args!("the file's size overflows")))?;
    Ok(Layout { header, sizes, alignment, total })
}

/// The first name that is empty, longer than the format's 65535 bytes, or given before.
fn unique<'a>(names: impl Iterator<Item = &'a str>) -> std::result::Result<(), &'a str> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if name.is_empty() || name.len() > 65535 || !seen.insert(name) {
            return Err(name);
        }
    }
    Ok(())
}

/// The name of the file that `Writer` writes before `target` gets its name. What has it is replaced.
pub fn part_path(target: &Path) -> PathBuf {
    target.with_file_name(part_name(target.file_name().unwrap_or_default()))
}

fn part_name(name: &OsStr) -> OsString {
    let mut part = name.to_owned();
    part.push(".part");
    part
}

/// Creates and locks `NAME.part`. One that a killed process left is replaced; one that is being written is not.
fn create_part(target: &Path) -> Result<(PathBuf, File)> {
    let shown = target.display();
    let folder = folder_of(target);
    if !folder.is_dir() {
        let reason = format!("the output folder {} does not exist", folder.display());
        return Err(Error::io(shown, io::Error::new(io::ErrorKind::NotFound, reason)));
    }
    let Some(name) = target.file_name().filter(|_| !target.is_dir()) else {
        let reason = "this is a folder, not the name of a file";
        return Err(Error::io(shown, io::Error::new(io::ErrorKind::IsADirectory, reason)));
    };
    // The rename would put a file in the place of the device.
    if std::fs::metadata(target).is_ok_and(|old| !old.is_file()) {
        return Err(Error::invalid(format!("{shown}: this is a device or a pipe, not the name of a file")));
    }
    let part = folder.join(part_name(name));
    let refused = |e| Error::io(part.display(), e);
    if let Ok(old) = OpenOptions::new().write(true).open(&part) {
        if let Err(TryLockError::WouldBlock) = old.try_lock() {
            let reason = "another process is writing this file";
            return Err(refused(io::Error::new(io::ErrorKind::ResourceBusy, reason)));
        }
        match std::fs::remove_file(&part) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(refused(e)),
            _ => {}
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&part).map_err(refused)?;
    // Some network file systems have no locks; writing there works, only without the guard.
    let _ = file.try_lock();
    Ok((part, file))
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the new name survive a power cut. The file itself is safe already, so a refusal is no error.
fn sync_folder(target: &Path) {
    if let Ok(folder) = File::open(folder_of(target)) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Header;

    fn spec(name: &str, dims: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: GgmlType::F16, dims: dims.to_vec() }
    }

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn tensors_are_written_in_pieces_of_any_size_and_padded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let tensors = [spec("a", &[37]), spec("b", &[16]), spec("c", &[100_003])];
        let content: Vec<Vec<u8>> =
            [74, 32, 200_006].iter().map(|&n| (0..n).map(|i| (i * 7 + n) as u8).collect()).collect();
        let mut writer = Writer::create(&path, &[], &tensors).unwrap();
        assert_eq!(names_in(folder.path()), ["a.gguf.part"]);
        assert_eq!(writer.next(), Some(("a", 74)));
        writer.write(&content[0][..1]).unwrap();
        writer.write(&[]).unwrap();
        assert_eq!(writer.next(), Some(("a", 73)));
        writer.write(&content[0][1..]).unwrap();
        writer.write_tensor("b", &content[1]).unwrap();
        content[2].chunks(997).for_each(|piece| writer.write(piece).unwrap());
        assert_eq!(writer.next(), None);
        writer.finish().unwrap();
        assert_eq!(names_in(folder.path()), ["a.gguf"]);

        let bytes = std::fs::read(&path).unwrap();
        let header = Header::parse(&bytes, "a.gguf").unwrap();
        for (info, content) in header.tensors.iter().zip(&content) {
            assert!(info.range.start.is_multiple_of(32) && info.data(&bytes) == content, "{}", info.name);
        }
        let used: usize = header.tensors.iter().map(|t| t.range.len()).sum();
        assert!(bytes.len().is_multiple_of(32) && bytes.len() - header.data_start < used + 3 * 32);
    }

    #[test]
    fn a_writer_that_is_not_finished_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        std::fs::write(&path, "old").unwrap();
        let mut writer = Writer::create(&path, &[], &[spec("a", &[64])]).unwrap();
        writer.write(&[5; 100]).unwrap();
        drop(writer);
        assert_eq!(names_in(folder.path()), ["a.gguf"]);

        let mut writer = Writer::create(&path, &[], &[spec("a", &[64]), spec("b", &[8])]).unwrap();
        writer.write(&[5; 128]).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert_eq!(message, format!("{}: tensor b lacks 16 bytes", path.display()));
        assert_eq!(names_in(folder.path()), ["a.gguf"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");

        let mut writer = Writer::create(&path, &[], &[spec("a", &[64])]).unwrap();
        writer.write(&[5; 128]).unwrap();
        writer.finish().unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(b"GGUF"), "a finished one replaces it");
    }

    #[test]
    fn bytes_beyond_a_tensor_or_for_another_are_refused_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let mut writer = Writer::create(&path, &[], &[spec("a", &[16]), spec("b", &[16])]).unwrap();
        writer.write(&[1; 30]).unwrap();
        let refused = |e: Error| e.to_string().split_once(": ").unwrap().1.to_owned();
        assert_eq!(refused(writer.write(&[2; 3]).unwrap_err()), "tensor a takes 2 more bytes but 3 were given");
        let wrong = refused(writer.write_tensor("b", &[2; 32]).unwrap_err());
        assert_eq!(wrong, "next are 2 bytes of tensor a but 32 of b were given");
        writer.write(&[1; 2]).unwrap();
        assert!(writer.write_tensor("b", &[2; 31]).is_err());
        writer.write_tensor("b", &[2; 32]).unwrap();
        assert_eq!(refused(writer.write(&[3]).unwrap_err()), "bytes after the last tensor");
        assert_eq!(refused(writer.write_tensor("c", &[3]).unwrap_err()), "tensor c after the last");
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let header = Header::parse(&bytes, "a").unwrap();
        assert_eq!((header.tensors[0].data(&bytes), header.tensors[1].data(&bytes)), (&[1; 32][..], &[2; 32][..]));
    }

    #[test]
    fn requests_that_no_file_can_hold_are_refused_before_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let entry = |key: &str, v: u32| (key.to_owned(), MetaValue::U32(v));
        let long = "n".repeat(64);
        type Case<'a> = (Vec<(String, MetaValue)>, Vec<TensorSpec>, &'a str);
        let cases: Vec<Case<'_>> = vec![
            (vec![entry("k", 1), entry("k", 2)], vec![], "metadata \"k\" is empty, too long or given twice"),
            (vec![], vec![spec("", &[1])], "tensor \"\" is empty, too long or given twice"),
            (vec![], vec![spec("t", &[1]), spec("t", &[1])], "tensor \"t\" is empty, too long or given twice"),
            (vec![], vec![spec(&long, &[1])], "is longer than 63 bytes"),
            (vec![], vec![spec("t", &[])], "tensor t has 0 dimensions, not 1 to 4"),
            (vec![], vec![spec("t", &[3, 0])], "a dimension is zero"),
            (vec![], vec![spec("t", &[usize::MAX / 2])], "the file's size overflows"),
            (vec![], vec![spec("t", &[usize::MAX, 2])], "the number of elements overflows"),
            (vec![entry("general.alignment", 48)], vec![], "not a u32 power of two from 8 on"),
            (vec![("general.alignment".into(), 32u64.into())], vec![], "not a u32 power of two from 8 on"),
        ];
        for (metadata, tensors, reason) in cases {
            let e = Writer::create(&path, &metadata, &tensors).err().unwrap();
            assert!(e.code() == 4 && e.to_string().ends_with(reason), "{e} / {reason}");
            assert!(names_in(folder.path()).is_empty());
        }
    }

    #[test]
    fn a_file_larger_than_the_disk_allows_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        // More than the largest file offset that systems have.
        let tensors = [spec("a", &[1 << 61]), spec("b", &[1 << 61])];
        let e = Writer::create(folder.path().join("a.gguf"), &[], &tensors).err().unwrap();
        assert!(e.code() == 1 && e.to_string().contains("a.gguf.part: "), "{e}");
        assert!(names_in(folder.path()).is_empty());
    }

    #[test]
    fn places_where_no_file_can_be_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such");
        let e = Writer::create(missing.join("a.gguf"), &[], &[]).err().unwrap().to_string();
        let reason = format!("the output folder {} does not exist", missing.display());
        assert_eq!(e, format!("{}: {reason}", missing.join("a.gguf").display()));
        let e = Writer::create(folder.path(), &[], &[]).err().unwrap().to_string();
        assert_eq!(e, format!("{}: this is a folder, not the name of a file", folder.path().display()));
        assert!(names_in(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_device_or_a_pipe_is_not_replaced_by_a_file() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket.png");
        let _open = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let of_writer = Writer::create(&socket, &[], &[]).err().unwrap();
        let of_picture = crate::image::check_target(&socket).unwrap_err();
        for e in [of_writer, of_picture] {
            assert!(e.code() == 4 && e.to_string().contains("socket.png: ") && e.to_string().contains("pipe"), "{e}");
        }
        assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket());
    }

    #[test]
    fn a_leftover_of_a_killed_process_is_replaced_but_a_file_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        std::fs::write(folder.path().join("a.gguf.part"), "left over").unwrap();
        let mut first = Writer::create(&path, &[], &[spec("a", &[8])]).unwrap();
        let e = Writer::create(&path, &[], &[]).err().unwrap().to_string();
        assert!(e.ends_with("a.gguf.part: another process is writing this file"), "{e}");
        first.write(&[9; 16]).unwrap();
        first.finish().unwrap();
        assert_eq!(names_in(folder.path()), ["a.gguf"]);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(Header::parse(&bytes, "a").unwrap().tensors[0].data(&bytes), [9; 16]);
    }
}
