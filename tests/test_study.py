"""A study: its runs are made once, go on after a kill, and are of the parts of the data asked."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import eval_fixtures

from whet.cli import main
from whet.errors import RunFolderError, SourceError
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Data
from whet.evaluate.demo import SHORTEST, source
from studies.registry import REGISTRY
from studies.run_specs import RUN_SPECS
from studies.study import KINDS, Study, data_of, drawn, held_out
from whet.spaces import open_space


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return eval_fixtures.build(tmp_path_factory.mktemp("world"), texts=240)


def study(here, folder, **changes):
    data = Data(space=str(here / "space"), prompts=str(here / "prompts.jsonl"), per_set=1)
    model, n = str(here / "model"), changes.pop("n", 2)
    own = {"folder": folder, "data": data, "switches": EvalConfig(model=model, n=n), "small": model}
    return Study(**own | {"progress": False} | changes)


def test_a_run_is_made_once_and_joined_with_others_of_its_prompts(here, tmp_path):
    own = study(here, tmp_path)
    both = own.run("core+order")
    assert both.methods == (*RUN_SPECS["core"].methods, "nearest(order=reversed)") and len(both) == 2
    rows = own.run("core").table.to_pylist()
    assert study(here, tmp_path).run("core").table.to_pylist() == rows  # clocks and all
    with pytest.raises(RunFolderError, match="holds a run with n 2, but 3 is asked"):
        study(here, tmp_path, n=3).run("core")


def test_a_study_that_was_cut_short_goes_on_where_it_was(here, tmp_path):
    before = study(here, tmp_path).run("core")
    record = {"prompt": "p5", "set": "b", "error": "lost with the end of its line"}
    (tmp_path / "core" / "journal.jsonl").write_text(
        json.dumps(record)[:-5]
    )  # as kill -9 leaves it
    data = Data(space=str(here / "space"), prompts=str(here / "prompts.jsonl"))
    after = study(here, tmp_path, data=data).run("core")
    assert (len(before), len(after), after.errors) == (2, 6, {})
    assert after.table.to_pylist()[: len(before.table)] == before.table.to_pylist()


def test_a_smaller_share_is_part_of_a_larger_one(here):
    space = open_space(here / "space")
    few, many = ({d.id for d in drawn(space, share)} for share in (0.3, 0.8))
    assert few < many < set(space.ids)
    assert 0.2 < len(few) / len(space) < 0.4 and len(list(drawn(space, 1.0))) == len(space)


def test_a_part_of_the_data_space_is_a_space_of_the_same_embedder(here, tmp_path):
    own = study(here, tmp_path)
    path = own._part(RUN_SPECS["third"])
    made, whole = open_space(path), open_space(here / "space")
    assert made.embedder.fingerprint == whole.embedder.fingerprint
    assert set(made.ids) == {d.id for d in drawn(whole, 0.33)}
    assert own._part(RUN_SPECS["third"]) == path and own._part(RUN_SPECS["core"]) == here / "space"


def test_parts_are_of_the_data_space_that_is_asked(here, tmp_path):
    """Another space in the same study's folder is refused, not shown with the first one's runs."""
    other = eval_fixtures.build(tmp_path / "world", texts=200)
    given = Data(space=str(other / "space"), prompts=str(here / "prompts.jsonl"), per_set=1)
    small = {"n": 2, "switches": EvalConfig(model=str(here / "model"), n=2, k=20)}
    study(here, tmp_path, **small).run("third")
    with pytest.raises(RunFolderError, match="holds a run with space"):
        study(here, tmp_path, data=given, **small).run("third")


def test_one_model_twice_and_no_prompts_are_refused(here, tmp_path):
    with pytest.raises(RunFolderError, match="and so is the main model: name another"):
        study(here, tmp_path).run("small")
    for data in (Data(space="s.whet"), Data(space="s.toml", prompts="p.jsonl")):
        with pytest.raises(SourceError, match="name SPACE and --prompts"):
            data_of(tmp_path, data, None, None, None, False, progress=False)


def test_quick_takes_about_a_dozen_prompts(here, tmp_path):
    paths = (here / "space", str(here / "prompts.jsonl"))
    asked = [(None, False), (None, True), (2, True)]
    made = [data_of(tmp_path, Data(), *paths, k, quick, progress=False) for k, quick in asked]
    assert [data.per_set for data in made] == [20, 6, 2]
    named = Data(space=made[0].space, prompts=made[0].prompts, per_set=3)
    assert data_of(tmp_path, named, Path("x.toml"), None, None, False, progress=False) == parse_names


def test_more_of_the_standard_library_held_out_contains_less():
    library = Path(sysconfig.get_path("stdlib"))
    two, three = held_out(library, 2), held_out(library, 3)
    assert sorted(two.values()) == sorted([*KINDS] * 2) and two.items() < three.items()
    assert all(len(source(path)) >= SHORTEST for path in three)
    kinds = {"encodings": "encodings", "json": "packages", "ast.py": "modules"}
    assert all(kinds.get(path.relative_to(library).parts[0], name) == name
               for path, name in held_out(library, 1000).items())  # fmt: skip


def test_the_verb_lists_all_and_refuses_what_it_does_not_know(tmp_path):
    run = CliRunner().invoke
    listed = run(main, ["reproduce", "--list"]).output
    assert [line.split()[0] for line in listed.splitlines()] == list(REGISTRY)
    unknown = run(main, ["reproduce", "fig99"])
    assert unknown.exit_code == 2 and "artifact is 'fig99': expected all, table1" in unknown.output
    half = run(main, ["reproduce", "fig1", str(tmp_path)])
    assert half.exit_code == 2 and "name both SPACE and --prompts, or neither" in half.output


def test_several_go_on_past_what_cannot_be_made_and_tell_it(here, tmp_path):
    model, small = str(here / "model"), str(shutil.copytree(here / "model", tmp_path / "small"))
    words = ["table6,fig18,table8,fig15", str(here / "space"), "--per-set", "1", "-n", "2",
             "--prompts", str(here / "prompts.jsonl"), "--model", model, "--small", small,
             "--study", str(tmp_path / "s"), "--quiet"]  # fmt: skip
    done = CliRunner().invoke(main, ["reproduce", *words])
    assert done.exit_code == 1 and "fig18 is left out: k is 1000, but" in done.output
    assert "1 of 4 artifacts could not be made (fig18)" in done.output
    made = {path.stem for path in (tmp_path / "s" / "artifacts").glob("*.png")}
    assert made == {"table6", "table8", "fig15"}


def test_the_verb_prints_the_table_and_says_what_it_wrote(here, tmp_path):
    words = ["reproduce", "fig21", str(here / "space"), "--prompts", str(here / "prompts.jsonl")]
    done = CliRunner().invoke(main, [*words, "--study", str(tmp_path), "--quick", "--quiet"])
    assert done.exit_code == 0, done.output
    assert "| candidates" in done.output and "Not the paper's:" in done.output
    made = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert made == {"fig21.json", "fig21.png", "fig21.svg"}
