"""A study evaluates each run once, resumes it after a kill, and uses the right part of the data."""

import json
import re
import shutil
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import eval_fixtures
from support.paths import ROOT

from studies.__main__ import main
from studies.headline import first_at
from studies.registry import REGISTRY
from studies.run_specs import RUN_SPECS
from studies.study import LIBRARY_SETS, Study, find_data, held_out_modules, sample
from whet.errors import RunFolderError, SourceError
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import EvalData
from whet.evaluate.demo import SHORTEST, source
from whet.space.space import DataSpace


def test_a_goal_is_reached_on_the_line_between_two_steps():
    values = [100.0, 90.0, 94.0, 80.0]
    assert first_at(95.0, (0, 2, 5, 10), values) == 1.0
    assert first_at(85.0, (0, 2, 5, 10), values) == pytest.approx(5 + 5 * 9 / 14)
    assert first_at(79.9, (0, 2, 5, 10), values) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return eval_fixtures.build(tmp_path_factory.mktemp("world"), texts=240)


def study(data_folder, study_folder, **changes):
    data = EvalData(
        space=str(data_folder / "space"), prompts=str(data_folder / "prompts.jsonl"), per_set=1
    )
    model, n = str(data_folder / "model"), changes.pop("n", 2)
    options = {
        "folder": study_folder,
        "data": data,
        "config": EvalConfig(model=model).with_settings(n=n),
        "small_model": model,
        "progress": False,
    }
    return Study(**options | changes)


def test_a_run_is_evaluated_once_and_joined_with_others(folder, tmp_path):
    first = study(folder, tmp_path)
    both = first.run("core+order")
    assert (
        both.methods == (*RUN_SPECS["core"].methods, "nearest(order=reversed)") and len(both) == 2
    )
    rows = first.run("core").table.to_pylist()
    assert study(folder, tmp_path).run("core").table.to_pylist() == rows  # clocks and all
    with pytest.raises(RunFolderError, match="holds a run with n 2, not 3"):
        study(folder, tmp_path, n=3).run("core")


def test_an_interrupted_study_resumes(folder, tmp_path):
    before = study(folder, tmp_path).run("core")
    record = {"prompt": "p5", "set": "b", "error": "lost with the end of its line"}
    (tmp_path / "core" / "journal.jsonl").write_text(
        json.dumps(record)[:-5]
    )  # as kill -9 leaves it
    data = EvalData(space=str(folder / "space"), prompts=str(folder / "prompts.jsonl"))
    after = study(folder, tmp_path, data=data).run("core")
    assert (len(before), len(after), after.errors) == (2, 6, {})
    assert after.table.to_pylist()[: len(before.table)] == before.table.to_pylist()


def test_a_smaller_share_is_part_of_a_larger_one(folder):
    space = DataSpace.open(folder / "space")
    few, many = ({d.id for d in sample(space, share)} for share in (0.3, 0.8))
    assert few < many < set(space.ids)
    assert 0.2 < len(few) / len(space) < 0.4 and len(list(sample(space, 1.0))) == len(space)


def test_a_part_of_the_data_space_has_the_same_embedder(folder, tmp_path):
    first = study(folder, tmp_path)
    path = first.space_path(RUN_SPECS["third"])
    part, whole = DataSpace.open(path), DataSpace.open(folder / "space")
    assert part.embedder.fingerprint == whole.embedder.fingerprint
    assert set(part.ids) == {d.id for d in sample(whole, 0.33)}
    assert first.space_path(RUN_SPECS["third"]) == path
    assert first.space_path(RUN_SPECS["core"]) == folder / "space"


def test_a_run_of_another_data_space_is_refused(folder, tmp_path):
    other = eval_fixtures.build(tmp_path / "other", texts=200)
    data = EvalData(space=str(other / "space"), prompts=str(folder / "prompts.jsonl"), per_set=1)
    small = {"n": 2, "config": EvalConfig(model=str(folder / "model")).with_settings(n=2, k=20)}
    study(folder, tmp_path, **small).run("third")
    with pytest.raises(RunFolderError, match="holds a run with space"):
        study(folder, tmp_path, data=data, **small).run("third")


def test_equal_models_and_missing_prompts_are_refused(folder, tmp_path):
    with pytest.raises(RunFolderError, match="is the main model too: pass another --small"):
        study(folder, tmp_path).run("small")
    for data in (EvalData(space="s.whet"), EvalData(space="s.toml", prompts="p.jsonl")):
        with pytest.raises(SourceError, match="pass SPACE and --prompts"):
            find_data(tmp_path, data, None, None, None, False, progress=False)


def test_quick_uses_about_a_dozen_prompts(folder, tmp_path):
    paths = (folder / "space", str(folder / "prompts.jsonl"))
    options = [(None, False), (None, True), (2, True)]
    data = [
        find_data(tmp_path, EvalData(), *paths, k, quick, progress=False) for k, quick in options
    ]
    assert [d.per_set for d in data] == [20, 6, 2]
    own = EvalData(space=data[0].space, prompts=data[0].prompts, per_set=3)
    assert find_data(tmp_path, own, Path("x.toml"), None, None, False, progress=False) == own


def test_holding_out_more_modules_adds_to_the_others():
    library = Path(sysconfig.get_path("stdlib"))
    two, three = held_out_modules(library, 2), held_out_modules(library, 3)
    assert sorted(two.values()) == sorted([*LIBRARY_SETS] * 2) and two.items() < three.items()
    assert all(len(source(path)) >= SHORTEST for path in three)
    kinds = {"encodings": "encodings", "json": "packages", "ast.py": "modules"}
    assert all(kinds.get(path.relative_to(library).parts[0], name) == name
               for path, name in held_out_modules(library, 1000).items())  # fmt: skip


def test_the_command_lists_all_artifacts_and_refuses_unknown_ones(tmp_path):
    run = CliRunner().invoke
    listed = run(main, ["--list"]).output
    assert [line.split()[0] for line in listed.splitlines()] == list(REGISTRY)
    unknown = run(main, ["fig99"])
    assert unknown.exit_code == 2 and "artifact is 'fig99': expected all, table1" in unknown.output
    half = run(main, ["fig1", str(tmp_path)])
    assert half.exit_code == 2 and "pass both SPACE and --prompts, or neither" in half.output


def test_artifacts_that_fail_are_skipped_and_reported(folder, tmp_path):
    model, small = str(folder / "model"), str(shutil.copytree(folder / "model", tmp_path / "small"))
    words = ["table6,fig18,table8,fig15", str(folder / "space"), "--per-set", "1", "-n", "2",
             "--prompts", str(folder / "prompts.jsonl"), "--model", model, "--small", small,
             "--study", str(tmp_path / "s"), "--quiet"]  # fmt: skip
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and "fig18 is skipped: k is 1000, but" in done.output
    assert "1 of 4 artifacts could not be built (fig18)" in done.output
    built = {path.stem for path in (tmp_path / "s" / "artifacts").glob("*.png")}
    assert built == {"table6", "table8", "fig15"}


def test_the_command_prints_the_table_and_writes_its_files(folder, tmp_path):
    words = ["fig21", str(folder / "space"), "--prompts", str(folder / "prompts.jsonl")]
    done = CliRunner().invoke(main, [*words, "--study", str(tmp_path), "--quick", "--quiet"])
    assert done.exit_code == 0, done.output
    assert "| candidates" in done.output and "Differences from the paper:" in done.output
    files = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert files == {"fig21.json", "fig21.png", "fig21.svg"}


def test_the_package_does_not_import_the_studies():
    sources = (ROOT / "src" / "whet").rglob("*.py")
    pattern = re.compile(r"^\s*(from|import) studies\b", re.MULTILINE)
    assert not [path for path in sources if pattern.search(path.read_text("utf-8"))]
