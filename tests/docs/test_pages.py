"""The code, commands, links and tables of README and of the pages in docs/ are true."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from studies.theory import confidence, convergence, surrogate
from whet.cli import main
from whet.evaluate.report.render import markdown
from whet.evaluate.report.table import Report
from whet.maths import irreducible
from whet.select.registry import SELECTORS

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/LOG.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", read(page), flags=re.DOTALL)


def rows(page):
    return [line for line in read(page).splitlines() if line.startswith("|")]


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("README.md", r"before: \d\.\d\d, after: \d\.\d\d"),
        ("docs/adapters.md", r"Adapter\('whet-nano', r=4"),
        ("docs/embedders.md", r"1 of 3 candidates: '0'"),
        ("docs/space.md", r"2 1\n"),
    ],
)
def test_python_of_a_page_runs(page, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks(page, "python")), {"__name__": "page"})
    assert re.search(printed, capsys.readouterr().out)


def test_commands_of_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ["Bees dance.", "Honey keeps for centuries.", "A prompt is a question."]
    Path("texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    commands = [
        line.partition("  #")[0]
        for block in blocks("README.md", "sh")
        for line in block.splitlines()
        if line.startswith("whet ")
    ]
    assert len(commands) >= 4
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.output}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", read(page)):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_anchors_exist(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", read(page)):
        linked = (ROOT / page).parent / target if target else ROOT / page
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{page} links to {target}#{anchor}"


def test_tables_of_results_are_those_of_the_committed_files():
    report = Report.of(json.loads(read("benchmarks/results/corpus.json")))
    table = markdown(report).splitlines()
    assert [row for row in table if row not in rows("docs/results.md")] == []
    cells = {row.split("|")[1].strip(): set(map(str.strip, row.split("|"))) for row in table}
    summaries = [row for row in rows("README.md") if row.startswith("| all, by")]
    assert len(summaries) == 2
    for row in summaries:
        values = [cell.strip() for cell in row.strip("|").split("|")]
        assert set(values) <= cells[values[0]]


def test_every_selector_has_its_row():
    named = {name for row in rows("docs/selectors.md") for name in re.findall(r"^\| `(.*?)`", row)}
    assert named == set(SELECTORS)


def test_every_function_of_the_theory_exists():
    table = [row for row in rows("docs/theory.md") if row.count("|") >= 5][2:]
    named = {name for row in table for name in re.findall(r"`([a-zA-Z_]+)`", row.split("|")[3])}
    homes = (confidence, convergence, surrogate, irreducible)
    assert len(named) >= 10
    assert [name for name in named if not any(hasattr(home, name) for home in homes)] == []


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 125
