"""The store on disk: damaged files, several processes, labels and the Faiss index."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder
from support.store_conformance import D, disk_writer, table, units

from whet.data.documents import Document
from whet.data.filters import Compare, In
from whet.errors import EmbedderMismatchError, SpaceError
from whet.space.maintenance.inspection import verify
from whet.space.space import DataSpace
from whet.space.store.manifest import Labels, Manifest, manifest_checksum, read_manifest
from whet.space.store.reader import DiskReader
from whet.space.store.segments import ann_index
from whet.space.store.writer import DiskWriter

try:
    import fcntl
except ImportError:
    fcntl = None
sees_readers = pytest.mark.skipif(
    fcntl is None and sys.platform != "win32",
    reason="without fcntl, compaction does not see readers: docs/platforms.md",
)
PREAMBLE = """
import os, sys
from pathlib import Path
from support.store_conformance import disk_writer, table, units
from whet.errors import SpaceError
from whet.space.store.reader import DiskReader
"""
FILES = ["vectors.npy", "ids.npy", "rows.arrow", "columns.arrow", "names.npy", "index.faiss",
         "segment.json"]  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ann_index, "MIN_ROWS", 400)  # else 50,000 rows in every test


@pytest.fixture
def path(tmp_path, small):
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(1000), units(1000))
        writer.add(table(30, 1000), units(30, 1))
    return tmp_path / "s"


def files(path):
    return {f: f.read_bytes() for f in (path / "segments").rglob("*") if f.is_file()}


def python(code, *arguments):
    command = [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_candidates_of_an_index_are_scored_by_their_stored_vectors(path):
    reader, query = DiskReader.open(path), units(8, 9)
    exact = reader.search(query, 20, exact=True)
    found = reader.search(query, 20, probe_fraction=0.7)
    assert exact.exact and not found.exact
    shared = [len(np.intersect1d(a, b)) for a, b in zip(exact.ids, found.ids, strict=True)]
    assert np.mean(shared) > 17
    for line in range(8):
        own = found[line]
        np.testing.assert_array_equal(own.vectors, reader.vectors(own.rows).astype(np.float32))
        both = np.isin(exact[line].rows, own.rows)
        np.testing.assert_array_equal(  # measured, not as the 8 bits of the index have it
            exact[line].scores[both], own.scores[np.isin(own.rows, exact[line].rows)]
        )
    whole = reader.search(query, 20, probe_fraction=1.0)
    np.testing.assert_array_equal(whole.ids, exact.ids)


def test_larger_probe_fractions_have_higher_recall(path):
    reader, query = DiskReader.open(path), units(40, 5)
    exact = reader.search(query, 5, exact=True).ids
    found = [reader.search(query, 5, probe_fraction=e).ids for e in (0.05, 0.3, 1.0)]
    recalls = [np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, f, strict=True)]) / 5
               for f in found]  # fmt: skip
    assert recalls[0] < recalls[1] <= recalls[2] == 1.0


def test_recall_is_measured_when_the_index_is_built(path):
    [large, little] = DiskReader.open(path).segments
    assert little.index_stats is None
    assert (
        large.index_stats.recall >= ann_index.TARGET_RECALL
        and 0 < large.index_stats.probe_fraction <= 1
    )
    assert list(np.sort(large.index_stats.efforts)) == large.index_stats.efforts


@pytest.mark.parametrize("few", [True, False])
def test_filtered_searches_of_an_index_find_only_passing_rows(path, few):
    where = In("i", (3, 7, 11)) if few else Compare("i", "<", 900)
    found = DiskReader.open(path).search(units(4, 9), 10, where=where, probe_fraction=0.5)
    passing = {3, 7, 11} if few else set(range(900))
    assert set(found.ids.ravel().tolist()) <= passing | {-1}
    assert found.exact or not few
    deleted = disk_writer(path)
    deleted.delete(where=Compare("third", "==", True))
    found = deleted.snapshot().search(units(4, 9), 10, probe_fraction=0.5)
    assert (found.ids % 3 != 0).all()
    deleted.close()


def test_indexes_fitted_on_hidden_rows_are_not_used(path):
    reader = DiskReader.open(path)
    assert not reader.search(units(1), 5, probe_fraction=0.5).exact
    assert reader.filter(Compare("i", "==", 5)).search(units(1), 1).exact
    assert reader.filter(Compare("i", "<", 999)).search(units(1), 5, probe_fraction=0.5).exact
    assert not reader.filter(Compare("i", "<", 2000)).search(units(1), 5, probe_fraction=0.5).exact
    with disk_writer(path) as writer:  # the index was fitted on the deleted row too
        writer.delete(where=Compare("i", "==", 999))
    reader = DiskReader.open(path).filter(Compare("i", "<", 999))
    assert reader.search(units(1), 5, probe_fraction=0.5).exact


def test_indexes_contain_rows_of_one_label(tmp_path, small):
    new = Manifest(embedder="test", fingerprint="test", dimension=D, labels=Labels(field="set"))
    with DiskWriter(tmp_path / "s", new=new) as writer:
        rows = table(1500).to_pylist()
        for row, i in zip(rows, range(1500), strict=True):
            row["meta"] = json.dumps({"i": i, "set": "public" if i % 3 else f"user {i % 9}"})
        writer.add(table(0).from_pylist(rows, schema=table(0).schema), units(1500))
        writer.delete(where=Compare("i", "==", 1))
        writer.compact()
        reader = writer.snapshot()
    assert reader.count() == 1499 and (np.diff(reader.ids()) > 0).all()
    kinds = [(s.index_stats is not None, s.count) for s in reader.segments]
    assert sorted(kinds) == [(False, 500), (True, 999)]
    own = reader.filter(Compare("set", "==", "public"))
    assert not own.search(units(1), 5, probe_fraction=0.5).exact and own.count() == 999


def test_written_files_never_change(path):
    before = files(path)
    with disk_writer(path) as writer:
        writer.add(table(500, 2000), units(500, 3))
        writer.delete(where=Compare("i", "<", 10))
    after = files(path)
    assert all(after[file] == content for file, content in before.items())
    assert len(after) == 7 + 6 + 7


def test_indexes_are_memory_mapped(path):
    reader = DiskReader.open(path)
    reader.search(units(1), 5, probe_fraction=0.5)
    assert "index.faiss" in Path("/proc/self/maps").read_text()


def test_the_thread_count_of_faiss_is_restored(path):
    import faiss

    before = faiss.omp_get_max_threads()
    DiskReader.open(path).search(units(1), 5, probe_fraction=0.5)
    assert faiss.omp_get_max_threads() == before


@sees_readers
def test_readers_survive_compaction_which_then_frees_the_disk(path):
    reader = DiskReader.open(path)
    found, old = reader.search(units(3, 9), 40), set(os.listdir(path / "segments"))
    with disk_writer(path) as writer:
        writer.delete(where=Compare("i", "<", 500))
        writer.compact()
        assert old < set(os.listdir(path / "segments"))
        np.testing.assert_array_equal(reader.search(units(3, 9), 40).ids, found.ids)
        assert reader.rows([0, 1029])["id"].to_pylist() == ["d0", "d1029"]
        reader.search(units(1), 5, probe_fraction=0.5)  # the index is opened only now
        reader.close()
        writer.compact()
        assert set(os.listdir(path / "segments")) == set(writer.manifest.segments)
        assert not writer.manifest.deleted and writer.snapshot().ids()[0] == 500


READER = """
reader = DiskReader.open(sys.argv[1])
print(reader.version, flush=True)
input()
found = reader.search(units(1), 5, probe_fraction=0.5)
print(reader.count(), len(reader.rows(reader.ids())), found.ids[0])
"""


@sees_readers
def test_other_processes_read_during_compaction(path):
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + READER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout.readline().strip() == "2"
    with disk_writer(path) as writer:
        writer.delete(where=Compare("i", ">=", 100))
        writer.compact()
    out, _ = process.communicate("\n")
    assert process.returncode == 0 and out.startswith("1030 1030 ")


def test_forks_read_the_readers_of_their_parent(path):
    reader = DiskReader.open(path)
    truth = reader.search(units(2), 9, probe_fraction=0.5).ids
    child = os.fork()
    if child == 0:
        same = (reader.search(units(2), 9, probe_fraction=0.5).ids == truth).all()
        rows = reader.rows([5])["id"].to_pylist() == ["d5"]
        os._exit(0 if same and rows and reader.count(Compare("i", "<", 5)) == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_second_writer_is_refused(path):
    with disk_writer(path), pytest.raises(SpaceError, match="being written by another process"):
        disk_writer(path)
    with disk_writer(path) as writer:
        writer.add(table(1, 5000), units(1))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_broken_files_are_named_and_the_rest_is_usable(path, name, damage):
    file = path / "segments" / read_manifest(path).segments[0] / name
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    else:
        flipped = bytearray(file.read_bytes())
        flipped[len(flipped) // 3] ^= 0x10
        file.write_bytes(flipped)
    found = verify(path)
    assert len(found) == 1 and name in found[0] and "\n" not in found[0]
    if damage == "flipped" and name != "segment.json":
        return  # seen by `verify`, which reads everything
    with pytest.raises(SpaceError, match=name):
        DiskReader.open(path)
    rest = DiskReader.open(path, partial=True)
    assert rest.count() == 30 and name in rest.errors[0]
    found = rest.search(units(1), 5)
    assert not found.exact and (found.shards_ok, found.shards) == (1, 2)


def test_a_damaged_index_header_is_refused_before_it_is_parsed(path):
    file = path / "segments" / read_manifest(path).segments[0] / "index.faiss"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(SpaceError, match="index.faiss is broken: its head"):
        DiskReader.open(path).search(units(1), 5, probe_fraction=0.5)


def changed(path, **values):
    meta = path / "meta.json"
    values = {**json.loads(meta.read_text()), **values}
    meta.write_text(json.dumps({**values, "crc32": manifest_checksum(values)}))


DAMAGE = [
    (lambda path: (path / "meta.json").unlink(), "is not a data space: it holds no meta.json"),
    (lambda path: (path / "meta.json").write_text("{"), "meta.json is broken"),
    (lambda path: (path / "meta.json").write_text("[]"), "meta.json is broken"),
    (
        lambda path: changed(path, format=3),
        "has format 3, but this version of whet reads 2: upgrade whet",
    ),
    (
        lambda path: changed(path, format=1),
        "has format 1, but this version of whet reads 2: rebuild it",
    ),
    (lambda path: changed(path, next="x"), "is broken: next is missing"),
    (lambda path: changed(path, segments=["none"]), "none/segment.json is missing"),
    (lambda path: changed(path, deleted="no.npy"), "no.npy is missing"),
    (lambda path: changed(path, labels=5), "labels are 5"),
]


@pytest.mark.parametrize("damage, message", DAMAGE)
def test_broken_manifests_are_refused_in_one_line(path, damage, message):
    damage(path)
    with pytest.raises(SpaceError, match=message) as caught:
        DiskReader.open(path)
    assert "\n" not in str(caught.value)


def test_other_embedders_are_refused(path):
    with pytest.raises(
        EmbedderMismatchError, match="was made by embedder test with fingerprint 'test'"
    ):
        DiskReader.open(path, fingerprint="other")


FULL = """
import resource
writer = disk_writer(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    writer.add(table(3000, 5000), units(3000))
except SpaceError as error:
    assert "cannot be written (File too large): nothing was changed" in str(error), error
else:
    raise AssertionError("written")
assert writer.snapshot().count() == 1030
"""


def test_a_full_disk_changes_nothing(path):
    pytest.importorskip("resource")
    before = files(path)
    _, complaint = (writer := python(FULL, path)).communicate()
    assert writer.returncode == 0, complaint
    assert files(path) == before and DiskReader.open(path).version == 2


READ_ONLY = """
path = Path(sys.argv[1])
DiskReader.open(path).search(units(1), 5)  # imports what the other may not be able to read
os.setuid(65534)
assert DiskReader.open(path).search(units(1), 5).ids.shape == (1, 5)
try:
    with disk_writer(path) as writer:
        writer.add(table(1, 5000), units(1))
except SpaceError as error:
    assert "cannot be written (Permission denied): nothing was changed" in str(error), error
else:
    raise AssertionError("written")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_read_only_folders_can_be_read(path, tmp_path_factory):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(path, Path(folder) / "s")
        _, complaint = (writer := python(READ_ONLY, Path(folder) / "s")).communicate()
    assert writer.returncode == 0, complaint


def test_file_times_are_ignored(path):
    os.utime(path / "meta.json", (0, 0))  # as if written long after what is written next
    with disk_writer(path) as writer:
        assert writer.add(table(1, 7000), units(1)) == 3
        for file in (path / "segments").rglob("*"):
            os.utime(file, (2**31, 2**31))
        assert writer.delete(ids=[0]) == 4
    assert DiskReader.open(path).count() == 1030


def test_vectors_that_are_not_normalized_keep_their_length(tmp_path):
    class Long(HashingEmbedder):
        normalized = False

        def encode(self, texts):
            return super().encode(texts) * np.float32([[len(text)] for text in texts])

    texts = ["red fox", "red fox red fox red fox", "blue whale"]
    space = DataSpace.build([Document(t, t, {}) for t in texts], tmp_path / "s", Long())
    lengths = np.linalg.norm(space.vectors(space.rows), axis=1)
    np.testing.assert_allclose(lengths, [len(text) for text in texts], rtol=1e-3)
    [near] = space.search(Long().encode(["red fox"]), 2)
    assert near.rows.tolist() == [0, 1] and near.scores == pytest.approx([1, 1], abs=1e-3)
