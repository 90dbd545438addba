"""Values of other libraries in metadata, missing ids, points in time, and nesting."""

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from whet.data.documents import Document, to_documents
from whet.data.filters import Compare, In, parse
from whet.data.values import MAX_DEPTH, comparable_time, plain, read_meta
from whet.errors import SourceError
from whet.space.space import DataSpace

NOON = dt.datetime(2024, 6, 1, 12, tzinfo=dt.UTC)
VALUES = [
    (np.int64(2010), 2010), (np.float32(0.5), 0.5), (np.bool_(True), True), (np.array(3), 3),
    (pd.NaT, None), (pd.NA, None), (float("inf"), None), (np.datetime64("NaT", "s"), None),
    ([np.int64(1)], [1]), (np.array([1, 2]), [1, 2]), ({"a": np.uint8(7)}, {"a": 7}),
    (Decimal("2010"), 2010), (Decimal("1.5"), 1.5), (b"ab", "ab"), (b"\xff", "/w=="),
    (NOON, "2024-06-01T12:00:00Z"), (pd.Timestamp(NOON), "2024-06-01T12:00:00Z"),
    (dt.date(2024, 6, 1), "2024-06-01"), (dt.timedelta(minutes=1), 60.0), (pa.scalar(4), 4),
]  # fmt: skip


@pytest.mark.parametrize("value, expected", VALUES)
def test_a_value_becomes_the_nearest_of_json(value, expected):
    converted = plain(value)
    assert converted == expected and type(converted) is type(expected)
    assert json.loads(json.dumps(converted)) == expected


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT, np.float64("nan"), ""])
def test_a_missing_id_is_named_by_position(missing):
    documents = to_documents([{"id": missing, "text": "a"}, {"id": missing, "text": "b"}])
    assert [document.id for document in documents] == ["0", "1"]


TABLE = pd.DataFrame({"id": ["a", None], "text": ["one", "two"], "n": [1, 2]})
TABLES = [TABLE, pa.Table.from_pandas(TABLE), pa.RecordBatch.from_pandas(TABLE)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: type(table).__name__)
def test_rows_of_a_table_become_documents(table):
    expected = [Document("a", "one", {"n": 1}), Document("1", "two", {"n": 2})]
    assert list(to_documents(table)) == expected
    [error] = to_documents(table, text_field="body")
    assert isinstance(error, SourceError) and "no field 'body'" in str(error)


SPELLINGS = ["2024-06-01T12:00:00Z", "2024-06-01T14:00:00+02:00", "2024-06-01 12:00:00.000+00:00",
             "2024-06-01T12:00", "2024-06-01t12:00:00z"]  # fmt: skip


def test_spellings_of_one_moment_compare_equal_and_in_order(tmp_path):
    assert {comparable_time(text) for text in SPELLINGS} == {"2024-06-01T12:00:00"}
    assert comparable_time("2024-06-01T12:00:00.5Z") > comparable_time(SPELLINGS[0])
    assert comparable_time("2024-13-01T00:00:00Z") is comparable_time("2024-06-01") is None
    docs = [{"text": f"bees {i}", "at": at} for i, at in enumerate([*SPELLINGS, NOON])]
    space = DataSpace.build([*docs, {"text": "late", "at": "2024-06-01T13:30Z"}], tmp_path / "s")
    for where in [f'at == "{text}"' for text in SPELLINGS] + ['at < "2024-06-01T15:00:00+02:00"']:
        assert len(space.filter(where)) == 6


def test_values_that_compare_equal_but_differ_in_kind_share_no_results(tmp_path):
    assert Compare("a", "==", True) != Compare("a", "==", 1) != Compare("a", "==", "1")
    assert In("a", (0,)) != In("a", (False,)) and In("a", (1,)) == In("a", (1.0,))
    space = DataSpace.build([{"text": "x", "a": True}, {"text": "y", "a": 1}], tmp_path / "s")
    for where, row in (("a == True", 0), ("a == 1", 1), ("a == True", 0)):
        assert space.store.ids(parse(where)).tolist() == [row]


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


def test_metadata_nested_too_deep_is_reported():
    deep, flat = to_documents(
        [{"text": "a", "x": nested(MAX_DEPTH)}, {"text": "b", "x": nested(MAX_DEPTH - 1)}]
    )
    assert isinstance(deep, SourceError) and "nested more than 64 deep" in str(deep)
    assert isinstance(flat, Document)
    [given] = to_documents([Document("a", "b", {"x": nested(300)})])
    assert isinstance(given, SourceError)


def test_stored_metadata_nested_too_deep_is_flattened():
    meta = read_meta(json.dumps({"x": nested(300)}))
    assert json.dumps(plain(meta))
