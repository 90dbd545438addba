import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.hashing_embedder import HashingEmbedder

from whet.data.documents import Document, read_documents
from whet.space.space import DataSpace
from whet.space.training_set import training_set

WORDS = "ash birch cedar elm fir hazel larch maple oak pine".split()
LAM = 0.05


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(24)]
    documents = [Document(f"d{i}", text, {"i": i}) for i, text in enumerate(texts)]
    return DataSpace.build(documents, tmp_path_factory.mktemp("s") / "s", HashingEmbedder(6))


def variances(rows, goals, lam):
    """Eq. (2), summed over the goals, by inverting the kernel matrix."""
    left = goals @ goals.T
    if len(rows):
        cross = rows @ goals.T
        left = left - cross.T @ np.linalg.solve(rows @ rows.T + lam * np.eye(len(rows)), cross)
    return np.trace(left)


def brute_force(candidates, goals, n, repeats):
    picks = []
    for _ in range(n):
        left = [
            variances(candidates[[*picks, j]], goals, LAM) if repeats or j not in picks else np.inf
            for j in range(len(candidates))
        ]
        picks.append(int(np.flatnonzero(np.array(left) <= min(left) * (1 + 1e-10))[0]))
    return picks


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("m", [1, 3, 9])  # fewer targets than dimensions, and more
def test_every_pick_is_the_best_for_all_targets_together(space, m, repeats):
    rng = np.random.default_rng(m)
    targets = [" ".join(rng.choice(WORDS, 4)) for _ in range(m)]
    made = training_set(space, targets, 8, k=12, lam=LAM, repeats=repeats)
    goals = space.embedder.encode(targets).astype(float)
    near = [set(found.rows.tolist()) for found in space.search(goals, 12)]
    assert made.candidates.tolist() == sorted(set.union(*near))
    candidates = space.vectors(made.candidates).astype(float)
    picks = brute_force(candidates, goals, 8, repeats)
    assert made.selection.indices.tolist() == picks
    assert len(made) == len(set(picks)) and (repeats or len(made) == 8)
    left = variances(candidates[picks], goals, LAM)
    np.testing.assert_allclose(made.selection.variance[-1], left, rtol=1e-9)


def test_a_record_a_document_with_its_count_first_pick_and_share(space):
    made = training_set(space, ["ash birch cedar", "oak pine elm"], 60, k=10, lam=LAM)
    indices, rows = made.selection.indices.tolist(), made.candidates
    records = list(made.records())
    assert len(records) < 60 and sum(r["count"] for r in records) == 60
    for record in records:
        row = int(record["id"][1:])
        own = [step for step, i in enumerate(indices) if rows[i] == row]
        assert (record["count"], record["first_picked_at"]) == (len(own), own[0] + 1)
        share = made.selection.gains[own].sum() / made.selection.variance[0]
        assert record["gain_share"] == pytest.approx(share)
        assert (record["text"], record["meta"]) == (space.text(row), {"i": row})
    ranks = [r["first_picked_at"] for r in records]
    assert ranks == sorted(ranks) and ranks[0] == 1
    assert sum(r["gain_share"] for r in records) == pytest.approx(1 - made.selection.sigma[-1] ** 2)


def test_a_file_of_picks_is_a_source_of_texts_and_replaces_the_old(space, tmp_path):
    made = training_set(space, ["ash birch", "oak"], 9, k=10, lam=LAM)
    out = tmp_path / "new" / "picks.jsonl"
    made.write(out)
    out.write_text("old")
    made.write(out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == list(made.records())
    assert [d.text for d in read_documents(out)] == [d.text for d in made.documents]
    assert list(out.parent.iterdir()) == [out]
    table = out.with_name("picks.Parquet")
    made.write(table)
    rows = [row | {"meta": json.loads(row["meta"])} for row in pq.read_table(table).to_pylist()]
    assert rows == list(made.records())
    assert [d.text for d in read_documents(table)] == [d.text for d in made.documents]
    for name in ("picks.csv", "picks.jsonl.gz"):
        with pytest.raises(ValueError, match=f"{name}: expected a name that ends in"):
            made.write(out.with_name(name))


def test_a_write_that_fails_leaves_the_old_file(space, tmp_path, monkeypatch):
    made = training_set(space, ["ash"], 1, k=4)
    out = tmp_path / "picks.jsonl"
    out.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        made.write(out)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_a_dataset_of_the_picks_holds_the_records(space):
    pytest.importorskip("datasets", reason="datasets is missing (extra: data)")
    made = training_set(space, ["ash birch", "oak"], 9, k=10, lam=LAM)
    rows = [row | {"meta": json.loads(row["meta"])} for row in made.to_dataset()]
    assert rows == list(made.records())


def test_many_targets_need_no_more_than_as_many_as_dimensions(space):
    targets = [" ".join(np.random.default_rng(i).choice(WORDS, 3)) for i in range(200)]
    made = training_set(space, targets, 20, k=24, lam=LAM)
    goals = space.embedder.encode(targets).astype(float)
    rows = space.vectors(made.candidates).astype(float)
    assert made.selection.variance[0] == pytest.approx(200, rel=1e-6)
    left = variances(rows[made.selection.indices], goals, LAM)
    assert made.selection.variance[-1] == pytest.approx(left, rel=1e-8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": []}, "targets is empty"),
        ({"targets": "oak"}, r"targets is 'oak': expected a list of them, as \['oak'\]"),
        ({"targets": ["oak", " \n"]}, r"target 1 is ' \\n': expected a text"),
        ({"n": 0}, "n is 0"),
        ({"n": -3}, "n is -3"),
        ({"k": 0}, "k is 0"),
        ({"k": 25}, "k is 25, but the data space holds 24 documents"),
        ({"lam": 0}, "lam is 0"),
        ({"n": 13, "repeats": False}, "n is 13, but there are 12 candidates"),
    ],
    ids=str,
)
def test_bad_input_is_refused(space, change, message):
    given = {"targets": ["oak"], "n": 3, "k": 12} | change
    with pytest.raises(ValueError, match=message):
        training_set(space, **given)


def test_a_target_that_shares_no_term_is_named(tmp_path):
    texts = ["red fox runs", "blue whale sings", "green frog jumps", "red frog sings"]
    space = DataSpace.build([Document(t, t, {}) for t in texts], tmp_path / "s")
    with pytest.raises(ValueError, match=r"target 1 \('жираф'\) shares no term .* \(1 of 2"):
        training_set(space, ["red fox", "жираф"], 2, k=2)


@pytest.mark.parametrize("selector", ["nearest", "random"])
def test_what_sift_is_compared_with_picks_among_the_same_candidates(space, selector):
    targets = ["ash birch cedar", "oak pine elm"]
    made = training_set(space, targets, 6, k=10, lam=LAM, selector=selector)
    best = training_set(space, targets, 6, k=10, lam=LAM)
    goals = space.embedder.encode(targets).astype(float)
    rows = space.vectors(made.candidates).astype(float)
    assert len(made) == 6 and made.candidates.tolist() == best.candidates.tolist()
    left = [variances(rows[made.selection.indices[:s]], goals, LAM) for s in range(7)]
    np.testing.assert_allclose(made.selection.variance, left, rtol=1e-6)
    if selector == "nearest":
        means = (rows @ goals.mean(axis=0))[made.selection.indices]
        assert (np.diff(means) <= 1e-6).all()
    with pytest.raises(ValueError, match="selector is 'mmr'"):
        training_set(space, targets, 6, k=10, selector="mmr")
