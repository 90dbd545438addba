"""Tests that every store must pass; `space/store/test_conformance.py` runs them on `STORES`.

A store is a function from an empty or used folder to a `Writer` of vectors of dimension 8 that
the embedder "test" made.
"""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reference_store import ReferenceWriter

from whet.data.filters import And, Compare, In, Not, Or, parse
from whet.space.store.manifest import Manifest
from whet.space.store.protocol import SCHEMA
from whet.space.store.writer import DiskWriter

D = 8


def disk_writer(folder):
    there = (folder / "meta.json").exists()
    new = None if there else Manifest(embedder="test", fingerprint="test", dimension=D)
    return DiskWriter(folder, new=new)


STORES = {"reference": lambda folder: ReferenceWriter(D, "test"), "segments": disk_writer}


def table(n, start=0, **meta):
    rows = [
        {
            "id": f"d{i}",
            "text": f"text {i}",
            "meta": json.dumps({"i": i, "third": i % 3 == 0, "half": i / 2,
                                "set": "abc"[i % 3], **({"odd": "x"} if i % 2 else {}), **meta}),
        }
        for i in range(start, start + n)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def units(n, seed=0, directions=None):
    """Unit rows; with `directions`, only so many different ones, of either sign."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n if directions is None else directions, D))
    if directions is not None:
        rows = rows[rng.integers(0, directions, n)] * rng.choice([-1, 1], (n, 1))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def store(make, tmp_path):
    made = make(tmp_path / "store")
    made.add(table(30), units(30))
    made.add(table(30, 30), units(30, 1))
    yield made
    made.close()


def random_filter(seed, depth=2):
    """A random filter."""
    rng = np.random.default_rng(seed)
    leaves = [
        Compare("i", rng.choice(["==", "<", ">="]).item(), int(rng.integers(-2, 70))),
        Compare("half", rng.choice(["<=", ">"]).item(), int(rng.integers(0, 30))),
        Compare("set", rng.choice(["==", "<", "<="]).item(), rng.choice(list("abcd")).item()),
        Compare("third", "==", bool(rng.integers(2))),
        Compare("odd", "==", "x"),
        In("i", tuple(rng.integers(0, 60, 4).tolist())),
        In("id", ("d3", "d31", "no")[: rng.integers(4)]),
    ]
    if depth == 0 or rng.random() < 0.3:
        return leaves[rng.integers(len(leaves))]
    inner = tuple(
        random_filter(int(rng.integers(2**32)), depth - 1) for _ in range(rng.integers(4))
    )
    return [And(inner), Or(inner), Not(And(inner))][rng.integers(3)]


reuse_fixtures = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25
)


def assert_same(found, truth):
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_allclose(found.scores, truth.scores, atol=1e-6)
    np.testing.assert_array_equal(found.vectors, truth.vectors)


@reuse_fixtures
@given(
    seed=st.integers(0, 999),
    k=st.integers(1, 70),
    metric=st.sampled_from(["abs_cosine", "cosine"]),
    filtered=st.booleans(),
)
def test_exact_search_equals_brute_force(store, seed, k, metric, filtered):
    truth, where = ReferenceWriter(D, "test"), random_filter(seed) if filtered else None
    truth.add(table(30), units(30))
    truth.add(table(30, 30), units(30, 1))
    query = units(3, seed + 10)
    asked = {"metric": metric, "where": where}
    reader, best = store.snapshot(), truth.snapshot()
    found = reader.search(query, k, exact=True, **asked)
    assert found.exact
    assert_same(found, best.search(query, k, **asked))
    assert reader.count(where) == best.count(where)
    np.testing.assert_array_equal(reader.ids(where), best.ids(where))


@settings(reuse_fixtures, max_examples=15)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 40),
    directions=st.integers(1, 4),
    k=st.integers(1, 9),
)
def test_ties_go_to_the_lowest_ids(make, tmp_path_factory, seed, n, directions, k):
    store, truth = make(tmp_path_factory.mktemp("s") / "s"), ReferenceWriter(D, "test")
    for one in (store, truth):
        one.add(table(n), units(n, seed, directions))
        one.add(table(n, n), units(n, seed, directions))
    query = units(2, seed + 1)
    found, best = (one.snapshot().search(query, k) for one in (store, truth))
    np.testing.assert_array_equal(found.ids, best.ids)
    store.close()


def test_rows_of_both_signs_are_merged_without_duplicates(store):
    reader, query = store.snapshot(), units(1)
    found = reader.search(query, 60)
    assert sorted(found.ids[0].tolist()) == list(range(60))
    assert (np.diff(np.abs(found.scores[0])) <= 0).all() and (found.scores < 0).any()
    assert_same(reader.search(-query, 60), type(found)(found.ids, -found.scores, found.vectors, 0,
                                                       True))  # fmt: skip


def test_results_are_padded_at_the_end(store):
    found = store.snapshot().search(units(2), 75, where=Compare("i", "<", 5))
    assert (found.ids[:, :5] >= 0).all() and (found.ids[:, 5:] == -1).all()
    assert not found.scores[:, 5:].any() and not found.vectors[:, 5:].any()
    assert len(found[0]) == 5 and (np.diff(found[0].rows) > 0).all()


def test_filters_apply_before_the_search(store):
    found = store.snapshot().search(units(3), 10, where=Compare("set", "==", "b"))
    assert (found.ids >= 0).all() and (found.ids % 3 == 1).all()


def test_equal_vectors_are_all_found(store):
    store.add(table(2, 100), units(1)[[0, 0]])
    assert store.snapshot().search(units(1), 3).ids.tolist() == [[0, 60, 61]]


def test_deleted_rows_are_gone_and_their_ids_are_not_reused(store):
    before = store.snapshot()
    store.delete(ids=[0, 59, 7777])
    store.delete(where=Compare("i", "==", 31))
    now = store.snapshot()
    assert now.count() == 57 and now.version > before.version
    assert before.count() == 60 or "snapshots" in before.unsupported
    assert not {0, 31, 59} & set(now.search(units(4), 60).ids.ravel().tolist())
    assert now.find(["d0", "d1", "d59", "none"]).tolist() == [-1, 1, -1, -1]
    for gone in (0, 31, 59, 60, -1):
        with pytest.raises(IndexError, match=f"row {gone} is not in the data space"):
            now.rows([1, gone])
        with pytest.raises(IndexError):
            now.vectors([gone])
    store.add(table(1, 0), units(1))
    assert store.snapshot().find(["d0"]).tolist() == [60]


def test_rows_and_vectors_are_returned_in_the_requested_order(store):
    reader, asked = store.snapshot(), [41, 3, 41, 0]
    rows = reader.rows(asked)
    assert rows["id"].to_pylist() == ["d41", "d3", "d41", "d0"] and rows.schema.equals(SCHEMA)
    assert json.loads(rows["meta"][0].as_py())["i"] == 41
    assert reader.rows(asked, ["text"]).column_names == ["text"]
    stored = np.concatenate([units(30), units(30, 1)])[asked]
    np.testing.assert_allclose(reader.vectors(asked).astype(float), stored, atol=1e-3)
    assert len(reader.rows([])) == len(reader.vectors([])) == 0
    assert reader.find(["d41", "d0"]).tolist() == [41, 0]


def test_readers_are_snapshots(store):
    reader = store.snapshot()
    found, version = reader.search(units(2), 60), reader.version
    store.delete(where=Compare("i", "<", 50))
    store.add(table(9, 200), units(9, 5))
    assert_same(reader.search(units(2), 60), found)
    assert reader.count() == 60 and reader.version == version == found.version
    assert reader.rows([0])["id"].to_pylist() == ["d0"]


def test_adding_twice_with_one_key_has_no_effect(store):
    first = store.add(table(5, 60), units(5, 3), key="batch 1")
    assert store.add(table(5, 60), units(5, 3), key="batch 1") == first
    assert store.snapshot().count() == 65


REFUSED = [
    (table(2, 58), units(2)),  # stored already
    (pa.concat_tables([table(1, 99)] * 2), units(2)),  # repeated
    (table(2, 99), 2 * units(2)),
    (table(2, 99), units(2)[:, :4]),
    (table(2, 99), units(2) * np.float32(np.nan)),
]


@pytest.mark.parametrize("rows, vectors", REFUSED)
def test_invalid_additions_change_nothing(store, rows, vectors):
    before = store.snapshot().version
    with pytest.raises(ValueError):
        store.add(rows, vectors)
    assert store.snapshot().count() == 60 and store.snapshot().version == before


@pytest.mark.parametrize(
    "asked", [{}, {"ids": [1], "where": Compare("i", "==", 1)}, {"ids": "1"}, {"ids": ["1"]}]
)
def test_delete_takes_rows_or_a_filter(store, asked):
    with pytest.raises(ValueError):
        store.delete(**asked)


BAD = [
    {"queries": units(1)[:, :5]},
    {"queries": units(1) * 0},
    {"queries": units(1) * np.float32(np.inf)},
    {"queries": units(1)[0]},
    {"k": 0},
    {"probe_fraction": 0.0},
    {"probe_fraction": 1.5},
]


@pytest.mark.parametrize("bad", BAD)
def test_invalid_searches_are_refused(store, bad):
    asked = {"queries": units(1), "k": 3, **bad}
    with pytest.raises(ValueError):
        store.snapshot().search(asked.pop("queries"), asked.pop("k"), **asked)


@pytest.mark.parametrize(
    "where", [Compare("nothing", "==", 1), Not(Compare("nothing", "<", 1)), Compare("i", "==", "a")]
)
def test_unknown_fields_and_kinds_are_refused(store, where):
    reader = store.snapshot()
    for ask in (
        lambda: reader.search(units(1), 3, where=where),
        lambda: reader.count(where),
        lambda: reader.ids(where),
        lambda: reader.filter(where),
        lambda: store.delete(where=where),
    ):
        with pytest.raises(ValueError, match="filter"):
            ask()


@reuse_fixtures
@given(seed=st.integers(0, 999), k=st.integers(1, 60))
def test_filtered_readers_never_expose_other_rows(store, seed, k):
    whole, bound, where = store.snapshot(), random_filter(seed), random_filter(seed + 1000)
    allowed = set(whole.ids(bound).tolist())
    reader = whole.filter(bound)
    assert reader.count() == len(allowed) and set(reader.ids().tolist()) == allowed
    rest = np.setdiff1d(whole.ids(), reader.ids())
    try:
        ids = reader.search(units(2), k, where=where).ids
        assert set(reader.ids(where).tolist()) <= allowed
    except ValueError as error:  # a field that none of its rows has
        assert "field" in str(error)
        ids = reader.search(units(2), k).ids
    assert set(ids.ravel().tolist()) <= allowed | {-1}
    for row in rest[:3].tolist():
        with pytest.raises(IndexError):
            reader.rows([row])
        with pytest.raises(IndexError):
            reader.vectors([row])
    assert (reader.find([f"d{row}" for row in rest.tolist()]) == -1).all()


def test_filtered_readers_do_not_know_fields_of_other_rows(store):
    store.add(table(3, 60, secret="s"), units(3))
    reader = store.snapshot().filter(Compare("i", "<", 60))
    assert store.snapshot().count(Compare("secret", "==", "s")) == 3
    with pytest.raises(ValueError, match="secret") as caught:
        reader.count(Compare("secret", "==", "s"))
    assert "secret" not in str(caught.value).replace("'secret'", "")
    again = reader.filter(Or((Compare("i", ">=", 0), Compare("i", "==", 61))))
    assert again.count() == 60


def test_vectors_are_optional(store):
    assert store.snapshot().search(units(1), 3, vectors=False).vectors is None


def test_empty_stores_can_be_searched(make, tmp_path):
    store = make(tmp_path / "new")
    reader = store.snapshot()
    assert reader.count() == 0 and len(reader.ids()) == 0
    assert (reader.search(units(1), 3).ids == -1).all() and reader.find(["a"]).tolist() == [-1]
    assert store.add(table(0), units(0)) == reader.version
    store.close()


def test_parsed_filters_are_applied(store):
    where = parse('set in ["a", "b"] and not (i >= 10 or third == True)')
    assert store.snapshot().ids(where).tolist() == [1, 4, 7]


def test_filters_see_every_field_of_wide_documents(store):
    wide = {f"wide {i}": i for i in range(140)}
    store.add(table(2, 60, **wide, secret=True), units(2, 2))
    store.add(table(2, 62, secret=False, note="x" * 300), units(2, 3))
    reader = store.snapshot()
    assert reader.ids(Compare("secret", "==", True)).tolist() == [60, 61]
    assert reader.count(Not(Compare("secret", "==", True))) == 62
    assert reader.ids(Compare("wide 139", "==", 139)).tolist() == [60, 61]
    assert reader.ids(Compare("note", ">", "x" * 256)).tolist() == [62, 63]
    assert not {60, 61} & set(
        reader.search(units(1), 64, where=Not(Compare("secret", "==", True))).ids[0]
    )
    assert reader.filter(Compare("secret", "==", True)).ids().tolist() == [60, 61]
    store.delete(where=Not(Compare("secret", "==", False)))
    assert store.snapshot().ids().tolist() == [62, 63]
