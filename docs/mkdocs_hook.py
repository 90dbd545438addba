"""Hook of MkDocs: pages from outside docs/, and links that leave it lead to the repository.

The files of the repository link to each other by relative paths, which work on the forge. On the
site, a link to a page of the site becomes a link to that page, any other a link to the forge.
"""

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
}
PAGES = {source: page for page, source in OUTSIDE.items()}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    name = page.file.src_uri
    return with_site_links(markdown, OUTSIDE.get(name, f"docs/{name}"), name)


def with_site_links(markdown: str, source: str, page: str) -> str:
    """`markdown` of the file `source` with links that are right on `page` of the site.

    >>> with_site_links("[a](../src/whet/io.py)", "docs/space.md", "space.md")
    '[a](https://github.com/whet-ml/whet/blob/main/src/whet/io.py)'
    >>> with_site_links("[a](docs/space.md#b)", "README.md", "index.md")
    '[a](space.md#b)'
    """

    def replaced(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        anchor = match[2] or ""
        inside = PAGES.get(path) or (path[5:] if path.startswith("docs/") else None)
        if inside and (path in PAGES or Path(path).suffix in (".md", ".png", ".svg")):
            return posixpath.relpath(inside, posixpath.dirname(page) or ".") + anchor
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{path}{anchor}"

    return LINK.sub(replaced, markdown)
