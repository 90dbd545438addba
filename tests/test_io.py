"""Atomic writes, locks and disk errors."""

import errno
import subprocess
import sys

import pytest

from whet.errors import SpaceError
from whet.io import atomic_write, checksum, exclusive_lock, translate_disk_errors, write_json


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


WINDOWS = """
import pathlib, sys, tempfile, types, numpy
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_UNLCK, msvcrt.LK_NBLCK, msvcrt.locking = 0, 2, lambda *arguments: None
sys.platform, sys.modules["fcntl"], sys.modules["msvcrt"] = "win32", None, msvcrt
import whet.io
with tempfile.TemporaryDirectory() as folder:
    space = pathlib.Path(folder, "space")
    with whet.io.exclusive_lock(pathlib.Path(folder)):
        whet.io.write_json(space / "a.json", 1)
    assert (space / "a.json").read_text() == "1"
"""


def test_windows_needs_no_fcntl():
    subprocess.run([sys.executable, "-c", WINDOWS], check=True)
