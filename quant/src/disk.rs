//! What is asked of the disk before an hour of work: room, and that nothing is lost.

use std::io;
use std::path::{Path, PathBuf};

use mmada::gguf::part_path;
use mmada::{Error, Result};

/// Fails if the file system of `output`'s folder has less than `bytes` left. A folder that does not exist is left to
/// the writer, and a file system that does not tell gets the benefit of the doubt.
///
/// # Errors
/// `Io`: names the output, what it needs and what is left.
pub fn require(output: &Path, bytes: u64) -> Result<()> {
    let folder = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs4::available_space(folder) {
        Ok(left) if left < bytes => {
            let mb = |n: u64| n as f64 / 1e6;
            let reason = format!("needs {:.1} MB, but the disk has only {:.1} MB left", mb(bytes), mb(left));
            Err(Error::io(output.display(), io::Error::new(io::ErrorKind::StorageFull, reason)))
        }
        _ => Ok(()),
    }
}

/// The output must not replace what it is made from, and neither must the file that it is until it is whole.
///
/// # Errors
/// `InvalidArgument` names the input.
pub fn keep_inputs<'a>(output: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<()> {
    let replaced: Vec<PathBuf> =
        [output, &part_path(output)].iter().filter_map(|path| path.canonicalize().ok()).collect();
    match inputs.find(|input| input.canonicalize().is_ok_and(|input| replaced.contains(&input))) {
        Some(input) => {
            Err(Error::invalid(format!("the output would replace {}, which it is made from", input.display())))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_any_disk_has_is_refused_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.gguf");
        require(&output, 1).unwrap();
        let error = require(&output, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("out.gguf") && error.contains("18446744073709.6 MB"), "{error}");
        require(&folder.path().join("no/such/out.gguf"), u64::MAX).unwrap();
    }
}
