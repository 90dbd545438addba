"""The terms of a text: what `lsa` and BM25 count.

Terms are words and single symbols, of which code and formulas consist. Texts are compared without
regard to Unicode form and case (NFKC and case folding), so `ﬁ`, `ｆｉ` and `FI` are one term, and so
are the composed and decomposed forms of `é`. In scripts that put no spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese and others), each two neighboring characters are a term, as in
Lucene's CJK analyzer, and each Chinese character is a term of its own as well.
"""

import re
import sys
import unicodedata
from functools import cache

ANALYZER = 2
"""Version of `terms`: data spaces remember theirs. Version 1 is `legacy_terms`."""

HAN = "\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
UNSPACED = (
    HAN
    + "\u3041-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # Japanese
    + "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ecf\u0edc-\u0edf"  # Thai, Lao
    + "\u1780-\u17d3\u17d7\u17dc\u17dd"  # Khmer
    + "\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"  # Burmese
    + "\u0f00\u0f18\u0f19\u0f35\u0f37\u0f39\u0f3e-\u0f84\u0f86-\u0fbc"  # Tibetan
    + "\u1950-\u1974\u1980-\u19c9\u1a20-\u1a7c\uaa80-\uaadd"  # Tai Le, New Tai Lue, Tai Tham, Viet
    + "\u1b00-\u1b4b\ua980-\ua9c0\ua000-\ua48c\U00017000-\U00018cff"  # Balinese, Javanese, Yi, Tangut
)
IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]"
)
"""Characters that are not seen: soft hyphens, joiners, variation selectors, byte order marks."""

_WORD = re.compile(r"\w+|[^\w\s]")


def terms(text: str) -> list[str]:
    """The terms of `text`, in order.

    >>> terms("Café, ＡＢＣ!")
    ['café', ',', 'abc', '!']
    >>> terms("蜜蜂dance")
    ['蜜', '蜂', '蜜蜂', 'dance']
    """
    if text.isascii():
        return _WORD.findall(text.lower())
    folded = IGNORED.sub("", unicodedata.normalize("NFKC", text)).casefold()
    words: list[str] = []
    for run, word in _patterns().findall(unicodedata.normalize("NFKC", folded)):
        if word:
            words.append(word)
        else:
            words += _run_terms(run)
    return words


def _run_terms(run: str) -> list[str]:
    """The terms of a run of characters of scripts without spaces."""
    if len(run) == 1:
        return [run]
    return [*_han().findall(run), *(run[i : i + 2] for i in range(len(run) - 1))]


def legacy_terms(text: str) -> list[str]:
    """The terms of version 1, in lower case, for data spaces that were made with it."""
    return _WORD.findall(text.lower())


@cache
def _han() -> re.Pattern[str]:
    return re.compile(f"[{HAN}]")


@cache
def _patterns() -> re.Pattern[str]:
    """Matches a run of scripts without spaces, or a word with its combining marks, or a symbol."""
    unspaced = re.compile(f"[{UNSPACED}]")
    marks = "".join(
        char
        for char in map(chr, range(0x300, min(0x12000, sys.maxunicode)))
        if unicodedata.category(char) in ("Mn", "Mc") and not unspaced.match(char)
    )
    word = rf"[^\W{UNSPACED}]+(?:[{marks}]+[^\W{UNSPACED}]*)*"
    return re.compile(rf"([{UNSPACED}]+)|({word}|[^\w\s])")
