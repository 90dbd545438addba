"""Texts in any common encoding: UTF-8, UTF-16 and UTF-32, otherwise what charset-normalizer finds."""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

SAMPLE = 2**16  # bytes in which an encoding is looked for
MARKS = (  # byte order marks; that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LEGACY = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp866"),
    *("cp932", "euc_jp", "gb18030", "big5", "euc_kr", "iso8859_2", "iso8859_15"),
]
"""Encodings that are looked for where a text is not UTF-8."""
CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f]")
MAX_CONTROLS = 0.01  # share of them in a text
MIXED = "whet_cp1252"  # handler of bytes that are not UTF-8 in a text that otherwise is


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """The bytes that are not UTF-8 as letters, as in logs that several programs wrote."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    damaged = error.object[error.start : error.end]
    return "".join(bytes([b]).decode("cp1252", "replace") for b in damaged), error.end


codecs.register_error(MIXED, _as_cp1252)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text and the encoding that it was in."""

    text: str
    encoding: str


def decode(content: bytes, declared: Callable[[bytes], str | None] | None = None) -> Decoded | str:
    """The text of `content`; the reason if no encoding fits.

    Single bytes that are not UTF-8, in a text that otherwise is, are read as cp1252.

    >>> decode("Käse".encode("utf-16"))
    Decoded(text='Käse', encoding='utf-16')

    Args:
        content: All bytes of a text.
        declared: Finds the encoding that the text itself names.
    """
    encoding = encoding_of(content)
    if encoding is not None:
        return _decoded(content, encoding)
    try:
        return Decoded(content.decode(), "utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
        position = error.start
    named = declared(content) if declared else None
    near = content[max(0, position - SAMPLE // 2) :][:SAMPLE]
    found = None if is_damaged_utf8(near) else legacy_encoding(near)
    for candidate in (named, found):
        if candidate is not None:
            try:
                return Decoded(content.decode(candidate), candidate)
            except (UnicodeDecodeError, LookupError):
                continue
    if len(CONTROLS.findall(content)) > MAX_CONTROLS * len(content):
        return f"{reason}, and no other encoding fits: save it as UTF-8"
    return Decoded(content.decode(errors=MIXED), "utf-8 and cp1252")


def encoding_of(content: bytes) -> str | None:
    """The encoding that a byte order mark, or every second byte being 0, shows; otherwise None."""
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return encoding
    sample = content[:SAMPLE]
    sample = sample[: len(sample) // 2 * 2]
    if len(sample) >= 4 and b"\0" in sample:
        for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            zeros = sample[offset::2].count(0)
            others = sample[1 - offset :: 2]
            if zeros > len(others) // 2 and not re.search(rb"[\0-\x08\x0e-\x1f]", others):
                return encoding
    return None


def legacy_encoding(content: bytes) -> str | None:
    """The most plausible encoding of a text that is not UTF-8; None for bytes that are not text."""
    from charset_normalizer import from_bytes

    sample = content[:SAMPLE]
    if len(content) > SAMPLE:  # a letter of several bytes may be cut
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    matches = list(from_bytes(sample, cp_isolation=LEGACY))
    equal = [
        m for m in matches if (m.chaos, m.coherence) == (matches[0].chaos, matches[0].coherence)
    ]
    if any("cp1252" in match.could_be_from_charset for match in equal):
        return "cp1252"  # far more common than the others
    return matches[0].encoding if matches else None


def marked_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32, if a text that begins so is in it; otherwise None."""
    encoding = encoding_of(start)
    return None if encoding == "utf-8-sig" else encoding


def table_encoding(start: bytes) -> str | None:
    """The encoding of a table that begins so; None for UTF-8, also with a few invalid bytes."""
    encoding = marked_encoding(start)
    if encoding is not None:
        return encoding
    if len(start) >= SAMPLE:  # a letter of several bytes may be cut
        start = start[: start.rfind(b"\n") + 1]
    try:
        start.decode()
    except UnicodeDecodeError:
        return None if is_damaged_utf8(start) else legacy_encoding(start)
    return None


def is_damaged_utf8(content: bytes) -> bool:
    """Whether most of what is not ASCII is UTF-8: then the other bytes are damage."""
    decoded = content.decode(errors="replace")
    damaged = decoded.count("\ufffd")
    return sum(letter > "\x7f" for letter in decoded) >= 2 * damaged


def is_binary(start: bytes) -> bool:
    """Whether a file that begins so is, by Git's rule, binary: it has a zero byte and is not UTF-16."""
    return b"\0" in start and encoding_of(start) is None


def _decoded(content: bytes, encoding: str) -> Decoded | str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8-sig":
            return f"byte {error.start} is not UTF-8"
        return f"byte {error.start} is not {encoding.upper()}, as its first bytes say"
    return Decoded(text, "utf-8" if encoding == "utf-8-sig" else encoding)
