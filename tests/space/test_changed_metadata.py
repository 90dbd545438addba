"""Known documents whose metadata changed take the new metadata, all at once."""

import json

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder

from whet.data.filters import Compare
from whet.space.space import DataSpace
from whet.space.store.manifest import Labels


def index(tmp_path, records, labels=None):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    return DataSpace.build(str(source), tmp_path / "s", HashingEmbedder(), labels=labels)


def test_a_changed_label_is_taken_and_counted(tmp_path):
    labels = Labels(field="label", public="public")
    records = [{"id": "a", "text": "bees dance", "label": "public", "year": 1},
               {"id": "b", "text": "honey keeps", "label": "public", "year": 1}]  # fmt: skip
    before = index(tmp_path, records, labels)
    records[0] |= {"label": "secret", "year": 2}
    space = index(tmp_path, records, labels)
    assert (before.changes.updated, space.changes.updated, len(space)) == (0, 1, 2)
    [document] = space.documents(space.store.find(["a"]))
    assert document.meta == {"label": "secret", "year": 2}
    assert space.filter(Compare("label", "==", "public")).ids == ["b"]
    assert space.store.find(["a"]).tolist() == [2] and not space.manifest.failed
    np.testing.assert_array_equal(space.vectors([2]), before.vectors([0]))
    assert index(tmp_path, records, labels).changes.updated == 0


@pytest.mark.parametrize(
    "old, new, updated",
    [
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, 0),
        ({"x": 1}, {"x": True}, 1),
        ({"x": 1}, {"x": 1.0}, 1),
        ({"x": 1}, {}, 1),
        ({}, {"x": None}, 1),
        ({"x": [1, 2]}, {"x": [2, 1]}, 1),
        ({"x": {"a": 1, "b": 2}}, {"x": {"b": 2, "a": 1}}, 0),
    ],
)
def test_metadata_compare_by_value_and_kind(tmp_path, old, new, updated):
    index(tmp_path, [{"id": "a", "text": "bees", "meta": old}])
    space = index(tmp_path, [{"id": "a", "text": "bees", "meta": new}])
    assert space.changes.updated == updated and len(space) == 1
    assert space.documents(space.rows)[0].meta == new


def test_one_id_with_different_metadata_in_a_source_is_reported(tmp_path):
    records = [{"id": "a", "text": "bees", "x": 1}, {"id": "a", "text": "bees", "x": 2}]
    space = index(tmp_path, records)
    assert space.documents([0])[0].meta == {"x": 1} and space.manifest.failed == 1
    assert "different texts or metadata" in (tmp_path / "s" / "failed.jsonl").read_text()


def test_another_text_with_other_metadata_changes_nothing(tmp_path):
    space = index(tmp_path, [{"id": "a", "text": "bees", "x": 1}])
    space = space.add([{"id": "a", "text": "wasps", "x": 2}])  # of another source than the file
    assert space.changes.updated == 0 and space.manifest.failed == 1
    assert space.documents([0])[0].meta == {"x": 1}


def test_an_interrupted_update_resumes(tmp_path):
    class Failing(HashingEmbedder):
        def encode(self, texts):
            raise OSError("interrupted")

    index(tmp_path, [{"id": "a", "text": "bees", "x": 1}])
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"id": "a", "text": "bees", "x": 2}) + "\n")
    with pytest.raises(Exception, match="interrupted"):
        DataSpace.build(str(source), tmp_path / "s", Failing())
    opened = DataSpace.open(tmp_path / "s", HashingEmbedder())
    assert opened.documents([0])[0].meta == {"x": 1}
    space = DataSpace.build(str(source), tmp_path / "s", HashingEmbedder())
    assert (
        space.changes.updated == 1 and space.documents([1])[0].meta == {"x": 2} and len(space) == 1
    )
