"""The code of README and docs runs, links lead somewhere, and tables match the code."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.paths import DOCS, ROOT

from studies import headline, tasks
from whet.cli import main
from whet.evaluate.report.render import markdown
from whet.evaluate.report.table import Report
from whet.select.registry import SELECTORS

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
RUNNABLE = ("README.md", "adapters.md", "embedders.md", "space.md", "tutorial.md")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", RUNNABLE)
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = README if page == "README.md" else PAGES[page]
    exec("\n".join(blocks(text, "python")), {"__name__": "page"})
    assert capsys.readouterr().out


def test_whet_commands_of_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ["Bees dance.", "Honey keeps for centuries.", "A prompt is a question."]
    Path("texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    commands = [
        line.partition("  #")[0]
        for block in blocks(README, "sh")
        for line in block.splitlines()
        if line.startswith("whet ") and "runs/" not in line and "serve" not in line
    ]
    assert len(commands) >= 3
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}: {done.output}"


LINKED = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{p}" for p in PAGES),
]


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", LINKED)
def test_anchors_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
        linked = (ROOT / page).parent / target if target else ROOT / page
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{page} links to {target}#{anchor}"


def test_every_option_in_the_pages_exists():
    options = {
        name
        for words in commands(main)
        for param in words.params
        for name in (*param.opts, *param.secondary_opts)
    }
    for page, text in [("README.md", README), *PAGES.items()]:
        for line in re.findall(r"^whet .*", text, flags=re.MULTILINE):
            used = set(re.findall(r"(?<= )--[a-z][a-z-]+", line.partition("  #")[0]))
            assert used <= options | {"--help", "--version"}, f"{page}: {line}"


def commands(command):
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from commands(below)


def test_every_selector_has_a_row():
    rows = re.findall(r"^\| `([a-z-]+)` \|", PAGES["selectors.md"], re.MULTILINE)
    assert set(SELECTORS) == set(rows)


def test_every_function_in_the_table_of_theory_exists():
    import studies.theory.confidence
    import studies.theory.convergence
    import studies.theory.surrogate
    import whet.maths.posterior

    modules = (
        studies.theory.confidence,
        studies.theory.convergence,
        studies.theory.surrogate,
        whet.maths.posterior,
    )
    rows = re.findall(r"^\|[^|]*\|[^|]*\| ([^|]*) \|", PAGES["theory.md"], re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(names) >= 10
    assert [name for name in names if not any(hasattr(m, name) for m in modules)] == []


def test_the_tables_of_results_are_those_of_the_committed_run():
    record = json.loads((ROOT / "benchmarks" / "results" / "corpus.json").read_text())
    lines = markdown(Report.of(record)).splitlines()
    assert all(line in PAGES["results.md"] for line in lines)
    assert headline.table(headline.headline()) in README
    assert headline.savings(headline.headline()) in PAGES["results.md"]
    assert tasks.page() in PAGES["tasks.md"]


def test_readme_is_short():
    assert len(README.splitlines()) <= 130
