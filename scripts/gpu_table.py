"""The table of scripts/gpu-check: our numbers, PyTorch's beside them, the card's ceilings, and the targets."""

import collections
import re
import time

# Dense products of the datasheets, TFLOP/s in bfloat16 and TOP/s in int8, by what the card is called; the first that fits.
DATASHEETS = [
    (r"H(100|200) NVL", 835.5, 1671.0),
    (r"H100 PCIe", 756.5, 1513.0),
    (r"GH200|H200|H100|H800", 989.4, 1978.9),
    (r"A100|A800", 312.0, 624.0),
    (r"RTX 4090", 165.2, 660.6),
    (r"L40S", 362.0, 733.0),
]
# The cards that the targets are for.
TARGET_CARDS = r"H100|H200"
# What contexts multiply on such a card.
LARGE = r"\d+x\d+ n=(1024|4096)"
Target = collections.namedtuple("Target", "lines measure limit text")
TARGETS = [
    Target(rf"hopper product bf16 .* {LARGE}", "ratio", 0.75, "75% of PyTorch's"),
    Target(rf"hopper product int8 .* {LARGE}", "datasheet", 0.55, "55% of the datasheet"),
    Target(r"attention .*", "ratio", 0.60, "60% of PyTorch's best"),
    Target(r"Q4_K_M text step of 1024 tokens", "value", 30.0, "under 30 ms"),
    Target(r"Q8_0 text step of 1024 tokens", "value", 25.0, "under 25 ms"),
    Target(r"\S+ picture of 512x512 in 15 steps .*", "value", 1.5, "under 1.5 s"),
    Target(r"Q4_K_M first step after opening, .*", "value", 3.0, "under 3 s"),
]
# What PyTorch measures beside a line of ours: the same product of its own types, the same attention by any of our kernels,
# and the model in bfloat16 beside any recipe. It has no image tokenizer: its picture is the steps alone.
PEERS = [
    (r"(?:hopper )?product (int8|bf16) \S+ (\d+x\d+ n=\d+)", r"product \1 \2"),
    (r"(?:ampere )?(attention .*)", r"\1"),
    (r"\S+ ((?:text|image) step of .*|pass over .*)", r"\1"),
    (r"\S+ picture of \d+x\d+ (in \d+ steps) with guidance", r"picture \1, not decoded"),
]


def peer_of(what):
    """What PyTorch calls it; None for what it has nothing beside."""
    for pattern, name in PEERS:
        found = re.fullmatch(pattern, what)
        if found:
            return found.expand(name)
    return None


class Row:
    """A number of ours, and what it is a share of."""

    def __init__(self, number, peers, card):
        self.what, self.value, self.unit = number
        kind = (re.search(r"\bproduct (int8|bf16) ", self.what) or [None, None])[1]
        self.peer = peers.get(peer_of(self.what))
        self.ratio = self.faster_than(self.peer)
        self.vendor = self.faster_than(peers.get(f"ceiling {kind} 8192x8192x8192"))
        self.datasheet = self.faster_than(datasheet(card, kind))
        self.target = target_of(self.what) if re.search(TARGET_CARDS, card or "") else None

    def faster_than(self, other):
        if not other or not self.value:
            return None
        return self.value / other if self.unit == "TFLOP/s" else other / self.value

    def is_met(self):
        """None where it cannot be known."""
        measured = {"ratio": self.ratio, "datasheet": self.datasheet, "value": self.value}[self.target.measure]
        if measured is None:
            return None
        return measured < self.target.limit if self.target.measure == "value" else measured >= self.target.limit

    def cells(self):
        yield self.what
        yield f"{self.value:.4g} {self.unit}".strip()
        yield f"{self.peer:.4g}" if self.peer else ""
        for share in (self.ratio, self.vendor, self.datasheet):
            yield "" if share is None else f"{100 * share:.0f}%"
        yield self.target.text if self.target else ""
        yield {True: "met", False: "**missed**", None: "unknown"}[self.is_met()] if self.target else ""


def datasheet(card, kind):
    for pattern, bf16, int8 in DATASHEETS:
        if re.search(pattern, card or ""):
            return {"bf16": bf16, "int8": int8}.get(kind)
    return None


def target_of(what):
    return next((target for target in TARGETS if re.fullmatch(target.lines, what)), None)


def table(card, numbers, parts):
    """Markdown. `parts` are names, states and sentences."""
    peers = {what[len("torch "):]: value for what, value, _ in numbers if what.startswith("torch ")}
    rows = [Row(number, peers, card) for number in numbers if not number[0].startswith("torch ")]
    lines = [f"Measured on {card or 'no card'}, {time.strftime('%Y-%m-%d')}. A share is of how fast the other is.", ""]
    lines += ["| | ours | PyTorch | ours of PyTorch's | of the vendor's ceiling | of the datasheet | target | |"]
    lines += ["|---|---:|---:|---:|---:|---:|---|---|"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    lines += [f"| PyTorch: {what} | {value:.4g} | | | | | | |" for what, value in peers.items() if "ceiling" in what]
    lines += ["", *targets(card, rows)]
    lines += ["", "| part | | |", "|---|---|---|"] + [f"| {' | '.join(clean(cell) for cell in part)} |" for part in parts]
    return "\n".join(lines) + "\n"


def targets(card, rows):
    """A line for each target: how many of the lines that it is for meet it."""
    if not re.search(TARGET_CARDS, card or ""):
        return ["The targets are for an H100."]
    lines = ["| target | lines | met | missed | unknown |", "|---|---|---:|---:|---:|"]
    for target in TARGETS:
        met = collections.Counter(row.is_met() for row in rows if row.target is target)
        counts = f"{met[True]} | {met[False]} | {met[None]}" if met else "not measured | | "
        lines.append(f"| {target.text} | `{clean(target.lines)}` | {counts} |")
    return lines


def clean(cell):
    return cell.replace("|", "\\|").replace("\n", " ")
