"""Hook of MkDocs: pages and notebooks from outside docs/; other links lead to the repository.

The files of the repository link to each other by relative paths, which work on the forge. On the
site, a link to a page of the site becomes a link to that page, any other a link to the forge.
"""

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/whet-ml/whet"
OUTSIDE = {  # page of the site: its source in the repository
    "index.md": "README.md",
    "benchmarks.md": "benchmarks/README.md",
    "log.md": "benchmarks/LOG.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "notebooks/01_select.md": "examples/01_select.ipynb",
    "notebooks/02_data_space.md": "examples/02_data_space.ipynb",
    "notebooks/03_adapt_a_model.md": "examples/03_adapt_a_model.ipynb",
    "notebooks/04_evaluate.md": "examples/04_evaluate.ipynb",
}
PAGES = {source: page for page, source in OUTSIDE.items()}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        pictures: dict[str, bytes] = {}
        if source.endswith(".ipynb"):
            text, pictures = notebook_page(text, Path(source).stem)
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            path = posixpath.join(posixpath.dirname(page), name)
            files.append(File.generated(config, path, content=content))
    return files


def notebook_page(text: str, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with its stored outputs; and its pictures by file name.

    >>> cell = {"cell_type": "code", "source": ["2 + 2"], "outputs": [{"data": {"text/plain": "4"}}]}
    >>> notebook_page(json.dumps({"cells": [cell]}), "sum")[0].splitlines()
    ['```python', '2 + 2', '```', '', '```text', '4', '```']
    """
    parts, pictures = [], {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![]({file})")
            elif shown := "".join(output.get("text") or data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts), pictures


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    name = page.file.src_uri
    if name == "index.md":  # badges are pictures of other hosts
        markdown = re.sub(r"^\[!\[.*\n", "", markdown, flags=re.MULTILINE)
    return with_site_links(markdown, OUTSIDE.get(name, f"docs/{name}"), name)


def with_site_links(markdown: str, source: str, page: str) -> str:
    """`markdown` of the file `source` with links that are right on `page` of the site.

    >>> with_site_links("[a](../src/whet/io.py)", "docs/space.md", "space.md")
    '[a](https://github.com/whet-ml/whet/blob/main/src/whet/io.py)'
    >>> with_site_links("[a](docs/space.md#b)", "README.md", "index.md")
    '[a](space.md#b)'
    """

    def replaced(match: re.Match[str]) -> str:
        if page.startswith("notebooks/") and match[1].endswith(".png"):
            return match[0]  # of the notebook itself
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        anchor = match[2] or ""
        inside = PAGES.get(path) or (path[5:] if path.startswith("docs/") else None)
        if inside and (path in PAGES or Path(path).suffix in (".md", ".png", ".svg")):
            return posixpath.relpath(inside, posixpath.dirname(page) or ".") + anchor
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{path}{anchor}"

    return LINK.sub(replaced, markdown)
