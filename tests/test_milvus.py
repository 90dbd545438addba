"""Milvus keeps the store's rules but for what it says it lacks: Lite in a file, or the server that
`WHET_MILVUS` names."""

import json
import os
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.store_conformance import *  # noqa: F403  # its tests, and the fixture they share
from support.store_conformance import D, assert_same, in_segments, table, units, used

from whet.data.filters import Compare, In, Not
from whet.errors import EmbedderMismatchError, SpaceError
from whet.space.milvus.reader import CollectionRecord, MilvusReader
from whet.space.milvus.writer import MilvusWriter, copy_rows
from whet.space.store.protocol import SCHEMA

pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is missing (extra: milvus)")
NEW = CollectionRecord(dimension=D, fingerprint="test")
del test_a_reader_is_pinned_to_its_version  # noqa: F821  # Milvus lacks snapshots: below


SERVER = os.environ.get("WHET_MILVUS")


def place(folder):
    """Where a store of that name is, and its collection."""
    if SERVER is None:
        return f"{folder}.db", "whet"
    return SERVER, f"t{zlib.crc32(str(folder).encode())}"


@pytest.fixture
def make():
    made = []

    def make(folder):
        made.append(MilvusWriter(*place(folder), new=NEW))
        return made[-1]

    yield make
    for writer in made if SERVER else ():
        pymilvus.MilvusClient(SERVER).drop_collection(writer._collection)


def test_a_reader_sees_nothing_added_later_but_misses_what_is_deleted(store):
    reader = store.snapshot()
    store.add(table(9, 200), units(9, 5))
    assert reader.count() == 60 and reader.version < store.snapshot().version
    store.delete(ids=[0])
    assert reader.count() == 59 and "snapshots" in reader.unsupported


def test_what_a_dead_writer_left_is_not_seen_and_goes(make, tmp_path):
    writer = make(tmp_path / "s")
    writer.add(table(3), units(3))
    client, collection = writer._client, writer._collection
    left = client.get(collection, ids=[0], output_fields=["*"])[0] | {"row": 3}
    client.insert(collection, [dict(left)])
    assert writer.snapshot().count() == 3
    again = MilvusWriter(*place(tmp_path / "s"))
    again.add(table(2, 3), units(2, 1))
    assert again.snapshot().ids().tolist() == [0, 1, 2, 3, 4]
    assert again.snapshot().find(["d0", "d3", "d4"]).tolist() == [0, 3, 4]


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = words | st.integers(-(2**62), 2**62) | st.booleans() | st.floats(allow_nan=False)


@settings(used, max_examples=10)
@given(metas=st.lists(st.dictionaries(words, values, max_size=3), min_size=1, max_size=4))
def test_any_value_passes_the_filter_that_names_it(make, tmp_path_factory, metas):
    rows = [{"id": f"d{i}", "text": "", "meta": json.dumps(m)} for i, m in enumerate(metas)]
    store = make(tmp_path_factory.mktemp("s") / "s")
    store.add(pa.Table.from_pylist(rows, schema=SCHEMA), units(len(rows)))
    reader = store.snapshot()
    for i, meta in enumerate(metas):
        for field, value in meta.items():
            if field != "id" and value not in (float("inf"), -float("inf")):
                where = Compare(field, "==", value)
                found, rest = reader.ids(where).tolist(), reader.ids(Not(where)).tolist()
                assert i in found and sorted(found + rest) == list(range(len(rows)))
    store.close()


def test_what_milvus_cannot_hold_is_refused(store):
    long = pa.Table.from_pylist([{"id": "l", "text": "é" * 40_000, "meta": "{}"}], schema=SCHEMA)
    with pytest.raises(ValueError, match="'l' has 80000 bytes of text, but Milvus stores at most"):
        store.add(long, units(1))
    with pytest.raises(ValueError, match="k is 20000, but Milvus returns at most 16384 rows"):
        store.snapshot().search(units(1), 20_000)
    with pytest.raises(ValueError, match="finite"):
        store.snapshot().count(Compare("i", "<", float("inf")))


def test_a_space_is_copied_once(make, tmp_path):
    source = in_segments(tmp_path / "segments")
    source.add(table(30), units(30))
    source.delete(where=In("i", (3, 4)))
    near, (uri, collection) = source.snapshot(), place(tmp_path / "s")
    make(tmp_path / "s").close()
    for _ in range(2):
        far = copy_rows(near, uri, collection)
        assert far.count() == 28
    found = far.search(units(2), 5, exact=True)
    best = near.search(units(2), 5)
    np.testing.assert_allclose(found.scores, best.scores, atol=1e-6)
    names = [store.rows(one.ids[0], ["id"])["id"] for store, one in ((far, found), (near, best))]
    assert names[0] == names[1]
    with pytest.raises(EmbedderMismatchError, match="'test', not 'other'"):
        MilvusReader.open(uri, collection, fingerprint="other")
    with pytest.raises(SpaceError, match="no collection 'none'"):
        MilvusReader.open(uri, "none")


def test_lists_of_an_index_are_all_looked_into_when_exact(tmp_path):
    if SERVER is not None:
        pytest.skip("the server's conformance suite is run without lists")
    source = in_segments(tmp_path / "segments")
    source.add(table(300), units(300))
    far = copy_rows(source.snapshot(), str(tmp_path / "lists.db"), lists=16)
    query, truth = units(2, 7), source.snapshot()
    assert_same(far.search(query, 20, exact=True), truth.search(query, 20, exact=True))
    some = far.search(query, 20, probe_fraction=0.01)
    assert not some.exact and (some.ids >= 0).any()
