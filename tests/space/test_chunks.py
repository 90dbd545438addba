"""Long texts are cut into passages, by one rule for all of a data space."""

import json

import pytest
from support.hashing_embedder import HashingEmbedder
from support.old_spaces import as_older_version

from whet.errors import SpaceError
from whet.space.long_texts import count_long_texts
from whet.space.space import DataSpace

LONG = {"id": "long", "text": "Bees dance. " * 150, "year": 1946}
SHORT = {"id": "short", "text": "Ants walk."}


class ReadsTen(HashingEmbedder):
    """An embedder that reads ten words of a text."""

    max_tokens = 10

    def count_truncated(self, texts):
        return sum(len(text.split()) > 10 for text in texts)


def test_by_default_long_texts_become_passages_and_short_ones_stay(tmp_path):
    space = DataSpace.build([LONG, SHORT], tmp_path / "s")
    assert space.ids == ["long#0", "long#1", "short"]
    first, second, _ = space.documents(space.rows)
    assert first.text + second.text == LONG["text"]
    assert second.meta == {"year": 1946, "parent": "long", "span": [len(first.text), 1800]}
    assert space.manifest.chunks == "passages:300"
    assert not str(count_long_texts(space))


def test_passages_are_no_longer_than_the_embedder_reads(tmp_path):
    space = DataSpace.build([LONG, SHORT], tmp_path / "s", ReadsTen())
    assert space.manifest.chunks == "passages:6"
    assert not str(count_long_texts(space))
    whole = DataSpace.build([LONG, SHORT], tmp_path / "w", ReadsTen(), chunks="whole")
    assert "hashing reads only the beginning of 1 of its 2 (50 %) texts; for passages" in str(
        count_long_texts(whole)
    )


def test_what_is_added_is_cut_by_the_rule_of_the_data_space(tmp_path):
    space = DataSpace.build([SHORT], tmp_path / "s", chunks="tokens:200")
    assert space.add([LONG]).ids == ["short#0", "long#0", "long#1", "long#2"]
    with pytest.raises(SpaceError, match="cut by chunks tokens:200, not whole: add to it without"):
        space.add([LONG], chunks="whole")
    with pytest.raises(SpaceError, match="not passages:300"):
        DataSpace.build([LONG], space.path, chunks="passages:300")


@pytest.mark.parametrize("chunks", ["whole", "paragraph:900"])
def test_a_data_space_of_an_older_version_keeps_its_rule(tmp_path, chunks):
    source, path = tmp_path / "a.jsonl", tmp_path / "s"
    source.write_text(json.dumps(LONG))
    as_older_version(DataSpace.build(source, path, chunks=chunks).path)
    with source.open("a") as file:
        file.write("\n" + json.dumps(LONG | {"id": "more"}))
    assert not DataSpace.open(path).manifest.chunks
    opened = DataSpace.build(source, path)
    assert len(opened) == (2 if chunks == "whole" else 4)
    assert opened.manifest.chunks == chunks


class Model:
    """A model whose tokens are words."""

    name, max_length = "words", 100

    def encode(self, text, *, device=None):
        return text.split()


def test_texts_that_a_model_trains_on_in_several_steps_are_counted(tmp_path):
    space = DataSpace.build([LONG, SHORT, LONG | {"id": "b"}], tmp_path / "s", chunks="whole")
    line = str(count_long_texts(space, Model()))
    assert "2 of its 3 (67 %) texts have more than the 100 tokens that words trains on" in line
    assert "index the source again" in line
    passages = DataSpace.build([LONG | {"text": "it. " * 500}], tmp_path / "p")
    assert count_long_texts(passages, Model()).by_model
    assert not str(count_long_texts(passages, Model()))
