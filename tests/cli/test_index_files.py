import json
import subprocess
import sys

from click.testing import CliRunner
from support import tiny_models

from whet.cli import main


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


def test_a_data_space_is_indexed_again_with_its_own_embedder(tmp_path):
    folder, space = tmp_path / "docs", tmp_path / "s"
    folder.mkdir()
    (folder / "a.md").write_text("Bees dance.\n")
    encoder = f"hf:{tiny_models.save(tmp_path / 'model')}"

    def index(*more):
        words = ["index", str(folder), str(space), "--json", "--quiet", *more]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    assert index("--embedder", encoder)["embedder"] == encoder
    assert index()["changes"]["files"]["unchanged"] == 1
    (folder / "b.md").write_text("Honey keeps.\n")
    again = index()
    assert again["embedder"] == encoder and again["changes"]["files"]["added"] == 1
    wrong = CliRunner().invoke(main, ["index", str(folder), str(space), "--embedder", "lsa"])
    assert wrong.exit_code == 1 and "was made by embedder hf:" in wrong.stderr
