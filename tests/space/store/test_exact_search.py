"""Exact search equals brute force for any block size, memory, batch and number of threads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import whet.space.store.segments.vectors

from support.store_conformance import table  # isort: skip
from whet.space.store.manifest import Manifest
from whet.space.store.writer import DiskWriter


def stored(rows, folder, parts=1):
    new = Manifest(embedder="t", fingerprint="t", dimension=rows.shape[1], normalized=False)
    with DiskWriter(folder, new=new) as writer:
        for part in np.array_split(np.arange(len(rows)), parts):
            writer.add(table(len(part), int(part[0]) if len(part) else 0), rows[part])
        return writer.snapshot()


def nearest(store, queries, k, metric="abs_cosine"):
    found = store.search(queries, k, metric=metric, exact=True)
    return [found[line] for line in range(len(queries))]


def by_brute_force(store, query, k, metric="abs_cosine"):
    wide = store.vectors(store.ids()).astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    cosines = wide @ query / np.where(lengths > 0, lengths, 1) / np.linalg.norm(query)
    sizes = np.abs(cosines) if metric == "abs_cosine" else cosines
    return sorted(np.argsort(-sizes.round(9), kind="stable")[:k].tolist())


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    d=st.integers(1, 8),
    share=st.floats(0, 1),
    metric=st.sampled_from(["abs_cosine", "cosine"]),
    block=st.sampled_from([1, 3, 1024]),
    in_memory=st.sampled_from([0, 2**20]),
)
def test_search_equals_brute_force(tmp_path_factory, seed, n, d, share, metric, block, in_memory):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) / np.sqrt(d)
    rows[rng.random(n) < 0.1] = 0
    rows = rows[rng.integers(0, max(1, int(share * n)), n)] * rng.choice([-1, 1], (n, 1))
    k, queries = int(rng.integers(1, n + 1)), rng.standard_normal((3, d))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whet.space.store.segments.vectors, "BLOCK_ROWS", block)
        patch.setattr(whet.space.store.segments.vectors, "CACHE_BYTES", in_memory)
        store = stored(rows, tmp_path_factory.mktemp("v"), parts=int(rng.integers(1, 4)))
        found = nearest(store, queries, k, metric)
    for query, near in zip(queries, found, strict=True):
        assert near.rows.tolist() == by_brute_force(store, query, k, metric)
        assert len(near.vectors) == len(near.scores) == k
    store.close()


def test_search_distinguishes_scores_that_float32_cannot(tmp_path):
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(96)
    rows = centre + 0.003 * rng.standard_normal((500, 96))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    store, query = stored(rows, tmp_path / "s"), centre + 0.1 * rng.standard_normal(96)
    assert nearest(store, query[None], 50)[0].rows.tolist() == by_brute_force(store, query, 50)


def test_ties_go_to_the_first_rows(tmp_path):
    rng = np.random.default_rng(0)
    row = rng.standard_normal(60) / 8
    rows = np.stack([rng.permutation(row) for _ in range(300)])  # sums differ by their rounding
    [found] = nearest(stored(rows, tmp_path / "s"), np.ones((1, 60)), 40)
    assert len(np.unique(found.scores)) > 1 and found.rows.tolist() == list(range(40))


def test_search_does_not_depend_on_batch_memory_or_parts(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 64)) / 8
    rows = np.repeat(centres, 100, axis=0) + 1e-5 * rng.standard_normal((4000, 64))
    store, queries = stored(rows, tmp_path / "1"), rng.standard_normal((5, 64))
    together = nearest(store, queries, 150)
    alone = [nearest(store, query[None], 150)[0] for query in queries]
    # as for stores of more than 512 MB
    monkeypatch.setattr(whet.space.store.segments.vectors, "CACHE_BYTES", 0)
    blocks = nearest(stored(rows, tmp_path / "2", parts=3), queries, 150)
    for one, two, three in zip(together, alone, blocks, strict=True):
        assert one.rows.tolist() == two.rows.tolist() == three.rows.tolist()
        assert (np.diff(one.rows) > 0).all()
        np.testing.assert_array_equal(one.scores, two.scores)
        np.testing.assert_array_equal(one.scores, three.scores)


def test_search_does_not_depend_on_threads(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.tile(rng.standard_normal((500, 96)) / 10, (8, 1))
    store, queries, found = stored(rows, tmp_path / "s"), rng.standard_normal((6, 96)), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append([near.rows.tolist() for near in nearest(store, queries, 203)])
    assert found[0] == found[1]
