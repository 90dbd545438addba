import json
import subprocess
import sys


def whet(*arguments):
    command = [sys.executable, "-m", "whet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_index_lists_what_it_leaves_out(tmp_path):
    folder = tmp_path / "docs"
    (folder / "node_modules").mkdir(parents=True)
    (folder / "a.md").write_text("# Bees\n\nBees dance.\n")
    (folder / "b.md").write_text("Honey keeps.\n")
    (folder / "draft.md").write_text("Not yet.\n")
    (folder / "c.bin").write_bytes(b"\0\1\2")
    options = ["--exclude", "draft*", "--verbose", "--json", "--quiet"]
    done = whet("index", folder, tmp_path / "s", *options)
    assert done.returncode == 0, done.stderr
    left_out = {each["path"]: each["reason"] for each in json.loads(done.stdout)["left_out"]}
    assert left_out == {
        "node_modules/": "packages of Node.js", "draft.md": "excluded", "c.bin": "binary",
    }  # fmt: skip
    assert "left out: c.bin: binary" in done.stderr
    assert "3 files and folders were left out: " in done.stderr
