//! The PTX of every kernel, as it was compiled ahead of time (`scripts/cuda-build`): a module for each, which `build.rs` has cut
//! out of the committed files and compressed.

use std::io::Read;
use std::ops::Range;

use flate2::read::DeflateDecoder;

/// By name: where in [`PIECES`] lie what its file's kernels share and what is its own, compressed, and the bytes of both.
static KERNELS: &[(&str, Range<usize>, Range<usize>, usize)] = &include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
static PIECES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.deflate"));

/// A module with the kernel `name` alone: its file's declarations, and its entry point.
pub fn ptx_of(name: &str) -> Option<String> {
    let at = KERNELS.binary_search_by_key(&name, |(name, ..)| name).ok()?;
    let (_, shared, own, len) = &KERNELS[at];
    let mut text = String::with_capacity(*len);
    for piece in [shared, own] {
        DeflateDecoder::new(&PIECES[piece.clone()]).read_to_string(&mut text).ok()?;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_kernel_is_there_with_what_it_refers_to() {
        const ENTRY: &str = "\n.visible .entry ";
        let mut count = 0;
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernels/cuda/ptx")).unwrap() {
            let file = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for (at, _) in file.match_indices(ENTRY) {
                let name = file[at + ENTRY.len()..].split('(').next().unwrap();
                let body = &file[at..][..file[at..].find("\n}\n").unwrap() + 3];
                let module = ptx_of(name).unwrap();
                assert_eq!(module.matches(".entry ").count(), 1, "{name}");
                assert!(module.contains(body), "{name}");
                let for_hopper = name.ends_with("_sm90");
                let target =
                    if for_hopper { ".version 8.0\n.target sm_90a\n" } else { ".version 7.8\n.target sm_80\n" };
                assert!(module.contains(target), "{name}");
                assert_eq!(module.matches('{').count(), module.matches('}').count(), "{name}");
                count += 1;
            }
        }
        assert_eq!(count, KERNELS.len());
        assert!(count > 50);
        assert_eq!(ptx_of("no_such_kernel"), None);
    }
}
