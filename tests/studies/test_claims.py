"""The page of claims: the rule of the verdicts, the numbers, and whether it is current."""

import json
import math

import pytest

from studies.__main__ import PAGE, RESULTS
from studies.claims import (
    CLAIMS,
    HOLDS,
    HOLDS_WEAKLY,
    NOT_MEASURED,
    NOT_SEEN,
    TOO_FEW,
    Claim,
    collect,
    page,
)
from studies.registry import REGISTRY
from whet.errors import SourceError
from whet.maths.statistics import Estimate

STUDY = {
    "models": ["a", "b"], "space": "texts", "documents": 1000, "embedder": "lsa", "prompts": 9,
    "fingerprint": "sha256:0", "n": 4, "leakage": "split",
}  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (Estimate(-2.0, -3.0, -1.0, 10), HOLDS),
        (Estimate(-2.0, -3.0, -1.0, 9), TOO_FEW),
        (Estimate(-2.0, -3.0, 0.5, 10), HOLDS_WEAKLY),
        (Estimate(-2.0, -2.0, -2.0, 1), TOO_FEW),
        (Estimate(0.5, -3.0, 1.0, 10), NOT_SEEN),
        (Estimate(0.5, -3.0, 1.0, 9), TOO_FEW),
        (Estimate(math.nan, math.nan, math.nan, 10), NOT_SEEN),
        (None, NOT_MEASURED),
    ],
)
def test_the_verdict_follows_from_value_and_interval(measured, verdict):
    assert Claim("0", "x is below 0", "table1", "x", high=0).verdict(measured) == verdict


def test_a_claim_of_equality_needs_the_whole_interval_in_the_range():
    claim = Claim("12", "the order does not matter", "fig13", "x", low=-1, high=1)
    assert claim.verdict(Estimate(0.1, -0.5, 0.9, 30)) == HOLDS
    assert claim.verdict(Estimate(0.1, -1.5, 0.9, 19)) == HOLDS_WEAKLY
    assert claim.range == "-1 … 1"


def test_the_page_has_a_row_for_every_claim(tmp_path):
    number = {"value": -1.5, "low": -2.5, "high": -0.5, "n": 30}
    metadata = {
        "command": "python -m studies table1",
        "caption": "",
        "n": 9,
        "commit": "0",
        "columns": [],
    }
    record = {"name": "table1", "study": STUDY, "numbers": {"SIFT − NN": number}, **metadata}
    (tmp_path / "table1.json").write_text(json.dumps(record))
    text = page(collect(tmp_path))
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert "-1.50 [-2.50, -0.500] | 30 | 4 | `python -m studies table1` | **holds** |" in row
    assert text.count(f"**{NOT_MEASURED}**") == len(CLAIMS) - 1
    assert f"1 *{HOLDS}*, 0 *{HOLDS_WEAKLY}*" in text


def test_rebuilt_artifacts_replace_those_of_another_study(tmp_path):
    number = {"value": -1.5, "low": -2.5, "high": -0.5, "n": 30}
    record = {"study": STUDY, "command": "", "caption": "", "n": 9, "commit": "0"}
    before = {
        "artifacts": {
            name: record | {"numbers": {key: number}}
            for name, key in (("table1", "SIFT − NN"), ("fig13", "NN, reversed − NN"))
        }
    }
    rebuilt = record | {"study": STUDY | {"n": 50, "prompts": 260}, "name": "table1"}
    rebuilt |= {"numbers": {"SIFT − NN": number | {"n": 260}}}
    (tmp_path / "table1.json").write_text(json.dumps(rebuilt))
    text = page(collect(tmp_path, before))
    assert "| 260 | 50 | `python -m studies table1`" in text
    assert "| 30 | 4 | `python -m studies fig13`" in text
    assert text.index("* 50 steps: a and b") < text.index("* 4 steps")


def test_every_insight_has_a_claim_about_an_existing_artifact():
    assert {claim.name for claim in CLAIMS} >= {str(i) for i in range(1, 16)}
    assert {claim.artifact for claim in CLAIMS} <= REGISTRY.keys()


def test_artifacts_of_two_studies_are_not_mixed(tmp_path):
    with pytest.raises(SourceError, match="contains no artifacts: run `python -m studies all`"):
        collect(tmp_path)
    for name, study in (("a", STUDY), ("b", STUDY | {"n": 50})):
        record = {"name": name, "study": study, "numbers": {}, "command": "", "caption": "", "n": 1}
        (tmp_path / f"{name}.json").write_text(json.dumps(record | {"commit": None}))
    with pytest.raises(SourceError, match="contains artifacts of different studies"):
        collect(tmp_path)


def test_the_committed_page_matches_the_committed_results():
    results = json.loads(RESULTS.read_text("utf-8"))
    assert PAGE.read_text("utf-8") == page(results), "run `python -m studies insights`"
