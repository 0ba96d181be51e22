"""llama.cpp, for the scripts that measure against it. Its source comes with the source distribution of llama-cpp-python,
which pip downloads; what is built of it lies under .cache/llama.cpp (ignored by git)."""

import ctypes
import pathlib
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/llama.cpp"
VERSION = "0.3.36"
OPTIONS = ["CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=ON", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
           "LLAMA_BUILD_TOOLS=OFF", "LLAMA_BUILD_SERVER=OFF", "LLAMA_BUILD_APP=OFF", "LLAMA_BUILD_COMMON=OFF",
           "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF", "GGML_OPENMP=OFF", "GGML_CCACHE=OFF"]
CXX = {"gcc": "g++", "clang": "clang++"}


def source():
    """The folder of its source."""
    found = list(CACHE.glob("*/vendor/llama.cpp"))
    if found:
        return found[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    name = f"llama_cpp_python-{VERSION}.tar.gz"
    if not (CACHE / name).exists():
        package = "llama-cpp-python"
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", package,
                        "-d", CACHE, f"{package}=={VERSION}"], check=True)
    with tarfile.open(CACHE / name) as tar:
        tar.extractall(CACHE, [m for m in tar if "/vendor/llama.cpp/" in m.name], filter="data")
    return next(CACHE.glob("*/vendor/llama.cpp"))


def library(compiler="cc"):
    """The folder of its library, which takes some minutes to build once. `cc` builds what the other scripts use; `gcc`
    and `clang` build it as it comes, to be measured."""
    folder, build, options = source(), CACHE / "build", OPTIONS
    if compiler != "cc":
        build = CACHE / f"build-{compiler}"
        options = [option for option in OPTIONS if "OPENMP" not in option] + [
            f"CMAKE_C_COMPILER={compiler}", f"CMAKE_CXX_COMPILER={CXX[compiler]}",
            f"CMAKE_CXX_FLAGS=-include {ROOT}/scripts/llama_tiles.h"]
    if not (build / "bin/libllama.so").exists():
        subprocess.run(["nice", "cmake", "-S", folder, "-B", build, *(f"-D{option}" for option in options)], check=True)
        subprocess.run(["nice", "cmake", "--build", build, "--target", "llama", "-j2"], check=True)
    return build / "bin"


def program(name, code, compiler="cc"):
    """A C program over its library."""
    if compiler != "cc":
        name = f"{name}-{compiler}"
    built = CACHE / f"{name}-{VERSION}"
    file = CACHE / f"{name}.c"
    if built.exists() and file.exists() and file.read_text() == code:
        return built
    folder, lib = source(), library(compiler)
    file.write_text(code)
    subprocess.run([compiler, "-O2", "-o", built, file, f"-I{folder}/include", f"-I{folder}/ggml/include", f"-L{lib}",
                    "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", "-lm", f"-Wl,-rpath,{lib}"], check=True)
    return built


def quantizers():
    """Its quantizers as a shared library."""
    from gguf import GGML_QUANT_SIZES
    library = CACHE / f"ggml-quants-{VERSION}.so"
    if not library.exists():
        ggml = source() / "ggml"
        sizes = ", ".join(f"{{ {t.value}, {n}, {b} }}" for t, (n, b) in GGML_QUANT_SIZES.items())
        (CACHE / "shim.c").write_text(SHIM % sizes)
        subprocess.run(["cc", "-O3", "-march=native", "-DNDEBUG", "-w", "-fPIC", "-shared",
                        f"-I{ggml}/include", f"-I{ggml}/src", "-o", library,
                        ggml / "src/ggml-quants.c", CACHE / "shim.c", "-lm"], check=True)
    return ctypes.CDLL(str(library))


def quantize(library, name, x, importance=None):
    """The blocks of the rows `x` (float32), as bytes of each row; `name` is a type."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    length, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    out = np.zeros((len(x), x.shape[1] // length * size), np.uint8)
    call = library["quantize_" + name.lower().replace("_k", "_K")]
    call.restype = ctypes.c_size_t
    pointer = lambda a: None if a is None else a.ctypes.data_as(ctypes.c_void_p)
    n = call(pointer(x), pointer(out), ctypes.c_int64(len(x)), ctypes.c_int64(x.shape[1]), pointer(importance))
    assert n == out.nbytes, (name, n, out.nbytes)
    return out


# What ggml-quants.c calls of the rest of ggml.
SHIM = """
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
static const struct { int type; size_t len, bytes; } sizes[] = { %s };
size_t ggml_row_size(int type, int64_t n) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].type == type) return n / sizes[i].len * sizes[i].bytes;
    abort();
}
size_t ggml_type_size(int type) { return ggml_row_size(type, 1); }
const char *ggml_type_name(int type) { (void)type; return ""; }
void ggml_abort(const char *file, int line, const char *fmt, ...) { (void)file; (void)line; (void)fmt; abort(); }
"""
