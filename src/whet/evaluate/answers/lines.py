"""Next-line completion: the prompt is a file up to a line, the answer is that line.

The prompt ends before the line break, because tokens of code often hold a line break together with
the indentation after it; the scored text is that white space and the line. Targets are lines with a
few letters that do not look like a comment, after some code to go on from.
"""

import hashlib
import re
from collections.abc import Iterator

from whet.data.documents import Document
from whet.data.formats.code import ENDINGS
from whet.data.formats.convert import ending_of
from whet.evaluate.config import EvalConfig
from whet.evaluate.tasks import ScoringTask

CODE = frozenset({"py", "pyi", "pyw", *ENDINGS})
TARGET = "target"  # field of a prompt's metadata: where the scored text begins
COMMENT = re.compile(r"#(?:\s|!|$)|//|/\*|\*|--|;|%|<!--|\"\"\"|'''")
MIN_BEFORE = 400  # characters of the file before a target
MIN_LETTERS = 4  # letters and digits of a target: `})` and `else:` say nothing about the repository
MAX_LINE = 120  # characters of a target: longer ones are data


def line_prompts(document: Document, count: int) -> Iterator[Document]:
    """Up to `count` prompts from a file of code, always the same ones; none from other files.

    Each is the file up to the end of the line that is to be predicted, named `FILE:LINE`.
    """
    if ending_of(str(document.meta.get("path") or document.id)) not in CODE:
        return
    targets = sorted(_targets(document.text), key=lambda t: _fraction(document.id, t[0]))[:count]
    for number, start, end in sorted(targets):
        meta = document.meta | {TARGET: start}
        yield Document(f"{document.id}:{number}", document.text[:end], meta)


def file_of(prompt: str) -> str:
    """The id of the file of a prompt's id.

    >>> file_of("src/bees.py:12")
    'src/bees.py'
    """
    return prompt.rpartition(":")[0]


def line_task(document: Document, config: EvalConfig) -> ScoringTask:
    """The task of a prompt that `line_prompts` made.

    The model reads the last `prompt_chars` characters before the line, from the start of a line,
    and documents are selected for them.
    """
    start = int(document.meta[TARGET])
    context, text = document.text[:start], document.text[start:]
    if len(context) > config.prompt_chars:
        cut = context.find("\n", len(context) - config.prompt_chars - 1)
        context = context[cut + 1 if 0 <= cut < start - 1 else -config.prompt_chars :]
    return ScoringTask(context, context, text, (text.strip(),))


def _targets(text: str) -> Iterator[tuple[int, int, int]]:
    """Number, start of the white space before, and end of each line that can be asked for."""
    end, before = 0, 0  # of this line and of the text before it, without white space
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        start, end = end, end + len(line)
        stripped = line.strip()
        if not stripped:
            continue
        letters = sum(map(str.isalnum, stripped))
        if (
            before >= MIN_BEFORE
            and letters >= MIN_LETTERS
            and len(stripped) <= MAX_LINE
            and not COMMENT.match(stripped)
        ):
            yield number, before, start + len(line.rstrip())
        before = start + len(line.rstrip())


def _fraction(name: str, number: int) -> bytes:
    return hashlib.sha256(f"{name}:{number}".encode()).digest()
