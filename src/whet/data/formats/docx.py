"""DOCX: its text as Markdown, by way of HTML (mammoth), with a section for each heading."""

import io
import zipfile
from typing import Any

from whet.data.formats import html
from whet.data.formats.sections import Converted, FormatError
from whet.errors import require


def convert(content: bytes, max_bytes: int) -> Converted:
    """The text with headings, lists and tables; images are left out.

    Raises:
        FormatError: If it is not a DOCX file, is encrypted, or unpacks to more than `max_bytes`.
    """
    mammoth: Any = require("mammoth", "files")
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise FormatError(
            "is not a DOCX file: an old or encrypted Word file? Save it as .docx without a password"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > max_bytes:
            raise FormatError(
                f"unpacks to {size:,} bytes, more than the limit of {max_bytes:,}: raise "
                "--max-file-mb, or leave the file out"
            )
    no_images = mammoth.images.img_element(lambda image: {"src": ""})
    result = mammoth.convert_to_html(io.BytesIO(content), convert_image=no_images)
    if not result.value.strip():
        raise FormatError("has no text: it holds only images, or nothing")
    return html.convert(result.value)
