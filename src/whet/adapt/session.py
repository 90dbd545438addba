"""One prompt at a time, adapted and put back: the one-prompt face of `whet.adapt.slots`.

Source: test-time fine-tuning as SIFT has it, arXiv 2410.08020, Section 2: one gradient step on each
selected text.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from whet.adapt.config import AdapterConfig, FullFineTuning, OptimizerConfig
from whet.adapt.model import LanguageModel, Score
from whet.adapt.slots import Slots
from whet.errors import ModelError


class AdaptationSession:
    """A model while it is lent to one prompt. Made by `adapted`."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.steps = 0

    def step(self, text: str) -> float:
        """One gradient step on the first `context` tokens of `text`.

        Returns the loss before the step, nats per token.

        Raises:
            ValueError: If the text has no tokens.
            ModelError: If the loss is not finite; the weights have not moved.
        """
        model = self._slots.model
        [loss] = self._slots.step({0: [model.lesson(text)[: model.context]]})[0]
        if not math.isfinite(loss):
            raise ModelError(
                f"loss is {loss} at step {self.steps + 1} on text {text[:40]!r}: "
                "lower the learning rate"
            )
        self.steps += 1
        return loss

    @property
    def model(self) -> LanguageModel:
        """The model with the weights as they are now, until the next step."""
        return self._slots.as_slot(0)

    def score(self, text: str, *, context: str = "") -> Score:
        """`LanguageModel.score` with the weights as they are now."""
        return self._slots.as_slot(0).score(text, context=context)

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """`LanguageModel.generate` with the weights as they are now."""
        return self._slots.as_slot(0).generate(
            prompt, max_tokens=max_tokens, temperature=temperature, seed=seed
        )


@contextmanager
def adapted(
    model: LanguageModel,
    adaptation: AdapterConfig | None = None,
    optimizer: OptimizerConfig | None = None,
) -> Iterator[AdaptationSession]:
    """Lend `model` to one prompt; on leaving, even by an error, it is as before, bit for bit.

    Costs a copy of what is trained, its gradient, and the optimiser's state, new each time.

    Raises:
        ModelError: If the model is lent out already.
    """
    slots = Slots(model, adaptation or FullFineTuning(), optimizer)
    with slots.attached():
        yield AdaptationSession(slots)
