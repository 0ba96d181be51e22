"""The programs of scripts/gpu-check on their way to a machine with a card: built, stripped, and in one archive."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

PROGRAMS = "programs.tar.xz"
# Kind and name of a target, and what its program is called there.
TARGETS = {
    ("test", "cuda"): "test-cuda",
    ("test", "cuda_backend"): "test-backend",
    ("bench", "cuda"): "bench-cuda",
    ("bin", "mmada"): "mmada",
}
# What the tests read, besides what is compiled into them.
DATA = ["models/mmada-shapes.gguf", "tests/golden/tiny", "tests/golden/grouped"]
SCRIPTS = ["gpu-check", "gpu_pack.py", "gpu_parts.py", "gpu_run.py", "gpu_table.py", "gpu_peers.py"]
# Of the programs alone: what goes to a machine together with the repository should not double it.
LIMIT = 14 << 20


def pack(root, folder, profile, standalone):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        stripped = pathlib.Path(scratch)
        for program, name in build(root, profile):
            shutil.copy(program, stripped / name)
            subprocess.run(["strip", "--strip-all", stripped / name], check=True)
        with tarfile.open(folder / PROGRAMS, "w:xz", preset=6 if profile == "release" else 1) as archive:
            for name in TARGETS.values():
                archive.add(stripped / name, name)
    if standalone:
        for name in SCRIPTS:
            shutil.copy(root / "scripts" / name, folder / name)
        for path in DATA:
            (folder / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (root / path).is_dir() else shutil.copy
            copy(root / path, folder / "data" / path)
    print(f"{folder}: {size(folder) / 2**20:.1f} MiB")
    return too_large(folder / PROGRAMS, LIMIT if profile == "release" else None)


def build(root, profile):
    """Paths of the programs and their names, all of one build."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--profile", profile, "--workspace", "--no-run"]
    command += ["--test", "cuda", "--test", "cuda_backend", "--bench", "cuda"]
    command += ["--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("executable"):
            target = message["target"]
            found[target["kind"][0], target["name"]] = message["executable"]
    return [(found[target], name) for target, name in TARGETS.items()]


def size(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def too_large(archive, limit):
    """An exit status."""
    bytes_ = archive.stat().st_size
    if limit is None or bytes_ <= limit:
        return 0
    print(f"scripts/gpu-check: {archive} has {bytes_} bytes, more than the {limit} that are allowed", file=sys.stderr)
    return 1


@contextlib.contextmanager
def unpacked(folder):
    """A folder with the programs, which is gone afterwards."""
    if not (folder / PROGRAMS).exists():
        sys.exit(f"scripts/gpu-check: {folder} holds nothing: run `scripts/gpu-check --pack` where the library is built")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        with tarfile.open(folder / PROGRAMS) as archive:
            # Python warns where it is not said that nothing may leave the folder; older ones do not know the word
            archive.extractall(scratch, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        yield pathlib.Path(scratch)
