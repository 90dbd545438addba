"""benchmarks/targeted.py runs on a tiny model; its numbers are meaningless."""

import importlib.util
import json

import numpy as np
import pytest
from click.testing import CliRunner
from support import tiny_models
from support.paths import BENCHMARKS

from whet.data.documents import Document, read_documents
from whet.space.space import DataSpace

SCRIPT = BENCHMARKS / "targeted.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("targeted_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("targeted"), np.random.default_rng(0)
    words = {"trees": ["ash", "oak", "elm", "fir"], "birds": ["owl", "jay", "tit", "auk"]}
    with (folder / "texts.jsonl").open("w") as out:
        for i in range(30):
            name = ("trees", "birds")[i % 2]
            text = " ".join(rng.choice(words[name], 5))
            out.write(json.dumps({"id": f"d{i}", "text": text, "set": name}) + "\n")
    DataSpace.build(read_documents(folder / "texts.jsonl"), folder / "space")
    tiny_models.save(folder / "model")
    return folder


def test_every_list_is_trained_on_and_scored_on_other_texts(script, folder):
    words = [folder / "space", folder / "texts.jsonl", "--model", folder / "model", "--lr", 0.01]
    words += ["--set", "trees", "--set", "birds", "--targets", 3, "--held-out", 2, "-n", 6]
    words += ["-k", 8, "--json", folder / "out.json"]
    done = CliRunner().invoke(script.main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    results = json.loads((folder / "out.json").read_text())
    assert len(results["rows"]) == 10 and len(results["lines"]) == 15
    assert results["rows"][0]["base"] != results["rows"][0]["bits_per_byte"]
    for row in results["rows"]:
        assert len(row["base"]) == len(row["bits_per_byte"]) == 2
    bases = [row["base"] for row in results["rows"][:5]]
    assert bases == [bases[0]] * 5  # the weights are restored between the lists


def test_nearest_in_turn_selects_no_text_twice(script, tmp_path):
    texts = ["ash", "ash ash oak", "ash oak oak oak", "owl", "owl owl jay", "owl jay jay jay"]
    space = DataSpace.build([Document(t, t, {}) for t in texts], tmp_path / "s")
    rows = script.in_turn(space, ["ash", "owl", "ash"], 4)
    assert [texts[row] for row in rows] == ["ash", "owl", "ash ash oak", "owl owl jay"]
