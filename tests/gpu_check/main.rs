//! `scripts/gpu-check`, which has to be right the first time, as few people have such a card at hand: packed here, carried to a
//! folder that knows nothing of this one, and run there over the stand-in for the driver (tests/cuda/README.md).

#![cfg(all(feature = "cuda", feature = "cli", target_os = "linux", target_arch = "x86_64"))]

#[path = "../cuda/library.rs"]
mod library;

use std::path::Path;
use std::process::{Command, Output};

fn python(script: &Path) -> Command {
    let mut command = Command::new("python3");
    // leaves nothing beside the sources
    command.arg("-B").arg(script);
    command
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} ended with {status}\n{out}\n{err}");
    out.into_owned()
}

#[test]
fn numbers_parts_and_the_table_are_what_they_should_be() {
    succeed(&mut python(&root().join("tests/gpu_check/units.py")));
}

#[test]
fn what_was_packed_runs_elsewhere_and_every_line_is_in_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let (packed, there, out) = (folder.path().join("packed"), folder.path().join("there"), folder.path().join("out"));
    let mut pack = python(&root().join("scripts/gpu-check"));
    // the programs of this build: what is missing of it is the bench
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    pack.args(["--pack", "--standalone", "--profile", profile, "--folder"]).arg(&packed);
    succeed(&mut pack);
    std::fs::rename(&packed, &there).unwrap();

    let mut check = python(&there.join("gpu-check"));
    check.args(["--quick", "--recipes", "Q4_K_M", "--seconds", "300", "--out"]).arg(&out).current_dir(folder.path());
    check.env("LD_LIBRARY_PATH", library::folder());
    for (name, value) in
        [("NAME", "NVIDIA H200"), ("CAPABILITY", "9.0"), ("DRIVER", "12.0"), ("MULTIPROCESSORS", "4"), ("QUIET", "1")]
    {
        check.env(format!("MMADA_STANDIN_{name}"), value);
    }
    succeed(&mut check);

    let table = std::fs::read_to_string(out.join("table.md")).unwrap();
    for line in [
        "Measured on NVIDIA H200, compute capability 9.0, ",
        "| groups of kernels for Hopper that are right | 3 of 3 |",
        "| product int8 Q8_0 96x256 n=8 | ",
        "| product int8 Q4_K 96x256 n=64 | ",
        "| product bf16 Q4_K 96x256 n=8 | ",
        "| product bf16 BF16 96x256 n=64 | ",
        "| product int8 Q6_K 96x256 n=64 | ",
        "| unpacking Q4_K 96x256 | ",
        "| hopper product int8 Q8_0 96x256 n=64 | ",
        "| hopper product int8 Q4_K 96x256 n=64 | ",
        "| hopper product bf16 BF16 96x256 n=64 | ",
        "| hopper product bf16 Q6_K 96x256 n=64 | ",
        "| attention 2 heads of 64, 130 tokens | ",
        "| ampere attention 1 heads of 128, 130 tokens | ",
        "| Q4_K_M weights on the card | ",
        "| Q4_K_M text step of 24 tokens | ",
        "| Q4_K_M pass over 2x23 tokens | ",
        "| Q4_K_M image step of 2x23 tokens | ",
        "| Q4_K_M picture of 8x8 in 3 steps with guidance | ",
        "| Q4_K_M first step after opening, kernels translated before | ",
        "| Q4_K_M first step after opening, kernels translated anew | ",
        "| what the library finds | passed | ",
        "| kernels compute right | passed | ",
        "| the backend's tests | passed | 2 tests, ",
        "| kernels' tests: elementwise | passed | ",
        "| compute-sanitizer",
        "| PyTorch: products | ",
    ] {
        assert!(table.contains(line), "{line}\n{table}");
    }
    // Hopper's tiles are for many tokens, and types with a scale for 16 are in bfloat16 there
    for line in ["| hopper product int8 Q8_0 96x256 n=8 |", "| hopper product int8 Q6_K"] {
        assert!(!table.contains(line), "{line}\n{table}");
    }
    // what a stand-in is nothing for may be installed all the same
    for line in table.lines().filter(|line| !line.contains("PyTorch") && !line.contains("sanitizer")) {
        assert!(!line.contains("| FAILED |") && !line.contains("| ended |"), "{line}");
    }
    let log = std::fs::read_to_string(out.join("gpu-check.log")).unwrap();
    assert!(log.contains("== products: ") && log.contains("test result: ok"), "{log}");
}
