"""Advice from a run whose best plan is known, and what it costs not to follow it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support import eval_fixtures

from whet.adapt.model import LanguageModel
from whet.errors import RunFolderError
from whet.evaluate.policy import Advisor
from whet.space.space import DataSpace


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return eval_fixtures.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(here, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    lines = [{"id": f"p{i}", "text": eval_fixtures.text(200 + i)} for i in range(20)]
    prompts = eval_fixtures.write(folder / "prompts.jsonl", lines)
    methods = ("nearest", "sift", "sift(use=context)", "dynamic")
    return eval_fixtures.run(
        here, folder / "run", prompts=prompts, methods=methods, score_at=(1, 2)
    )


def policies(run, worth=0.0):
    return {policy.name: policy for policy in Advisor(run, worth).policies()}


def test_the_oracle_is_the_best_plan_of_every_prompt(run):
    base, sizes = run.column("base_bits"), run.column("bytes")
    saved = [
        (base - run.bits(method, step)) / sizes
        for method in ("nearest", "sift")
        for step in (1, 2, 4)
    ]
    best = np.maximum(np.max(saved, axis=0), 0)
    made = policies(run)
    assert made["oracle"].saved.value == pytest.approx(best.mean())
    assert made["oracle"].regret.value == 0 and made["oracle"].regret.n == 20
    assert made["no step"].regret.value == pytest.approx(best.mean())
    assert made["no step"].steps == made["no step"].seconds == 0
    for name in ("advised", "one plan", "one α"):
        lost = best.mean() - made[name].saved.value
        assert made[name].regret.value == pytest.approx(lost) and lost >= -1e-12


def test_no_step_is_advised_where_a_second_costs_too_much(here, run):
    made = policies(run, worth=1e6)
    assert made["advised"].steps == made["one plan"].steps == made["oracle"].steps == 0
    plan = Advisor(run, 1e6).plan(
        DataSpace.open(here / "space"), LanguageModel.from_pretrained(here / "model"), "alpha beta"
    )
    assert (plan.steps, plan.saved, plan.seconds) == (0, 0.0, 0.0)


def test_a_gain_that_follows_the_prompts_loss_is_learned(here, run):
    """Of nearest alone, and only where the base model's loss on the prompt is over its median."""
    asked = run.column("query_bits") / run.column("query_bytes")
    high = dict(zip(run.prompts["prompt"].to_pylist(), asked > np.median(asked), strict=True))
    share = [0.2 if high[r["prompt"]] else 1.5 for r in run.table.to_pylist()]
    moved = [
        r["base_bits"] * (s if r["method"] == "nearest" and r["step"] else 1)
        for r, s in zip(run.table.to_pylist(), share, strict=True)
    ]
    at = run.table.schema.get_field_index("bits")
    made = policies(replace(run, table=run.table.set_column(at, "bits", pa.array(moved))))
    assert made["advised"].regret.value < 0.5 * made["one plan"].regret.value
    assert made["advised"].saved.value > made["no step"].saved.value


def test_a_plan_tells_method_steps_gain_and_seconds(here, run):
    space, model = DataSpace.open(here / "space"), LanguageModel.from_pretrained(here / "model")
    plan = Advisor(run).plan(space, model, eval_fixtures.text(7))
    assert plan.method in ("nearest", "sift") and plan.steps in (1, 2, 4)
    assert plan.saved > 0 and plan.seconds > 0


def test_a_plan_is_of_the_run_s_own_selection(here, run):
    """Its filter holds for advice too: with nothing left to select from, there is none."""
    switches = run.meta["switches"] | {"where": 'id == "nobody"'}
    space, model = DataSpace.open(here / "space"), LanguageModel.from_pretrained(here / "model")
    with pytest.raises(ValueError, match="0 documents pass|no document passes"):
        Advisor(replace(run, meta=run.meta | {"switches": switches})).plan(space, model, "alpha")


def test_advice_is_of_the_run_s_own_data_space(run, tmp_path):
    eval_fixtures.build(tmp_path, texts=31)
    model = LanguageModel.from_pretrained(tmp_path / "model")
    with pytest.raises(RunFolderError, match="is of another data space"):
        Advisor(run).plan(DataSpace.open(tmp_path / "space"), model, "alpha")


def test_steps_on_the_prompt_itself_are_no_plan_at_any_rate(run):
    names = ["dynamic(lr=0.1)" if m == "dynamic" else m for m in run.methods]
    methods = pa.array(["dynamic(lr=0.1)" if m == "dynamic" else m
                        for m in run.table["method"].to_pylist()])  # fmt: skip
    table = run.table.set_column(run.table.column_names.index("method"), "method", methods)
    meta = run.meta | {"switches": run.meta["switches"] | {"methods": names}}
    assert Advisor(replace(run, table=table, meta=meta)).policies() == Advisor(run).policies()


def test_too_small_a_run_and_a_negative_worth_are_refused(here, run, tmp_path):
    few = np.arange(20) < 9
    with pytest.raises(RunFolderError, match="holds 9 prompts: advice needs 10"):
        Advisor(run.keep(few))
    with pytest.raises(ValueError, match="worth is -1"):
        Advisor(run, -1)
    table = run.table.filter(pc.equal(run.table["method"].cast(pa.string()), "dynamic"))
    switches = run.meta["switches"] | {"methods": ["dynamic"]}
    with pytest.raises(RunFolderError, match="no method that selects and steps"):
        Advisor(replace(run, table=table, meta=run.meta | {"switches": switches}))
