"""Selectors of a user: functions by the name `module:function`."""

import re

import numpy as np
import pytest
from pydantic import ValidationError
from support.paths import DOCS, ROOT
from support.vectors import unit

import whet
from whet.errors import WhetError
from whet.evaluate.config import EvalConfig
from whet.select.own import source_digest
from whet.select.registry import selector
from whet.serve.schemas import SelectionParams
from whet.space.retrieve import retrieve

MODULE = """
import numpy as np
few = lambda query, candidates, n, *, lam: [0]
outside = lambda query, candidates, n, *, lam: [len(candidates)] * n
negative = lambda query, candidates, n, *, lam: [-1] * n
floats = lambda query, candidates, n, *, lam: np.ones(n)
mask = lambda query, candidates, n, *, lam: np.ones(n, bool)
nothing = lambda query, candidates, n, *, lam: None
fails = lambda query, candidates, n, *, lam: {}["x"]
two = lambda query, candidates: [0]
constant = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_selectors.py").write_text(MODULE)
    (tmp_path / "broken_selectors.py").write_text("import not_installed_anywhere")


@pytest.mark.parametrize(
    "function, message",
    [
        ("few", "returned 1 rows: expected 3 whole numbers from 0 to 4"),
        ("outside", "returned row 5"),
        ("negative", "returned row -1"),
        ("floats", r"returned array\(\[1., 1., 1.\]\)"),
        ("mask", r"returned array\(\[ True"),
        ("nothing", "returned None"),
        ("fails", "raised KeyError for 5 candidates and n 3: 'x'"),
    ],
)
def test_a_wrong_result_is_an_error_that_names_the_function(module, function, message):
    with pytest.raises(WhetError, match=f"selector 'my_selectors:{function}' {message}"):
        selector(f"my_selectors:{function}")(unit(4, seed=0), unit(5, 4, seed=1), 3)


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere:few", "there is no module nowhere in"),
        ("my_selectors:many", "has no attribute 'many'"),
        ("my_selectors:constant", "is 3: expected a function"),
        ("my_selectors:two", r"cannot be called as \(query, candidates, n, \*, lam\)"),
        ("broken_selectors:few", "module broken_selectors cannot be imported .*not_installed"),
        ("my_selectors:", "expected module:function"),
    ],
)
def test_a_name_without_a_function_is_an_error(module, name, message):
    with pytest.raises(ValueError, match=message):
        selector(name)


def test_the_example_selects_in_a_data_space_and_is_that_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "examples")
    name = "own_selector:farthest"
    texts = ["bees dance", "bees dance well", "bees sting", "ants walk to bees"]
    space = whet.DataSpace.build(texts, tmp_path / "space")
    retrieval = retrieve(space, "bees dance", whet.SelectionConfig(selector=name, n=3))
    assert retrieval.documents[0].text == "bees dance"
    [code] = re.findall(r"def farthest.*?return picks\n", (DOCS / "selectors.md").read_text(), re.S)
    assert code in (ROOT / "examples" / "own_selector.py").read_text()
    assert EvalConfig().method(f"{name}(lam=0.1)").selection.selector == name
    assert len(source_digest(name)) == 16


def test_the_variance_is_that_of_the_same_picks_by_whet():
    query, candidates = unit(4, seed=0), unit(9, 4, seed=1)
    whets = whet.sift(query, candidates, 6, lam=0.1)
    own = selector("whet:sift")(query, candidates, 6, lam=0.1)
    assert own.indices.tolist() == whets.indices.tolist()
    np.testing.assert_allclose(own.variance, whets.variance, rtol=1e-9)


def test_a_request_cannot_name_a_function():
    with pytest.raises(ValidationError, match="requests cannot name a Python function"):
        SelectionParams(selector="os:system")
    assert SelectionParams(selector="nearest").selector == "nearest"
