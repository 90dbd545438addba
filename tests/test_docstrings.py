"""The examples in docstrings run and print what they say."""

import pkgutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

WITHOUT_TORCH = ("whet.config", "whet.data", "whet.maths", "whet.select")
CODE = """
import doctest, importlib, sys
failed = sum(doctest.testmod(importlib.import_module(name)).failed for name in sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(failed)
"""


def modules(name):
    """Module `name` and, of a package, those below it, without the numba backend."""
    yield name
    folders = find_spec(name).submodule_search_locations or []
    names = (module.name for module in pkgutil.walk_packages(folders, f"{name}."))
    yield from (name for name in names if "numba_backend" not in name)


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_examples_run(package):
    """In a process of its own: doctest does not find functions whose types are checked."""
    command = [sys.executable, "-c", CODE, *modules(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
