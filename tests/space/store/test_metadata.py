"""Filters on Arrow columns select the rows that a comparison in Python selects."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reference_store import Row, passes

from whet.data.filters import OPERATORS, And, Compare, In, Not, Or, matches, parse
from whet.space.store.protocol import SCHEMA
from whet.space.store.segments import metadata
from whet.space.store.segments.checked_file import CheckedFile
from whet.space.store.segments.metadata import MAX_COLUMNS, MetadataColumns, MetadataWriter
from whet.space.store.segments.records import RecordFile, RecordWriter

LONG = "x" * 256
texts = st.sampled_from(
    [
        "",
        LONG,
        LONG + "a",
        "x" * 300 + "Z",
        "a",
        "b",
        "Z",
        "é",
        "é",
        "\uffff",
        "\U0001f41d",
        "1",
        " 2",
        "True",
    ]
)
integers = st.sampled_from([2**70, -(2**70), -(2**63), -1, 0, 1, 2, 2**53 + 1, 2**63 - 1])
reals = st.sampled_from([-1.5, 0.0, 0.5, 1.0, 2.0, float("inf")])
values = texts | integers | reals | st.booleans()
operands = (
    texts.filter(lambda text: len(text) <= 256) | integers | reals | st.booleans()
) | st.sampled_from([2**70, -(2**70)])
fields = st.sampled_from(["a", "b", "id"])
comparisons = st.tuples(fields, st.sampled_from(["==", "<", "<=", ">", ">="]), operands)
memberships = st.tuples(fields, st.just("in"), st.lists(operands, max_size=4))
searches = st.tuples(
    fields, st.sampled_from(["startswith", "contains"]), texts.filter(lambda text: len(text) <= 256)
)
trees = st.recursive(
    comparisons | memberships | searches,
    lambda inner: st.tuples(st.sampled_from(["and", "or", "not"]), st.lists(inner, max_size=3)),
    max_leaves=6,
)
metas = st.lists(st.dictionaries(st.sampled_from(["a", "b"]), values | st.none() | st.just([1])),
                 min_size=1, max_size=8)  # fmt: skip


def columns(metas, folder, batches=2, older=False):
    """The columns of rows with `metas`; as an older version wrote them with `older`."""
    writer, records = MetadataWriter(), RecordWriter(folder / "rows.arrow")
    for part in np.array_split(np.arange(len(metas)), batches):
        writer.add([json.dumps(metas[i]) for i in part])
        rows = [{"id": f"d{i}", "text": "", "meta": json.dumps(metas[i])} for i in part]
        records.add(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    records.close()
    writer.write(folder / "columns.arrow")
    if older:
        write_as_older_version(folder / "columns.arrow")
    return MetadataColumns(
        CheckedFile(folder / "columns.arrow"),
        RecordFile(CheckedFile(folder / "rows.arrow"), records.starts),
    )


def write_as_older_version(path):
    """Without texts of more than 256 characters, and without the mark of complete columns."""
    table = pa.ipc.open_file(pa.OSFile(str(path))).read_all()
    for number, name in enumerate(table.column_names):
        if name.startswith("text "):
            short = pc.less_equal(pc.utf8_length(table[name]), 256)
            values = pc.if_else(short, table[name], pa.scalar(None, table[name].type))
            table = table.set_column(number, table.schema.field(number), values)
    table = table.replace_schema_metadata(None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)


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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metas=metas, tree=trees, limit=st.sampled_from([0, 1, 2, 128]), older=st.booleans())
def test_filters_on_columns_equal_comparisons_in_python(
    tmp_path_factory, monkeypatch, metas, tree, limit, older
):
    monkeypatch.setattr(metadata, "MAX_COLUMNS", limit)  # else 130 fields in each of 60 examples
    where = build(tree)
    table = columns(metas, tmp_path_factory.mktemp("m"), older=older)
    rows = [Row(i, f"d{i}", "", json.dumps(meta), None) for i, meta in enumerate(metas)]
    assert matches(where, table).tolist() == [bool(passes(where, row)) for row in rows]


EDGES = [0, 5, -5, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), 2**64 + 1, 10**400]
REALS = [0.5, -0.0, 2.0**53, 2.0**63, 1e300, float("inf"), float("-inf"), -1e300, 5e-324]


def test_numbers_of_any_size_compare_exactly(tmp_path):
    numbers = [*EDGES, *REALS, -(10**400)]
    stored = [n for n in numbers if abs(n) != float("inf")]
    table = columns([{"n": number} for number in stored], tmp_path)
    for op, compare in ((op, metadata.PYTHON_OPERATORS[op]) for op in OPERATORS):
        for number in numbers:
            expected = [compare(have, number) for have in stored]
            assert table.compare("n", op, (number,)).tolist() == expected, (op, number)


@pytest.mark.parametrize(
    "where, message",
    [
        ('a == "\ud800"', "cannot be read .*surrogates not allowed"),
        (r'a == "\ud800"', "'.ud800', with an unpaired surrogate"),
        ("not " * 50_000 + "a == 1", "cannot be read"),
        ("a == 1 +" * 9_000, "cannot be read"),
        ("a[" + "0, " * 5000 + "]", "expected `field == value`"),
    ],
)
def test_filters_that_cannot_be_read_are_one_short_line(where, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(where)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_field_is_the_one_that_was_written():
    for name in ("fi", "ﬁ", "café", "cafe\u0301", "ｆｉ", "é"):  # Python reads them as NFKC
        assert parse(f"(année == 1 or\n {name} == 2)") == parse(f'"année" == 1 or "{name}" == 2')


def test_missing_values_fail_comparisons_and_pass_their_negation(tmp_path):
    table = columns([{"a": 1}, {"a": "1"}, {"a": True}, {}], tmp_path)
    assert matches(Compare("a", "==", 1), table).tolist() == [True, True, False, False]
    assert matches(Not(Compare("a", "==", 1)), table).tolist() == [False, False, True, True]
    assert matches(Compare("a", "==", True), table).tolist() == [False, False, True, False]


@pytest.mark.parametrize("older", [False, True])
def test_filters_see_fields_beyond_the_columns(tmp_path, older):
    wide = {f"f{i}": i for i in range(MAX_COLUMNS)}
    metas = [wide, {"secret": True}, {"secret": False}, {"secret": "yes"}, {"secret": [True]}, {}]
    table = columns(metas, tmp_path, older=older)
    assert matches(Compare("secret", "==", True), table).tolist() == [0, 1, 0, 0, 0, 0]
    assert matches(Not(Compare("secret", "==", True)), table).tolist() == [1, 0, 1, 1, 1, 1]
    assert matches(In("secret", (False, "yes")), table).tolist() == [0, 0, 1, 1, 0, 0]
    assert table.fields(np.ones(6, bool))["secret"] == {"truth", "text"}
    assert "secret" not in table.fields(np.array([1, 0, 0, 0, 1, 1], bool))


@pytest.mark.parametrize("older", [False, True])
def test_long_texts_and_integers_compare_by_their_whole_value(tmp_path, older):
    metas = [{"a": LONG}, {"a": LONG + "y"}, {"a": "a" * 300}, {"a": 2**70}, {"a": -(2**70)}]
    table = columns(metas, tmp_path, older=older)
    assert matches(Compare("a", "==", LONG), table).tolist() == [1, 0, 0, 0, 0]
    assert matches(Compare("a", ">", LONG), table).tolist() == [0, 1, 0, 0, 0]
    assert matches(Not(Compare("a", "<", "b")), table).tolist() == [1, 1, 0, 1, 1]
    assert matches(Compare("a", ">", 0), table).tolist() == [0, 0, 0, 1, 0]
    assert matches(In("a", (2**70, LONG)), table).tolist() == [1, 0, 0, 1, 0]


def test_texts_that_spell_numbers_compare_as_numbers_and_as_texts(tmp_path):
    cells = ["2010", "1999.5", " 2021 ", "00501", "n/a", "", "1e3", "9" * 16, "0x10", "1_000", "-3"]
    table = columns([{"n": cell} for cell in cells], tmp_path)

    def found(text):
        return [cells[i] for i in np.flatnonzero(matches(parse(text), table))]

    assert found("n >= 2000") == ["2010", " 2021 "]
    assert found("n in [501, 1000, 16]") == ["00501", "1e3"]
    assert found("n < 0") == ["-3"] and found('n == "00501"') == ["00501"]
    assert found('n.startswith("20")') == ["2010"] and found('"02" in n') == [" 2021 "]
    assert found('"0" not in n') == ["1999.5", "n/a", "", "1e3", "9" * 16, "-3"]
    visible = np.ones(len(cells), bool)
    assert table.fields(visible)["n"] == {"text", "number"}


@pytest.mark.parametrize(
    "where, message",
    [
        ("a.startswith(3)", "looks for 3 in the texts of 'a': expected a text in quotes"),
        ('a.endswith("x")', "expected `field == value`"),
        ('a.startswith("x", 2)', "expected `field == value`"),
        ("3 in a", "expected a field's name on the left"),
        ('a.startswith("' + "x" * 257 + '")', "has 257 characters"),
    ],
)
def test_parts_of_texts_are_texts(where, message):
    with pytest.raises(ValueError, match=message):
        parse(where)
