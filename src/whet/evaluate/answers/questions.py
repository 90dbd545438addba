"""Question answering: records of a `question` and its `answer`, or several accepted answers."""

from collections.abc import Iterator
from typing import Any

from whet.data.documents import Document
from whet.errors import SourceError
from whet.evaluate.config import EvalConfig
from whet.evaluate.tasks import ScoringTask

QUESTION, ANSWER = "question", "answer"


def question_prompts(document: Document, count: int) -> Iterator[Document]:
    """The question itself, once its answers are checked.

    Raises:
        SourceError: If it has no answer, or one that is not a text.
    """
    yield Document(document.id, document.text, document.meta | {ANSWER: _answers(document)})


def question_task(document: Document, config: EvalConfig) -> ScoringTask:
    """The task of a question; bits are those of its first answer, others match it too."""
    answers = document.meta[ANSWER]
    context = f"Question: {document.text.strip()}\nAnswer:"
    return ScoringTask(document.text, context, f" {answers[0]}", tuple(answers))


def _answers(document: Document) -> list[str]:
    value: Any = document.meta.get(ANSWER)
    answers = [value] if isinstance(value, str) else value
    if value is None or answers == []:
        raise SourceError(f"question {document.id!r} has no answer: add a field `{ANSWER}`")
    if not isinstance(answers, list | tuple) or not all(
        isinstance(answer, str) and answer.strip() for answer in answers
    ):
        raise SourceError(
            f"question {document.id!r} has answer {value!r}: expected a text, or a list of texts"
        )
    return [answer.strip() for answer in answers]
