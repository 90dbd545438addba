import re
from pathlib import Path

import pytest

from whet.maths import confidence, convergence, surrogate
from whet.select.table import SELECTORS

DOCS = Path(__file__).parents[1] / "docs"


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
