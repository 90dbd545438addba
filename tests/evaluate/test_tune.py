"""`whet tune`: the search, its journal, the stored choice, and the commands that use it."""

import json
import math
import shutil

import pytest
from click.testing import CliRunner
from support import eval_fixtures

from whet.adapt.model import LanguageModel
from whet.cli import main
from whet.data.documents import Document
from whet.engine.tuned import TUNED_FILE, TunedSettings, store_tuned, tuned_defaults
from whet.evaluate.tuning.config import TuneConfig
from whet.evaluate.tuning.trials import Journal, Setting, Trial, hold_out
from whet.evaluate.tuning.tune import tune
from whet.maths.statistics import Estimate
from whet.serve.config import ServeConfig, given_settings
from whet.serve.main import with_tuned
from whet.space.space import DataSpace

SMALL = {"n": 2, "max_trials": 10, "passages": 10}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return eval_fixtures.build(tmp_path_factory.mktemp("tune"))


@pytest.fixture(scope="module")
def model(world):
    return LanguageModel.from_pretrained(world / "model", device="cpu")


@pytest.fixture
def space(world, tmp_path):
    shutil.copytree(world / "space", tmp_path / "space")
    return DataSpace.open(tmp_path / "space")


def settings(gain=0.1, low=0.05, *, n=3, fresh=True, **changes):
    values = {"model": "tiny", "adapter": "lora", "lr": 0.004, "layers": "last:1", "lam": 0.25}
    values |= {"before": Estimate(2.0, 1.9, 2.1, 20), "after": Estimate(1.8, 1.7, 1.9, 20)}
    estimate = Estimate(gain, low, gain + 0.05, 20)
    return TunedSettings(
        **(values | {"gain": estimate, "n": n, "seconds": 1.0, "fresh": fresh} | changes)
    )


def trials(space):
    [journal] = space.path.glob("tuning-*.jsonl")
    lines = [line for line in journal.read_text().splitlines()[1:] if line.endswith("}")]
    return journal, [(r["setting"], r["passage"]) for r in map(json.loads, lines)]


def without_seconds(report):
    record = json.loads(json.dumps(report.settings.options))
    return record, report.settings.gain, report.settings.after, report.trials


def test_passages_are_held_out_with_all_of_their_document(tmp_path):
    words = eval_fixtures.text(0, 60)
    passages = [
        Document(f"{p}:{i}", eval_fixtures.text(9 * p + i), {"parent": f"p{p}", "span": [i, i + 1]})
        for p in range(9)
        for i in range(3)
    ]
    space = DataSpace.build([*passages, Document("whole", words, {})], tmp_path / "space")
    chosen = hold_out(space, 20)
    assert len(chosen) == 10 and chosen == hold_out(space, 20) != hold_out(space, 20, seed=1)
    for held_out in chosen:
        assert held_out.id not in space.filter(held_out.where).ids
        assert len(space.filter(held_out.where)) == (27 if held_out.id == "whole" else 25)


def test_an_interrupted_tune_goes_on_and_ends_as_if_it_had_not_been(space, model, tmp_path):
    whole = tune(space, model, TuneConfig(**SMALL))
    journal, finished = trials(space)
    assert whole.trials == len(finished) == 10 and not whole.is_complete and not whole.resumed
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:6]) + lines[6][:20])  # killed while it wrote
    again = tune(space, model, TuneConfig(**SMALL))
    assert again.resumed == 5 and without_seconds(again) == without_seconds(whole)
    _, resumed = trials(space)
    assert sorted(resumed) == sorted(finished) and len(set(resumed)) == 10
    assert json.loads((space.path / TUNED_FILE).read_text())["models"].keys() == {model.fingerprint}


def test_a_journal_of_another_plan_is_not_used(tmp_path):
    path, setting, trial = tmp_path / "j", Setting("lora", 1e-3), Trial(2.0, 1, {2: 1.5}, {2: 0.1})
    journal = Journal(path, {"seed": 0})
    journal.begin(2)
    journal.add(setting, "d1", trial)
    journal.add(setting, "d2", Trial(2.0, 1, {2: math.inf}, {2: math.inf}))
    again = Journal(path, {"seed": 0})
    assert again.trials == journal.trials and (again.steps, again.resumed) == (2, 2)
    assert Journal(path, {"seed": 1}).steps is None


def test_a_folder_that_cannot_be_written_costs_the_file_only(space, model):
    (space.path / f"tuning-{model.fingerprint[:8]}.jsonl").mkdir()
    (space.path / TUNED_FILE).mkdir()
    report = tune(space, model, TuneConfig(**SMALL))
    assert report.stored == "" and "directory" in report.reason and report.trials == 10


def test_few_documents_and_a_small_budget_are_errors(space, model):
    few = TuneConfig(where='id in ["d1", "d2"]')
    with pytest.raises(ValueError, match="only 2 documents .* 8 are needed to tune"):
        tune(space, model, few)
    with pytest.raises(ValueError, match="max_trials is 1: not one setting was tried"):
        tune(space, model, TuneConfig(n=2, max_trials=1))


@pytest.mark.parametrize(
    "chosen, verdict",
    [
        (settings(), "adapt"),
        (settings(0.004, 0.001), "do not adapt"),
        (settings(-0.2, -0.3), "do not adapt"),
        (settings(0.05, -0.01), "unclear"),
        (settings(fresh=False), "unclear"),
        (settings(0.004, 0.001, most_steps=5), "unclear"),
        (settings(most_steps=5), "adapt"),
        (settings(gain=0.2, low=0.2, before=Estimate(1, 1, 1, 1)), "adapt"),
    ],
)
def test_a_verdict_needs_a_gain_beyond_noise(chosen, verdict):
    assert chosen.verdict == verdict
    assert ("use retrieval instead" in chosen.summary) == (verdict == "do not adapt")
    limited = verdict == "unclear" and chosen.most_steps is not None
    assert ("at most 5 steps were tried" in chosen.summary) == limited


def test_the_choice_is_used_for_what_is_not_given(space, model):
    assert tuned_defaults(space.path, model, ()).line == ""
    store_tuned(space.path, model.fingerprint, settings())
    tuned = tuned_defaults(space.path, model, ())
    assert tuned.options == {
        "adapter": "lora",
        "lr": 0.004,
        "layers": "last:1",
        "n": 3,
        "lam": 0.25,
    }
    assert "gains 10.0 %" in tuned.line
    assert tuned_defaults(space.path, model, {"lr", "n"}).options.keys() == {
        "adapter", "layers", "lam"
    }  # fmt: skip
    assert tuned_defaults(space.path, model, {"adapter"}).options == {"lam": 0.25}


def test_a_model_that_gains_nothing_leaves_the_defaults(space, model):
    store_tuned(space.path, model.fingerprint, settings(0.004, -0.01))
    tuned = tuned_defaults(space.path, model, ())
    assert tuned.options == {} and "gains 0.4 % here" in tuned.line and "retrieval" in tuned.line


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1, "models": []}', '{"format": 9}'])
def test_a_damaged_file_is_ignored_with_a_line_and_replaced(space, model, content):
    (space.path / TUNED_FILE).write_text(content)
    tuned = tuned_defaults(space.path, model, ())
    assert tuned.options == {} and "it is ignored" in tuned.line
    store_tuned(space.path, model.fingerprint, settings())
    assert tuned_defaults(space.path, model, ()).options


@pytest.mark.parametrize("change", [{"lr": -1}, {"n": "x"}, {"layers": "first"}, {"gain": {}}])
def test_a_damaged_entry_is_ignored_with_a_line(space, model, change):
    path = store_tuned(space.path, model.fingerprint, settings())
    content = json.loads(path.read_text())
    content["models"][model.fingerprint] |= change
    path.write_text(json.dumps(content))
    tuned = tuned_defaults(space.path, model, ())
    assert tuned.options == {} and "it is ignored" in tuned.line


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_generate_uses_the_stored_choice_unless_it_is_of_another_model(world, space, model):
    store_tuned(space.path, model.fingerprint, settings())
    words = ["generate", space.path, "alpha beta", "--model", world / "model"]
    words += ["--max-tokens", 2, "--json"]
    tuned = run(*words)
    assert "tuned: adapter lora, lr 0.004, layers last:1, n 3, lam 0.25" in tuned.stderr
    given = ["--adapter", "lora", "--lr", 0.004, "--layers", "last:1", "-n", 3, "--lam", 0.25]
    same = json.loads(run(*words, *given).stdout)
    assert [t["loss"] for t in json.loads(tuned.stdout)["trace"]] == [
        t["loss"] for t in same["trace"]
    ]
    (space.path / TUNED_FILE).unlink()
    store_tuned(space.path, "0" * 32, settings())
    other = run(*words, "-n", 2)
    assert f"is about tiny, not {world / 'model'}: ignored" in other.stderr


def test_eval_and_serve_use_the_stored_choice(world, space, model, tmp_path):
    store_tuned(space.path, model.fingerprint, settings())
    words = ["eval", space.path, "--prompts", world / "prompts.jsonl", "--out", tmp_path / "run"]
    words += ["--per-set", 1, "--set", f"model='{world / 'model'}'", "--set", "methods=['sift']"]
    done = run(*words, "--set", "lr=0.001")
    assert done.exit_code == 0 and "tuned: adapter lora, layers last:1, n 3" in done.stderr
    stored = json.loads((tmp_path / "run" / "meta.json").read_text())["config"]
    assert (stored["adapter"]["lr"], stored["selection"]["n"]) == (0.001, 3)
    config = ServeConfig(spaces={"docs": space.path})
    tuned, line = with_tuned(config, model)
    assert (tuned.selection.n, tuned.selection.lam, tuned.adapter.lr) == (3, 0.25, 0.004)
    assert tuned.adapters == ("lora",) and line.startswith("tuned: ")
    (tmp_path / "serve.toml").write_text("[selection]\nn = 9\n[adapter]\nlr = 0.001\n")
    given = given_settings(tmp_path / "serve.toml")
    tuned, _ = with_tuned(
        ServeConfig.read(tmp_path / "serve.toml", spaces=config.spaces), model, given
    )
    assert (tuned.selection.n, tuned.adapter.lr, tuned.adapter.layers) == (9, 0.001, "last:1")


def test_the_command_prints_the_choice_and_the_verdict(world, space):
    words = ["tune", space.path, "--model", world / "model", "--passages", 12, "-n", 2]
    plain = run(*words, "--max-trials", 4, "--quiet").stdout
    for word in (
        "chosen    --adapter",
        "before",
        "after",
        "per request",
        "verdict",
        "stored    in",
    ):
        assert word in plain
