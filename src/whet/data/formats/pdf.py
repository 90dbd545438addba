"""PDF: the text of its pages (PDFium), with a section for each page and headings of its outline."""

import re
import threading
from bisect import bisect_right
from typing import Any

from whet.data.formats.sections import HEADING_SEPARATOR, Converted, FormatError, Section
from whet.errors import require

LINE_END = re.compile(r"[ \t]*(?:\r\n|\r)")
SOFT_HYPHEN = re.compile("(?:\ufffe|\xad)\\s*")  # a word that goes on in the next line
CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\uffff]")
PAGE_END = "\n\n"

_lock = threading.Lock()  # PDFium runs in one thread at a time


def convert(content: bytes, max_bytes: int) -> Converted:
    """The text of all pages, each a section with its number, from 1.

    Raises:
        FormatError: If the file is encrypted, damaged, or holds images of text only.
    """
    pdfium: Any = require("pypdfium2", "files")
    with _lock:
        try:
            document = pdfium.PdfDocument(content)
        except pdfium.PdfiumError as error:
            if "password" in str(error).lower() or "security" in str(error).lower():
                raise FormatError(
                    "is encrypted: save a copy without a password (such as `qpdf --decrypt`)"
                ) from error
            raise FormatError(f"is not a PDF that can be read ({error})") from error
        try:
            outline = _outline(document, pdfium)
            pages = _pages(document, max_bytes)
        finally:
            document.close()
    if not any(page.strip() for page in pages):
        raise FormatError(
            f"has no text in its {len(pages):,} pages: it is probably scanned. Recognize its text "
            "first (such as with `ocrmypdf`)"
        )
    sections: list[Section] = []
    parts: list[str] = []
    position = 0
    for number, page in enumerate(pages, start=1):
        sections.append(Section(position, 0, {"page": number} | _heading(outline, number)))
        parts.append(page + PAGE_END)
        position += len(page) + len(PAGE_END)
    return Converted("".join(parts), tuple(sections), {"pages": len(pages)})


def _pages(document: Any, max_bytes: int) -> list[str]:
    pages, characters = [], 0
    for index in range(len(document)):
        page = document[index]
        textpage = page.get_textpage()
        pages.append(_clean(textpage.get_text_bounded()))
        textpage.close()
        page.close()
        characters += len(pages[-1])
        if characters > max_bytes:
            break  # `convert` of the caller reports it
    return pages


def _clean(text: str) -> str:
    text = LINE_END.sub("\n", text)
    return CONTROLS.sub("", SOFT_HYPHEN.sub("", text)).strip("\n")


def _outline(document: Any, pdfium: Any) -> list[tuple[int, str]]:
    """Page and path of each entry of the outline, by page; empty if it is damaged."""
    entries: list[tuple[int, str]] = []
    path: list[str] = []
    try:
        for bookmark in document.get_toc():
            target = bookmark.get_dest()
            page = target.get_index() if target else None
            title = " ".join(CONTROLS.sub("", bookmark.get_title()).split())[:120]
            path = [*path[: bookmark.level], title]
            if page is not None and title:
                entries.append((page + 1, HEADING_SEPARATOR.join(path)))
    except (pdfium.PdfiumError, ValueError):
        return []
    return sorted(entries, key=lambda entry: entry[0])


def _heading(outline: list[tuple[int, str]], page: int) -> dict[str, str]:
    """The heading under which a page begins: the first on it, otherwise the last one before."""
    after = bisect_right(outline, page - 1, key=lambda entry: entry[0])
    if after < len(outline) and outline[after][0] == page:
        return {"heading": outline[after][1]}
    return {"heading": outline[after - 1][1]} if after else {}
