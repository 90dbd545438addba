"""What is scored for a document, and with what in front of it.

Definitions: docs/protocol.md, "Leakage".
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from whet.errors import require

require("torch", "adapt")

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.batches import windows
from whet.adapt.model import LanguageModel
from whet.evaluate.config import EvalConfig

Tokens = Int[Tensor, " t"]


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
