//! Which model file a command uses when none is named.

use std::env;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

const DEMO: &str = "mmada-shapes.gguf";

/// The file given with `-m`, else `$MMADA_MODEL`, else the demo model: in the working folder, in the share
/// folder beside the installed program, or in the source tree that this program was built from.
/// A file that was named is not looked for elsewhere.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let from_env = env::var_os("MMADA_MODEL").filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = named.map(Path::to_path_buf).or(from_env) {
        return Ok(path);
    }
    first_existing(&demo_places(env::current_exe().ok().as_deref()))
}

fn demo_places(executable: Option<&Path>) -> Vec<PathBuf> {
    let mut places = vec![Path::new("models").join(DEMO)];
    // bin/mmada -> share/mmada; a link such as /usr/local/bin/mmada is followed to where the program lies.
    let executable = executable.map(|exe| exe.canonicalize().unwrap_or_else(|_| exe.to_path_buf()));
    if let Some(prefix) = executable.as_deref().and_then(Path::parent).and_then(Path::parent) {
        places.push(prefix.join("share").join("mmada").join(DEMO));
    }
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(DEMO));
    places
}

fn first_existing(places: &[PathBuf]) -> Result<PathBuf, Failure> {
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let places: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
        Failure::Input(format!(
            "no model file: name one with -m FILE or in MMADA_MODEL (the demo model was looked for as {})",
            places.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_model_wins_even_where_there_is_no_such_file() {
        assert_eq!(find(Some(Path::new("no/such.gguf"))).unwrap(), Path::new("no/such.gguf"));
    }

    #[test]
    fn the_demo_model_is_found_beside_an_installed_program() {
        let prefix = tempfile::tempdir().unwrap();
        let share = prefix.path().join("share/mmada");
        std::fs::create_dir_all(&share).unwrap();
        std::fs::create_dir_all(prefix.path().join("bin")).unwrap();
        std::fs::write(share.join(DEMO), b"GGUF").unwrap();
        std::fs::write(prefix.path().join("bin/mmada"), b"").unwrap();
        let places = demo_places(Some(&prefix.path().join("bin/mmada")));
        let installed = share.canonicalize().unwrap().join(DEMO);
        assert_eq!(places.len(), 3);
        assert_eq!(places[1], installed);
        assert_eq!(first_existing(&places[1..]).unwrap(), installed);
    }

    #[test]
    fn a_missing_demo_model_is_an_error_that_says_where_it_was_looked_for() {
        let places = [PathBuf::from("nowhere/a.gguf"), PathBuf::from("nowhere/b.gguf")];
        let failure = first_existing(&places).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        let sentence = failure.to_string();
        assert!(sentence.contains("nowhere/a.gguf, nowhere/b.gguf") && sentence.contains("-m FILE"), "{sentence}");
    }
}
