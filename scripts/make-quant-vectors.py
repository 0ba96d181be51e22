#!/usr/bin/env python3
"""Writes tests/golden/quants/vectors.safetensors: blocks and what gguf-py makes of them.

    pip install gguf safetensors
    scripts/make-quant-vectors.py

TYPE.bytes  u8  [rows, bytes of a row]   random blocks whose f16 scales are finite, some of them extreme
TYPE.values f32 [rows, elements]         their values (gguf.quants.dequantize)
TYPE.input  f32 [rows, elements]         rows to encode, for the types that gguf-py can encode
TYPE.encoded u8 [rows, bytes of a row]   their encoding (gguf.quants.quantize)
"""

import importlib.metadata
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

ROWS, BLOCKS = 6, 2
# Where the f16 scales of a block lie.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0],
}
ENCODED = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
# Zeros, the smallest and largest subnormal, the smallest normal, one, the largest.
EXTREME = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF], np.uint16)

rng = np.random.default_rng(20)


def finite_halves(n):
    bits = rng.integers(0, 1 << 16, n, np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
    pick = rng.random(n) < 0.3
    bits[pick] = rng.choice(EXTREME, n)[pick]
    return bits


def blocks(t):
    size = gguf.GGML_QUANT_SIZES[t][1]
    data = rng.integers(0, 256, (ROWS * BLOCKS, size), np.uint8)
    for at in HALVES[t]:
        data[:, at:at + 2] = finite_halves(len(data)).view(np.uint8).reshape(-1, 2)
    # The first two blocks have all bits of their quants clear and set, and ordinary scales.
    data[0], data[1] = 0, 255
    for at in HALVES[t]:
        data[:2, at:at + 2] = np.array([0x3555], np.uint16).view(np.uint8)
    return data.reshape(ROWS, BLOCKS * size)


def inputs(t):
    n = BLOCKS * gguf.GGML_QUANT_SIZES[t][0]
    x = rng.standard_normal((ROWS, n)).astype(np.float32)
    x[1] *= 0.05  # every scale stays a normal f16: below that our encoders differ on purpose
    x[2] = np.abs(x[2]) * 1000
    x[3] = np.round(x[3] * 4)  # ties
    x[4] = 0
    x[5, ::7] *= 30  # outliers
    return x


out = {}
for t in HALVES:
    out[f"{t.name}.bytes"] = blocks(t)
f16 = np.concatenate([EXTREME, finite_halves(500), np.array([0x7C00, 0xFC00, 0x0010], np.uint16)])
out["F16.bytes"] = f16.view(np.uint8).reshape(ROWS - 4, -1).copy()
bf16 = rng.integers(0, 1 << 16, 512, np.uint16)
bf16[(bf16 & 0x7F80) == 0x7F80] &= 0xFF80  # infinities, no NaN
out["BF16.bytes"] = bf16.view(np.uint8).reshape(2, -1).copy()
for name in [k.removesuffix(".bytes") for k in out]:
    out[f"{name}.values"] = np.ascontiguousarray(dequantize(out[f"{name}.bytes"], T[name]), dtype=np.float32)
for t in ENCODED:
    out[f"{t.name}.input"] = inputs(t)
    out[f"{t.name}.encoded"] = quantize(out[f"{t.name}.input"], t)

path = pathlib.Path(__file__).parent.parent / "tests/golden/quants/vectors.safetensors"
path.parent.mkdir(parents=True, exist_ok=True)
save_file(out, path, metadata={"gguf": importlib.metadata.version("gguf")})
path.chmod(0o644)
print(path, path.stat().st_size, "bytes")
