"""In-context learning with the very texts that steps would be taken on: the fair rival.

The budget is exact: what the prompt leaves free of the window, or half the window if that is more,
so that every window of a long document has the texts in front of it. The first pick stands nearest
the prompt; Hardt & Sun's form (arXiv 2305.18466) keeps the last picks there, and gives long
documents none.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.model import LanguageModel, Score
from whet.adapt.windows import windows
from whet.evaluate.tasks import ScoringTask

SEPARATOR = "\n\n"

Tokens = Int[Tensor, " t"]


class InContext:
    """Scores the task of a prompt with texts in front of every window."""

    def __init__(self, model: LanguageModel, task: ScoringTask) -> None:
        self._model = model
        self._bytes = len(task.text.encode())
        self._left, self._text = model.tokens(task.context), model.tokens(task.text)
        free = model.context - 1 - len(self._left) - len(self._text)
        self.budget = max(free, model.context // 2)
        """Tokens of context; one more of the window is the start token's."""

    def examples(self, texts: Sequence[str]) -> Tokens:
        """The distinct `texts`, the first nearest the end, the farthest cut to fit the budget."""
        between = self._model.tokens(SEPARATOR)
        parts: list[Tokens] = []
        room = self.budget
        for text in dict.fromkeys(texts):
            room -= len(between)
            if room <= 0:
                break
            tokens = self._model.tokens(text)[:room]
            parts = [tokens, between, *parts]
            room -= len(tokens)
        return torch.cat(parts) if parts else between[:0]

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Score:
        """Bits of the task's text with `texts` in front, with the weights as they are now."""
        model, examples = self._model, self.examples(texts)
        front = functional.pad(examples, (1, 0), value=model.start)
        body = torch.cat([self._left, self._text])
        nats, greedy = 0.0, True
        for window in windows(len(body), model.context - len(front), skip=len(self._left)):
            seen = body[max(window.start - 1, 0) : window.stop - 1]
            logits = model.network(input_ids=torch.cat([front, seen])[None], use_cache=False).logits
            wanted = logits[0, -window.targets :, : model.vocabulary].float()
            goal = body[window.stop - window.targets : window.stop]
            nats += functional.cross_entropy(wanted, goal, reduction="sum").item()
            greedy = greedy and bool((wanted.argmax(-1) == goal).all())
        return Score(nats / math.log(2), self._bytes, len(self._text), greedy)
