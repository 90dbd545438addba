"""Flipped bits in every file of a data space, spaces of older versions, and shared folders."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder
from support.store_conformance import disk_writer, table, units

from whet.data.documents import Document
from whet.data.filters import Compare
from whet.errors import SpaceError
from whet.space.maintenance import inspection
from whet.space.space import DataSpace
from whet.space.store.manifest import manifest_checksum, read_manifest
from whet.space.store.reader import DiskReader
from whet.space.store.writer import DiskWriter

GOLDEN = Path(__file__).parents[2] / "golden" / "space"
TEXTS = ["bees dance", "honey keeps", "wax melts", "rivers run", "stones stay"] * 4


@pytest.fixture(scope="module")
def lsa_space(tmp_path_factory):
    path = tmp_path_factory.mktemp("lsa") / "s"
    (path.parent / "a.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(TEXTS))
        + '{"no text": 1}\n'
    )
    space = DataSpace.build(path.parent / "a.jsonl", path)
    space.delete(ids=["d3"])
    return path


def flip(file, at, bit):
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def contents(path):
    space = DataSpace.open(path)
    documents = space.documents(space.rows)
    near = space.search(space.embedder.encode(["bees dance", "stones"]), 5)
    recent = DataSpace.open(path, where='id == "d4"').ids
    found = space.store.find(["d4", "d3", "none"]).tolist()
    return documents, [n.scores.tolist() for n in near], recent, found


def outcome(path, expected):
    """What a child process that reads everything ends with."""
    child = os.fork()
    if child == 0:
        code = 3
        with contextlib.suppress(BaseException):
            try:
                code = 0 if contents(path) == expected else 1
            except SpaceError:
                code = 0
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def test_a_flipped_bit_is_reported_or_changes_nothing(lsa_space, tmp_path):
    expected, rng = contents(lsa_space), random.Random(0)
    files = [f.relative_to(lsa_space) for f in lsa_space.rglob("*") if f.is_file()]
    assert len(files) == 13
    for name in files:
        for _ in range(4):
            shutil.copytree(lsa_space, tmp_path / "s")
            size = (tmp_path / "s" / name).stat().st_size
            at, bit = rng.randrange(size), rng.randrange(8)
            flip(tmp_path / "s" / name, at, bit)
            assert outcome(tmp_path / "s", expected) == 0, (name, at, bit)
            try:
                messages = inspection.verify(tmp_path / "s")
            except SpaceError as error:
                messages = [str(error)]
            if name.name not in ("meta.json", "segment.json"):  # their white space may change
                assert any(str(name) in message for message in messages), (name, at, bit)
            shutil.rmtree(tmp_path / "s")


@pytest.mark.parametrize("name", ["embedder/terms.json", "embedder/weights.npy", "failed.jsonl"])
def test_missing_files_are_reported(lsa_space, tmp_path, name):
    shutil.copytree(lsa_space, tmp_path / "s")
    (tmp_path / "s" / name).unlink()
    assert any(name in message for message in inspection.verify(tmp_path / "s"))


def test_files_replaced_by_folders_are_reported(lsa_space, tmp_path):
    files = [f.relative_to(lsa_space) for f in lsa_space.rglob("*") if f.is_file()]
    for name in files:
        shutil.copytree(lsa_space, tmp_path / "s")
        (tmp_path / "s" / name).unlink()
        (tmp_path / "s" / name).mkdir()
        with pytest.raises(SpaceError, match=str(name.name)):
            raise SpaceError(inspection.verify(tmp_path / "s")[0])  # or verify itself raises it
        with contextlib.suppress(SpaceError):
            contents(tmp_path / "s")
        shutil.rmtree(tmp_path / "s")


def test_a_file_of_failures_that_nobody_wrote_is_reported(tmp_path):
    DataSpace.build(["bees", "wax"], tmp_path / "s", HashingEmbedder())
    (tmp_path / "s" / "failed.jsonl").write_bytes(b"\0\xff")
    assert "failed.jsonl is broken" in inspection.verify(tmp_path / "s")[0]


def test_lines_of_failures_after_the_manifest_are_not_damage(lsa_space, tmp_path):
    shutil.copytree(lsa_space, tmp_path / "s")
    with (tmp_path / "s" / "failed.jsonl").open("a") as file:
        file.write('{"reason": "of an addition that was killed"}\n')
    assert inspection.verify(tmp_path / "s") == []


@pytest.mark.parametrize(
    "name, value",
    [("next", 52), ("deleted", ""), ("segments", []), ("version", 9), ("id", ""), ("crc32", 1)],
)
def test_a_changed_manifest_is_refused(lsa_space, tmp_path, name, value):
    shutil.copytree(lsa_space, tmp_path / "s")
    file = tmp_path / "s" / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(SpaceError, match="meta.json is broken"):
        DiskReader.open(tmp_path / "s")
    with pytest.raises(SpaceError, match="meta.json is broken"):
        DiskWriter(tmp_path / "s")


@pytest.mark.parametrize("segments", [["../s"], ["a", "a"], [""], [5], [".."]])
def test_manifests_cannot_name_folders_elsewhere(lsa_space, tmp_path, segments):
    shutil.copytree(lsa_space, tmp_path / "s")
    file = tmp_path / "s" / "meta.json"
    values = json.loads(file.read_text()) | {"segments": segments}
    file.write_text(json.dumps(values | {"crc32": manifest_checksum(values)}))
    with pytest.raises(SpaceError, match="meta.json is broken"):
        DiskReader.open(tmp_path / "s")


def test_older_spaces_open_and_get_checksums_when_written(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "s")
    assert "crc32" not in json.loads((tmp_path / "s" / "meta.json").read_text())
    before = DataSpace.open(tmp_path / "s")
    assert inspection.verify(tmp_path / "s") == []
    name = read_manifest(tmp_path / "s").segments[0]
    flip(tmp_path / "s" / "segments" / name / "rows.arrow", 900, 3)
    with pytest.raises(SpaceError, match="rows.arrow is broken"):
        DataSpace.open(tmp_path / "s").texts(before.rows)
    flip(tmp_path / "s" / "segments" / name / "rows.arrow", 900, 3)
    before.delete(ids=before.ids[:1])
    manifest = read_manifest(tmp_path / "s")
    assert {"embedder/terms.json", f"segments/{name}/segment.json", manifest.deleted} <= set(
        manifest.files
    )
    with DiskWriter(tmp_path / "s") as writer:
        writer.compact()
        assert len(os.listdir(tmp_path / "s" / "segments")) <= 2
    before.store.close()
    with DiskWriter(tmp_path / "s") as writer:
        assert os.listdir(tmp_path / "s" / "segments") == writer.manifest.segments
    assert inspection.verify(tmp_path / "s") == []


MANY = """
import os, sys
from pathlib import Path
from support.store_conformance import disk_writer, table, units
from whet.space.store.reader import DiskReader
path = Path(sys.argv[1])
for n in range(100):
    with disk_writer(path) as writer:
        writer.add(table(1, n), units(1, n))
        if n % 25 == 7:
            writer.delete(ids=[n - 1])
readers = [DiskReader.open(path) for _ in range(5)]
assert len(os.listdir("/proc/self/fd")) < 100 and len(readers[0].segments) < 32
rows = readers[0].rows(readers[0].ids())["id"].to_pylist()
assert rows == [f"d{n}" for n in range(100) if (n + 1) % 25 != 7], rows
with disk_writer(path) as writer:
    writer.compact()
assert len(DiskReader.open(path).segments) == 1
"""


def run(code, *arguments, limit=256):
    command = f"ulimit -n {limit}; exec {sys.executable} -c '{code}' " + " ".join(
        map(str, arguments)
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)


def test_many_additions_need_few_open_files(tmp_path):
    done = run(MANY, tmp_path / "s", limit=128)
    assert done.returncode == 0, done.stderr


def test_many_unmerged_segments_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("whet.space.store.writer.MERGED", 10**6)  # as older versions wrote them
    with disk_writer(tmp_path / "s") as writer:
        for n in range(70):
            writer.add(table(1, n), units(1, n))
    code = (
        "import sys; from whet.space.store.reader import DiskReader;"
        "r = DiskReader.open(sys.argv[1]); assert len(r.segments) == r.count() == 70;"
        "r.rows(r.ids()); r.find(list(map(str, range(9))))"
    )
    done = run(code, tmp_path / "s", limit=48)
    assert done.returncode == 0, done.stderr


def test_segments_that_are_not_locked_stay_readable(tmp_path):
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(40), units(40))
    manifest = read_manifest(tmp_path / "s")
    from whet.space.store.segments.segment import Segment

    segment = Segment(tmp_path / "s" / "segments" / manifest.segments[0], locked=False)
    shutil.rmtree(tmp_path / "s")
    assert segment.ids.tolist() == list(range(40))
    assert segment.records.take(np.array([39]))["id"].to_pylist() == ["d39"]
    assert segment.vectors.gather(np.array([3])).shape == (1, 8)
    assert segment.metadata.compare("i", "<", (5,)).sum() == 5
    assert len(segment.id_index.text_hashes()) == 40


def test_linked_folders_are_read_but_not_written(tmp_path):
    for name in ("documents", "00000001-00000"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "thesis.txt").write_text("x")
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(9), units(9))
        name = writer.manifest.segments[0]
    shutil.move(tmp_path / "s" / "segments" / name, tmp_path / "home" / name)
    (tmp_path / "s" / "segments").rmdir()
    (tmp_path / "s" / "segments").symlink_to(tmp_path / "home")
    with pytest.raises(SpaceError, match="segments is a symbolic link"):
        disk_writer(tmp_path / "s")
    assert DiskReader.open(tmp_path / "s").count() == 9
    assert len(list((tmp_path / "home").rglob("thesis.txt"))) == 2


def test_folders_of_others_are_not_removed(tmp_path):
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(9), units(9))
        own = f"00000009-00000-{writer.manifest.id}"
    names = ["00000009-00000", "00000009-00000-0badcafe", "photos", own]
    for name in names:
        (tmp_path / "s" / "segments" / name).mkdir()
        (tmp_path / "s" / "segments" / name / "photo.jpg").write_text("x")
    (tmp_path / "s" / "notes.new").write_text("x")
    (tmp_path / "s" / "deleted-letters").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    with disk_writer(tmp_path / "s") as writer:
        writer.delete(where=Compare("i", "<", 4))
        writer.compact()
    left = set(os.listdir(tmp_path / "s" / "segments"))
    assert left == {*names[:3], *read_manifest(tmp_path / "s").segments}
    assert (tmp_path / "s" / "notes.new").exists() and (tmp_path / "s" / "deleted-letters").exists()


def test_segments_of_another_space_are_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        with disk_writer(tmp_path / name) as writer:
            writer.add(table(9), units(9, seed))
    [a], [b] = (list((tmp_path / name / "segments").iterdir()) for name in "ab")
    shutil.rmtree(a)
    shutil.copytree(b, a)
    with pytest.raises(SpaceError, match=r"segment.json is broken"):
        DiskReader.open(tmp_path / "a")


def test_a_fork_does_not_keep_the_lock_of_a_writer(tmp_path):
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(9), units(9))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                writer.delete(ids=[0])
                os.write(write, b"written")
            except SpaceError as error:
                os.write(write, str(error).encode())
            signal.pause()
        assert b"was not inherited by this fork" in os.read(read, 200)
    with disk_writer(tmp_path / "s") as writer:
        writer.delete(ids=[1])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_process_that_inherits_files_does_not_keep_the_lock(tmp_path):
    before = {int(fd) for fd in os.listdir("/proc/self/fd")}
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(9), units(9))
        new = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) not in before]
        files = [fd for fd in new if os.path.exists(f"/proc/self/fd/{fd}")]
        child = subprocess.Popen(["sleep", "60"], pass_fds=files)
    with disk_writer(tmp_path / "s") as writer:
        writer.delete(ids=[1])
    child.kill()
    child.wait()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EBADF])
def test_file_systems_without_locks_can_be_read(tmp_path, monkeypatch, code):
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(9), units(9))

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    assert DiskReader.open(tmp_path / "s").rows([3])["id"].to_pylist() == ["d3"]
    with pytest.raises(SpaceError, match=r"/s cannot be locked for writing .* has no file locks"):
        disk_writer(tmp_path / "s")


def test_reading_needs_no_fcntl(lsa_space):
    code = (
        "import sys; sys.modules['fcntl'] = None; import whet;"
        f"space = whet.DataSpace.open({str(lsa_space)!r}); assert len(space) == 19;"
        "assert space.texts([0]) == ['bees dance']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


KILL = """
import os, signal, sys
from whet.space.store import writer
from whet.space.space import DataSpace
from support.hashing_embedder import HashingEmbedder
is_committed, kills = writer.is_committed, sys.argv[3]
def kill(*arguments):
    if is_committed(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    return False
writer.is_committed = kill
DataSpace.build(sys.argv[1], sys.argv[2], "lsa" if kills == "lsa" else HashingEmbedder())
"""


@pytest.mark.parametrize("embedder", ["lsa", "hashing"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("older", [False, True])
def test_killed_before_the_clean_up_nothing_is_added_twice(tmp_path, embedder, first, older):
    used = "lsa" if embedder == "lsa" else HashingEmbedder()
    for name, start in (("a", 0), ("b", 50)):
        lines = [
            json.dumps({"id": f"d{i}", "text": f"{TEXTS[i % 5]} {i}"})
            for i in range(start, start + 50)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    if not first:
        DataSpace.build(tmp_path / "a.jsonl", tmp_path / "s", used)
    source = tmp_path / ("a.jsonl" if first else "b.jsonl")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILL, str(source), str(tmp_path / "s"), embedder]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    plan = tmp_path / "s" / "staging" / "plan.json"
    assert plan.exists() and not inspection.describe(tmp_path / "s")["unfinished"]
    if older:  # plans of older versions have no name
        values = json.loads(plan.read_text())
        plan.write_text(json.dumps({k: values[k] for k in ("source", "embedder", "fingerprint")}))
    space = DataSpace.build(source, tmp_path / "s", used)
    count = 50 if first else 100
    assert sorted(space.ids) == sorted(f"d{i}" for i in range(count))
    assert not (tmp_path / "s" / "staging").exists()
    assert len(DataSpace.build(source, tmp_path / "s", used)) == count


def test_a_partly_removed_staging_folder_is_read_again(tmp_path):
    for name, start in (("a", 0), ("b", 50)):
        lines = [json.dumps({"id": f"d{i}", "text": f"text {i}"}) for i in range(start, start + 50)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    DataSpace.build(tmp_path / "a.jsonl", tmp_path / "s", HashingEmbedder())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        "-c",
        KILL,
        *map(str, (tmp_path / "b.jsonl", tmp_path / "s", "hashing")),
    ]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    for missing in sorted(os.listdir(tmp_path / "s" / "staging")):
        shutil.copytree(tmp_path / "s", tmp_path / missing)
        plan = tmp_path / missing / "staging" / "plan.json"
        values = json.loads(plan.read_text())
        plan.write_text(json.dumps({k: values[k] for k in ("source", "embedder", "fingerprint")}))
        (tmp_path / missing / "staging" / missing).unlink()
        space = DataSpace.build(tmp_path / "b.jsonl", tmp_path / missing, HashingEmbedder())
        assert sorted(space.ids) == sorted(f"d{i}" for i in range(100)), missing


INTERRUPTED = """
import sys
from whet.space import build
from whet.space.space import DataSpace
build.PART_DOCUMENTS = 8
def stop(*_, **changes):
    raise KeyboardInterrupt
build.DiskWriter.adopt = stop
try:
    DataSpace.build(sys.argv[1], sys.argv[2])
except KeyboardInterrupt:
    pass
"""


def test_a_damaged_file_of_an_unfinished_addition_is_noticed(tmp_path):
    lines = [json.dumps({"id": f"d{i}", "text": t}) for i, t in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"no text": 1}']))
    code = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "a.jsonl"), str(tmp_path / "s")]
    subprocess.run(code, check=True)
    staging = tmp_path / "s" / "staging"
    files = [f.relative_to(staging.parent) for f in staging.parent.rglob("*") if f.is_file()]
    assert {f.name for f in files} > {"terms.json", "0000001.arrow", "0000002.npy", "segment.json"}
    rng = random.Random(0)
    for name in files:
        copy = tmp_path / "copies" / name.as_posix().replace("/", "-")
        shutil.copytree(tmp_path / "s", copy)
        flip(copy / name, rng.randrange((copy / name).stat().st_size), rng.randrange(8))
        space = DataSpace.build(tmp_path / "a.jsonl", copy)  # resumes, or reads the documents again
        assert space.texts(space.rows) == TEXTS and space.ids == [f"d{i}" for i in range(20)], name
        assert inspection.verify(copy) == [] and space.manifest.failed == 1
        expected = space.embedder.encode(TEXTS)
        np.testing.assert_allclose(space.vectors(space.rows), expected, atol=2e-3)


def test_a_part_that_is_damaged_while_it_is_staged_is_not_added(tmp_path):
    class Damaging(HashingEmbedder):
        def encode(self, texts):
            flip(tmp_path / "s" / "staging" / "0000000.arrow", 700, 0)
            return super().encode(texts)

    (tmp_path / "a.txt").write_text("bees dance " * 99)
    with pytest.raises(
        SpaceError, match="0000000.arrow is broken.* Nothing was added; run the same"
    ):
        DataSpace.build(tmp_path / "a.txt", tmp_path / "s", Damaging())
    space = DataSpace.build(tmp_path / "a.txt", tmp_path / "s", HashingEmbedder())
    assert space.texts([0]) == ["bees dance " * 99]


def test_documents_added_during_an_interrupted_addition_are_not_added_again(tmp_path):
    class Interrupted(HashingEmbedder):
        def encode(self, texts):
            raise KeyboardInterrupt

    lines = [json.dumps({"id": f"d{i}", "text": f"text {i}"}) for i in range(9)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    embedder = HashingEmbedder()
    DataSpace.build([Document("a", "text a", {})], tmp_path / "s", embedder)
    with pytest.raises(KeyboardInterrupt):
        DataSpace.build(tmp_path / "b.jsonl", tmp_path / "s", Interrupted())
    with DiskWriter(tmp_path / "s") as writer:
        writer.add(table(3), embedder.encode([f"text {i}" for i in range(3)]))
    space = DataSpace.build(tmp_path / "b.jsonl", tmp_path / "s", embedder)
    assert sorted(space.ids) == ["a", *(f"d{i}" for i in range(9))]
