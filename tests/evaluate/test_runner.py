"""A run's life: workers, crashes, another configuration, failed prompts."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from support import eval_fixtures
from support.eval_fixtures import text
from support.processes import die_or_identify

from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.errors import ModelError, RunFolderError, SpaceError
from whet.evaluate.dataset import EvalData
from whet.evaluate.evaluator import Evaluator
from whet.evaluate.report.render import caption
from whet.evaluate.report.table import report
from whet.evaluate.results import Run, join
from whet.evaluate.run_storage import append, pack
from whet.evaluate.runner import WorkerPool, evaluate
from whet.locks import exclusive_lock
from whet.space.space import DataSpace

CLOCKS = ("embed_s", "search_s", "select_s", "train_s", "score_s")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return eval_fixtures.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(here, tmp_path_factory):
    return eval_fixtures.run(here, tmp_path_factory.mktemp("runs") / "run")


def measured(run):
    """The rows of a run without their clocks, by prompt, method, part and step."""
    rows = run.table.drop_columns(list(CLOCKS)).to_pylist()
    return {(r["prompt"], r["method"], r["part"], r["step"]): r for r in rows}


def assert_alike(one, other):
    """The same rows; the last bits of other processes' products may differ."""
    one, other = measured(one), measured(other)
    assert one.keys() == other.keys()
    for key, row in one.items():
        assert other[key]["document"] == row["document"]
        assert (other[key]["bits"] or 0) == pytest.approx(row["bits"] or 0, rel=1e-5)


def test_a_finished_run_is_two_tables_and_no_journal(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {"meta.json", "rows.parquet", "prompts.parquet"}
    assert len(finished) == 6 and finished.steps == (0, 2, 4)
    assert len(finished.table) == 6 * 5 * 5


def test_more_prompts_extend_a_run_and_none_is_done_again(here, finished, tmp_path):
    some = eval_fixtures.run(here, tmp_path / "run", per_set=2)
    assert len(some) == 4
    before = some.table.to_pylist()
    whole = eval_fixtures.run(here, tmp_path / "run")
    assert whole.table.to_pylist()[: len(before)] == before
    assert measured(whole) == measured(finished)


@pytest.mark.parametrize("mode", ["lora", "head"])
def test_a_finished_run_of_any_mode_is_the_same_run_again(here, tmp_path, mode):
    methods = (f"sift(adapter={mode})",)
    once = eval_fixtures.run(here, tmp_path / "run", per_set=1, methods=methods)
    again = eval_fixtures.run(here, tmp_path / "run", per_set=1, methods=methods)
    assert measured(again) == measured(once)


def test_a_small_data_space_gives_all_its_documents_by_default(here, tmp_path):
    methods = ("nearest", "sift", "sift(k=30)")
    run = eval_fixtures.run(here, tmp_path / "run", per_set=1, k=None, methods=methods)
    assert run.picks("p0", "sift") == run.picks("p0", "sift(k=30)") and len(run) == 2


def test_the_model_runs_where_it_is_told(here, tmp_path):
    run = eval_fixtures.run(here, tmp_path / "cpu", per_set=1, device="cpu")
    assert run.config.device == "cpu" and len(run) == 2
    with pytest.raises(ModelError, match="device 'nowhere' cannot be used"):
        eval_fixtures.run(here, tmp_path / "nowhere", device="nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_line_cut_short_is_measured_again(here, finished, tmp_path):
    run = eval_fixtures.run(here, tmp_path / "run", per_set=2)
    record = {"prompt": "p4", "set": "a", "error": "lost with the end of its line"}
    (run.folder / "journal.jsonl").write_text(json.dumps(record)[:-5])
    assert len(Run.open(run.folder)) == 4
    assert measured(eval_fixtures.run(here, run.folder)) == measured(finished)


@pytest.mark.parametrize("packed", [("rows",), ("rows", "prompts")])
def test_a_crash_while_packing_counts_nothing_twice(here, finished, tmp_path, packed):
    """The journal is still there, together with one or both of the tables made from it."""
    run = eval_fixtures.run(here, tmp_path / "run", per_set=1).folder
    prompts = EvalData(prompts=str(here / "prompts.jsonl")).read_prompts().prompts[2:4]
    evaluator = Evaluator(
        DataSpace.open(here / "space"),
        LanguageModel.from_pretrained(here / "model"),
        eval_fixtures.config(here),
    )
    old = {name: (run / f"{name}.parquet").read_bytes() for name in ("rows", "prompts")}
    for prompt in prompts:
        append(run, evaluator.record(prompt))
    journal = (run / "journal.jsonl").read_bytes()
    whole = measured(Run.open(run))
    pack(run)
    (run / "journal.jsonl").write_bytes(journal)
    for name in old.keys() - set(packed):
        (run / f"{name}.parquet").write_bytes(old[name])
    assert len(whole) == 4 * 5 * 5 and measured(Run.open(run)) == whole
    assert measured(eval_fixtures.run(here, run)) == measured(finished)


def test_a_killed_run_goes_on_without_loss_or_double_counting(here, finished, tmp_path):
    out = tmp_path / "run"
    journal = out / "journal.jsonl"
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from support import eval_fixtures; "
        f"from pathlib import Path; eval_fixtures.run(Path({str(here)!r}), Path({str(out)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not journal.exists() or not journal.read_bytes().count(b"\n"):
        with suppress(subprocess.TimeoutExpired):
            assert process.wait(0.02) is None, "the run ended before it could be killed"
    process.kill()
    process.wait()
    before = Run.open(out).table.to_pylist()
    whole = eval_fixtures.run(here, out)
    assert whole.table.to_pylist()[: len(before)] == before  # clocks too: not measured again
    assert_alike(whole, finished)
    assert pq.read_table(out / "rows.parquet").num_rows == len(finished.table)


def test_a_worker_that_dies_is_reported_and_other_workers_finish_the_run(here, finished, tmp_path):
    eval_fixtures.run(here, tmp_path / "run", per_set=1)

    def kill_the_first():
        while len(children := multiprocessing.active_children()) < 2:  # all have been started
            pass
        children[0].kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    with pytest.raises(RunFolderError, match="a worker process died.*run the same command again"):
        eval_fixtures.run(here, tmp_path / "run", workers=2)
    killer.join()
    assert len(Run.open(tmp_path / "run")) >= 2
    assert_alike(eval_fixtures.run(here, tmp_path / "run", workers=2), finished)


def test_processes_are_kept_and_begun_anew_after_a_death():
    with WorkerPool(1) as pool:
        before = {
            *pool.map_unordered(die_or_identify, 0, "abc"),
            *pool.map_unordered(die_or_identify, 0, "d"),
        }
        with pytest.raises(RunFolderError, match="a worker process died"):
            list(pool.map_unordered(die_or_identify, signal.SIGKILL, "e"))
        [after] = pool.map_unordered(die_or_identify, 0, "f")
        os.kill(after, signal.SIGKILL)  # between two runs
        with pytest.raises(RunFolderError, match="a worker process died"):
            while True:
                list(pool.map_unordered(die_or_identify, 0, "g"))
        after = set(pool.map_unordered(die_or_identify, 0, "h"))
    assert len(before) == len(after) == 1 and before != after
    assert not {child.pid for child in multiprocessing.active_children()} & after


def test_a_folder_of_another_run_is_refused_and_unharmed(here, finished, tmp_path):
    before = (finished.folder / "rows.parquet").read_bytes()
    with pytest.raises(RunFolderError, match="holds a run with n 4, not 3"):
        eval_fixtures.run(here, finished.folder, n=3)
    assert (finished.folder / "rows.parquet").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        eval_fixtures.run(here, tmp_path)
    with pytest.raises(RunFolderError, match="holds no run"):
        Run.open(tmp_path)


def test_other_prompts_and_a_changed_data_space_are_refused(here, tmp_path):
    data = DataSpace.build([Document(f"d{i}", text(i), {}) for i in range(12)], tmp_path / "space")
    prompts = eval_fixtures.write(tmp_path / "prompts.jsonl", [{"id": "p", "text": text(50)}])
    given = EvalData(space=str(tmp_path / "space"), prompts=str(prompts))
    evaluate(given, tmp_path / "run", eval_fixtures.config(here), progress=False)
    eval_fixtures.write(prompts, [{"id": "p", "text": text(51)}])
    with pytest.raises(
        RunFolderError, match="holds a run with prompts 'sha256:.*choose another --out"
    ):
        evaluate(given, tmp_path / "run", eval_fixtures.config(here), progress=False)
    eval_fixtures.write(prompts, [{"id": "p", "text": text(50)}])
    data.add([Document("new", text(77), {})])
    with pytest.raises(RunFolderError, match="holds a run with space .*'documents': 12"):
        evaluate(given, tmp_path / "run", eval_fixtures.config(here), progress=False)


def test_a_run_that_carries_state_is_one_process_and_one_piece(here, tmp_path):
    methods = ("nearest(persist_optimizer=true)",)
    with pytest.raises(
        ValueError, match="a method keeps the optimizer's state .*: expected one worker"
    ):
        eval_fixtures.run(here, tmp_path / "run", methods=methods, workers=2)
    eval_fixtures.run(here, tmp_path / "run", methods=methods, per_set=1)
    eval_fixtures.run(
        here, tmp_path / "run", methods=methods, per_set=1
    )  # all is done: no state is needed
    with pytest.raises(RunFolderError, match="holds 2 prompts, but the optimizer's state"):
        eval_fixtures.run(here, tmp_path / "run", methods=methods)


def test_a_run_older_than_a_switch_goes_on_with_its_default(here, tmp_path):
    run = eval_fixtures.run(here, tmp_path / "run", per_set=1)
    meta = json.loads((run.folder / "meta.json").read_text())
    del meta["config"]["training"]["gradient_reuse"]
    (run.folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(RunFolderError, match="holds a run with gradient_reuse 1, not 2"):
        eval_fixtures.run(here, run.folder, gradient_reuse=2)
    assert len(eval_fixtures.run(here, run.folder, per_set=2)) == 4


def test_a_run_is_written_by_one_process_at_a_time(here, finished):
    with (
        exclusive_lock(finished.folder),
        pytest.raises(SpaceError, match="being written by another"),
    ):
        eval_fixtures.run(here, finished.folder)


def test_a_run_of_the_first_format_is_refused_in_one_line(tmp_path):
    (tmp_path / "meta.json").write_text('{"format": 1, "switches": {}}')
    with pytest.raises(
        RunFolderError, match="is a run of format 1, but this version of whet reads"
    ):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("meta.json", "{", "is corrupt"),
        ("rows.parquet", "no parquet", "cannot be read"),
        ("journal.jsonl", "no json\n{}\n", "line 1: .*delete that line"),
        ("journal.jsonl", "[]\n", "line 1: not a record of a prompt: delete that line"),
        ("journal.jsonl", '{"prompt": "p"}\n', "line 1: not a record of a prompt"),
    ],
)
def test_a_broken_file_is_named(here, tmp_path, name, content, message):
    run = eval_fixtures.run(here, tmp_path / "run", per_set=1)
    (run.folder / name).write_text(content)
    with pytest.raises(RunFolderError, match=message):
        Run.open(run.folder)


def test_a_run_without_its_rows_has_no_numbers(here, tmp_path):
    run = eval_fixtures.run(here, tmp_path / "run", per_set=1)
    (run.folder / "rows.parquet").unlink()
    with pytest.raises(RunFolderError, match="lacks rows of its prompts: delete that folder"):
        Run.open(run.folder).bits("sift")
    eval_fixtures.run(here, tmp_path / "other", per_set=1)
    meta = json.loads((tmp_path / "other" / "meta.json").read_text())
    meta["config"]["methods"].pop()
    (tmp_path / "other" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(RunFolderError, match="holds rows without a prompt or method"):
        Run.open(tmp_path / "other").bits("nearest")


def test_a_run_by_a_newer_whet_is_another_run(here, tmp_path):
    eval_fixtures.run(here, tmp_path / "run", per_set=1)
    path = tmp_path / "run" / "meta.json"
    meta = json.loads(path.read_text())
    meta["config"]["newer"] = 1
    path.write_text(json.dumps(meta))
    with pytest.raises(
        RunFolderError, match="holds a run of another version of whet .*unknown name 'newer'"
    ):
        eval_fixtures.run(here, tmp_path / "run", per_set=1)


def test_what_cannot_be_done_is_refused_before_anything_is_written(here, tmp_path):
    with pytest.raises(ValueError, match="k is 31, but the data space holds 30 documents"):
        eval_fixtures.run(here, tmp_path / "run", methods=("sift(k=31)",))
    with pytest.raises(
        ValueError, match="batch_size is 2 and gradient_reuse is 2: .*one of them must be 1"
    ):
        eval_fixtures.run(here, tmp_path / "run", methods=("hull(gradient_reuse=2, batch_size=2)",))
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_fails_is_a_row_with_its_error(here, tmp_path):
    lines = [{"id": "short", "text": "x"}, {"id": "foreign", "text": "☃" * 20}]
    lines += [{"id": "fine", "text": text(7)}]
    prompts = eval_fixtures.write(tmp_path / "prompts.jsonl", lines)
    run = eval_fixtures.run(here, tmp_path / "run", prompts=prompts)
    assert run.prompts["prompt"].to_pylist() == ["fine"]
    assert "too short to split" in run.errors["short"]
    assert "shares no term" in run.errors["foreign"]
    only = eval_fixtures.write(tmp_path / "only.jsonl", lines[:1])
    with pytest.raises(RunFolderError, match="no finished prompt; the first error: document 'x'"):
        eval_fixtures.run(here, tmp_path / "none", prompts=only)


def test_auto_values_are_chosen_once_and_stored(eval_folder, tmp_path):
    settings = {"methods": ["nearest", "sift", "sift(0.1)"], "lam": "auto", "stop_alpha": "auto"}
    run = eval_fixtures.run(eval_folder, tmp_path / "run", per_set=1, **settings)
    assert run.config.selection.lam == "auto"
    auto = run.meta["auto"]
    assert auto["sift"] == auto["nearest"] and auto["sift"]["lam"] > 0
    assert set(auto["sift(0.1)"]) == {"stop_alpha"}
    meta = json.loads((run.folder / "meta.json").read_text())
    meta["auto"]["sift"]["lam"] = 123.0  # a run that is extended keeps its values
    (run.folder / "meta.json").write_text(json.dumps(meta))
    eval_fixtures.run(eval_folder, tmp_path / "run", per_set=2, **settings)
    numbers = {"methods": ["sift"], "lam": auto["sift"]["lam"]}
    numbers |= {"stop_alpha": auto["sift"]["stop_alpha"]}
    same = eval_fixtures.run(eval_folder, tmp_path / "numbers", per_set=1, **numbers)
    assert same.picks("p0", "sift") == run.picks("p0", "sift")


def without_fingerprint(folder):
    """The run as an earlier version of whet wrote it."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["space"]["fingerprint"]
    (folder / "meta.json").write_text(json.dumps(meta))
    return Run.open(folder)


def test_embeddings_are_those_of_the_run_that_is_continued_or_joined(here, tmp_path):
    first = eval_fixtures.run(here, tmp_path / "a", methods=("sift",), per_set=1)
    second = eval_fixtures.run(here, tmp_path / "b", methods=("nearest",), per_set=1)
    assert first.meta["space"]["fingerprint"] == DataSpace.open(here / "space").embedder.fingerprint
    assert "notes" not in join([first, second]).meta
    other = replace(
        second, meta=second.meta | {"space": second.meta["space"] | {"fingerprint": "x"}}
    )
    with pytest.raises(
        RunFolderError, match="'fingerprint': 'x'.*only runs that differ in nothing"
    ):
        join([first, other])
    old = without_fingerprint(tmp_path / "b")
    [note] = join([first, old]).meta["notes"]
    assert note.startswith(f"{tmp_path / 'b'}: made by a version that did not record")
    assert note in caption(report(join([first, old])))
    more = eval_fixtures.run(here, tmp_path / "b", methods=("nearest",), per_set=2)
    assert len(more) == 4 and "that of the first prompts is not known" in more.meta["notes"][0]
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    meta["space"]["fingerprint"] = "another fit"
    (tmp_path / "a" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(RunFolderError, match="holds a run with space .*'another fit'"):
        eval_fixtures.run(here, tmp_path / "a", methods=("sift",), per_set=2)


def test_a_run_keeps_to_the_code_of_its_selectors(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "def first(query, candidates, n, *, lam):\n    return list(range(n))\n"
    (tmp_path / "run_selectors.py").write_text(code)
    methods = [{"name": "run_selectors:first"}]
    run = eval_fixtures.run(here, tmp_path / "run", per_set=1, methods=methods)
    assert run.methods == ("run_selectors:first",)
    (tmp_path / "run_selectors.py").write_text(f"{code}# changed\n")
    with pytest.raises(RunFolderError, match="holds a run with selectors .*choose another --out"):
        eval_fixtures.run(here, tmp_path / "run", per_set=1, methods=methods)
