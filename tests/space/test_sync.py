"""A data space is kept in step with its folders and files, and other documents stay."""

import json
import os

import pytest
from support.hashing_embedder import HashingEmbedder
from support.old_spaces import as_older_version

from whet.errors import SourceError, SpaceError
from whet.space.maintenance.inspection import verify
from whet.space.space import DataSpace
from whet.space.store.writer import DiskWriter

FILES = {"bees.md": "Bees dance.", "ants.md": "Ants walk.", "long/wasps.md": "Wasps sting. " * 200}


class Broken(HashingEmbedder):
    def encode(self, texts):
        raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "src", FILES)
    return tmp_path / "src"


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def build(source, **options):
    return DataSpace.build(source, source.parent / "s", HashingEmbedder(), **options)


def files(space):
    return tuple(space.changes.record()["files"].values())


def texts(space):
    return {document.id: document.text for document in space.documents(space.rows)}


def test_changed_files_replace_their_passages_and_vanished_ones_go(folder):
    space = build(folder)
    assert files(space) == (3, 0, 0, 0) and len(space) == 5
    write(folder, {"bees.md": "Bees fly.", "new.md": "Hornets hum."})
    (folder / "long/wasps.md").unlink()
    space = build(folder)
    assert texts(space) == {
        "bees.md": "Bees fly.",
        "ants.md": "Ants walk.",
        "new.md": "Hornets hum.",
    }
    assert files(space) == (1, 1, 1, 1)
    again = build(folder)
    assert files(again) == (0, 0, 0, 3) and again.manifest.version == space.manifest.version
    assert verify(space.path) == []


def test_a_change_of_the_same_size_and_time_is_seen(folder):
    build(folder)
    stat = (folder / "bees.md").stat()
    write(folder, {"bees.md": "Bees DANCE."})
    os.utime(folder / "bees.md", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert texts(build(folder))["bees.md"] == "Bees DANCE."


def test_documents_of_other_sources_stay(folder):
    build(folder)
    other = folder.parent / "other.jsonl"
    records = [{"id": "ants.md", "text": "Ants walk."}, {"id": "own", "text": "Honey keeps."}]
    other.write_text("".join(json.dumps(record) + "\n" for record in records))
    space = build(other)
    space.add([{"id": "by hand", "text": "Wax melts."}])
    (folder / "ants.md").unlink()
    assert texts(build(folder)).keys() >= {"own", "by hand", "bees.md"}
    assert "ants.md" in texts(build(other))  # the other source has it still
    other.write_text(json.dumps(records[1] | {"year": 2020}) + "\n")
    space = build(other)
    assert {d.id: d.meta for d in space.documents(space.rows)}["own"] == {"year": 2020}
    assert (
        "ants.md" not in texts(space) and "by hand" in texts(space) and space.changes.updated == 1
    )


def test_missing_files_can_be_kept(folder):
    build(folder)
    (folder / "ants.md").unlink()
    assert "ants.md" in texts(build(folder, keep_missing=True))
    assert "ants.md" not in texts(build(folder))


def test_a_data_space_in_its_own_folder_does_not_index_itself(folder):
    write(folder, {"killed.whet/staging/plan.json": "{}"})
    spaces = [DataSpace.build(folder, folder / "s.whet", HashingEmbedder()) for _ in range(2)]
    assert [set(texts(space)) == set(texts(build(folder))) for space in spaces] == [True, True]
    assert files(spaces[1]) == (0, 0, 0, 3)
    assert not (folder / "s.whet/failed.jsonl").exists()


def test_an_empty_folder_removes_nothing(folder):
    space = build(folder)
    folder.rename(folder.parent / "away")
    folder.mkdir()
    with pytest.raises(
        SourceError, match="holds no file that can be read, but the data space has 3"
    ):
        build(folder)
    assert len(DataSpace.open(space.path, HashingEmbedder())) == 5


def test_rows_and_records_survive_compaction(folder):
    build(folder)
    write(folder, {"bees.md": "Bees fly."})
    build(folder)
    with DiskWriter(folder.parent / "s") as writer:
        writer.compact()
    (folder / "bees.md").unlink()
    assert "bees.md" not in texts(build(folder))


def test_a_data_space_of_an_older_version_is_brought_in_step(folder):
    as_older_version(build(folder, chunks="whole").path)
    write(folder, {"bees.md": "Bees fly."})
    space = build(folder)
    assert texts(space)["bees.md"] == "Bees fly." and len(space) == 3 and not space.manifest.failed
    (folder / "ants.md").unlink()
    assert "ants.md" not in texts(build(folder))


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_run_is_finished_and_then_brought_up_to_date(folder, existing):
    if existing:
        build(folder)
        write(folder, {"bees.md": "Bees fly."})
    with pytest.raises(KeyboardInterrupt):
        DataSpace.build(folder, folder.parent / "s", Broken())
    write(folder, {"bees.md": "Bees sleep.", "new.md": "Hornets hum."})
    (folder / "ants.md").unlink()
    found = texts(build(folder))
    assert found["bees.md"] == "Bees sleep." and found.keys() >= {"new.md", "long/wasps.md#0"}
    assert "ants.md" not in found


def test_a_damaged_record_is_an_error_before_anything_is_removed(folder):
    space = build(folder)
    (space.path / space.manifest.sources).write_text("{}")
    with pytest.raises(SpaceError, match="sources-.* is broken"):
        build(folder)
    assert "sources-" in verify(space.path)[0]


def test_a_part_of_a_known_folder_is_brought_in_step_and_not_added_twice(folder):
    build(folder)
    target = folder.parent / "s"
    write(folder, {"bees.md": "Bees fly.", "long/new.md": "Hornets hum.", ".hidden/a.md": "Moths."})
    (folder / "long/wasps.md").unlink()

    def add(part):
        return DataSpace.build(folder / part, target, HashingEmbedder())

    part = add("long")
    assert files(part) == (1, 0, 1, 2)  # the changed file elsewhere stays as it was
    expected = {"bees.md": "Bees dance.", "ants.md": "Ants walk.", "long/new.md": "Hornets hum."}
    assert texts(part) == expected
    assert texts(add("bees.md")) == expected | {"bees.md": "Bees fly."}
    assert len(add("bees.md")) == 3 and files(build(folder)) == (0, 0, 0, 3)
    assert len(add(".hidden")) == 4  # what the folder leaves out is a source of its own
    (folder / "long/new.md").unlink()
    assert set(texts(add("long"))) == {"bees.md", "ants.md", "a.md"}
