"""Builds the wheel: what hatchling calls to add the library and the module that knows its header.

The library and its header are those that pkg-config finds as `mmada` (set PKG_CONFIG_PATH to use another). cffi's
out-of-line ABI mode turns the header into a pure Python module, so a wheel needs no compiler and serves every Python 3;
only the library inside makes it one for a platform.
"""

import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Dict

from cffi import FFI
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

# What the header's #defines are made of, beside numbers.
LIMITS = {"SIZE_MAX": 2**64 - 1, "UINT32_MAX": 2**32 - 1}


def pkg_config(*arguments: str) -> str:
    """What pkg-config says about the installed library."""
    command = ["pkg-config", *arguments, "mmada"]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout.strip()
    except FileNotFoundError:
        raise SystemExit("mmada: pkg-config is needed to find libmmada; please install it") from None
    except subprocess.CalledProcessError:
        raise SystemExit(
            "mmada: pkg-config does not find libmmada; install it (./install.sh --prefix PREFIX in its repository) "
            "and set PKG_CONFIG_PATH=PREFIX/lib/pkgconfig"
        ) from None


def declarations(header: str) -> str:
    """The header without what cffi's parser does not read: comments and the preprocessor's lines."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header, flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus\b.*?#endif", "", text, flags=re.DOTALL)
    return re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)


def constants(header: str) -> Dict[str, object]:
    """The values of the header's #defines."""
    found: Dict[str, object] = {}
    for name, value in re.findall(r"^#define (MMADA_\w+) (\S.*)$", header, flags=re.MULTILINE):
        if value in LIMITS:
            found[name] = LIMITS[value]
        elif value.startswith('"'):
            found[name] = value.strip('"')
        else:
            found[name] = int(value, 0)
    return found


def generate(header: str, library: str, target: Path) -> None:
    """Writes the module `mmada._ffi`."""
    ffi = FFI()
    ffi.cdef(declarations(header))
    ffi.set_source("mmada._ffi", None)
    ffi.emit_python_code(str(target))
    with target.open("a") as module:
        module.write(f"\nLIBRARY = {library!r}\n")
        for name, value in constants(header).items():
            module.write(f"{name} = {value!r}\n")
    target.write_text("# mypy: ignore-errors\n# ruff: noqa\n" + target.read_text())


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `_ffi.py` and the library to the wheel, and tags it for the platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        """Called by hatchling before the wheel is made."""
        header = Path(pkg_config("--variable=includedir")) / "mmada.h"
        folder = Path(pkg_config("--variable=libdir"))
        soname = ".".join(self.metadata.version.split(".")[:1])
        names = [f"libmmada.so.{soname}", "libmmada.so", "libmmada.dylib"]
        library = next((folder / name for name in names if (folder / name).exists()), None)
        if library is None:
            raise SystemExit(f"mmada: {folder} has no shared library: {' or '.join(names)}")
        self.scratch = tempfile.TemporaryDirectory()
        module = Path(self.scratch.name) / "_ffi.py"
        generate(header.read_text(), library.name, module)
        if version == "editable":  # such an installation is a link to the sources: the two must stand beside them
            for added, name in ((module, "_ffi.py"), (library, library.name)):
                shutil.copyfile(added, Path(self.root) / "src" / "mmada" / name)
        else:
            build_data["force_include"][str(module)] = "mmada/_ffi.py"
            build_data["force_include"][str(library.resolve())] = f"mmada/{library.name}"
        platform = re.sub(r"[^0-9a-zA-Z_]", "_", sysconfig.get_platform())
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: Dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling when the wheel is there."""
        self.scratch.cleanup()


class VersionHook(MetadataHookInterface):
    """The package has the version of its library."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: Dict[str, Any]) -> None:
        """Called by hatchling when it wants to know the version."""
        metadata["version"] = pkg_config("--modversion")
