#!/usr/bin/env python3
"""Writes tests/golden/quants/vectors.safetensors: blocks and what gguf-py makes of them.

    pip install gguf safetensors
    scripts/make-quant-vectors.py

TYPE.bytes  u8  [rows, bytes of a row]   random blocks whose f16 scales are finite, some of them extreme
TYPE.values f32 [rows, elements]         their values (gguf.quants.dequantize)
TYPE.grid   u8  [rows, bytes of a row]   blocks that use every row of the codebook, with scales that make whole numbers
TYPE.grid_values i8 [rows, elements]     their values
TYPE.input  f32 [rows, elements]         rows to encode, for the types that gguf-py can encode
TYPE.encoded u8 [rows, bytes of a row]   their encoding (gguf.quants.quantize)
"""

import importlib.metadata
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import _type_traits as quants, dequantize, quantize
from safetensors.numpy import save_file

ROWS, BLOCKS = 6, 2
# Where the f16 scales of a block lie.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0],
}
# The types added later have a generator of their own, which keeps the numbers of the first ones.
LATER = {
    T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ1_S: [0], T.IQ1_M: [],
    T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: [],
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


def grid(t):
    """Blocks whose indices count through the codebook; d makes 1/8 of IQ1 and the halves of the scales whole."""
    d = {T.IQ2_XXS: 8, T.IQ2_XS: 8, T.IQ2_S: 8, T.IQ3_XXS: 4, T.IQ3_S: 1, T.IQ1_S: 8}[t]
    per_block, entries = 256 // {T.IQ3_XXS: 4, T.IQ3_S: 4}.get(t, 8), quants[t].grid_shape[0]
    index = np.arange(entries, dtype=np.uint16).reshape(-1, per_block)
    data = np.zeros((len(index), gguf.GGML_QUANT_SIZES[t][1]), np.uint8)
    data[:, :2] = np.array([d], np.float16).view(np.uint8)
    low, high = (index & 255).astype(np.uint8), index >> 8
    if t == T.IQ2_XXS:
        data[:, 2:66].reshape(-1, 8, 8)[:, :, :4] = low.reshape(-1, 8, 4)
    elif t == T.IQ2_XS:
        data[:, 2:66] = index.view(np.uint8)
    else:
        data[:, 2:2 + per_block] = low
    if t == T.IQ2_S:
        data[:, 66:74] = (high.reshape(-1, 8, 4) << np.array([0, 2, 4, 6], np.uint16)).sum(-1)
    if t == T.IQ3_S:
        data[:, 66:74] = (high.reshape(-1, 8, 8) << np.arange(8, dtype=np.uint16)).sum(-1)
    if t == T.IQ1_S:
        h = (high.reshape(-1, 8, 4) << np.array([0, 3, 6, 9], np.uint16)).sum(-1).astype(np.uint16)
        data[:, 34:50] = h.view(np.uint8)
    return data


def blocks(t):
    size = gguf.GGML_QUANT_SIZES[t][1]
    data = rng.integers(0, 256, (ROWS * BLOCKS, size), np.uint8)
    for at in halves[t]:
        data[:, at:at + 2] = finite_halves(len(data)).view(np.uint8).reshape(-1, 2)
    # The first two blocks have all bits of their quants clear and set, and ordinary scales.
    data[0], data[1] = 0, 255
    for at in halves[t]:
        data[:2, at:at + 2] = np.array([0x3555], np.uint16).view(np.uint8)
    if t == T.IQ1_M:  # its scale lies in the high bits of four u16
        d = finite_halves(len(data))
        d[:2] = 0x3555
        d = d[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        data[:, 49::2] = data[:, 49::2] & 15 | (d << 4).astype(np.uint8)
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
halves = HALVES
for t in HALVES:
    out[f"{t.name}.bytes"] = blocks(t)
f16 = np.concatenate([EXTREME, finite_halves(500), np.array([0x7C00, 0xFC00, 0x0010], np.uint16)])
out["F16.bytes"] = f16.view(np.uint8).reshape(ROWS - 4, -1).copy()
bf16 = rng.integers(0, 1 << 16, 512, np.uint16)
bf16[(bf16 & 0x7F80) == 0x7F80] &= 0xFF80  # infinities, no NaN
out["BF16.bytes"] = bf16.view(np.uint8).reshape(2, -1).copy()
inputs_of = {t: inputs(t) for t in ENCODED}
rng, halves = np.random.default_rng(21), LATER
for t in LATER:
    out[f"{t.name}.bytes"] = blocks(t)
for name in [k.removesuffix(".bytes") for k in out]:
    out[f"{name}.values"] = np.ascontiguousarray(dequantize(out[f"{name}.bytes"], T[name]), dtype=np.float32)
for t in ENCODED:
    out[f"{t.name}.input"] = inputs_of[t]
    out[f"{t.name}.encoded"] = quantize(out[f"{t.name}.input"], t)
for t in (T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ1_S):
    out[f"{t.name}.grid"] = grid(t)
    values = dequantize(out[f"{t.name}.grid"], t)
    out[f"{t.name}.grid_values"] = values.astype(np.int8)
    assert (out[f"{t.name}.grid_values"] == values).all() and len(np.unique(values, axis=0)) == len(values)

path = pathlib.Path(__file__).parent.parent / "tests/golden/quants/vectors.safetensors"
path.parent.mkdir(parents=True, exist_ok=True)
save_file(out, path, metadata={"gguf": importlib.metadata.version("gguf")})
path.chmod(0o644)
print(path, path.stat().st_size, "bytes")
