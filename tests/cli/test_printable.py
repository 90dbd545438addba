"""Control characters of documents never reach the terminal, whichever command prints them."""

import json

import pytest
from click.testing import CliRunner

from whet.cli import main
from whet.io import printable

HOSTILE = "\x1b]52;c;cHduZWQ=\x07\x1b[2J\x9b31m\r\u202e\u2066\x7f"
RAW = set(HOSTILE) - {"["} - set("]52;c;cHduZWQ=2J31m")


def test_only_line_breaks_and_tabs_remain():
    assert printable("é 漢 🐝\n\t") == "é 漢 🐝\n\t"
    assert not RAW & set(printable(HOSTILE)) and printable("\x1b") == "\\x1b"
    controls = [chr(c) for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"]
    assert not set(controls) & set(printable("".join(controls)))


@pytest.mark.parametrize("charset", ["ascii", "cp1252"])
def test_characters_that_a_terminal_lacks_are_escaped(tmp_path, charset):
    (tmp_path / "a.jsonl").write_text('{"text": "é 漢 bees 🐝"}\n{"text": "漢 ants"}\n', "utf-8")
    folder = str(tmp_path / "s 漢")
    for command in (["index", str(tmp_path / "a.jsonl"), folder], ["select", folder, "bees"],
                    ["space", "info", folder], ["space", "delete", folder, "漢"]):  # fmt: skip
        result = CliRunner(charset=charset).invoke(main, command)
        assert result.exit_code == 0, result.output
    selected = CliRunner(charset=charset).invoke(main, ["select", folder, "bees", "-n", "1"])
    assert "\\u6f22 bees \\U0001f41d" in selected.output


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    records = [
        {"id": f"{HOSTILE}d{i}", "text": f"{HOSTILE} honey bees {i}", f"{HOSTILE}f": 1,
         "set": f"{HOSTILE}a{i % 2}"}
        for i in range(12)
    ]  # fmt: skip
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = ["index", str(folder / "a.jsonl"), str(folder / "s"), "--quiet"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["select", "s", "honey bees", "-n", "2"],
        ["select", "s", "honey bees", "-n", "2", "--json"],
        ["select", "s", "honey", "--where", "x == 1"],
        ["select", "s", "--targets", "a.jsonl", "-n", "2"],
        ["explain", "s", "honey bees", "-n", "2"],
        ["space", "info", "s"],
        ["space", "doctor", "s", "--prompts", "a.jsonl"],
        ["space", "export", "s"],
        ["index", f"{HOSTILE}.jsonl", "t"],
    ],
)
def test_no_command_prints_control_characters(files, monkeypatch, command):
    monkeypatch.chdir(files)
    result = CliRunner().invoke(main, command)
    assert result.output and not RAW & set(result.output)
