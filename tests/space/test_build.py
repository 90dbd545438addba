"""An addition is there whole or not at all, goes on where it was killed, and tells what failed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder

from whet.data.documents import Document, to_document
from whet.data.filters import Compare, parse
from whet.embed.lsa import LSA
from whet.errors import EmbedderMismatchError, ModelError, SourceError, SpaceError
from whet.space import build  # noqa: F401  # the children's scripts change it
from whet.space.space import DataSpace
from whet.space.store.manifest import Labels
from whet.space.store.writer import delete_documents

TESTS = Path(__file__).parent


def documents(n, start=0):
    return [
        Document(f"d{i}", f"text {i} of {'long ' * (i % 9)}", {"i": i, "who": "ab"[i % 2]})
        for i in range(start, start + n)
    ]


def failed(path):
    return [json.loads(line) for line in (path / "failed.jsonl").read_text().splitlines()]


def process(code, *arguments):
    code = (
        "from test_build import *\nbuild.PART_DOCUMENTS = 10\n"
        "path, sign = map(Path, sys.argv[1:])\n" + code
    )
    paths = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


class Counting(HashingEmbedder):
    """Counts what it embeds; with a sign to give, it stops for good at its third batch."""

    def __init__(self, sign=None):
        super().__init__()
        self.texts, self._sign, self._batches = 0, sign, 0

    def encode(self, texts):
        self._batches += 1
        if self._sign is not None and self._batches == 3:
            self._sign.touch()
            time.sleep(60)
        self.texts += len(texts)
        return super().encode(texts)


KILLED = """
DataSpace.build(documents(50), path, Counting(sign), resume_key="fifty")
"""


@pytest.mark.parametrize("there", [0, 20])
def test_a_killed_addition_goes_on_where_it_stopped(tmp_path, monkeypatch, there):
    path, sign, rest = tmp_path / "s", tmp_path / "sign", Counting()
    if there:
        DataSpace.build(documents(there), path, HashingEmbedder())
    writer = process(KILLED, path, sign)
    while not sign.exists():
        assert writer.poll() is None, writer.stderr.read()
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    if there:
        assert len(DataSpace.open(path, HashingEmbedder())) == there
        space = DataSpace.open(path, rest).add(documents(50), resume_key="fifty")
    else:
        with pytest.raises(SpaceError, match="is unfinished: run the same `whet index` again"):
            DataSpace.open(path, HashingEmbedder())
        space = DataSpace.build(documents(50), path, rest, resume_key="fifty")
    assert rest.texts == 50 - there - 20  # two batches of ten were kept
    assert space.documents(space.rows) == documents(50)
    np.testing.assert_allclose(
        space.vectors(space.rows), rest.encode([d.text for d in documents(50)]), atol=1e-3
    )
    assert {entry.name for entry in path.iterdir()} <= {"meta.json", "segments", "failed.jsonl"}


def test_another_addition_does_not_take_the_place_of_an_unfinished_one(tmp_path):
    class Broken(HashingEmbedder):
        def encode(self, texts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DataSpace.build(documents(9), tmp_path / "s", Broken(), resume_key="one")
    with pytest.raises(SpaceError, match="unfinished addition of source one.*not of source two"):
        DataSpace.build(documents(9), tmp_path / "s", HashingEmbedder(), resume_key="two")
    assert (
        len(DataSpace.build(documents(9), tmp_path / "s", HashingEmbedder(), resume_key="one")) == 9
    )


def test_an_unfinished_addition_without_a_source_is_not_taken_for_another(tmp_path):
    class Broken(HashingEmbedder):
        def encode(self, texts):
            raise KeyboardInterrupt

    path = tmp_path / "s"
    DataSpace.build(documents(3), path, HashingEmbedder())
    with pytest.raises(KeyboardInterrupt):
        DataSpace.open(path, Broken()).add(documents(9))
    other = [Document("other", "Quite another text.", {})]
    space = DataSpace.open(path, HashingEmbedder()).add(other)
    assert space.documents(space.rows) == [*documents(3), *other]


def test_an_unfinished_addition_does_not_go_on_by_another_rule_of_chunks(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    source, path = tmp_path / "a.txt", tmp_path / "s"
    source.write_text("One paragraph.\n\nAnother, longer paragraph.\n")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LSA, "encode", stop)
        DataSpace.build(source, path, chunks="paragraph:20")
    with pytest.raises(
        SpaceError, match=r"a\.txt in paragraph:20, .* not of source .*chunks whole"
    ):
        DataSpace.build(source, path, chunks="whole")
    made = DataSpace.build(source, path)  # `auto` takes the rule of the unfinished one
    assert made.manifest.source == f"{source} in paragraph:20"


def test_an_addition_is_a_segment_beside_the_others(tmp_path):
    space = DataSpace.build(documents(20), tmp_path / "s", HashingEmbedder())
    for start in (10, 10, 30):
        space = space.add(documents(20, start))
    assert len(space) == 50 and len(space.manifest.segments) == 3
    assert space.documents(space.rows) == documents(50)


class Picky(HashingEmbedder):
    def encode(self, texts):
        if any(" 3 " in text for text in texts):
            raise ModelError("it does not like 3")
        rows = super().encode(texts)
        for row, text in zip(rows, texts, strict=True):
            row *= {"text 5": np.nan, "text 6": 2.0}.get(text[:6], 1.0)
        return rows


def test_a_document_that_cannot_be_embedded_is_listed_and_the_rest_is_there(tmp_path):
    space = DataSpace.build(documents(9), tmp_path / "s", Picky())
    assert list(space.ids) == ["d0", "d1", "d2", "d4", "d7", "d8"] and space.manifest.failed == 3
    reasons = {row["id"]: row["reason"] for row in failed(space.path)}
    assert reasons["d3"] == "it does not like 3" and "length nan" in reasons["d5"]
    assert "length 2.0" in reasons["d6"] and list(space.rows) == list(range(6))
    again = space.add(documents(9))
    assert again.manifest.failed == 3 and len(failed(space.path)) == 3


def test_what_the_source_cannot_read_or_contradicts_is_listed(tmp_path):
    bad = [SourceError("line 7: no text"), Document("d1", "another", {}), documents(9)[2]]
    space = DataSpace.build([*documents(9), *bad], tmp_path / "s", HashingEmbedder())
    assert len(space) == 9 and space.manifest.failed == 2
    assert failed(space.path)[0] == {"reason": "line 7: no text"}
    assert failed(space.path)[1]["id"] == "d1" and "occurs twice" in failed(space.path)[1]["reason"]
    space = space.add([Document("d2", "another", {}), *documents(1, 9)])
    assert len(space) == 10 and "with another text" in failed(space.path)[2]["reason"]
    assert space.text(2) == documents(9)[2].text


def test_a_fault_of_the_source_leaves_nothing(tmp_path):
    def stops():
        yield documents(1)[0]
        raise SourceError("the file is torn")

    with pytest.raises(SourceError, match="torn"):
        DataSpace.build(stops(), tmp_path / "s", HashingEmbedder())
    with pytest.raises(ValueError, match="nothing to fit lsa on"):
        DataSpace.build([Document("a", " ", {})], tmp_path / "s")
    message = r"at least one \(document 0: no field 'text', only 'body'.*, and 1 more\)"
    with pytest.raises(SourceError, match=message):
        DataSpace.build([{"body": "a"}, ""], tmp_path / "s")
    assert not list(tmp_path.iterdir())
    space = DataSpace.build(documents(5), tmp_path / "s", HashingEmbedder())
    with pytest.raises(SourceError, match="torn"):
        space.add(stops())
    assert {entry.name for entry in space.path.iterdir()} == {"meta.json", "segments"}


def test_texts_are_embedded_by_length_and_stay_in_their_order(tmp_path):
    class Watching(HashingEmbedder):
        def encode(self, texts):
            assert [len(text) for text in texts] == sorted(len(text) for text in texts)
            return super().encode(texts)

    space = DataSpace.build(documents(2100), tmp_path / "s", Watching())  # two parts
    plain = HashingEmbedder().encode(space.texts(space.rows))
    np.testing.assert_allclose(space.vectors(space.rows), plain, atol=1e-3)


def labeled_documents():
    return [
        Document(f"{who}{i}", f"{who} knows {word} {i}", {"who": who})
        for who, word in (("all", "weather"), ("ann", "zebra"), ("bob", "yacht"))
        for i in range(9)
    ]


def test_lsa_learns_no_word_of_what_is_not_public(tmp_path):
    labels = Labels(field="who", public="all")
    space = DataSpace.build(labeled_documents(), tmp_path / "s", labels=labels)
    terms = json.loads((space.path / "embedder" / "terms.json").read_text())
    assert "weather" in terms and not {"zebra", "yacht", "ann", "bob"} & set(terms)
    with pytest.raises(ValueError, match="lsa would be fitted on restricted texts"):
        DataSpace.build(labeled_documents(), tmp_path / "no", labels=Labels(field="who"))
    with pytest.raises(SourceError, match="none has field 'who' with the public value 'alll'"):
        DataSpace.build(
            labeled_documents(), tmp_path / "no", labels=Labels(field="who", public="alll")
        )
    assert not (tmp_path / "no").exists()


def test_a_bound_space_shows_its_own_and_is_not_written(tmp_path):
    whole = DataSpace.build(labeled_documents(), tmp_path / "s", HashingEmbedder())
    bound = DataSpace.open(whole.path, HashingEmbedder(), where=parse('who in ["all", "ann"]'))
    assert len(bound) == 18 == len(bound.rows) and not any("bob" in name for name in bound.ids)
    query = bound.embedder.encode(["bob knows yacht 3"])
    assert bound.search(query, 18)[0].rows.max() < 18
    with pytest.raises(ValueError, match="k is 19, but the data space holds 18"):
        bound.search(query, 19)
    with pytest.raises(IndexError, match="row 20 is not in the data space"):
        bound.texts([0, 20])
    for write in (lambda: bound.add(labeled_documents()), lambda: bound.delete(ids=["all0"])):
        with pytest.raises(SpaceError, match="opened with a filter"):
            write()
    own = bound.filter(Compare("who", "==", "ann"))
    assert set(own.ids) == {f"ann{i}" for i in range(9)} == set(own.filter(own.where).ids)


def test_documents_are_deleted_by_id_or_filter(tmp_path):
    space = DataSpace.build(documents(10), tmp_path / "s", HashingEmbedder())
    left = space.delete(ids=["d3", "none"]).delete(where="i >= 8")
    assert list(left.ids) == ["d0", "d1", "d2", "d4", "d5", "d6", "d7"] and len(space) == 10
    for one in (lambda: space.delete(ids="12"), lambda: delete_documents(left.path, "12")):
        with pytest.raises(ValueError, match=r"ids is '12': expected a list of them, as \['12'\]"):
            one()
    with pytest.raises(ValueError, match="either ids or a filter"):
        space.delete()
    back = left.add(documents(10))
    assert len(back) == 10 and back.rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 10, 11, 12]


def test_a_space_of_a_python_embedder_is_extended_in_python(tmp_path):
    space = DataSpace.build(documents(3), tmp_path / "s", HashingEmbedder())
    with pytest.raises(
        EmbedderMismatchError, match=r"embedder 'hashing': add .* in Python, with `Data"
    ):
        DataSpace.build(tmp_path, space.path)
    assert len(DataSpace.open(space.path, HashingEmbedder()).add(documents(5))) == 5


def test_texts_and_mappings_are_documents_too(tmp_path, caplog):
    first = ["a b", {"id": "x", "text": "c d", "meta": {"y": 1}, "n": 2}, Document("z", "e")]
    space = DataSpace.build(first, tmp_path / "s", HashingEmbedder())
    assert space.ids == ["0", "x", "z"]
    assert space.documents(space.rows)[1] == Document("x", "c d", {"y": 1, "n": 2})
    more = space.add(["f", "", {"body": "g"}])
    assert more.ids == ["0", "x", "z", "3"] and more.manifest.failed == 2
    assert repr(more) == f"DataSpace('{tmp_path / 's'}', 4 documents, hashing)"
    lines = (tmp_path / "s" / "failed.jsonl").read_text()
    assert "document 4: field 'text' is an empty text" in lines and "document 5: no field" in lines
    assert caplog.messages == [f"2 documents could not be added: see {tmp_path / 's/failed.jsonl'}"]


def test_one_record_is_not_a_list_of_them(tmp_path):
    with pytest.raises(ValueError, match="expected a list of texts"):
        DataSpace.build({"text": "a"}, tmp_path / "s", HashingEmbedder())
    with pytest.raises(ValueError, match="document 0 is 5: expected a text, a mapping"):
        to_document(5, 0)
    assert not (tmp_path / "s").exists()


def test_build_adds_to_a_data_space_that_exists(tmp_path):
    first = DataSpace.build(documents(9), tmp_path / "s", labels=None)
    again = DataSpace.build(documents(12), tmp_path / "s")
    assert len(first) == 9 and again.documents(again.rows) == documents(12)
    assert again.embedder.fingerprint == first.embedder.fingerprint
    with pytest.raises(EmbedderMismatchError, match="made by embedder lsa, not hashing"):
        DataSpace.build(documents(3), tmp_path / "s", HashingEmbedder())
    with pytest.raises(EmbedderMismatchError, match="made by embedder lsa, not st:x"):
        DataSpace.open(tmp_path / "s", "st:x")
    with pytest.raises(SpaceError, match="has labels None, not Labels"):
        DataSpace.build(documents(3), tmp_path / "s", labels=Labels(field="who"))
    with pytest.raises(ValueError, match="path is 'ray:h:1/s': expected a folder"):
        DataSpace.build(documents(3), "ray:h:1/s")


def test_texts_in_python_are_chunked_and_read_by_a_field_as_those_of_a_source(tmp_path):
    records = [{"id": "x", "body": "one two three"}, {"id": "y", "body": "four"}]
    space = DataSpace.build(records, tmp_path / "s", text_field="body", chunks="tokens:2")
    assert dict(zip(space.ids, space.texts(space.rows), strict=True)) == {
        "x#0": "one two ", "x#1": "three", "y#0": "four"
    }  # fmt: skip
    more = space.add(["five six seven"], chunks="tokens:2")
    assert more.ids == ["x#0", "x#1", "y#0", "3#0", "3#1"]


def test_documents_with_a_resume_key_are_told_apart_by_how_they_are_read(tmp_path):
    first = DataSpace.build(documents(3), tmp_path / "s", HashingEmbedder(), resume_key="mine")
    assert first.manifest.source == "mine"
    other = DataSpace.build(
        ["a b"], tmp_path / "t", HashingEmbedder(), resume_key="k", chunks="tokens:1"
    )
    assert other.manifest.source == "k in tokens:1"
