"""reStructuredText: its text as it is, with a section for each underlined title."""

import re

from whet.data.formats.sections import Converted, heading_paths

TITLE = re.compile(
    r"^(?:(?P<over>([=\-`:'\"~^_*+#<>.])\2{2,})[ \t]*\r?\n)?"
    r"(?P<title>[ \t]*\S[^\r\n]*)\r?\n"
    r"(?P<under>([=\-`:'\"~^_*+#<>.])\5{2,})[ \t]*$",
    re.MULTILINE,
)
"""A line of text over a line of one repeated symbol, perhaps also under such a line."""


def convert(text: str) -> Converted:
    """The text with a section for each title, whose levels follow from the order of their lines."""
    styles: list[tuple[str, bool]] = []
    found = []
    for match in TITLE.finditer(text):
        title, under, over = match["title"].strip(), match["under"], match["over"]
        if len(under) < len(title) or (over and over != under) or not re.search(r"\w", title):
            continue
        style = (under[0], bool(over))
        if style not in styles:
            styles.append(style)
        found.append((match.start(), 1 + styles.index(style), title[:120]))
    return Converted(text, heading_paths(found))
