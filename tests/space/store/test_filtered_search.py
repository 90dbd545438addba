"""Searches of an index with a filter or deletions find the k nearest at about its measured recall."""

import json

import numpy as np
import pyarrow as pa
import pytest

from whet.data.filters import parse
from whet.space.store.manifest import Manifest
from whet.space.store.protocol import SCHEMA
from whet.space.store.segments import ann_index
from whet.space.store.writer import DiskWriter

ROWS, DIMENSION, TOPICS = 20_000, 32, 16
SLACK = 0.03
FILTERS = [
    "topic == 1",
    "topic != 0",
    "topic >= 8",
    "topic in [3, 4, 5]",
    "topic == 0",
    "topic in [0, 2, 4, 6, 11]",
    "third == 0",
    "half == True",
    "not (topic == 0 and third == 0)",
    "topic != 0 and third != 1",
]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(count, seed, topics):
    """Unit rows around one center per topic, some of which are opposite to each other."""
    centers = unit(np.random.default_rng(0).standard_normal((TOPICS, DIMENSION)))
    centers[8:10] = -centers[:2]
    noise = np.random.default_rng(seed).standard_normal((count, DIMENSION))
    return unit(centers[topics] + 0.12 * noise)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    topics = np.arange(ROWS) % TOPICS
    half = np.random.default_rng(3).random(ROWS) < 0.5
    rows = [
        {"id": str(i), "text": "", "meta": json.dumps(
            {"topic": int(topics[i]), "third": i % 3, "half": bool(half[i])})}
        for i in range(ROWS)
    ]  # fmt: skip
    new = Manifest(embedder="t", fingerprint="t", dimension=DIMENSION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann_index, "MIN_ROWS", 1000)
        with DiskWriter(tmp_path_factory.mktemp("s") / "s", new=new) as writer:
            writer.add(pa.Table.from_pylist(rows, SCHEMA), clustered(ROWS, 1, topics))
            yield writer


def shares(reader, queries, k, **arguments):
    """The share of each query's k nearest rows that a search finds, which returns k rows."""
    exact = reader.search(queries, k, exact=True, **arguments).ids
    found = reader.search(queries, k, **arguments).ids
    assert (found >= 0).all() and (exact >= 0).all()
    return np.array([len(np.intersect1d(a, b)) / k for a, b in zip(found, exact, strict=True)])


def queries():
    near = clustered(100, 7, np.zeros(100, int))
    others = clustered(100, 8, np.arange(100) % TOPICS)
    return np.concatenate([near, others])


@pytest.mark.parametrize("metric", ["abs_cosine", "cosine"])
@pytest.mark.parametrize("where", FILTERS)
def test_filtered_searches_have_the_measured_recall(writer, where, metric):
    reader = writer.snapshot()
    recall = reader.segments[0].index_stats.recall
    for k in (1, 10, 200):
        found = shares(reader, queries(), k, metric=metric, where=parse(where))
        assert found[:100].mean() >= recall - SLACK and found[100:].mean() >= recall - SLACK


def test_results_do_not_depend_on_the_batch(writer):
    reader, where = writer.snapshot(), parse("topic != 0")
    together = reader.search(queries(), 50, where=where)
    for i in (0, 10, 40):
        alone = reader.search(queries()[i : i + 1], 50, where=where)
        np.testing.assert_array_equal(alone.ids[0], together.ids[i])


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
def test_k_rows_are_found_at_every_probe_fraction(writer, fraction):
    for where in (None, parse("topic != 0"), parse("topic in [5, 6]")):
        found = writer.snapshot().search(queries(), 200, where=where, probe_fraction=fraction)
        assert (found.ids >= 0).all()


def test_searches_after_deletions_have_the_measured_recall(writer):
    writer.delete(where=parse("topic in [0, 1]"))
    reader = writer.snapshot()
    recall = reader.segments[0].index_stats.recall
    for where in (None, parse("topic != 2")):
        found = shares(reader, queries(), 200, where=where)
        assert found[:100].mean() >= recall - SLACK and found[100:].mean() >= recall - SLACK
