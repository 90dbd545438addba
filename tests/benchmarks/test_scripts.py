"""Every benchmark script can be loaded."""

import runpy

import pytest
from support.paths import BENCHMARKS

SCRIPTS = sorted(path.relative_to(BENCHMARKS) for path in BENCHMARKS.rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_benchmark_loads(script, monkeypatch):
    path = BENCHMARKS / script
    monkeypatch.syspath_prepend(path.parent)
    assert runpy.run_path(str(path), run_name="loaded")["__doc__"]
