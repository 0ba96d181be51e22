"""What PyTorch reaches on this machine's card with the shapes of benches/cuda, for scripts/gpu-check:

    gpu_peers.py ceilings,products,attention,steps

prints lines of `torch what <tab> number <tab> unit`. What goes wrong is a line of its own, and the rest goes on. The status
is 77 where PyTorch or a card is missing, which the last line says, and 1 where something went wrong."""

import sys
import time
import traceback

SHAPES = [(4096, 4096), (12288, 4096), (4096, 12288)]
TOKENS = [8, 32, 128, 1024, 4096]
CEILING = 8192
IMAGE_TOKENS, PICTURE = 1057, 1024
LAYERS, D, FF, HEADS, TEXT_VOCAB, CODES, VOCAB = 32, 4096, 12288, 32, 126464, 8192, 134656
GUIDANCE, STEPS = 3.5, 15
SKIPPED = 77

failures = []


def line(what, number, unit):
    print(f"torch {what}\t{number:.6f}\t{unit}", flush=True)


def attempt(what, work):
    """What `work` returns; None, and a line about it, where it does not."""
    try:
        return work()
    except Exception as error:  # of any kind: others are measured all the same
        failures.append(what)
        reason = str(error).splitlines() or [""]
        print(f"error: {what}: {type(error).__name__}: {reason[0]}", flush=True)
        traceback.print_exc()
        return None


def best(torch, work, rounds=5):
    """Seconds of one of many."""
    begin = time.perf_counter()
    while True:  # clocks are low until there is work
        work()
        torch.cuda.synchronize()
        if time.perf_counter() - begin > 0.02:
            break
    least, count = float("inf"), 1
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(count):
            work()
        torch.cuda.synchronize()
        least = min(least, (time.perf_counter() - begin) / count)
        count = max(1, min(1000, int(0.01 / least)))
    return least


def product(torch, name, kind, rows, cols, n):
    """A product of a matrix and n rows, by the vendor's library."""
    if kind == "bf16":
        x, w = (torch.randn(size, cols, device="cuda", dtype=torch.bfloat16) for size in (n, rows))
        work = lambda: x @ w.t()
    else:
        x, w = (torch.randint(-127, 127, (size, cols), device="cuda", dtype=torch.int8) for size in (n, rows))
        work = lambda: torch._int_mm(x, w.t())
    line(name, 2e-12 * n * rows * cols / best(torch, work), "TFLOP/s")


def ceilings(torch):
    name = f"{CEILING}x{CEILING}x{CEILING}"
    for kind in ("bf16", "int8"):
        what = f"ceiling {kind} {name}"
        attempt(what, lambda: product(torch, what, kind, CEILING, CEILING, CEILING))


def products(torch):
    for rows, cols in SHAPES:
        for n in TOKENS:
            for kind in ("bf16", "int8"):
                if kind == "int8" and n <= 16:
                    continue  # the vendor library's int8 product begins behind it
                what = f"product {kind} {rows}x{cols} n={n}"
                attempt(what, lambda: product(torch, what, kind, rows, cols, n))


def attention(torch):
    for dim in (64, 128):
        for n in (IMAGE_TOKENS, 4096):
            heads = D // dim
            what = f"attention {heads} heads of {dim}, {n} tokens"
            seconds = attempt(what, lambda: fastest_attention(torch, what, heads, n, dim))
            if seconds:
                line(what, 4e-12 * D * n * n / seconds, "TFLOP/s")


def fastest_attention(torch, what, heads, n, dim):
    """The best of what PyTorch has for it. What does not run here, or not with these sizes, is none of its failures."""
    q, k, v = (torch.randn(1, heads, n, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    work = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
    seconds = {"its own choice": best(torch, work)}
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return seconds["its own choice"]
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                seconds[name] = best(torch, work)
        except (AttributeError, RuntimeError) as error:
            print(f"{what}: not by {name}: {str(error).splitlines()[0]}", flush=True)
    winner = min(seconds, key=seconds.get)
    print(f"{what}: the fastest is {winner}", flush=True)
    return seconds[winner]


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

    def rms_norm(self, x):
        functional = self.torch.nn.functional
        if hasattr(functional, "rms_norm"):
            return functional.rms_norm(x, (D,), self.norm, 1e-5)
        wide = x.float()  # before PyTorch 2.4
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype) * self.norm

    def forward(self, ids, rows, vocab):
        f = self.torch.nn.functional
        x = self.embedding[ids]
        batch, n = ids.shape
        heads = lambda y: y.view(batch, n, HEADS, D // HEADS).transpose(1, 2)
        for w in self.layers:
            h = self.rms_norm(x)
            q, k, v = (heads(h @ w[name].t()) for name in "qkv")
            a = f.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
            x = x + a.transpose(1, 2).reshape(batch, n, D) @ w["o"].t()
            h = self.rms_norm(x)
            x = x + (f.silu(h @ w["gate"].t()) * (h @ w["up"].t())) @ w["down"].t()
        return self.rms_norm(x[:, rows]) @ self.output[vocab].t()


def text_step(torch, model, n):
    """Of the 64 tokens of an answer, the best and its probability, as the reference computes them."""
    ids = torch.randint(0, TEXT_VOCAB, (1, n), device="cuda")

    def step():
        logits = model.forward(ids, slice(n - 64, n), slice(0, TEXT_VOCAB))
        return torch.softmax(logits.double(), -1).max(-1)

    line(f"text step of {n} tokens", 1e3 * best(torch, step), "ms")


def images(torch, model):
    ids = torch.randint(0, TEXT_VOCAB, (2, IMAGE_TOKENS), device="cuda")
    rows = slice(IMAGE_TOKENS - PICTURE - 1, IMAGE_TOKENS - 1)
    one = slice(TEXT_VOCAB, TEXT_VOCAB + 1)
    line(f"pass over 2x{IMAGE_TOKENS} tokens", 1e3 * best(torch, lambda: model.forward(ids, rows, one)), "ms")
    codes = slice(TEXT_VOCAB, TEXT_VOCAB + CODES)

    def step(masked=PICTURE):
        """Guides, samples a code for every position, and masks the least confident again."""
        with_prompt, without = model.forward(ids, rows, codes).float()
        p = torch.softmax((1 + GUIDANCE) * with_prompt - GUIDANCE * without, -1)
        sampled = torch.multinomial(p, 1)
        confidence = p.gather(-1, sampled).squeeze(-1).log()
        confidence = confidence - torch.rand_like(confidence).log().neg().log()
        cut = confidence.sort().values[masked - 1]
        ids[:, rows] = torch.where(confidence < cut, ids[0, rows], sampled.squeeze(-1) + TEXT_VOCAB)

    line(f"image step of 2x{IMAGE_TOKENS} tokens", 1e3 * best(torch, step), "ms")

    def picture():
        for i in range(STEPS):
            step(max(1, PICTURE - PICTURE * (i + 1) // STEPS))

    line(f"picture in {STEPS} steps, not decoded", best(torch, picture, rounds=2), "s")


def steps(torch):
    model = attempt("the model", lambda: Model(torch))
    if model is None:
        return
    for n in (128, 512, 1024):
        attempt(f"text step of {n} tokens", lambda: text_step(torch, model, n))
    attempt("pictures", lambda: images(torch, model))


SECTIONS = {"ceilings": ceilings, "products": products, "attention": attention, "steps": steps}


def skipped(reason):
    print(reason)
    return SKIPPED


def main():
    try:
        import torch
    except ImportError:
        return skipped("PyTorch is not installed here")
    if not torch.cuda.is_available():
        return skipped("PyTorch finds no card here")
    print(f"PyTorch {torch.__version__} for CUDA {torch.version.cuda}", flush=True)
    with torch.inference_mode():
        for section in sys.argv[1].split(","):
            attempt(section, lambda: SECTIONS[section](torch))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
