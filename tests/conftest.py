"""Fixtures and markers of the whole suite.

Shapes in annotations are checked in every run, and hypothesis is seeded, so that a run can be
repeated. Each folder of tests has a marker; `pytest -m core` runs without torch.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from support import checker

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core already
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # child processes compile whet once, not each
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32}  # before Ray is imported

checker.install()

settings.register_profile("whet", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("whet")

TESTS = Path(__file__).parent
LONGEST = [  # begun first, so that no core waits for them at the end
    "space/ray/test_cluster.py",
    "serve/test_robustness.py",
    "space/store/test_damage.py",
    "evaluate/test_runner.py",
    "adapt/test_slots.py",
    "select/test_sift.py",
    "integrations/test_activeft.py",
    "serve/test_process.py",
]
MARKERS = {
    "maths": "core",
    "data": "core",
    "select": "core",
    "space": "core",
    "adapt": "model",
    "embed": "model",
    "engine": "model",
    "evaluate": "model",
    "benchmarks": "model",
    "golden": "model",
    "integrations": "model",
    "cli": "model",
    "docs": "model",
    "studies": "model",
    "serve": "serve",
    "test_architecture.py": "model",
    "test_argument_types.py": "model",
    "test_golden.py": "model",
    "test_snapshots.py": "model",
}


def marker_of(path):
    """The marker of the folder, or file, of `tests` that contains `path`."""
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return MARKERS.get(parts[0]) if parts else None


def pytest_ignore_collect(collection_path):
    if find_spec("torch") is None and marker_of(collection_path) in ("model", "serve"):
        return True  # their modules import torch
    if find_spec("pyarrow") is None and collection_path.parent.name in ("data", "space"):
        return True  # whet was installed without the extra `space`
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        marker = marker_of(item.path)
        needs_torch = item.get_closest_marker("model") or item.get_closest_marker("serve")
        if marker and not (marker == "core" and needs_torch):
            item.add_marker(marker)
    items.sort(key=place)  # with `--dist loadfile --no-loadscope-reorder` files run in this order


def place(item):
    """The place of the test's file in `LONGEST`, or after all of them."""
    path = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
    return LONGEST.index(path) if path in LONGEST else len(LONGEST)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory):
    """A folder that holds a tiny GPT-2 and its tokenizer."""
    from support import tiny_models

    return tiny_models.save(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A folder that holds a tiny Llama and its tokenizer."""
    from support import tiny_models

    return tiny_models.save(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def llama(llama_folder):
    """A tiny Llama on the CPU, where equal computations give equal bits."""
    from whet.adapt.model import LanguageModel

    return LanguageModel.from_pretrained(llama_folder, device="cpu")


@pytest.fixture(scope="module")
def eval_folder(tmp_path_factory):
    """A folder with a model, a data space and prompts, as `support.eval_fixtures.run` takes it."""
    from support import eval_fixtures

    return eval_fixtures.build(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def labeled_space(tmp_path_factory):
    """The path of a data space whose documents have access labels: see `support.serving`."""
    from support import serving

    return serving.space(tmp_path_factory.mktemp("labeled") / "docs.whet")
