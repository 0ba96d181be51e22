"""Runs the parts of scripts/gpu-check, one after the other, each no longer than it may, and keeps what they said."""

import os
import re
import signal
import subprocess
import time

import gpu_table

# The exit status of a part that could not run here, and says why in its last line.
SKIPPED = 77
# How much of a part that went wrong is printed; all of it is in the log.
TAIL = 40
NUMBER = re.compile(r"([^\t]+)\t(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\t([^\t]*)")
CARD = re.compile(r"card\t([^\t]+)\t")


class Part:
    """What became of one."""

    def __init__(self, name, state, text, output=""):
        self.name, self.state, self.text, self.output = name, state, text, output


class Run:
    """The parts that have run, and their numbers."""

    def __init__(self, out, seconds, environment):
        out.mkdir(parents=True, exist_ok=True)
        self.log_file, self.table_file = out / "gpu-check.log", out / "table.md"
        self.log_file.write_bytes(b"")
        self.end = time.monotonic() + seconds
        self.environment = environment
        self.parts, self.numbers, self.card, self.failed = [], [], None, False
        # whether kernels for Hopper are left alone
        self.ampere = False

    def part(self, name, command, limit, needed=True, measures=False, judge=None, environment=None):
        """Runs a command for `limit` seconds at most, and reads its numbers; where it `measures` there must be some.

        `judge` makes the state and its sentence of a status and the output. A part that is `needed` has to pass.
        """
        left = self.end - time.monotonic()
        if left < 3:
            return self.done(Part(name, "skipped", "no time is left"), needed)
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        status, output = self.execute(name, command, min(limit, left), environment or {})
        took = f"{time.monotonic() - begin:.1f} s"
        numbers = self.read(output)
        if status is None:
            state, text = "ended", f"after {took}, which is what it may take"
        elif isinstance(status, OSError):
            state, text = "skipped", str(status)
        else:
            state, text = (judge or plain)(status, output)
            if state == "passed" and measures and not numbers:
                state, text = "FAILED", "it has measured nothing"
            text = f"{text}, {took}" if text else took
        return self.done(Part(name, state, text, output), needed)

    def skip(self, name, reason, needed=False):
        return self.done(Part(name, "skipped", reason), needed)

    def wrong(self, name, reason, output):
        return self.done(Part(name, "FAILED", reason, output), needed=True)

    def done(self, part, needed):
        """A part that is not needed fails by what it has found alone, never by not being there."""
        self.failed |= part.state == "FOUND" or needed and part.state != "passed"
        self.parts.append(part)
        if part.state in ("FAILED", "FOUND", "ended"):
            print("\n".join(part.output.splitlines()[-TAIL:]))
        print(f"== {part.name}: {part.state}: {part.text}", flush=True)
        self.save()
        return part

    def execute(self, name, command, limit, environment):
        """The status, None where its time was over, or the error that it did not begin by; and all output."""
        with open(self.log_file, "ab") as log:
            log.write(f"\n== {name}: {' '.join(map(str, command))}\n".encode())
            log.flush()
            begin = log.tell()
            try:
                # a group of its own, so that all that it starts can be ended
                child = subprocess.Popen(
                    [str(word) for word in command],
                    env={**os.environ, **self.environment, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return error, ""
            try:
                status = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                end_group(child)
        return status, self.log_file.read_bytes()[begin:].decode(errors="replace")

    def read(self, output):
        """Takes the numbers of a part's output, and says how many there were."""
        before = len(self.numbers)
        for line in output.splitlines():
            number, card = NUMBER.fullmatch(line), CARD.fullmatch(line)
            if number:
                what, value, unit = number.groups()
                self.numbers.append((what, float(value), unit))
            elif card:
                self.card = card.group(1)
        return len(self.numbers) - before

    def table(self):
        return gpu_table.table(self.card, self.numbers, [(p.name, p.state, p.text) for p in self.parts])

    def save(self):
        self.table_file.write_text(self.table(), encoding="utf-8")


def end_group(child):
    """Ends a child that may still run, and whatever it has left."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        pass  # it waits for a driver that does not answer; the rest goes on without it


def plain(status, output):
    """A state and a sentence."""
    lines = output.strip().splitlines()
    if status == SKIPPED:
        return "skipped", lines[-1] if lines else "it does not say why"
    if status:
        what = f"signal {-status}" if status < 0 else f"status {status}"
        return "FAILED", f"it ended with {what}"
    return "passed", ""
