"""The examples in docstrings run, and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import whet

SOURCE = Path(whet.__file__).parent
WITHOUT_TORCH = {"errors", "config", "io", "maths", "data", "select", "space", "cli"}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        if ">>> " in path.read_text("utf-8"):
            parts = path.relative_to(SOURCE.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            marker = pytest.mark.core if parts[1] in WITHOUT_TORCH else pytest.mark.model
            yield pytest.param(name, marks=marker)


@pytest.mark.parametrize("name", list(modules()))
def test_examples_print_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.attempted > 0 and result.failed == 0
