"""Text uses the field's words: `docs/dialect.txt` lists what not to write, and what instead."""

import re

import pytest
from support.paths import DOCS, ROOT

LINE = re.compile(r"(?P<pattern>.+?)\s+-> (?P<instead>.+)")
WORDS = [
    LINE.fullmatch(line).groupdict()
    for line in (DOCS / "dialect.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]
FILES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted(
        path
        for folder in ("src", "studies", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if not {"golden", "cases"} & {*path.parts}  # texts to select from, and faults as reported
    ),
]


@pytest.fixture(scope="module")
def lines():
    """Every line of text, with its place."""
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
    ]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word["pattern"])
def test_text_uses_words_of_the_field(lines, word):
    pattern = re.compile(rf"\b(?:{word['pattern']})", re.IGNORECASE)
    uses = [f"{place}: {line.strip()}" for place, line in lines if pattern.search(line)]
    assert not uses, "\n".join([f"write {word['instead']}:", *uses[:20]])
