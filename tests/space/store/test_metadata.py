"""Filters on Arrow columns select the rows that a comparison in Python selects."""

import json

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from support.reference_store import Row, passes

from whet.data.filters import And, Compare, In, Not, Or, matches
from whet.space.store.metadata import MAX_COLUMNS, MetadataColumns, MetadataWriter

texts = st.sampled_from(["", "a", "b", "Z", "é", "é", "\uffff", "\U0001f41d", "1", "True"])
integers = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**53 + 1, 2**63 - 1])
reals = st.sampled_from([-1.5, 0.0, 0.5, 1.0, 2.0, float("inf")])
values = texts | integers | reals | st.booleans()
operands = values | st.sampled_from([2**70, -(2**70)])
fields = st.sampled_from(["a", "b", "id"])
comparisons = st.tuples(fields, st.sampled_from(["==", "<", "<=", ">", ">="]), operands)
memberships = st.tuples(fields, st.just("in"), st.lists(operands, max_size=4))
trees = st.recursive(
    comparisons | memberships,
    lambda inner: st.tuples(st.sampled_from(["and", "or", "not"]), st.lists(inner, max_size=3)),
    max_leaves=6,
)
metas = st.lists(st.dictionaries(st.sampled_from(["a", "b"]), values | st.none() | st.just([1])),
                 min_size=1, max_size=8)  # fmt: skip


def columns(metas, path, batches=2):
    writer = MetadataWriter()
    for part in np.array_split(np.arange(len(metas)), batches):
        writer.add([json.dumps(metas[i]) for i in part])
    writer.write(path)
    ids = pa.array([f"d{i}" for i in range(len(metas))], pa.large_string())
    return MetadataColumns(path, [ids])


def build(tree):
    """The filter that a tree describes."""
    match tree:
        case (field, "in", values):
            return In(field, tuple(values))
        case (field, op, value):
            return Compare(field, op, value)
        case ("and", parts):
            return And(tuple(build(part) for part in parts))
        case ("or", parts):
            return Or(tuple(build(part) for part in parts))
        case ("not", parts):
            return Not(Or(tuple(build(part) for part in parts)))


@given(metas=metas, tree=trees)
def test_filters_on_columns_equal_comparisons_in_python(tmp_path_factory, metas, tree):
    where = build(tree)
    table = columns(metas, tmp_path_factory.mktemp("m") / "columns.arrow")
    rows = [Row(i, f"d{i}", "", json.dumps(meta), None) for i, meta in enumerate(metas)]
    assert matches(where, table).tolist() == [bool(passes(where, row)) for row in rows]


def test_missing_values_fail_comparisons_and_pass_their_negation(tmp_path):
    table = columns([{"a": 1}, {"a": "1"}, {"a": True}, {}], tmp_path / "c")
    assert matches(Compare("a", "==", 1), table).tolist() == [True, False, False, False]
    assert matches(Not(Compare("a", "==", 1)), table).tolist() == [False, True, True, True]
    assert matches(Compare("a", "==", True), table).tolist() == [False, False, True, False]


def test_long_texts_and_further_columns_are_not_stored(tmp_path):
    metas = [{f"f{i}": 1 for i in range(MAX_COLUMNS + 5)}, {"f0": "x" * 257}]
    table = columns(metas, tmp_path / "c")
    assert len(table.fields(np.ones(2, bool))) == MAX_COLUMNS + 1  # and the id
    assert table.fields(np.ones(2, bool))["f0"] == {"number"}
