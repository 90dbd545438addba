"""Runs with the earlier names of settings: they open, and equal settings extend them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import eval_fixtures
from support.paths import ROOT

from whet.errors import RunFolderError
from whet.evaluate.results import Run, join
from whet.evaluate.run_storage import translated_meta, translated_method

SWITCHES = {
    "model": "whet-nano", "dtype": "fp32", "device": None, "n": 4, "score_at": [0, 2],
    "leakage": "split", "chunks": 4, "left_context": True, "seed": 0, "k": 10,
    "candidates": "vectors", "where": None, "sign": "own", "lam": 0.01, "alpha": None,
    "duplicates": "kept", "near_cosine": 0.95, "near_overlap": 0.5, "order": "selected",
    "use": "steps", "mode": "full", "lr": 0.01, "rank": None, "optimiser": "adam", "beta1": 0.9,
    "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip": 1.0, "texts_per_update": 1,
    "reuse": 1, "long_texts": "first", "carry": False,
}  # fmt: skip
NAMES = {"sift(adapter=lora, r=4)": "sift(mode=lora, rank=4)", "nearest": "nearest"}


@pytest.mark.parametrize(
    "old, new",
    [
        ("sift", "sift"),
        ("sift(0.1)", "sift(0.1)"),
        ("sift(mode=lora,rank=4)", "sift(adapter=lora, r=4)"),
        ("hull(reuse=2)", "hull(gradient_reuse=2)"),
        ("nearest(sign=both, order=reversed)", "nearest(metric=abs_cosine, order=reversed)"),
        ("nearest(duplicates=dropped)", "nearest(duplicates=drop)"),
        ("sift(candidates='vectors')", "sift(retriever=dense)"),
        ("sift(where='a == \"b, c\"', alpha=0.3)", "sift(where='a == \"b, c\"', stop_alpha=0.3)"),
    ],
)
def test_methods_get_their_present_names(old, new):
    assert translated_method(old) == new == translated_method(new)


def aged(folder, model):
    """Rewrites a run as it was written with the earlier names."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["switches"] = SWITCHES | {"model": model, "methods": list(NAMES.values())}
    names = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets"}
    meta["adaptations"] = {
        NAMES[method]: {names.get(n, n): value for n, value in adapter.items() if n != "name"}
        for method, adapter in meta.pop("adapters").items()
    }
    del meta["config"]
    (folder / "meta.json").write_text(json.dumps(meta))
    rows = pq.read_table(folder / "rows.parquet")
    methods = [NAMES[name] for name in rows["method"].to_pylist()]
    rows = rows.set_column(
        rows.column_names.index("method"), "method", pa.array(methods).dictionary_encode()
    )
    pq.write_table(rows, folder / "rows.parquet")


def test_an_old_run_opens_and_is_extended(eval_folder, tmp_path):
    model = str(eval_folder / "model")
    settings = {"methods": list(NAMES), "lr": 0.01, "adapter": "full", "lam": 0.01}
    once = eval_fixtures.run(eval_folder, tmp_path / "run", per_set=1, **settings)
    rows = once.table.to_pylist()
    aged(tmp_path / "run", model)
    old = Run.open(tmp_path / "run")
    assert old.methods == tuple(NAMES) and old.table.to_pylist() == rows
    assert old.config.with_settings(k=10) == once.config and "config" in old.meta
    assert old.meta["adapters"] == once.meta["adapters"]
    whole = eval_fixtures.run(eval_folder, tmp_path / "run", per_set=2, **settings)
    assert len(whole) == 4 and whole.table.to_pylist()[: len(rows)] == rows
    assert whole.bits("nearest").shape == (4,)
    with pytest.raises(RunFolderError, match="holds a run with lam 0.01, not 0.1"):
        eval_fixtures.run(eval_folder, tmp_path / "run", **(settings | {"lam": 0.1}))


def test_a_setting_that_never_existed_is_an_error(tmp_path):
    meta = {"switches": SWITCHES | {"methods": ["sift"], "newer": 1}}
    with pytest.raises(ValueError, match="unknown name 'newer'"):
        translated_meta(meta)


def test_committed_runs_open_and_join():
    folder = ROOT / "benchmarks" / "results" / "study"
    run = join([Run.open(folder / name) for name in ("core", "rivals", "context")])
    assert run.config.selection.k is None and run.config.adapter.name == "full"
    assert "hull(gradient_reuse=2)" in run.methods and len(run) == 130
    assert run.meta["adapters"]["sift"] == {"name": "full", "lr": 2e-4}
