"""What README shows is run: its Python in one process, its `whet` lines one by one."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from whet.cli import main
from whet.evaluate.report.render import markdown
from whet.evaluate.report.table import Report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_runs_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("python")), {"__name__": "readme"})
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_python_of_the_embedders_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "embedders.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, {"__name__": "page"})
    assert "1 of 3 candidates: '0'" in capsys.readouterr().out


def test_whet_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ["Bees dance.", "Honey keeps for centuries.", "A prompt is a question."]
    lines = (f'{{"text": "{text}"}}\n' for text in texts)
    Path("texts.jsonl").write_text("".join(lines))
    commands = [
        line.partition("  #")[0]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("whet ") and "runs/" not in line
    ]
    assert len(commands) >= 3
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}: {done.output}"


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", *sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])  # fmt: skip
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_table_is_that_of_the_committed_results():
    record = json.loads((ROOT / "benchmarks" / "results" / "corpus.json").read_text())
    for line in markdown(Report.of(record)).splitlines():
        assert line in README


def test_readme_is_short():
    assert len(README.splitlines()) <= 150
