"""Atomic writes, locks and disk errors."""

import errno
import subprocess
import sys

import pytest

from whet.errors import SpaceError
from whet.io import atomic_write, checksum, translate_disk_errors, write_json
from whet.locks import exclusive_lock


def test_atomic_write_replaces_a_file_or_nothing(tmp_path):
    path = tmp_path / "new" / "file"
    for content in ("one", "two"):
        with atomic_write(path) as temporary:
            temporary.write_text(content)
        assert path.read_text() == content
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("three")
        raise RuntimeError
    assert path.read_text() == "two" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_atomic_write_of_a_folder_removes_what_a_killed_writer_left(tmp_path):
    left = tmp_path / "folder.new"
    left.mkdir()
    (left / "old").touch()
    with atomic_write(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("x")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["file"] and not left.exists()


def test_failed_writes_leave_the_old_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert (tmp_path / "a.json").read_text() == '{\n "a": 1\n}'


def test_checksum_of_a_prefix(tmp_path):
    (tmp_path / "long").write_bytes(b"abcdef")
    (tmp_path / "short").write_bytes(b"abc")
    assert (
        checksum(tmp_path / "long", 3)
        == checksum(tmp_path / "short")
        != checksum(tmp_path / "long")
    )


def test_one_writer_at_a_time(tmp_path):
    with exclusive_lock(tmp_path):
        with pytest.raises(SpaceError, match="is being written by another process"):
            with exclusive_lock(tmp_path):
                raise AssertionError("both hold the lock")
    with exclusive_lock(tmp_path):
        pass


def test_disk_errors_name_the_path_and_others_pass(tmp_path):
    with pytest.raises(SpaceError, match="cannot be written .No space left on device.: nothing"):
        with translate_disk_errors(tmp_path):
            raise OSError(errno.ENOSPC, "full")
    with pytest.raises(FileNotFoundError), translate_disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "missing")


WITHOUT_UNIX = """
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys(["fcntl", "resource", "pwd", "grp", "termios"])
import whet
for module in pkgutil.walk_packages(whet.__path__, "whet."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from whet.evaluate.provenance import peak_mib
from whet.errors import SourceError, SpaceError
from whet.locks import exclusive_lock
path = sys.argv[1] + "/space"
try:
    whet.DataSpace.build([], path)
except SourceError:
    whet.DataSpace.build(["bees dance", "ants walk", "wasps sting"], path)
space = whet.DataSpace.open(path)
with exclusive_lock(space.path):
    try:
        space.add(["moths fly"])
    except SpaceError as error:
        print(error)
held = exclusive_lock(space.path)  # as by a killed process, below
space = space.add(["moths fly"]).delete(ids=["0"])
[found] = space.search(space.embedder.encode(["ants"]), k=1)
print(space.ids, space.texts(found.rows), peak_mib())
held.__enter__()
import os
os.kill(os.getpid(), 9)
"""


def test_without_modules_of_unix_everything_is_imported_and_spaces_are_written(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX, str(tmp_path)], capture_output=True, text=True
    )
    assert child.returncode == -9, child.stderr
    refused, answer = child.stdout.splitlines()
    assert "is being written by another process" in refused
    assert answer == "['1', '2', '3'] ['ants walk'] nan"
    again = WITHOUT_UNIX.partition("import whet")[0] + (
        "import whet; print(whet.DataSpace.open(sys.argv[1]).add(['flies buzz']).ids)"
    )
    child = subprocess.run(
        [sys.executable, "-c", again, str(tmp_path / "space")], capture_output=True, text=True
    )
    assert child.stdout == "['1', '2', '3', '4']\n", child.stderr


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = (
        "import os, pathlib, sys; from whet.locks import exclusive_lock;"
        "exclusive_lock(pathlib.Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    )
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert child.returncode == -9
    with exclusive_lock(tmp_path):
        assert not list(tmp_path.iterdir())
