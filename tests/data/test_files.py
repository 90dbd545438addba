import os
import shutil
import subprocess

import pytest

from whet.data.documents import iter_documents, read_documents
from whet.data.files import iter_files
from whet.data.walk import FileOptions
from whet.errors import SourceError


def write(path, content=b"text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def kept(folder, options=None):
    return [file.path for file in iter_files(folder, options) if file.problem is None]


def left_out(folder, options=None):
    return {f.path: f.problem.reason for f in iter_files(folder, options) if f.problem}


def test_files_come_by_path_with_size_time_and_documents(tmp_path):
    for name in ("b/c.md", "a.md", "b.md"):
        write(tmp_path / name, name)
    os.utime(tmp_path / "a.md", ns=(0, 123456789))
    files = list(iter_files(tmp_path))
    assert [file.path for file in files] == ["a.md", "b/c.md", "b.md"]
    assert (files[0].size, files[0].modified_ns) == (4, 123456789)
    assert [document.id for file in files for document in file.documents()] == kept(tmp_path)


has_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@has_git
def test_ignored_files_are_those_of_git(tmp_path):
    write(tmp_path / ".gitignore", "*.log\n!keep.log\n/build\ncache/\n# note\na[\n**/deep/*.tmp\n")
    write(tmp_path / "sub/.gitignore", "!again.log\n*.bak\n")
    names = ["a.log", "keep.log", "build/x", "sub/build/x", "cache/x", "sub/again.log", "sub/b.log"]
    names += ["x.bak", "sub/x.bak", "sub/deep/a.tmp", "sub/a.tmp", "a[", "sub/cache"]
    for name in names:
        write(tmp_path / name)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    command = ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard"]
    wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    visible = {name for name in wanted if not name.endswith(".gitignore")}
    assert set(kept(tmp_path)) == visible
    assert set(kept(tmp_path / "sub")) == {n.removeprefix("sub/") for n in visible if "sub/" in n}
    assert set(names) <= set(kept(tmp_path, FileOptions(no_ignore=True)))


@has_git
def test_a_folder_that_its_repository_ignores_is_read_when_it_is_named(tmp_path):
    write(tmp_path / ".gitignore", "data/\n*.csv\n")
    write(tmp_path / "data/more/x.md")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert kept(tmp_path / "data") == ["more/x.md"]
    assert kept(tmp_path / "data/more") == ["x.md"]


def test_what_is_left_out_has_a_reason(tmp_path):
    write(tmp_path / "a.md")
    write(tmp_path / ".hidden/x")
    write(tmp_path / "node_modules/p/index.js")
    write(tmp_path / "env/pyvenv.cfg")
    write(tmp_path / "x/__pycache__/m.pyc")
    write(tmp_path / "draft.md")
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("gone", "nothing"), ("loop", "loop"), ("up", "."), ("copy", "a.md")):
        (tmp_path / name).symlink_to(target)
    assert kept(tmp_path, FileOptions(exclude=("draft*",))) == ["a.md"]
    assert left_out(tmp_path, FileOptions(exclude=("draft*",))) == {
        ".hidden/": "hidden",
        "node_modules/": "packages of Node.js",
        "env/": "virtual environment",
        "x/__pycache__/": "cache of Python",
        "draft.md": "excluded",
        "pipe": "not a regular file",
        "gone": "broken link",
        "loop": "broken link",
        "up": "link to a folder",
        "copy": "link to another file of the folder",
    }


def test_empty_and_binary_files_are_left_out_of_a_folder_without_an_error(tmp_path):
    write(tmp_path / "a.md")
    write(tmp_path / "empty.py", b"")
    write(tmp_path / "binary.txt", b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff")
    seen = []
    assert [d.id for d in iter_documents(tmp_path, on_left_out=seen.append)] == ["a.md"]
    assert {each.path: each.reason for each in seen} == {
        "binary.txt": "binary",
        "empty.py": "empty",
    }
    assert [document.id for document in read_documents(tmp_path)] == ["a.md"]


def test_a_file_that_vanishes_while_the_folder_is_read_is_one_error(tmp_path):
    for name in ("a.md", "b.md", "c.md"):
        write(tmp_path / name)
    documents = iter_documents(tmp_path)
    assert next(documents).id == "a.md"
    (tmp_path / "b.md").unlink()
    error, last = documents
    assert "b.md: cannot be read: No such file" in str(error)
    assert last.id == "c.md"


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_file_mb is 0: expected 1 or more"):
        FileOptions(max_file_mb=0)


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        iter_files(write(tmp_path / "a.md"))
