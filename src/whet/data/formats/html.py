"""HTML: its readable text as Markdown, without scripts, styles, navigation and addresses of links."""

import re
from typing import Any

from whet.data.formats import markdown
from whet.data.formats.sections import Converted, FormatError
from whet.errors import require

CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]+?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
CLOSING = "</script></style>"  # ends a script that the file does not end: nothing otherwise
ANCHORS = re.compile(r"[ \t]*[¶](?=[ \t]*$)", re.MULTILINE)
PERMALINKS = ["a.headerlink", "a.header-anchor", "a.anchor-link", "a.hash-link", "a.mark"]
"""Links of headings to themselves, which documentation tools add."""


def convert(text: str) -> Converted:
    """The readable text, with a section for each heading.

    Raises:
        FormatError: If the page has no readable text.
    """
    library: Any = require("html_to_markdown", "files")
    options = library.ConversionOptions(
        strip_tags=["a"],
        skip_images=True,
        autolinks=False,
        compact_tables=True,
        extract_metadata=False,
        bullets="-",
        exclude_selectors=PERMALINKS,
        preprocessing=library.PreprocessingOptions(),
    )
    content = ANCHORS.sub("", library.convert(text + CLOSING, options).content)
    if not content.strip():
        raise FormatError(
            "has no text outside of scripts, styles and navigation, or is nested too deeply: save "
            "the page from a browser as it is displayed"
        )
    return markdown.convert(content)


def declared_encoding(content: bytes) -> str | None:
    """The encoding that a page names in its first 4,096 bytes."""
    found = CHARSET.search(content[:4096])
    return found[1].decode("ascii", "replace") if found else None
