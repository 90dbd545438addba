"""Rows that cannot be read, endings of files, and data sets with configurations."""

import datetime as dt
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whet.data.documents import Document, iter_documents, read_documents
from whet.errors import SourceError

BAD_TEXT = pa.Array.from_buffers(
    pa.string(), 2,
    [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")],
)  # fmt: skip
UNREADABLE = {
    "date32": pa.array([0, 4_000_000], pa.date32()),
    "date64": pa.array([0, 86_400_000 * 4_000_000], pa.date64()),
    "duration": pa.array([0, 2**62], pa.duration("s")),
    "timestamp": pa.array([0, 10**18], pa.timestamp("us")),
    "years": pa.array([0, 253_402_300_800], pa.timestamp("s", "UTC")),
    "nested": pa.array([[0], [4_000_000]], pa.list_(pa.date32())),
    "text": BAD_TEXT,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_row_that_python_cannot_hold_is_one_error(tmp_path, name):
    table = pa.table({"text": ["bees", "honey"], "value": UNREADABLE[name]})
    pq.write_table(table, tmp_path / "d.parquet")
    first, second = iter_documents(tmp_path / "d.parquet")
    assert isinstance(first, Document) and isinstance(second, SourceError)
    assert "d.parquet, row 2: field 'value'" in str(second) and "\n" not in str(second)


def test_points_in_time_of_parquet_are_iso_texts_in_utc_whatever_their_zone(tmp_path):
    at = pa.array([1_500_000, None], pa.timestamp("us", "Mars/Phobos"))
    exact = pa.array([1, 0], pa.timestamp("ns"))
    table = pa.table({"text": ["a", "b"], "at": at, "exact": exact})
    pq.write_table(table, tmp_path / "d.parquet")
    first, second = read_documents(tmp_path / "d.parquet")
    assert first.meta["at"] == "1970-01-01T00:00:01.5Z" and second.meta["at"] is None
    assert first.meta["exact"] == "1970-01-01T00:00:00.000000001"
    assert second.meta["exact"] == dt.datetime(1970, 1, 1).isoformat()


STRAY = ['"bees" dance,7', '"5" pipe",7', '"bees dance,7', '"bees \\"dance\\"",7', '"a"b"c",7']


@pytest.mark.parametrize("line", STRAY)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_stray_quote_loses_one_row(tmp_path, line, end):
    rows = ["text,n", '"two', 'lines",0', line, *(f"row {i},{i}" for i in range(9)), '"q, r",9']
    (tmp_path / "d.csv").write_bytes("".join(row + end for row in rows).encode())
    items = list(iter_documents(tmp_path / "d.csv"))
    errors = [item for item in items if isinstance(item, SourceError)]
    assert len(items) == 12 and len(errors) == 1 and "d.csv, row 2: a quote" in str(errors[0])
    assert items[-1].text == "q, r"


def test_bytes_that_are_not_utf8_lose_one_row_of_csv(tmp_path):
    (tmp_path / "d.tsv").write_bytes("text\tn\né\t1\n".encode() + b"b\xff\t2\nc\t3\n")
    assert [type(item) for item in iter_documents(tmp_path / "d.tsv")] == [
        Document, SourceError, Document,
    ]  # fmt: skip


LINES = b'{"text": "bees"}\n{"text": "honey"}\n'
CSV = b"text\nbees\nhoney\n"
PACKED_LINES, PACKED_CSV = (gzip.compress(data, mtime=0) for data in (LINES, CSV))
NAMED = [
    ("a.ndjson", LINES), ("a.JSONL", LINES), ("a.jl", LINES), ("export", LINES),
    ("a.json.txt", LINES), ("a.bak", b'[{"text": "bees"}, {"text": "honey"}]'), ("a.CSV", CSV),
    ("a.Tsv", CSV), ("a.csv.gz", PACKED_CSV), ("a.NDJSON.GZ", PACKED_LINES),
    ("a.json.gz", PACKED_LINES), ("a.txt", b"\xef\xbb\xbf\n" + LINES),
]  # fmt: skip


@pytest.mark.parametrize("name, content", NAMED)
def test_records_are_found_under_any_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        assert [document.text for document in read_documents(source)] == ["bees", "honey"]


def test_parquet_is_found_under_any_name(tmp_path):
    for name in ("a.PARQUET", "a.pq", "dump"):
        pq.write_table(pa.table({"text": [name]}), tmp_path / name)
        assert [document.text for document in read_documents(tmp_path / name)] == [name]


@pytest.mark.parametrize("name", ["a.jsonl.7z", "a.csv.br", "a.parquet.lz4", "a.JSON.zip"])
def test_an_unknown_compression_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b\0")
    (tmp_path / "b.txt").write_text("bees")
    errors = [item for item in iter_documents(tmp_path) if isinstance(item, SourceError)]
    assert len(errors) == 1 and "is not a format that whet reads" in str(errors[0])


@pytest.mark.parametrize("text", ['{"name": "x"}', "{\n}\n", "[{x}] a link", "[package]\nx = 1"])
def test_other_texts_stay_one_document(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert [document.text for document in read_documents(tmp_path / "a.txt")] == [text]


def test_a_long_zstd_window_is_named(tmp_path):
    block = (1 | len(LINES) << 3).to_bytes(3, "little")
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(29 - 10) << 3]) + block + LINES
    (tmp_path / "a.jsonl.zst").write_bytes(frame)
    with pytest.raises(SourceError, match="zstd window is larger than 128 MiB"):
        list(read_documents(tmp_path / "a.jsonl.zst"))


def test_a_configuration_of_a_data_set_is_named(tmp_path):
    for name in ("en", "de"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(f'{{"text": "{name}"}}\n')
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/*.jsonl\n" for n in ("en", "de"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for spec in (f"hf:{tmp_path}@de", f"hf:{tmp_path}@de:train"):
        assert [document.text for document in read_documents(spec)] == ["de"]
    for spec in (f"hf:{tmp_path}", f"hf:{tmp_path}@fr"):
        with pytest.raises(SourceError, match="'de'.*'en'|'en'.*'de'"):
            list(read_documents(spec))


def test_an_error_while_streaming_is_a_source_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "x": 1}\n' * 3)
    (tmp_path / "b.jsonl").write_text('{"text": "two", "x": {"y": 1}}\n')
    items = list(iter_documents(f"hf:{tmp_path}"))
    assert [type(item) for item in items] == [Document] * 3 + [SourceError]
    with pytest.raises(SourceError, match="names no data set"):
        list(read_documents("hf:"))
