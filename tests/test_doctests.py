"""The examples in docstrings run, and print what they show.

They run in processes of their own, without the import hook that checks types: doctest does not
find functions that the hook has wrapped.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import whet

SOURCE = Path(whet.__file__).parent
WITHOUT_TORCH = ("errors", "config", "io", "maths", "data", "select", "space")
CODE = """
import doctest, importlib, os, sys
folder = os.getcwd()
flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
failed = 0
for name in sys.argv[2:]:
    os.mkdir(os.path.join(folder, name))  # each module writes to a folder of its own
    os.chdir(os.path.join(folder, name))
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.attempted, f"no example of {name} was found"
    failed += result.failed
assert sys.argv[1] == "with torch" or "torch" not in sys.modules
sys.exit(failed)
"""


def modules():
    """The modules with examples, by layer."""
    layers = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if ">>> " in path.read_text("utf-8"):
            parts = path.relative_to(SOURCE.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            layers.setdefault(parts[1], []).append(name)
    return layers


def run_examples(torch, names, folder):
    command = [sys.executable, "-c", CODE, torch, *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.core
def test_examples_run_without_torch(tmp_path):
    names = [name for layer in WITHOUT_TORCH for name in modules().get(layer, [])]
    run_examples("without torch", names, tmp_path)


@pytest.mark.model
def test_examples_of_models_run(tmp_path):
    layers = sorted(modules().keys() - set(WITHOUT_TORCH))
    run_examples("with torch", [name for layer in layers for name in modules()[layer]], tmp_path)
