"""A graphics card. What stands in for NVIDIA's driver is found by a process that begins with its folder in LD_LIBRARY_PATH."""

import json
import os
import subprocess
import sys

import pytest

DRIVER = os.environ.get("MMADA_DRIVER")
pytestmark = pytest.mark.skipif(DRIVER is None, reason="scripts/test-packages makes no stand-in for a driver here")

BEGIN = """
import json, os, sys
import mmada

model = mmada.Model(os.environ["MMADA_MODEL"])

def results(context):
    answer = context.ask("What is 17 + 25?", gen_length=8, block_length=8, steps=4)
    drawing = context.begin_image("a red circle on a white background", seed=7, steps=2)
    drawing.step()
    return [int(i) for i in answer.ids], drawing.codes().ravel().tolist()
"""


def run(program, **settings):
    """What a program writes as JSON."""
    environment = {**os.environ, **settings, "LD_LIBRARY_PATH": DRIVER}
    command = [sys.executable, "-W", "error", "-c", BEGIN + program]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


def test_the_same_seed_gives_what_the_processor_gives_and_a_context_says_what_it_runs_on():
    said = run("""
progress = []
with model.context(device="cuda", progress=lambda done, total: progress.append((done, total))) as context:
    whole, alike = context.info, results(context)
with model.context(device="cuda:0", gpu_layers=2) as context:
    some, half = context.info, results(context)
with model.context() as context:
    expected = results(context)
card = mmada.devices()[1]
print(json.dumps([
    mmada.unavailable("cuda"), card.id, card.compute_capability, whole.device, whole.gpu_layers == model.info.layers,
    some.gpu_layers, progress, expected, alike, half,
]))
""")
    *facts, progress, expected, alike, half = said
    assert facts == [None, "cuda:0", [8, 6], "cuda:0 (Stand-in)", True, 2]
    assert len(progress) > 1 and progress == sorted(progress) and progress[-1][0] == progress[-1][1] > 1 << 20
    for ids, codes in (alike, half):
        assert ids == expected[0]
        same = sum(a == b for a, b in zip(codes, expected[1]))
        # a code whose share of the sum ends within rounding of its random number may be its neighbour
        assert len(codes) == len(expected[1]) == 64 and same >= 58


def test_what_progress_raises_ends_the_copying():
    assert run("""
def stop(done, total):
    raise KeyError("enough")

try:
    model.context(device="cuda", progress=stop)
except KeyError as error:
    print(json.dumps(error.args))
""") == ["enough"]


def test_a_card_that_fails_raises_an_error_of_its_own_and_the_processor_goes_on():
    said = run(
        """
with model.context(device="cuda") as context:
    generation = context.begin_text("What is 17 + 25?")
    errors = []
    while len(errors) < 2:
        try:
            generation.step()
        except mmada.DeviceError as error:
            errors.append(str(error))
with model.context() as context:
    print(json.dumps([*errors, str(context.ask("What is 17 + 25?"))]))
""",
        MMADA_STANDIN_FAIL_LAUNCH="80:719",
        MMADA_STANDIN_QUIET="1",
    )
    assert all("cuda:0 (Stand-in)" in error for error in said[:2]) and said[2] == "42"
