"""What scripts/gpu-check runs, in groups: the shortest of what must be known first, what takes all the rest last."""

import os
import pathlib
import re
import shutil
import sys
import tempfile
import traceback

GROUPS = {}
# One process each: an error of a kernel ends the card's context for all of its process.
MODULES = ["products", "floats", "elementwise", "attention", "sampling", "images", "hopper"]
# Tests that take next to nothing, also where the processor stands in for the card.
QUICK_TESTS = {
    "backend": ["the_program_runs_on_a_card_by_name_and_lists_it", "auto_takes_the_first_card"],
    "elementwise": ["elementwise::"],
}
# Of a file of the largest recipe, and what else is written there.
SCRATCH_BYTES = 12 << 30
PEERS = pathlib.Path(__file__).resolve().parent / "gpu_peers.py"


def environment(programs, data):
    """What all parts are told."""
    return {
        "MMADA_CUDA_CARD": "1",
        "MMADA_TEST_DATA": str(data),
        "MMADA_TEST_PROGRAM": str(programs / "mmada"),
        # what the driver has translated for one part is there for the next
        "CUDA_CACHE_PATH": str(programs / "cuda-cache"),
        "CUDA_CACHE_MAXSIZE": str(4 << 30),
    }


def everything(run, programs, o):
    for name, group in GROUPS.items():
        if name in o.only:
            try:
                group(run, programs, o)
            except Exception as error:  # a mistake here, or a full disk: the others run all the same
                run.wrong(f"the group {name}", f"{type(error).__name__}: {error}", traceback.format_exc())


def group(function):
    GROUPS[function.__name__.replace("_", "-")] = function
    return function


def bench(run, programs, o, name, sections, limit, more=(), measures=True, environment=None):
    flags = [*(["--quick"] if o.quick else []), *(["--ampere"] if run.ampere else [])]
    command = [programs / "bench-cuda", "--only", sections, *more, *flags]
    return run.part(name, command, limit, measures=measures, environment=environment)


@group
def card(run, programs, o):
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    run.part("nvidia-smi", query, 15, needed=False)
    run.part("what the library finds", [programs / "mmada", "info", "--system"], 30, judge=found)
    # translates some eighty kernels
    checked = bench(run, programs, o, "kernels compute right", "check", 60, measures=False)
    if checked.state != "passed":
        # what Hopper has of its own may have ended the card's context, which would end everything below too
        run.ampere = True
        bench(run, programs, o, "kernels for every card compute right", "check", 60, measures=False)


@group
def products(run, programs, o):
    bench(run, programs, o, "products", "products", 80)
    bench(run, programs, o, "products on Hopper", "hopper", 60, measures=False)


@group
def attention(run, programs, o):
    bench(run, programs, o, "attention", "attention", 40)


@group
def torch_kernels(run, programs, o):
    for section, limit in [("ceilings", 40), ("products", 60), ("attention", 40)]:
        run.part(f"PyTorch: {section}", [sys.executable, PEERS, section], limit, needed=False)


@group
def steps(run, programs, o):
    """Each recipe's file is made, used, and gone again: the disk need not hold two."""
    for recipe in o.recipes:
        place, why = scratch(0 if o.quick else SCRATCH_BYTES)
        with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=place) as folder:
            more = ["--folder", folder, "--recipes", recipe]
            made = bench(run, programs, o, f"{recipe}: a file in {place}, {why}", "file", 90, more, measures=False)
            if made.state != "passed":
                continue
            bench(run, programs, o, f"{recipe}: steps", "steps,pictures", 60, more)
            # what the steps ran was translated for them, and kept
            bench(run, programs, o, f"{recipe}: first step", "first-step", 30, more)
            anew = {"CUDA_CACHE_DISABLE": "1"}
            bench(run, programs, o, f"{recipe}: first step, nothing kept", "first-step", 60, more, environment=anew)


@group
def torch_steps(run, programs, o):
    run.part("PyTorch: steps", [sys.executable, PEERS, "steps"], 75, needed=False)


@group
def backend(run, programs, o):
    tests = QUICK_TESTS["backend"] if o.quick else []
    # one at a time: they measure nothing, but look at what memory is free
    run.part("the backend's tests", [programs / "test-backend", "--test-threads=1", *tests], 120, judge=tested)


@group
def kernels(run, programs, o):
    for module, command in modules(programs, o):
        run.part(f"kernels' tests: {module}", command, 60, judge=tested)


@group
def sanitizer(run, programs, o):
    tool = find_sanitizer()
    if tool is None:
        return run.skip("compute-sanitizer", "the machine has none")
    for module, command in modules(programs, o):
        # another status than the tests' own
        checked = [tool, "--error-exitcode", "3", *command, "--test-threads=1"]
        small = {"MMADA_CUDA_RACES": "1"}
        part = run.part(f"compute-sanitizer: {module}", checked, 90, needed=False, judge=sanitized, environment=small)
        if part.state == "skipped":
            break  # it refuses the machine, or there is no time


def modules(programs, o):
    for module in ["elementwise"] if o.quick else MODULES:
        yield module, [programs / "test-cuda", f"{module}::"]


def found(status, output):
    """Of `mmada info --system`."""
    if status == 0 and "cuda:0" not in output:
        return "FAILED", "it finds no card"
    return ("FAILED", f"it ended with status {status}") if status else ("passed", "")


def tested(status, output):
    """Of a test program: one that runs no test has not passed."""
    counts = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed", output, re.MULTILINE)
    passed, failed = (sum(int(count[i]) for count in counts) for i in (0, 1))
    if status == 0 and passed:
        return "passed", f"{passed} tests"
    if failed:
        names = re.findall(r"^test (\S+) \.\.\. FAILED$", output, re.MULTILINE)
        return "FAILED", f"{failed} of {passed + failed} tests: {', '.join(names)}"
    return "FAILED", f"it ended with status {status} and {passed} tests passed"


def sanitized(status, output):
    """Of compute-sanitizer: what it found, or why the machine does not let it look."""
    refusals = r"[Nn]ot supported|unsupported|[Ii]nsufficient permission|[Pp]ermission denied|[Ii]nternal (?:error|sanitizer)"
    reason = next((line for line in output.splitlines() if line.startswith("====") and re.search(refusals, line)), None)
    if reason:
        # what it counts then is the program's own errors without a device
        return "skipped", reason.strip("= ")
    summary = re.search(r"ERROR SUMMARY: (\d+) error", output)
    if summary and int(summary.group(1)):
        return "FOUND", f"{summary.group(1)} errors"
    if status == 3:
        return "FOUND", "errors, which it does not count"
    return ("passed", "") if status == 0 and summary else ("FAILED", f"it ended with status {status}")


def find_sanitizer():
    folders = [pathlib.Path(p) for p in ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")]
    places = (folder / "compute-sanitizer" for folder in folders)
    return shutil.which("compute-sanitizer") or next((str(place) for place in places if place.exists()), None)


def scratch(bytes_):
    """Where a file of so many bytes goes, and why there: in memory, whose pages are what a file in the page cache has."""
    memory = pathlib.Path("/dev/shm")
    room = shutil.disk_usage(memory).free if os.access(memory, os.W_OK) else 0
    # a file there takes from what the programs have, which map it, and copy parts of it
    if min(room, available_memory()) >= 2 * bytes_:
        return memory, "which is memory"
    return pathlib.Path(tempfile.gettempdir()), "as memory has no room for it"


def available_memory():
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) << 10 if found else 0
