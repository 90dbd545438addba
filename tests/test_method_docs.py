import re
from pathlib import Path

import pytest

from whet.maths import confidence, convergence, surrogate
from whet.select.registry import SELECTORS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_code_about_adapters_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "method.md").read_text(), re.DOTALL)
    exec(code, {"__name__": "page"})
    assert capsys.readouterr().out.startswith("Adapter('whet-nano', rank 4, ")
    assert (tmp_path / "bees" / "adapter_config.json").exists()


@pytest.mark.parametrize("page", ["method.md", "notation.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (DOCS / page).read_text())
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_every_selector_has_its_row():
    rows = re.findall(r"^\| `([a-z-]+)` \|", (DOCS / "method.md").read_text(), re.MULTILINE)
    assert set(SELECTORS) <= set(rows)


def test_every_function_of_the_theory_that_is_named_exists():
    text = (DOCS / "method.md").read_text()
    table = text[text.index("## What is known") : text.index("### How much")]
    named = set(re.findall(r"\| [^|`]*\[?`([a-zA-Z_]+)`", table)) - {"function"}
    homes = (confidence, convergence, surrogate)
    assert len(named) >= 10
    assert [name for name in named if not any(hasattr(home, name) for home in homes)] == []
