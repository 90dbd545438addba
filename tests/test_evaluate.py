"""A run from prompts to the table, on a tiny real model and a tiny real space."""

import json

import numpy as np
import pytest
import tiny

from whet.adapt.adaptation import Full
from whet.adapt.model import LanguageModel
from whet.adapt.slot import adapting
from whet.errors import RunError
from whet.evaluate.protocol import Switches, Task
from whet.evaluate.render import caption, curves, table
from whet.evaluate.report import Report, report
from whet.evaluate.run import evaluate, first_of_each_set, read_rows
from whet.space.documents import Document
from whet.space.space import DataSpace
from whet.spaces import open_space

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


def text(seed):
    return " ".join(np.random.default_rng(seed).choice(WORDS, 12))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, a space of 30 texts, 6 prompts of two sets, and the switches of a short run."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save(folder / "model")
    documents = [Document(f"d{i}", text(i), {}) for i in range(30)]
    DataSpace.build(documents, folder / "space")
    with (folder / "prompts.jsonl").open("w") as out:
        for i in range(6):
            line = {"id": f"p{i}", "text": text(100 + i), "meta": {"set": "ab"[i % 2]}}
            out.write(json.dumps(line) + "\n")
    return folder


def switches(world, **changes):
    return Switches(
        **{
            "model": str(world / "model"),
            "n": 4,
            "k": 10,
            "score_at": (0, 2),
            "lr": 1e-2,
            **changes,
        }
    )


def run(world, out, **changes):
    per_set, workers = changes.pop("per_set", None), changes.pop("workers", 1)
    evaluate(
        world / "space", world / "prompts.jsonl", out, switches(world, **changes),
        per_set=per_set, workers=workers, progress=False,
    )  # fmt: skip
    return read_rows(out)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    run(world, out)
    return out


def test_a_row_equals_the_oracle_step_by_step(world, finished):
    model, space = LanguageModel.load(world / "model"), open_space(world / "space")
    texts = {d.id: d.text for d in space.documents(range(len(space)))}
    for row in read_rows(finished)[:2]:
        whole = text(100 + int(row["prompt"][1:]))
        task = Task.of(whole, switches(world))
        assert task.query + task.text == whole and task.context == task.query
        for tried in row["methods"].values():
            bits = [model.score(task.text, context=task.context).bits]
            with adapting(model, Full(lr=1e-2)) as slot:
                for step, pick in enumerate(tried["picks"], start=1):
                    slot.step(texts[pick])
                    if step in (2, 4):
                        bits.append(slot.score(task.text, context=task.context).bits)
            assert tried["bits"] == bits
            assert len(tried["sigma"]) == 5 and tried["sigma"][0] == 1
            assert {"embed", "search", "select", "train", "score"} <= tried["seconds"].keys()


def test_the_table_is_the_mean_of_the_ratios(finished):
    rows, made = read_rows(finished), report(finished)
    assert [line.name for line in made.lines] == ["a", "b", "all, by prompt", "all, by set"]
    for method in rows[0]["methods"]:
        ratios = [100 * r["methods"][method]["bits"][-1] / r["base_bits"] for r in rows]
        assert made.lines[2].methods[method].value == pytest.approx(np.mean(ratios))
    by_set = {"after": 0.0, "base": 0.0}
    for name in "ab":
        own = [r for r in rows if r["set"] == name]
        size = sum(r["bytes"] for r in own)
        by_set["after"] += sum(r["methods"]["sift"]["bits"][-1] for r in own) / size
        by_set["base"] += sum(r["base_bits"] for r in own) / size
    expected = 100 * by_set["after"] / by_set["base"]
    assert made.lines[3].methods["sift"].value == pytest.approx(expected)
    line = made.lines[2]
    best = min(e.value for m, e in line.methods.items() if m != "sift")
    assert line.delta == pytest.approx(line.methods["sift"].value - best)
    nearest = line.methods["nearest"].value
    assert line.paired["sift"].value == pytest.approx(line.methods["sift"].value - nearest)


def test_another_step_is_another_table(finished):
    assert report(finished, 2).step == 2
    assert report(finished, 0).lines[2].methods["sift"].value == 100
    with pytest.raises(RunError, match=r"step 3 of .* was not scored: expected one of \[0, 2, 4\]"):
        report(finished, 3)


def test_a_run_cut_short_goes_on_and_counts_nothing_twice(world, finished, tmp_path):
    out = tmp_path / "run"
    run(world, out, per_set=2)
    rows = out / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-40])  # as if killed inside the last write
    run(world, out)
    again, whole = read_rows(out), read_rows(finished)
    assert sorted(r["prompt"] for r in again) == sorted(r["prompt"] for r in whole)
    bits = {r["prompt"]: r["methods"]["sift"]["bits"] for r in whole}
    assert all(r["methods"]["sift"]["bits"] == bits[r["prompt"]] for r in again)


def test_workers_give_the_rows_of_one_process(world, finished, tmp_path):
    run(world, tmp_path / "run", workers=2)
    one, two = ({r["prompt"]: r for r in read_rows(f)} for f in (finished, tmp_path / "run"))
    assert one.keys() == two.keys()
    for prompt in one:
        for method, tried in one[prompt]["methods"].items():
            assert two[prompt]["methods"][method]["picks"] == tried["picks"]
            assert two[prompt]["methods"][method]["bits"] == pytest.approx(tried["bits"], rel=1e-5)


def test_a_folder_of_another_run_is_refused_and_unharmed(world, finished, tmp_path):
    before = (finished / "rows.jsonl").read_bytes()
    with pytest.raises(RunError, match="holds a run with n 4, but 3 is asked"):
        run(world, finished, n=3)
    assert (finished / "rows.jsonl").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        run(world, tmp_path)
    with pytest.raises(RunError, match="holds no run"):
        report(tmp_path)


def test_more_candidates_than_documents_are_refused_before_anything_is_written(world, tmp_path):
    with pytest.raises(ValueError, match="k is 31, but the data space holds 30 documents"):
        run(world, tmp_path / "run", k=31)
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_fails_is_a_row_with_its_error(world, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": "short", "text": "x"}, {"id": "foreign", "text": "☃" * 20}]
    lines += [{"id": "fine", "text": text(7)}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(world / "space", prompts, tmp_path / "run", switches(world), progress=False)
    errors = {r["prompt"]: r.get("error") for r in read_rows(tmp_path / "run")}
    assert "too short to split" in errors["short"] and "shares no term" in errors["foreign"]
    made = report(tmp_path / "run")
    assert (made.n, made.failed) == (1, 2) and "2 prompts failed" in caption(made)


def test_the_first_of_each_set_come_in_turn():
    documents = [Document(f"{s}{i}", "x", {"set": s}) for s in "ab" for i in range(3)]
    assert [d.id for d in first_of_each_set(documents, 2)] == ["a0", "b0", "a1", "b1"]
    assert len(first_of_each_set(documents, None)) == 6


def test_pictures_and_tables_are_drawn(finished, tmp_path):
    made = report(finished)
    assert [c.header for c in table(made).columns][:4] == ["set", "n", "base", "US"]
    assert Report.of(json.loads(json.dumps(made.record()))) == made
    for name in ("curves.png", "curves.svg"):
        curves(read_rows(finished), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_switches_come_from_toml_and_lines(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('n = 10\nmethods = ["nearest", "sift(0.1)"]\nmode = "lora"\n')
    made = Switches.read(config, ["n=20", "lr=1e-3", "leakage=whole"])
    assert (made.n, made.lr, made.mode, made.leakage) == (20, 1e-3, "lora", "whole")
    assert made.method("sift(0.1)").lam == 0.1 and made.method("nearest").lam == 0.01
    assert made.steps == (0, 1, 2, 5, 10, 20)


@pytest.mark.parametrize(
    "lines, message",
    [
        (["steps=3"], "sets 'steps': expected model, methods"),
        (["n=-1"], "n is -1"),
        (["lam=0"], "lam is 0"),
        (["methods=['best']"], "selector is 'best': expected one of sift"),
        (["methods=['sift(x)']"], "lam of sift is"),
        (["methods=[]"], "methods is empty"),
        (["leakage=none"], "leakage is 'none': expected split or whole"),
        (["left_context=perhaps"], "left_context is 'perhaps': expected bool"),
        (["score_at=7"], "score_at is 7: expected a list like"),
        (["mode=half"], "mode is 'half'"),
        (["rank=3"], "mode full has no option rank"),
        (["n 3"], "sets nothing: expected KEY=VALUE"),
    ],
)
def test_wrong_switches_are_refused(lines, message):
    with pytest.raises(ValueError, match=message):
        Switches.read(None, lines)
