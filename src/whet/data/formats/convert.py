"""From the content of a file to its text, by the ending of its name.

PDF is read by PDFium (pypdfium2), DOCX by mammoth, and both DOCX and HTML become Markdown by
html-to-markdown: each is fast, small and without dependencies. (markitdown would bring ONNX
Runtime, and its PDFs have no pages.)
"""

import re
from collections.abc import Callable

from whet.data.formats import code, docx, html, markdown, notebook, pdf, restructured
from whet.data.formats.encodings import decode
from whet.data.formats.sections import Converted, FormatError
from whet.errors import MissingDependencyError, SourceError

MARKDOWN = ("md", "markdown", "mdown", "mkd", "mdx", "qmd", "rmd")
HTML = ("html", "htm", "xhtml")
UNREADABLE = (
    "doc",
    "docm",
    "dot",
    "xls",
    "xlsx",
    "ppt",
    "pptx",
    "odt",
    "ods",
    "odp",
    "rtf",
    "epub",
)
"""Formats of office programs that could pass for text or that users expect to be read."""
BINARY_FORMATS: dict[str, Callable[[bytes, int], Converted]] = {
    "pdf": pdf.convert,
    "docx": docx.convert,
}
TEXT_FORMATS: dict[str, Callable[[str], Converted]] = {
    **dict.fromkeys(MARKDOWN, markdown.convert),
    **dict.fromkeys(HTML, html.convert),
    **dict.fromkeys(("rst", "rest"), restructured.convert),
    **dict.fromkeys(("py", "pyi", "pyw"), code.convert_python),
    **dict.fromkeys(code.ENDINGS, code.convert),
    "ipynb": notebook.convert,
}


def ending_of(name: str) -> str:
    """The ending of a file's name, in lower case and without the dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def is_converted(content: bytes, name: str) -> bool:
    """Whether a binary file is of a format that has a converter."""
    return content.startswith(b"%PDF-") or ending_of(name) in BINARY_FORMATS


def convert(content: bytes, name: str, where: str, max_bytes: int) -> Converted | SourceError:
    """The text of a file; the error if it has none.

    Args:
        content: What the file holds, unpacked.
        name: Its name, whose ending gives the format.
        where: The file, for error messages.
        max_bytes: The longest text, and the largest size of unpacked parts.
    """
    ending = "pdf" if content.startswith(b"%PDF-") else ending_of(name)
    try:
        if ending in BINARY_FORMATS:
            result = BINARY_FORMATS[ending](content, max_bytes)
        else:
            decoded = decode(content, declared=html.declared_encoding if ending in HTML else None)
            if isinstance(decoded, str):
                return SourceError(f"{where}: {decoded}")
            result = TEXT_FORMATS.get(ending, Converted)(decoded.text)
            if decoded.encoding != "utf-8":
                result = Converted(
                    result.text, result.sections, {"encoding": decoded.encoding} | result.meta
                )
    except MissingDependencyError as error:
        return SourceError(f"{where}: {error}")
    except Exception as error:  # converters raise errors of their own for damaged files
        reason = re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__
        what = "" if isinstance(error, FormatError) else f"cannot be read as .{ending}: "
        return SourceError(f"{where}: {what}{reason}")
    if len(result.text) > max_bytes:
        return SourceError(
            f"{where}: its text has {len(result.text):,} characters, more than the limit of "
            f"{max_bytes:,}: raise --max-file-mb, or leave the file out"
        )
    return result
