"""What PyTorch reaches on this machine's card with the shapes of benches/cuda.rs, for scripts/gpu-check: lines of
`torch what <tab> number <tab> unit`. Ends with a sentence where PyTorch or a card is missing."""

import sys
import time

SHAPES = [(4096, 4096), (12288, 4096), (4096, 12288)]
TOKENS = [8, 32, 128, 1024, 4096]
IMAGE_TOKENS = 1057
LAYERS, D, FF, HEADS, TEXT_VOCAB, CODES, VOCAB = 32, 4096, 12288, 32, 126464, 8192, 134656


def line(what, number, unit):
    print(f"torch {what}\t{number:.4f}\t{unit}", flush=True)


def best(torch, work):
    """Seconds of one of many."""
    work()
    torch.cuda.synchronize()
    least, count = float("inf"), 1
    for _ in range(8):
        begin = time.perf_counter()
        for _ in range(count):
            work()
        torch.cuda.synchronize()
        least = min(least, (time.perf_counter() - begin) / count)
        count = max(1, min(1000, int(0.02 / least)))
    return least


def products(torch):
    for rows, cols in SHAPES:
        for n in TOKENS:
            work = 2e-12 * n * rows * cols
            x = torch.randn(n, cols, device="cuda", dtype=torch.bfloat16)
            w = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
            line(f"product bf16 {rows}x{cols} n={n}", work / best(torch, lambda: x @ w.t()), "TFLOP/s")
            if n < 32:
                continue  # the vendor library's int8 product begins there
            x = torch.randint(-127, 127, (n, cols), device="cuda", dtype=torch.int8)
            w = torch.randint(-127, 127, (rows, cols), device="cuda", dtype=torch.int8)
            line(f"product int8 {rows}x{cols} n={n}", work / best(torch, lambda: torch._int_mm(x, w.t())), "TFLOP/s")


def attention(torch):
    for dim in (64, 128):
        for n in (IMAGE_TOKENS, 4096):
            heads = D // dim
            q, k, v = (torch.randn(1, heads, n, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
            seconds = best(torch, lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
            line(f"attention {heads} heads of {dim}, {n} tokens", 4e-12 * D * n * n / seconds, "TFLOP/s")


class Model:
    """The 8B's shape with random weights in bfloat16, compiled by nobody: what users of PyTorch run."""

    def __init__(self, torch):
        self.torch = torch
        matrix = lambda rows, cols: torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * cols**-0.5
        self.embedding, self.output = matrix(VOCAB, D), matrix(VOCAB, D)
        self.norm = torch.ones(D, device="cuda", dtype=torch.bfloat16)
        names = [("q", D, D), ("k", D, D), ("v", D, D), ("o", D, D), ("gate", FF, D), ("up", FF, D), ("down", D, FF)]
        self.layers = [{name: matrix(rows, cols) for name, rows, cols in names} for _ in range(LAYERS)]
        angles = torch.outer(torch.arange(2048.0), 500000.0 ** (-torch.arange(0, D // HEADS, 2) / (D // HEADS)))
        self.cos, self.sin = angles.cos().cuda().bfloat16(), angles.sin().cuda().bfloat16()

    def rotate(self, x):
        n, half = x.shape[-2], x.shape[-1] // 2
        cos, sin, a, b = self.cos[:n], self.sin[:n], x[..., :half], x[..., half:]
        return self.torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, ids, rows, vocab):
        f = self.torch.nn.functional
        x = self.embedding[ids]
        batch, n = ids.shape
        heads = lambda y: y.view(batch, n, HEADS, D // HEADS).transpose(1, 2)
        for w in self.layers:
            h = f.rms_norm(x, (D,), self.norm, 1e-5)
            q, k, v = (heads(h @ w[name].t()) for name in "qkv")
            a = f.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
            x = x + a.transpose(1, 2).reshape(batch, n, D) @ w["o"].t()
            h = f.rms_norm(x, (D,), self.norm, 1e-5)
            x = x + (f.silu(h @ w["gate"].t()) * (h @ w["up"].t())) @ w["down"].t()
        return f.rms_norm(x[:, rows], (D,), self.norm, 1e-5) @ self.output[vocab].t()


def steps(torch):
    model = Model(torch)
    for n in (128, 512, 1024):
        ids = torch.randint(0, TEXT_VOCAB, (1, n), device="cuda")

        def step():
            logits = model.forward(ids, slice(n - 64, n), slice(0, TEXT_VOCAB))
            return torch.softmax(logits.double(), -1).max(-1)

        line(f"text step of {n} tokens", 1e3 * best(torch, step), "ms")
    ids = torch.randint(0, TEXT_VOCAB, (2, IMAGE_TOKENS), device="cuda")
    step = lambda: model.forward(ids, slice(IMAGE_TOKENS - 1025, IMAGE_TOKENS - 1), slice(TEXT_VOCAB, TEXT_VOCAB + 1))
    line(f"pass over 2x{IMAGE_TOKENS}", 1e3 * best(torch, step), "ms")


def main():
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not installed here: nothing stands beside the library's numbers")
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no card here")
    with torch.inference_mode():
        products(torch)
        attention(torch)
        steps(torch)


if __name__ == "__main__":
    main()
