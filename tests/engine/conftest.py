"""A small data space, and an engine over it with a tiny Llama."""

import pytest
from support.engines import LORA, picking, space_of

from whet.engine import Engine


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return space_of(tmp_path_factory.mktemp("space") / "space")


@pytest.fixture(scope="module")
def model(llama):
    return llama


@pytest.fixture
def engine(space, model):
    return Engine(space, model, LORA, selection=picking(4), slots=3)
