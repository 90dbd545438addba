"""The page of insights: its rule, its numbers, and that it is current."""

import json
import math
import runpy
from pathlib import Path

import pytest

from whet.errors import SourceError
from studies.registry import REGISTRY
from studies.claims import (
    CLAIMS,
    HOLDS,
    UNMEASURED,
    UNSEEN,
    WEAKLY,
    Claim,
    collect,
    page,
)
from whet.maths.statistics import Estimate

ROOT = Path(__file__).parent.parent
STUDY = {
    "models": ["a", "b"], "space": "texts", "documents": 1000, "embedder": "lsa", "prompts": 9,
    "fingerprint": "sha256:0", "n": 4, "leakage": "split",
}  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (Estimate(-2.0, -3.0, -1.0, 10), HOLDS),
        (Estimate(-2.0, -3.0, -1.0, 9), WEAKLY),
        (Estimate(-2.0, -3.0, 0.5, 9), WEAKLY),
        (Estimate(-2.0, -2.0, -2.0, 1), WEAKLY),
        (Estimate(0.5, -3.0, 1.0, 9), UNSEEN),
        (Estimate(math.nan, math.nan, math.nan, 9), UNSEEN),
        (None, UNMEASURED),
    ],
)
def test_the_rule(measured, verdict):
    assert Claim("0", "x is below 0", "table1", "x", high=0).verdict(measured) == verdict


def test_a_claim_of_equality_needs_the_whole_interval_near():
    claim = Claim("12", "the order does not matter", "fig13", "x", low=-1, high=1)
    assert claim.verdict(Estimate(0.1, -0.5, 0.9, 30)) == HOLDS
    assert claim.verdict(Estimate(0.1, -1.5, 0.9, 9)) == WEAKLY
    assert claim.range == "-1 … 1"


def test_the_page_tells_what_was_measured_and_what_was_not(tmp_path):
    number = {"value": -1.5, "low": -2.5, "high": -0.5, "n": 30}
    about = {
        "command": "whet reproduce table1",
        "caption": "",
        "n": 9,
        "commit": "0",
        "columns": [],
    }
    made = {"name": "table1", "study": STUDY, "numbers": {"SIFT − NN": number}, **about}
    (tmp_path / "table1.json").write_text(json.dumps(made))
    text = page(collect(tmp_path))
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert "-1.50 [-2.50, -0.500] | 30 | 4 | `whet reproduce table1` | **holds** |" in row
    assert text.count(f"**{UNMEASURED}**") == len(CLAIMS) - 1
    assert f"1 {HOLDS}, 0 {WEAKLY}" in text


def test_artefacts_made_anew_replace_those_of_another_study(tmp_path):
    number = {"value": -1.5, "low": -2.5, "high": -0.5, "n": 30}
    made = {"study": STUDY, "command": "", "caption": "", "n": 9, "commit": "0"}
    before = {
        "artifacts": {
            name: made | {"numbers": {own: number}}
            for name, own in (("table1", "SIFT − NN"), ("fig13", "NN, reversed − NN"))
        }
    }
    anew = made | {"study": STUDY | {"n": 50, "prompts": 260}, "name": "table1"}
    anew |= {"numbers": {"SIFT − NN": number | {"n": 260}}}
    (tmp_path / "table1.json").write_text(json.dumps(anew))
    text = page(collect(tmp_path, before))
    assert "| 260 | 50 | `whet reproduce table1`" in text
    assert "| 30 | 4 | `whet reproduce fig13`" in text
    assert text.index("* 50 gradient steps: a and b") < text.index("* 4 gradient steps")


def test_every_insight_has_a_claim_on_an_artefact_that_there_is():
    assert {claim.name for claim in CLAIMS} >= {str(i) for i in range(1, 16)}
    assert {claim.artifact for claim in CLAIMS} <= REGISTRY.keys()


def test_artefacts_of_two_studies_are_not_mixed(tmp_path):
    with pytest.raises(SourceError, match="holds no artifacts: make them with `whet reproduce"):
        collect(tmp_path)
    for name, study in (("a", STUDY), ("b", STUDY | {"n": 50})):
        made = {"name": name, "study": study, "numbers": {}, "command": "", "caption": "", "n": 1}
        (tmp_path / f"{name}.json").write_text(json.dumps(made | {"commit": None}))
    with pytest.raises(SourceError, match="holds artifacts of different studies"):
        collect(tmp_path)


def test_the_committed_page_is_made_of_the_committed_results():
    made = runpy.run_path(str(ROOT / "docs" / "make_insights.py"))
    results = json.loads(made["RESULTS"].read_text("utf-8"))
    assert made["PAGE"].read_text("utf-8") == page(results), "run docs/make_insights.py"
