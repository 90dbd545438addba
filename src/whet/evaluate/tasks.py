"""What is scored for a document, and with what in front of it.

Definitions: docs/protocol.md, "Leakage".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.batches import windows
from whet.adapt.model import LanguageModel, Score
from whet.evaluate.config import EvalConfig

SEPARATOR = "\n\n"

Tokens = Int[Tensor, " t"]
ContextOrder = Literal["nearest-last", "selected"]


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """The query, the unscored left context, and the scored text of a document or of its part."""

    query: str
    """Text to select documents for; empty if nothing of the document is known, in which case the
    base model is scored."""
    context: str
    text: str
    answers: tuple[str, ...] = ()
    """What a generated answer should match; empty if nothing is generated."""

    @classmethod
    def of(cls, text: str, config: EvalConfig) -> "tuple[ScoringTask, ...]":
        """The tasks of a document, whose bits add up.

        `split`: one task, on the second half, cut at the character nearest the middle. `whole`: one
        task. `score-first`: one task per chunk, with all text before it as the query.

        Raises:
            ValueError: If a part would be empty.
        """
        if config.leakage == "whole":
            return (cls(text, "", text),)
        count = 2 if config.leakage == "split" else config.chunks
        if len(text) < count:
            raise ValueError(f"document {text!r} is too short to split into {count} parts")
        cuts = [(len(text) * i + count - 1) // count for i in range(count + 1)]
        tasks = tuple(
            cls(text[:start], text[:start] if config.left_context else "", text[start:stop])
            for start, stop in pairwise(cuts)
        )
        return tasks[1:] if config.leakage == "split" else tasks


class InContext:
    """Scores a task with documents in front of every window: in-context learning.

    The budget is what the task leaves free of the window, or half the window if that is more, so
    that every window of a long document has the documents in front of it. The first pick stands
    nearest the text, or with `order` "selected" farthest from it, as in SIFT (arXiv 2410.08020,
    Section 5); Hardt & Sun (arXiv 2305.18466) give long documents no context.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: ScoringTask,
        order: ContextOrder = "nearest-last",
        *,
        answer_tokens: int = 0,
    ) -> None:
        """Count what is free; `answer_tokens` is the length of an answer that is generated, too."""
        self._model, self._order = model, order
        self._bytes = len(task.text.encode())
        self._task = task
        self._left = model.encode_after(SEPARATOR, task.context)
        self._text = model.encode_after(task.context or SEPARATOR, task.text)
        longest = max(len(self._text), answer_tokens)
        free = model.max_length - 1 - len(self._left) - longest
        self.budget = max(free, model.max_length // 2)
        """Tokens of documents that fit; the start token takes one more of the window."""

    def examples(self, texts: Sequence[str]) -> Tokens:
        """The distinct `texts`, the first of them last, or first with the order "selected".

        The one that exceeds the budget is cut, and those after it in `texts` are left out.
        """
        model, selected = self._model, self._order == "selected"
        separator = model.encode_after("a", SEPARATOR)
        parts: list[Tokens] = []
        first, free = "", self.budget
        for text in dict.fromkeys(texts):
            if free <= len(separator):
                break
            free -= len(separator)
            first = first if selected and parts else text
            tokens = model.encode_after(SEPARATOR, text, plain=True)[:free]
            parts = [*parts, tokens, separator] if selected else [tokens, separator, *parts]
            free -= len(tokens)
        if parts:  # nothing precedes this one
            parts[0] = model.encode(first, plain=True)[: len(parts[0]) + free]
        return torch.cat(parts) if parts else separator[:0]

    def prompt(self, texts: Sequence[str], max_tokens: int) -> Tokens:
        """`texts` and the end of the context that fits, to generate `max_tokens` tokens after."""
        model, examples = self._model, self.examples(texts)
        left = self._left if len(examples) else model.encode(self._task.context)
        free = model.max_length - 1 - max_tokens - len(examples)
        return torch.cat([examples, left[max(0, len(left) - free) :]])

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Score:
        """Score of the task's text with `texts` in front of it, with the model's present weights."""
        model, examples = self._model, self.examples(texts)
        front = functional.pad(examples, (1, 0), value=model.bos_token_id)
        task, left, text = self._task, self._left, self._text
        if not len(examples):  # they begin the sequence
            left, text = model.encode(task.context), model.encode_after(task.context, task.text)
        body = torch.cat([left, text])
        nats, greedy = 0.0, True
        for window in windows(len(body), model.max_length - len(front), skip=len(left)):
            seen = body[max(window.start - 1, 0) : window.stop - 1]
            logits = model.hf_model(
                input_ids=torch.cat([front, seen])[None], use_cache=False
            ).logits
            predicted = logits[0, -window.targets :, : model.vocab_size].float()
            targets = body[window.stop - window.targets : window.stop]
            nats += functional.cross_entropy(predicted, targets, reduction="sum").item()
            greedy = greedy and bool((predicted.argmax(-1) == targets).all())
        return Score(nats / math.log(2), self._bytes, len(text), greedy)


class Stream:
    """Scores a task chunk by chunk, so that a model can learn from each chunk after its score.

    Source: dynamic evaluation, Krause et al. (arXiv 1709.07432). The windows are those of
    `LanguageModel.score`, so the bits of all chunks under one model are the score of the task.
    """

    def __init__(self, model: LanguageModel, task: ScoringTask, size: int) -> None:
        self._model = model
        left, text = model.encode(task.context), model.encode_after(task.context, task.text)
        self._skip, self._count = len(left), len(text)
        self._sequence = functional.pad(torch.cat([left, text]), (1, 0), value=model.bos_token_id)
        starts = range(0, self._count, size)
        self.chunks = [text[start : start + size].cpu() for start in starts]
        """Tokens of every chunk."""
        self.starts = [*starts, self._count]
        """Position in the text at which every chunk starts, and the length of the text."""

    @torch.no_grad()
    def bits(self, first: int, last: int | None = None) -> float:
        """Bits of chunks `first` to `last` (excluded, by default to the end), by the present model.

        0 if there are none.
        """
        start, stop = self.starts[first], self.starts[last if last is not None else -1]
        total, nats = self._skip + self._count, 0.0
        for window in windows(total, self._model.max_length, skip=self._skip + start):
            end = min(window.stop, self._skip + stop)  # later tokens change nothing before them
            targets = window.targets - (window.stop - end)
            if targets <= 0:
                break
            inputs = self._sequence[window.start : end]
            logits = self._model.hf_model(input_ids=inputs[None], use_cache=False).logits
            predicted = logits[0, -targets:, : self._model.vocab_size].float()
            expected = self._sequence[end + 1 - targets : end + 1]
            nats += functional.cross_entropy(predicted, expected, reduction="sum").item()
        return nats / math.log(2)
