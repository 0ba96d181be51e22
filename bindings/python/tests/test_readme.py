"""The README's programs run, and are short."""

import os
import pathlib
import re
import subprocess
import sys
import types

import mmada
import pytest
from conftest import PROMPT, SEED

README = pathlib.Path(__file__).parents[1] / "README.md"
PROGRAMS = dict(re.findall(r"^```python\n# (\w+\.py) [^\n]*\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE))


@pytest.fixture
def run(tmp_path, model_path):
    def run(name, *arguments):
        program = tmp_path / name
        program.write_text(PROGRAMS[name])
        command = [sys.executable, "-W", "error", str(program), model_path, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


def test_all_programs_are_tested():
    assert set(PROGRAMS) == {"ask.py", "draw.py", "see.py", "steps.py", "async.py"}


@pytest.mark.parametrize("name", ["ask.py", "draw.py", "see.py"])
def test_programs_are_of_15_lines(name):
    assert len([line for line in PROGRAMS[name].splitlines() if line]) <= 15


def test_ask(run):
    out, err = run("ask.py", "What is 17 + 25?")
    assert out == "42\n" and err.startswith("thought: ") and "None" not in err


def test_draw(run, tmp_path, picture_path):
    out, err = run("draw.py", PROMPT, SEED, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == pathlib.Path(picture_path).read_bytes()
    assert out == "" and err.splitlines() == [f"image {i}/12" for i in range(1, 13)]


def test_see(run, picture_path):
    assert run("see.py", "What color is the background?", picture_path) == ("black\n", "")


def test_steps(run):
    out, err = run("steps.py", "What is 17 + 25?")
    assert out.splitlines()[-1].endswith("'42'") and len(out.splitlines()) > 1 and err == ""


def test_async(run, tmp_path, picture_path):
    assert run("async.py", PROMPT, tmp_path / "a.png") == ("", "")
    assert mmada.Image(tmp_path / "a.png") == mmada.Image(picture_path)


def test_the_package_says_what_everything_is():
    assert mmada.__doc__
    for name in mmada.__all__:
        thing = getattr(mmada, name)
        if isinstance(thing, type):
            assert thing.__module__ == "mmada" and thing.__doc__ and not thing.__doc__.startswith(f"{name}(")
            for key, value in vars(thing).items():
                if not key.startswith("_") and (callable(value) or isinstance(value, (property, classmethod))):
                    assert getattr(thing, key).__doc__ if not isinstance(value, property) else value.__doc__, key
        elif isinstance(thing, types.FunctionType):
            assert thing.__doc__, name
    assert (pathlib.Path(mmada.__file__).parent / "py.typed").exists()
    assert os.path.dirname(mmada.__file__).startswith(sys.prefix)  # the wheel, not the sources
