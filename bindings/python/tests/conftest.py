"""What the tests share: the demo model and the picture that the program mmada draws."""

import os
from typing import Iterator

import pytest

import mmada

PROMPT = "a yellow star above a purple ring on a black background"
SEED = 2


@pytest.fixture(scope="session")
def model_path() -> str:
    return os.environ["MMADA_MODEL"]


@pytest.fixture(scope="session")
def picture_path() -> str:
    return os.environ["MMADA_PICTURE"]


@pytest.fixture
def model(model_path: str) -> Iterator[mmada.Model]:
    with mmada.Model(model_path) as opened:
        yield opened


@pytest.fixture
def context(model: mmada.Model) -> Iterator[mmada.Context]:
    with model.context() as made:
        yield made


@pytest.fixture
def endless(model: mmada.Model) -> mmada.TextOptions:
    """Options of an answer that takes long: no token that would end it may be chosen."""
    info = model.info
    return mmada.TextOptions(gen_length=2048, block_length=2048, steps=2048, forbid=[info.eos_id, info.eot_id])
