//! The bytes of a model file: mapped, so that opening is instant and processes share the pages; or read into memory
//! where mapping does not work (some network and container file systems) or is not wanted; or lent by the caller.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::memory::try_vec;

/// Told how many of all bytes of a model have been brought into memory; to answer false stops it.
pub type Progress = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Bytes that are read between two reports of progress.
const CHUNK: usize = 8 << 20;

/// The whole content of a file, at an address aligned for every tensor that the file aligns.
pub struct Mapping {
    content: Content,
    /// The files behind mapped pages; none where the bytes are a copy.
    sources: Vec<Source>,
}

enum Content {
    Mapped(memmap2::Mmap),
    #[cfg(unix)]
    Parts(parts::Region),
    Read {
        lines: Vec<Line>,
        len: usize,
    },
    Lent(&'static [u8]),
}

/// A file whose pages are mapped.
struct Source {
    file: File,
    name: String,
    len: usize,
}

/// A cache line: what a file that was read is aligned to (a mapped one is aligned to its pages).
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

impl Mapping {
    /// Maps the file; reads it into memory if the system refuses to map it.
    ///
    /// While it is mapped the file must not be changed or cut off by anyone: reading pages that are gone kills the
    /// process on most systems. Replacing it by renaming another file over it (as `gguf::Writer` does) is harmless.
    /// [`Mapping::check`] notices a file that was cut off before it is read again.
    ///
    /// # Errors
    /// `Io` if it cannot be opened or is no regular file; `Format` if it is empty; `OutOfMemory` if it must be
    /// read and does not fit.
    pub fn open(path: impl AsRef<Path>) -> Result<Mapping> {
        Self::open_with(path, true, None)
    }

    /// Reads the file into memory: what becomes of the file afterwards does not matter.
    ///
    /// # Errors
    /// As `open`; also `Io` if the file shrinks while it is read.
    pub fn read(path: impl AsRef<Path>) -> Result<Mapping> {
        Self::open_with(path, false, None)
    }

    /// [`Mapping::open`] or, without `mmap`, [`Mapping::read`]. `progress` is told of every 8 MiB that are read, and of
    /// the whole at the end.
    ///
    /// # Errors
    /// As `open`; `Cancelled` if `progress` answers false.
    pub fn open_with(path: impl AsRef<Path>, mmap: bool, progress: Option<&Progress>) -> Result<Mapping> {
        let path = path.as_ref();
        Self::load(open_regular(path)?, &path.display().to_string(), mmap, progress)
    }

    /// [`Mapping::open_with`] of an open file, from its beginning whatever its position. `name` stands in errors.
    ///
    /// # Errors
    /// As `open_with`.
    pub fn load(file: File, name: &str, mmap: bool, progress: Option<&Progress>) -> Result<Mapping> {
        let len = regular_len(&file, name)?;
        // SAFETY: the map is read-only and private to this struct, which hands out shared slices that live no longer
        // than itself. What remains is another process changing the file; the documentation of `open` forbids it,
        // and no system offers a map that is immune to it.
        let map = mmap.then(|| unsafe { memmap2::MmapOptions::new().len(len).map(&file) });
        match map {
            Some(Ok(map)) => {
                let source = Source { file, name: name.to_owned(), len };
                Mapping { content: Content::Mapped(map), sources: vec![source] }.report(progress)
            }
            _ => Self::read_all(&[(file, name.to_owned(), 0..len)], len, progress),
        }
    }

    /// The bytes of a model that the caller holds in memory for as long as the process runs.
    pub fn lend(bytes: &'static [u8]) -> Mapping {
        Mapping { content: Content::Lent(bytes), sources: Vec::new() }
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map,
            #[cfg(unix)]
            Content::Parts(region) => region.bytes(),
            Content::Read { lines, len } => &bytemuck::cast_slice(lines)[..*len],
            Content::Lent(bytes) => bytes,
        }
    }

    /// Whether the bytes are a file's own pages (false: a copy in memory, or the caller's).
    pub fn is_mapped(&self) -> bool {
        !self.sources.is_empty()
    }

    /// An error if a mapped file has become shorter since it was opened, so that pages of it are gone. A file that is
    /// cut off between this look and the use of the pages still kills the process: see [`Mapping::open`].
    ///
    /// # Errors
    /// `Format` with the name of the file; `Io` if the system does not tell its length any more.
    pub fn check(&self) -> Result<()> {
        for Source { file, name, len } in &self.sources {
            let now = file.metadata().map_err(|e| Error::io(name, e))?.len();
            if now < *len as u64 {
                let reason = format_args!("the file became shorter since it was opened: {now} bytes instead of {len}");
                return Err(Error::format(name, reason));
            }
        }
        Ok(())
    }

    /// The parts of a split file one behind the other, and where each lies: mapped side by side or, if the system
    /// refuses or `mmap` is false, read. What lies between a part's end and the next one's beginning is zero.
    ///
    /// # Errors
    /// As `load`, for each of the parts.
    pub fn open_parts(
        paths: &[PathBuf],
        mmap: bool,
        progress: Option<&Progress>,
    ) -> Result<(Mapping, Vec<Range<usize>>)> {
        let mut files = Vec::new();
        let mut end = 0usize;
        for path in paths {
            let (file, name) = (open_regular(path)?, path.display().to_string());
            let len = regular_len(&file, &name)?;
            let too_large = || Error::unsupported(path.display(), "the parts are larger than this machine can address");
            let start = end.checked_next_multiple_of(PART_ALIGNMENT).ok_or_else(too_large)?;
            end = start.checked_add(len).ok_or_else(too_large)?;
            files.push((file, name, start..end));
        }
        let ranges = files.iter().map(|(_, _, range)| range.clone()).collect();
        #[cfg(unix)]
        if let Some(region) = mmap.then(|| parts::Region::map(&files, end)).flatten() {
            let source = |(file, name, range): (File, String, Range<usize>)| Source { file, name, len: range.len() };
            let sources = files.into_iter().map(source).collect();
            return Ok((Mapping { content: Content::Parts(region), sources }.report(progress)?, ranges));
        }
        let _ = mmap;
        Ok((Self::read_all(&files, end, progress)?, ranges))
    }

    /// Reads each file to its range of `len` bytes.
    fn read_all(files: &[(File, String, Range<usize>)], len: usize, progress: Option<&Progress>) -> Result<Mapping> {
        let what = || format!("reading {} into memory", files.first().map_or("nothing", |(_, name, _)| name));
        let mut lines: Vec<Line> = try_vec(len.div_ceil(size_of::<Line>()), &what())?;
        let target = bytemuck::cast_slice_mut::<Line, u8>(&mut lines);
        let total: usize = files.iter().map(|(_, _, range)| range.len()).sum();
        let mut done = 0;
        for (file, name, range) in files {
            for (chunk, target) in target[range.clone()].chunks_mut(CHUNK).enumerate() {
                read_exact_at(file, target, (chunk * CHUNK) as u64).map_err(|e| shorter(name, e))?;
                done += target.len();
                tell(progress, done, total)?;
            }
        }
        Ok(Mapping { content: Content::Read { lines, len }, sources: Vec::new() })
    }

    /// Tells that all is there.
    fn report(self, progress: Option<&Progress>) -> Result<Mapping> {
        let total = self.sources.iter().map(|source| source.len).sum();
        tell(progress, total, total)?;
        Ok(self)
    }
}

fn tell(progress: Option<&Progress>, done: usize, total: usize) -> Result<()> {
    match progress {
        Some(progress) if !progress(done as u64, total as u64) => Err(Error::Cancelled),
        _ => Ok(()),
    }
}

fn shorter(name: &str, e: io::Error) -> Error {
    match e.kind() {
        ErrorKind::UnexpectedEof => {
            let reason = "the file became shorter while it was read";
            Error::io(name, io::Error::new(ErrorKind::UnexpectedEof, reason))
        }
        _ => Error::io(name, e),
    }
}

/// Reads without moving the position that other holders of the descriptor may rely on.
#[cfg(unix)]
fn read_exact_at(file: &File, target: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, target, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, target: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(target)
}

/// Bytes of memory that the machine has; 0 where the system does not tell.
pub fn physical_memory() -> u64 {
    #[cfg(unix)]
    {
        // SAFETY: `sysconf` reads a number of the system and touches nothing of ours.
        let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(size).unwrap_or(0))
    }
    #[cfg(not(unix))]
    0
}

/// Parts begin at multiples of this: the largest page of the systems there are.
const PART_ALIGNMENT: usize = 1 << 16;

/// Files mapped side by side.
#[cfg(unix)]
mod parts {
    use std::fs::File;
    use std::ops::Range;
    use std::os::fd::AsRawFd;

    /// Addresses of our own, all of them readable.
    pub struct Region {
        start: *mut libc::c_void,
        len: usize,
    }

    // SAFETY: the pages are only read, and unmapped by the one owner.
    unsafe impl Send for Region {}
    // SAFETY: as above.
    unsafe impl Sync for Region {}

    impl Region {
        /// Reserves `len` bytes of zeros and maps each file over its range. `None` if the system refuses.
        pub fn map(files: &[(File, String, Range<usize>)], len: usize) -> Option<Region> {
            // SAFETY: an anonymous private map at an address of the system's choice touches nothing that exists. The
            // zeros between the files are pages of it, which cost nothing until they are read.
            let start = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
                libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, -1, 0)
            };
            if start == libc::MAP_FAILED {
                return None;
            }
            let mut region = Region { start, len };
            for (file, _, range) in files {
                // SAFETY: the range lies inside the region, which is ours and not handed out yet; MAP_FIXED replaces
                // only pages of it. A start that is no multiple of the page size is refused by the system.
                let mapped = unsafe {
                    let at = region.start.byte_add(range.start);
                    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                    libc::mmap(at, range.len(), libc::PROT_READ, flags, file.as_raw_fd(), 0)
                };
                if mapped == libc::MAP_FAILED {
                    // The system may have unmapped the range before it refused, and another thread may have got it
                    // since: only what lies before it is given back. The rest are addresses, no memory.
                    region.len = range.start;
                    return None;
                }
            }
            Some(region)
        }

        pub fn bytes(&self) -> &[u8] {
            // SAFETY: all of the region is readable for as long as it lives. That nobody changes the files meanwhile
            // is what `Mapping::open` asks for.
            unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
        }
    }

    impl Drop for Region {
        fn drop(&mut self) {
            // SAFETY: mapped by `map`, and no slice of it outlives the region. A failure leaves addresses in use.
            unsafe { libc::munmap(self.start, self.len) };
        }
    }
}

/// Opens a file that can be mapped or read whole.
fn open_regular(path: &Path) -> Result<File> {
    // Asked before opening, because opening a pipe waits for its other end.
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path.display(), e))?;
    check_kind(&metadata).and_then(|()| File::open(path)).map_err(|e| Error::io(path.display(), e))
}

fn check_kind(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "this is a folder, not a model file"));
    }
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "this is a device or a pipe, not a model file"));
    }
    Ok(())
}

/// The length of a file that can be mapped or read whole.
fn regular_len(file: &File, name: &str) -> Result<usize> {
    let metadata = file.metadata().map_err(|e| Error::io(name, e))?;
    check_kind(&metadata).map_err(|e| Error::io(name, e))?;
    match metadata.len() {
        0 => Err(Error::format(name, "the file is empty")),
        len => usize::try_from(len)
            .map_err(|_| Error::unsupported(name, format_args!("{len} bytes are more than this machine can address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that no two neighbouring pages or lines have in common.
    fn noise(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect()
    }

    #[test]
    fn mapped_and_read_bytes_are_the_bytes_of_the_file_and_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        for len in [1, 63, 64, 65, 4095, 100_003] {
            let content = noise(len);
            std::fs::write(&path, &content).unwrap();
            let (mapped, read) = (Mapping::open(&path).unwrap(), Mapping::read(&path).unwrap());
            assert!(mapped.is_mapped() && !read.is_mapped());
            assert!(mapped.bytes() == content && read.bytes() == content, "{len} bytes");
            assert_eq!(mapped.bytes().as_ptr().align_offset(64), 0);
            assert_eq!(read.bytes().as_ptr().align_offset(64), 0);
        }
    }

    #[test]
    fn parts_lie_one_behind_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let lens = [100_003, 1, 65536, 70_001];
        let paths: Vec<PathBuf> = lens.iter().map(|n| folder.path().join(n.to_string())).collect();
        paths.iter().zip(lens).for_each(|(path, len)| std::fs::write(path, noise(len)).unwrap());
        for mmap in [true, false] {
            let (mapping, ranges) = Mapping::open_parts(&paths, mmap, None).unwrap();
            assert_eq!(mapping.is_mapped(), mmap && cfg!(unix));
            assert_eq!(ranges[0], 0..100_003);
            for (range, len) in ranges.iter().zip(lens) {
                assert!(mapping.bytes()[range.clone()] == noise(len), "{len} at {range:?}");
            }
            assert!(mapping.bytes()[100_003..ranges[1].start].iter().all(|&b| b == 0));
            assert_eq!(mapping.bytes().len(), ranges[3].end);
        }
        std::fs::remove_file(&paths[2]).unwrap();
        let e = Mapping::open_parts(&paths, true, None).err().unwrap().to_string();
        assert!(e.starts_with(&paths[2].display().to_string()), "{e}");
    }

    #[test]
    fn a_mapped_file_survives_being_replaced_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let content = noise(10_001);
        std::fs::write(&path, &content).unwrap();
        let mapped = Mapping::open(&path).unwrap();
        std::fs::write(folder.path().join("b"), b"other").unwrap();
        // Windows refuses to replace a mapped file; there the file stays as it is.
        let _ = std::fs::rename(folder.path().join("b"), &path);
        assert!(mapped.bytes() == content);
    }

    #[test]
    fn what_is_not_a_model_file_is_refused_by_name_and_reason() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.gguf");
        std::fs::write(&empty, []).unwrap();
        let cases = [
            (empty, 2, "the file is empty"),
            (folder.path().to_owned(), 1, "this is a folder"),
            (folder.path().join("missing.gguf"), 1, "No such file"),
        ];
        for (path, code, reason) in cases {
            for opened in [Mapping::open(&path), Mapping::read(&path)] {
                let e = opened.err().unwrap();
                let message = e.to_string();
                assert_eq!(e.code(), code, "{message}");
                assert!(message.starts_with(&path.display().to_string()), "{message}");
                assert!(message.contains(reason) || (cfg!(windows) && code == 1), "{message}");
            }
        }
    }
}
