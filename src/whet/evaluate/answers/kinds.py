"""The kinds of tasks with an answer, by the name that `task` takes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from whet.data.documents import Document
from whet.evaluate.answers.lines import line_prompts, line_task
from whet.evaluate.answers.metrics import edit_similarity, f1, same_line, same_words
from whet.evaluate.answers.questions import QUESTION, question_prompts, question_task
from whet.evaluate.config import EvalConfig
from whet.evaluate.tasks import ScoringTask

Metric = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class AnswerKind:
    """One kind of task with an answer."""

    prompts: Callable[[Document, int], Iterator[Document]]
    """The prompts that a document gives, at most so many."""
    task: Callable[[Document, EvalConfig], ScoringTask]
    """What is read, scored and expected for a prompt."""
    metrics: Mapping[str, Metric]
    """How well an answer matches an expected one, by the column of the run."""
    text_field: str | None
    """Field of a record that holds the prompt; None for that of `EvalData`."""
    wanted: str
    """What a source must hold, for error messages."""


KINDS: dict[str, AnswerKind] = {
    "lines": AnswerKind(
        line_prompts,
        line_task,
        {"exact_match": same_line, "edit_similarity": edit_similarity},
        None,
        "files of code, such as .py or .go, with a line to complete",
    ),
    "qa": AnswerKind(
        question_prompts,
        question_task,
        {"exact_match": same_words, "f1": f1},
        QUESTION,
        "records with `question` and `answer`",
    ),
}
METRICS = ("exact_match", "edit_similarity", "f1")
"""Every column of a run that holds a metric."""
