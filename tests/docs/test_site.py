"""The documentation site names every page, every public name, and no page that does not exist."""

import re
import runpy

import pytest
from support.paths import DOCS, EXAMPLES, ROOT

import whet

CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NAMED = re.findall(r"([\w/-]+\.md)$", CONFIG.partition("\nnav:")[2], re.MULTILINE)


def hook():
    pytest.importorskip("mkdocs")
    return runpy.run_path(str(DOCS / "mkdocs_hook.py"))


def test_navigation_names_each_page_once():
    outside = hook()["OUTSIDE"]
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(NAMED) == sorted(pages | {*outside}), "list the page in mkdocs.yml"
    assert all((ROOT / source).exists() for source in outside.values())


def test_reference_has_every_public_name():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    assert sorted(re.findall(r"^::: whet\.(\w+)$", pages, re.MULTILINE)) == sorted(whet.__all__)


@pytest.mark.parametrize(
    ("link", "source", "page", "expected"),
    [
        ("scale.md#cost", "docs/space.md", "space.md", "scale.md#cost"),
        ("../benchmarks/README.md#a", "docs/space.md", "space.md", "benchmarks.md#a"),
        ("../../README.md", "docs/api/space.md", "api/space.md", "../index.md"),
        ("../docs/space.md", "benchmarks/LOG.md", "log.md", "space.md"),
        ("page-light.png", "docs/serving.md", "serving.md", "page-light.png"),
        ("../tests", "docs/a.md", "a.md", "https://github.com/whet-ml/whet/tree/main/tests"),
        ("LICENSE", "README.md", "index.md", "https://github.com/whet-ml/whet/blob/main/LICENSE"),
        ("https://a.org/b.md", "docs/a.md", "a.md", "https://a.org/b.md"),
        ("#here", "docs/a.md", "a.md", "#here"),
    ],
)
def test_links_lead_to_the_page_or_the_repository(link, source, page, expected):
    assert hook()["with_site_links"](f"[x]({link})", source, page) == f"[x]({expected})"


def test_a_notebook_becomes_a_page_with_its_pictures():
    text = (EXAMPLES / "01_select.ipynb").read_text(encoding="utf-8")
    page, pictures = hook()["notebook_page"](text, "01_select")
    assert page.startswith("# Select informative examples\n")
    assert page.count("```python\n") >= 5 and "```text\nnearest" in page
    assert [f"![]({name})" in page for name in pictures] == [True, True]
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    links = hook()["with_site_links"](page, "examples/01_select.ipynb", "notebooks/01_select.md")
    assert "](02_data_space.md)" in links and "](../selectors.md)" in links
