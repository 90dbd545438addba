"""No benchmark falls behind the library: each script can at least be loaded."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_benchmark_loads(script, monkeypatch):
    path = FOLDER / script
    monkeypatch.syspath_prepend(path.parent)
    assert runpy.run_path(str(path), run_name="loaded")["__doc__"]
