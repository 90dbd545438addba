"""Milvus passes the conformance tests except for what it does not support.

Runs Milvus Lite in a file, or the server at `WHET_MILVUS`.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hashing_embedder import HashingEmbedder
from support.store_conformance import *  # noqa: F403  # its tests, and the fixture they share
from support.store_conformance import D, assert_same, disk_writer, reuse_fixtures, table, units

from whet.cli import main
from whet.data.documents import Document
from whet.data.filters import Compare, In, Not
from whet.errors import EmbedderMismatchError, SpaceError
from whet.space.maintenance.inspection import describe, verify
from whet.space.milvus.reader import CollectionRecord, MilvusReader, parse_address
from whet.space.milvus.writer import MilvusWriter, copy_rows, copy_space
from whet.space.space import DataSpace
from whet.space.store.manifest import Labels
from whet.space.store.protocol import SCHEMA

pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is missing (extra: milvus)")
NEW = CollectionRecord(dimension=D, fingerprint="test")
del test_readers_are_snapshots  # noqa: F821  # replaced below: Milvus has no snapshots


SERVER = os.environ.get("WHET_MILVUS")


def location(folder):
    """URI and collection of the store named `folder`."""
    if SERVER is None:
        return f"{folder}.db", "whet"
    return SERVER, f"t{zlib.crc32(str(folder).encode())}"


@pytest.fixture
def make():
    locations = []

    def make(folder):
        locations.append(location(folder))
        return MilvusWriter(*locations[-1], new=NEW)

    yield make
    for uri, collection in locations if SERVER else ():
        pymilvus.MilvusClient(uri).drop_collection(collection)


def test_readers_do_not_see_additions_but_miss_deleted_rows(store):
    reader = store.snapshot()
    store.add(table(9, 200), units(9, 5))
    assert reader.count() == 60 and reader.version < store.snapshot().version
    store.delete(ids=[0])
    assert reader.count() == 59 and "snapshots" in reader.unsupported


def test_rows_of_a_dead_writer_are_invisible_and_deleted(make, tmp_path):
    uri, collection = location(tmp_path / "s")
    writer = make(tmp_path / "s")
    writer.add(table(3), units(3))
    client = pymilvus.MilvusClient(uri)
    row = client.get(collection, ids=[0], output_fields=["*"])[0] | {"row": 3}
    client.insert(collection, [dict(row)])
    assert writer.snapshot().count() == 3
    again = MilvusWriter(uri, collection)
    again.add(table(2, 3), units(2, 1))
    assert again.snapshot().ids().tolist() == [0, 1, 2, 3, 4]
    assert again.snapshot().find(["d0", "d3", "d4"]).tolist() == [0, 3, 4]


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = (
    words
    | st.integers(-(2**62), 2**62)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)


@settings(reuse_fixtures, max_examples=10)
@given(metas=st.lists(st.dictionaries(words, values, max_size=3), min_size=1, max_size=4))
def test_values_pass_filters_that_equal_them(make, tmp_path_factory, metas):
    rows = [{"id": f"d{i}", "text": "", "meta": json.dumps(m)} for i, m in enumerate(metas)]
    store = make(tmp_path_factory.mktemp("s") / "s")
    store.add(pa.Table.from_pylist(rows, schema=SCHEMA), units(len(rows)))
    reader = store.snapshot()
    for i, meta in enumerate(metas):
        for field, value in meta.items():
            if field != "id":
                where = Compare(field, "==", value)
                passing, failing = reader.ids(where).tolist(), reader.ids(Not(where)).tolist()
                assert i in passing and sorted(passing + failing) == list(range(len(rows)))
    store.close()


def test_limits_of_milvus_are_reported(store):
    long = pa.Table.from_pylist([{"id": "l", "text": "é" * 40_000, "meta": "{}"}], schema=SCHEMA)
    with pytest.raises(ValueError, match="'l' has 80000 bytes of text, but Milvus stores at most"):
        store.add(long, units(1))
    for number in (2**70, float("inf")):
        with pytest.raises(ValueError, match="'d60' has size = .* Milvus filters by finite"):
            store.add(table(1, 60, size=number), units(1))
    with pytest.raises(ValueError, match="k is 20000, but Milvus returns at most 16384 rows"):
        store.snapshot().search(units(1), 20_000)
    with pytest.raises(ValueError, match="finite"):
        store.snapshot().count(Compare("i", "<", float("inf")))


def test_copying_rows_again_has_no_effect(make, tmp_path):
    writer = disk_writer(tmp_path / "segments")
    writer.add(table(30), units(30))
    writer.delete(where=In("i", (3, 4)))
    source, (uri, collection) = writer.snapshot(), location(tmp_path / "s")
    make(tmp_path / "s").close()
    for _ in range(2):
        copy = copy_rows(source, uri, collection)
        assert copy.count() == 28
    found = copy.search(units(2), 5, exact=True)
    best = source.search(units(2), 5)
    np.testing.assert_allclose(found.scores, best.scores, atol=1e-6)
    names = [store.rows(one.ids[0], ["id"])["id"] for store, one in ((copy, found), (source, best))]
    assert names[0] == names[1]
    with pytest.raises(EmbedderMismatchError, match="'test', not 'other'"):
        MilvusReader.open(uri, collection, fingerprint="other")
    with pytest.raises(SpaceError, match="no collection 'none'"):
        MilvusReader.open(uri, "none")


def test_copying_a_changed_space_again_brings_the_copy_up_to_date(address, tmp_path):
    def stored():
        space = DataSpace.open(address, HashingEmbedder())
        documents = {d.id: (d.text, d.meta) for d in space.documents(space.rows)}
        return space, documents, len(space)

    docs = [{"id": f"d{i}", "text": f"text {i}", "year": i} for i in range(8)]
    path = DataSpace.build(docs, tmp_path / "s", HashingEmbedder()).path
    assert copy_space(path, address) == 8
    version = stored()[0].manifest.version
    copy_space(path, address)
    assert stored()[0].manifest.version == version  # nothing changed, nothing was written
    space = DataSpace.open(path, HashingEmbedder()).delete(ids=["d1", "d2"])
    space.add(
        [{"id": "d3", "text": "text 3", "year": 99}, {"id": "d1", "text": "another", "year": 1}]
    )
    assert copy_space(path, address) == 7
    copy, documents, count = stored()
    assert count == 7 and documents["d3"] == ("text 3", {"year": 99}) and "d2" not in documents
    assert documents["d1"][0] == "another" and documents["d5"] == ("text 5", {"year": 5})
    assert (
        copy.filter("year == 99").ids == ["d3"] and copy.store.count(Compare("year", "==", 3)) == 0
    )
    DataSpace.open(path, HashingEmbedder()).delete(where="year >= 0")
    assert copy_space(path, address) == 0


def test_exact_searches_probe_all_lists(tmp_path):
    if SERVER is not None:
        pytest.skip("on the server, the conformance tests run without lists")
    writer = disk_writer(tmp_path / "segments")
    writer.add(table(300), units(300))
    source, query = writer.snapshot(), units(2, 7)
    copy = copy_rows(source, str(tmp_path / "lists.db"), lists=16)
    assert_same(copy.search(query, 20, exact=True), source.search(query, 20, exact=True))
    some = copy.search(query, 20, probe_fraction=0.01)
    assert not some.exact and (some.ids >= 0).any()


@pytest.fixture
def address(tmp_path):
    uri, collection = location(tmp_path / "copy")
    yield f"milvus:{uri}#{collection}"
    if SERVER:
        pymilvus.MilvusClient(uri).drop_collection(collection)


TEXTS = [
    f"{color} {noun} {i}" for i in range(9) for color in ("red", "blue") for noun in ("sea", "sky")
]


@pytest.fixture
def space(tmp_path):
    documents = [Document(f"t{i}", text, {"i": i}) for i, text in enumerate(TEXTS)]
    return DataSpace.build(documents, tmp_path / "colors")


def test_a_copy_opens_by_its_address_with_its_embedder(space, address):
    assert copy_space(space.path, address) == len(space) == copy_space(space.path, address)
    copy = DataSpace.open(address, where="i < 30")
    assert len(copy) == 30 and copy.embedder.fingerprint == space.embedder.fingerprint
    query = space.embedder.encode(["blue sea"])
    [one], [other] = copy.search(query, 9), space.search(query, 9, where="i < 30")
    assert copy.texts(one.rows) == space.texts(other.rows)
    assert copy.documents([3]) == space.documents([3])
    with pytest.raises(SpaceError, match="opened with a filter|read-only"):
        copy.add(["green sky"])
    with pytest.raises(SpaceError, match="is a copy, which is read-only"):
        DataSpace.open(address).delete(ids=["t1"])


def test_a_copy_of_lsa_needs_the_folder_or_the_embedder(space, address):
    copy_space(space.path, address)
    space.path.rename(space.path.with_name("moved"))
    with pytest.raises(SpaceError, match="needs the lsa embedder of the data space"):
        DataSpace.open(address)
    assert len(DataSpace.open(address, space.embedder)) == len(space)
    with pytest.raises(EmbedderMismatchError):
        DataSpace.open(address, HashingEmbedder())


def test_collections_of_older_versions_need_the_embedder(space, address):
    copy_rows(space.store, *parse_address(address))
    with pytest.raises(SpaceError, match="older version of whet"):
        DataSpace.open(address)
    assert len(DataSpace.open(address, space.embedder)) == len(space)


def test_labels_are_copied_and_other_labels_refused(space, address, tmp_path):
    documents = [Document(f"t{i}", text, {"group": "ab"[i % 2]}) for i, text in enumerate(TEXTS)]
    labels = Labels(field="group", public="a")
    labeled = DataSpace.build(documents, tmp_path / "labeled", HashingEmbedder(), labels=labels)
    copy_space(labeled.path, address)
    assert DataSpace.open(address, HashingEmbedder()).manifest.labels == labels
    plain = DataSpace.build(TEXTS, tmp_path / "plain", HashingEmbedder())
    with pytest.raises(SpaceError, match="has labels"):
        copy_space(plain.path, address)
    with pytest.raises(EmbedderMismatchError, match="vectors of another embedder"):
        copy_space(space.path, address)


@pytest.mark.parametrize("function", [describe, verify])
def test_maintenance_of_an_address_is_refused(function):
    with pytest.raises(SpaceError, match="milvus:x.db#docs is an address: expected the folder"):
        function(Path("milvus:x.db#docs"))


def test_addresses_cannot_be_built():
    with pytest.raises(ValueError, match="expected a folder"):
        DataSpace.build(["x"], "milvus:x.db#docs")


def test_the_command_line_copies_and_selects_by_address(space, address):
    run = CliRunner()
    copied = run.invoke(main, ["space", "copy", str(space.path), address, "--json"])
    assert copied.exit_code == 0 and json.loads(copied.stdout)["documents"] == len(space)
    selected = run.invoke(main, ["select", address, "blue sky", "-n", "3", "-k", "5"])
    assert selected.exit_code == 0 and "blue sky" in selected.output
    refused = run.invoke(main, ["space", "info", address])
    assert refused.exit_code == 1 and "is an address" in refused.output


def test_the_command_line_generates_by_address(space, address, gpt2_folder):
    pytest.importorskip("torch")
    copy_space(space.path, address)
    command = ["generate", address, "blue sky", "--model", str(gpt2_folder), "--max-tokens", "3"]
    generated = CliRunner().invoke(main, [*command, "-n", "2", "-k", "5", "--json"])
    assert generated.exit_code == 0, generated.output
    assert len(json.loads(generated.stdout)["trace"]) == 2


def test_addresses_are_parsed():
    assert parse_address("milvus:/a/b.db#docs") == ("/a/b.db", "docs")
    assert parse_address("milvus:http:/host:19530#docs") == ("http://host:19530", "docs")
    with pytest.raises(ValueError, match="expected milvus:URI#COLLECTION"):
        DataSpace.open("milvus:a.db")


def test_a_collection_that_no_process_has_loaded_is_opened(tmp_path):
    uri, collection = location(tmp_path / "released")
    writer = MilvusWriter(uri, collection, new=NEW)
    writer.close()
    client = pymilvus.MilvusClient(uri)
    client.release_collection(collection)
    assert MilvusReader.open(uri, collection).count() == 0
    if SERVER:
        client.drop_collection(collection)
