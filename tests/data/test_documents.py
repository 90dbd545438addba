import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whet.data.documents import Document, iter_documents, read_documents
from whet.errors import SourceError

RECORDS = [
    {"id": "a", "text": "one", "meta": {"set": "x"}},
    {"id": 7, "text": "zwei — 二\u2028😀", "n": 3},
    {"text": "three"},
]
WANTED = [
    Document("a", "one", {"set": "x"}),
    Document("7", "zwei — 二\u2028😀", {"n": 3}),
]


def json_lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


PACKED = [("d.jsonl", bytes), ("d.jsonl.gz", gzip.compress), ("d.jsonl.zst", zstd)]


@pytest.mark.parametrize("name, pack", PACKED)
def test_json_lines_give_documents_named_by_line_where_unnamed(tmp_path, name, pack):
    path = write(tmp_path / name, pack(json_lines(RECORDS[:2]) + b"\n" + json_lines(RECORDS[2:])))
    assert list(read_documents(path)) == [*WANTED, Document(f"{name}:4", "three", {})]


def test_parquet_gives_documents_across_row_groups(tmp_path):
    table = pa.table({"id": [None, "b", "c"], "body": ["x", "y", "z"], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=1)
    read = list(read_documents(tmp_path / "d.parquet", text_field="body"))
    assert [document.id for document in read] == ["d.parquet:1", "b", "c"]
    assert read[2] == Document("c", "z", {"n": 3})


def test_a_folder_gives_its_texts_by_path_and_passes_over_what_is_none(tmp_path):
    for name in ("b/c.py", "a.md", ".git/x", "b/.hidden"):
        write(tmp_path / name, name.encode())
    write(tmp_path / "b/empty.py", b"")
    write(tmp_path / "image.png", b"\x89PNG\0\0")
    wanted = [Document(name, name, {"path": name}) for name in ("a.md", "b/c.py")]
    assert list(read_documents(tmp_path)) == wanted


def test_a_folder_of_records_gives_them_file_by_file(tmp_path):
    write(tmp_path / "1.jsonl", json_lines(RECORDS[:2]))
    write(tmp_path / "more/2.jsonl.gz", gzip.compress(json_lines(RECORDS[2:])))
    first, second, third = read_documents(tmp_path)
    assert [first.meta, second.meta] == [WANTED[i].meta | {"path": "1.jsonl"} for i in (0, 1)]
    assert third == Document("more/2.jsonl.gz:1", "three", {"path": "more/2.jsonl.gz"})


def test_a_single_file_is_one_document_without_its_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfhello\r\n")
    assert list(read_documents(str(path))) == [Document("a.txt", "hello\r\n", {})]


def test_a_data_set_in_a_folder_is_read_by_its_layout(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        table = pa.table({"id": [split], "text": ["x"], "n": [1]})
        pq.write_table(table, tmp_path / f"data/{split}-00000-of-00001.parquet")
    assert list(read_documents(f"hf:{tmp_path}")) == [Document("train", "x", {"n": 1})]
    assert list(read_documents(f"hf:{tmp_path}:test")) == [Document("test", "x", {"n": 1})]
    with pytest.raises(SourceError, match="dev"):
        list(read_documents(f"hf:{tmp_path}:dev"))
    with pytest.raises(SourceError, match="row 1: no field 'body', only 'id', 'text', 'n'"):
        list(read_documents(f"hf:{tmp_path}", text_field="body"))


def test_a_data_set_out_of_reach_is_one_clear_line(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError) as caught:
        list(read_documents("hf:nobody/nothing-of-this-name"))
    assert "nobody/nothing-of-this-name: cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv_gives_a_document_a_row(tmp_path):
    content = b'\xef\xbb\xbfid,body,n\na,"one, ""two""\nthree",1\n\n,x,\n'
    for name, comma in (("d.csv", b","), ("d.tsv", b"\t")):
        path = write(tmp_path / name, content.replace(b"one,", b"one").replace(b",", comma))
        assert list(read_documents(path, text_field="body")) == [
            Document("a", 'one "two"\nthree', {"n": "1"}),
            Document(f"{name}:2", "x", {"n": ""}),
        ]


def test_json_gives_the_objects_of_an_array_or_of_lines_or_the_one_that_it_is(tmp_path):
    for content in (json.dumps(RECORDS).encode(), json_lines(RECORDS)):
        path = write(tmp_path / "d.json", content)
        assert list(read_documents(path)) == [*WANTED, Document("d.json:3", "three", {})]
    write(path, b'{\n "text": "a",\n "n": 1\n}\n')
    assert list(read_documents(path)) == [Document("d.json", "a", {"n": 1})]


WHOLE = gzip.compress(json_lines(RECORDS) * 2000, mtime=0)
BAD = [
    ("d.jsonl", b'{"text": "a"}\n{"text": \n', "d.jsonl, line 2: not valid JSON"),
    ("d.jsonl", b'{"text": "a"}\n[1]\n', "d.jsonl, line 2: holds a list, expected an object"),
    ("d.jsonl", b'{"body": "a", "n": 1}\n', "line 1: no field 'text', only 'body', 'n'"),
    ("d.jsonl", b'{"text": 5}\n', "line 1: field 'text' holds int, expected a string"),
    ("d.jsonl", b'{"text": null}\n', "line 1: field 'text' holds null"),
    ("d.jsonl", b'{"text": "a"}\n{"text": ""}\n', "line 2: field 'text' is an empty text"),
    ("d.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: byte 10 is not UTF-8"),
    ("d.jsonl", b'{"text": "ab\\ud800"}\n', "line 1: unpaired surrogate at position 2"),
    ("d.jsonl", b"", "holds no documents"),
    ("d.jsonl", b"\n \n", "holds no documents"),
    ("d.jsonl.gz", WHOLE[: len(WHOLE) // 2], "truncated or corrupt gz after line"),
    (
        "d.jsonl.gz",
        WHOLE[:200] + b"\0" * 40 + WHOLE[240:],
        "truncated or corrupt gz|not valid JSON",
    ),
    ("d.jsonl.gz", json_lines(RECORDS), "truncated or corrupt gz after line 0"),
    ("d.jsonl.zst", zstd(WHOLE * 9)[:-9], "truncated or corrupt zst after line"),
    ("d.jsonl.zst", json_lines(RECORDS), "truncated or corrupt zst after line 0"),
    ("d.jsonl", b"[" * 10**6, "d.jsonl, line 1: not valid JSON"),
    ("d.parquet", b"PAR1 and no more", "d.parquet: cannot be read as Parquet"),
    ("d.json", b'[{"text": "a"}, 5]', "d.json, record 2: holds a int, expected an object"),
    ("d.json", b'[{"text": "a"}', "d.json: not valid JSON"),
    ("d.json", b'{"text": "a"}\n{"text": \n', "d.json, line 2: not valid JSON"),
    ("d.json", b'{"a": 1}', "d.json: no field 'text', only 'a'"),
    ("d.json", b"[1, 2]", "d.json: holds no object: expected one, an array of them"),
    ("d.json", b'"a text"', "d.json: holds no object"),
    ("d.json", b"\n", "d.json: is empty"),
    ("d.csv", b"text,n\na,1\nb\n", "d.csv, row 2: 1 fields, expected 2"),
    ("d.csv", b"body,n\na,1\n", "d.csv: no field 'text', only 'body', 'n'"),
    ("d.csv", b"text,n\n,1\n", "d.csv, row 1: field 'text' is an empty text"),
    ("d.csv", b'text,n\n"a,1\n', "d.csv, row 1: a quote is not closed"),
    ("d.tsv", b"text\tn\n\xc3\xa9\xff\t1\n", "d.tsv, row 1: byte 2 is not UTF-8"),
    ("d.txt", bytes(range(1, 256)) * 9, "d.txt: byte 127 is not UTF-8, and no other encoding fits"),
    ("d.txt", b"", "d.txt: is empty"),
]


@pytest.mark.parametrize("name, content, message", BAD)
def test_trouble_is_named_with_its_place(tmp_path, name, content, message):
    with pytest.raises(SourceError, match=message) as caught:
        list(read_documents(write(tmp_path / name, content)))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_what_is_before_the_trouble_is_still_read(tmp_path):
    path = write(tmp_path / "d.jsonl", json_lines(RECORDS) + b"{")
    documents = read_documents(path)
    assert [next(documents).text for _ in RECORDS] == [record["text"] for record in RECORDS]


def test_nothing_there_and_nothing_in_it_are_told_apart(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        list(read_documents(tmp_path / "none.jsonl"))
    with pytest.raises(SourceError, match="holds no documents"):
        list(read_documents(tmp_path))


def test_a_file_without_the_text_column_names_the_columns(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "d.parquet")
    with pytest.raises(SourceError, match="no field 'text', only 'body'"):
        list(read_documents(Path(tmp_path / "d.parquet")))


def test_a_caller_who_asks_goes_on_past_what_fails(tmp_path):
    write(tmp_path / "1.jsonl", b'{"text": "a"}\n{"text": \n{"text": 5}\n{"text": "b"}\n')
    write(tmp_path / "2.jsonl.gz", WHOLE[: len(WHOLE) // 2])
    write(tmp_path / "3.parquet", b"PAR1 and no more")
    write(tmp_path / "4.txt", b"c")
    made = list(iter_documents(tmp_path))
    texts = [document.text for document in made if isinstance(document, Document)]
    assert texts[:2] == ["a", "b"] and texts[-1] == "c"
    places = [str(e).rpartition("/")[2].split(":")[0] for e in made if isinstance(e, SourceError)]
    assert places == ["1.jsonl, line 2", "1.jsonl, line 3", "2.jsonl.gz", "3.parquet"]


def test_a_source_of_failures_alone_tells_the_first(tmp_path):
    path = write(tmp_path / "d.jsonl", b"{\n[]\n")
    with pytest.raises(SourceError, match=r"holds no documents .*line 1: not valid JSON"):
        list(iter_documents(path))


def test_chunks_are_named_and_say_where_they_come_from(tmp_path):
    path = write(tmp_path / "d.jsonl", b'{"id": "a", "text": "one two three", "n": 1}\n')
    assert list(read_documents(path, chunks="tokens:2")) == [
        Document("a#0", "one two ", {"n": 1, "parent": "a", "span": [0, 8]}),
        Document("a#1", "three", {"n": 1, "parent": "a", "span": [8, 13]}),
    ]


def test_json_lines_come_from_stdin(monkeypatch, tmp_path):
    with write(tmp_path / "d", json_lines(RECORDS)).open() as file:
        monkeypatch.setattr("sys.stdin", file)
        read = list(read_documents("-"))
    assert read == [*WANTED, Document("stdin:3", "three", {})]
