"""The evaluation that shares passes, held against the one that takes one prompt after the other."""

import json

import pytest
from click.testing import CliRunner
from support import eval_fixtures

from studies.batched import main
from whet.data.documents import Document
from whet.evaluate.results import Run

SETTINGS = {
    "adapter": "lora",
    "lr": 1e-2,
    "r": 2,
    "n": 4,
    "eval_steps": (0, 2),
    "k": 10,
}
HALVES = [
    (" ".join(words[:6]), " ".join(words[6:]))
    for words in (eval_fixtures.text(100 + i).split() for i in range(6))
]  # of the prompts
TALKS = [
    Document(
        f"talk{i}",
        f"User: {asked}\n\nAssistant: {answered}",
        {"messages": [{"role": "user", "content": asked},
                      {"role": "assistant", "content": answered}]},
    )
    for i, (asked, answered) in enumerate(HALVES)
]  # fmt: skip
METHODS = ("nearest", "sift", "sift(stop_alpha=0.9)")


def invoke(*words):
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("protocol", ["paper", "held-out"])
def test_a_batched_run_is_that_of_the_evaluator(tmp_path, protocol):
    here = eval_fixtures.build(tmp_path / "world", texts=20, extra=TALKS)
    lines = [json.loads(line) for line in (here / "prompts.jsonl").read_text().splitlines()]
    lines[1]["text"] = "?"  # shares no term with the data space, and cannot be split
    prompts = eval_fixtures.write(tmp_path / "prompts.jsonl", lines)
    expected = eval_fixtures.run(
        here,
        tmp_path / "one",
        prompts=prompts,
        methods=METHODS,
        protocol=protocol,
        long_texts="chunks",
        **SETTINGS,
    )
    config = tmp_path / "run.toml"
    settings = {"model": str(here / "model"), "methods": list(METHODS)} | SETTINGS
    config.write_text("\n".join(
        f"{name} = {json.dumps(value)}" for name, value in settings.items()
    ))  # fmt: skip
    picks, out = tmp_path / "picks.jsonl.gz", tmp_path / "run"
    invoke("prepare", here / "space", picks, "--prompts", prompts, "--config", config,
           "--protocol", protocol)  # fmt: skip
    invoke("train", picks, "--out", out, "--slots", 5, "--limit-s", 0)  # resumes below
    invoke("train", picks, "--out", out, "--slots", 5)
    made = Run.open(out)
    assert sorted(made.errors) == sorted(expected.errors) == ["p1"]
    assert made.config == expected.config and made.meta["space"] == expected.meta["space"]
    assert made.meta["adapters"] == expected.meta["adapters"]
    rows = [{(r["prompt"], r["method"], r["step"]): r for r in run.table.to_pylist()}
            for run in (made, expected)]  # fmt: skip
    assert rows[0].keys() == rows[1].keys()
    assert any((row["document"] or "").startswith("talk") for row in rows[0].values())
    for key, row in rows[0].items():
        other = rows[1][key]
        for name in ("document", "multiplicity", "tokens", "bytes", "sigma"):
            assert row[name] == other[name]
        for name in ("bits", "base_bits", "loss"):
            assert (row[name] is None) == (other[name] is None)
            assert row[name] is None or row[name] == pytest.approx(other[name], rel=1e-4)
    for column in ("near", "overlap", "query_bits"):
        both = [dict(zip(r.prompts["prompt"].to_pylist(), r.column(column), strict=True))
                for r in (made, expected)]  # fmt: skip
        assert both[0] == pytest.approx(both[1])
