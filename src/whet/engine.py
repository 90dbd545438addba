"""A prompt's whole way: select what tells most about its answer, step on each, answer, reset.

The one place where data spaces and language models meet. Source: SIFT, arXiv 2410.08020, Section 2
and Section 6.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whet.adapt.adaptation import Adaptation, Optimiser
from whet.adapt.model import LanguageModel, Score
from whet.adapt.slot import Slot, adapting
from whet.space.retrieve import Retrieval
from whet.space.space import DataSpace
from whet.spaces import Options, calibrated, retrieve


@dataclass(frozen=True, slots=True)
class Step:
    """One gradient step of an answer."""

    id: str
    """Document that the step was taken on."""
    sigma: float
    """σ after the pick, as a share of the prior's."""
    loss: float
    """Loss on the document before the step, nats per token."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sharpened model said, or how well it predicted, and how it came to it."""

    text: str
    """The continuation; for a scored text, that text."""
    trace: tuple[Step, ...]
    retrieval: Retrieval
    seconds: dict[str, float]
    """Wall time of select, train, and answer."""
    base: Score | None = None
    """The score before the first step, for a scored text."""
    score: Score | None = None
    """The score after the last step."""


class Engine:
    """Answers prompts with a model that is sharpened on a data space for each of them.

    Safe in threads: prompts take turns, and the model is as it was between any two of them.
    """

    def __init__(
        self,
        space: DataSpace,
        model: LanguageModel,
        adaptation: Adaptation | None = None,
        *,
        optimiser: Optimiser | None = None,
        options: Options | None = None,
    ) -> None:
        self.options = calibrated(space, options or Options())
        self.model = model
        self.adaptation = adaptation or model.adaptation("full")
        self.optimiser = optimiser or Optimiser()
        self._space = space
        self._turn = threading.Lock()

    def select(self, prompt: str) -> Retrieval:
        """The texts that `prompt` would be sharpened on, in order, repeats included.

        Raises:
            ValueError: If the prompt is empty, or shares nothing with the space.
        """
        return retrieve(self._space, prompt, self.options)

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> Answer:
        """Sharpen on `prompt`, continue it, put the weights back.

        Raises:
            ValueError: As `select`, and if prompt and answer exceed the model's context.
        """
        self.model.fitting(prompt, max_tokens)  # before any work is done
        with self._sharpened(prompt) as (slot, retrieval, trace, seconds):
            start = time.perf_counter()
            text = slot.generate(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
            seconds["answer"] = time.perf_counter() - start
        return Answer(text, tuple(trace), retrieval, seconds)

    def score(self, text: str, *, prompt: str) -> Answer:
        """Sharpen on `prompt`, score `text` given it before and after, put the weights back.

        Raises:
            ValueError: As `select`, and if `text` is empty.
        """
        base = self.model.score(text, context=prompt)
        with self._sharpened(prompt) as (slot, retrieval, trace, seconds):
            start = time.perf_counter()
            score = slot.score(text, context=prompt)
            seconds["answer"] = time.perf_counter() - start
        return Answer(text, tuple(trace), retrieval, seconds, base, score)

    @contextmanager
    def _sharpened(
        self, prompt: str
    ) -> Iterator[tuple[Slot, Retrieval, list[Step], dict[str, float]]]:
        start = time.perf_counter()
        retrieval = self.select(prompt)
        seconds, trace = {"select": time.perf_counter() - start}, []
        with self._turn, adapting(self.model, self.adaptation, self.optimiser) as slot:
            start = time.perf_counter()
            sigmas = retrieval.selection.sigma[1:]
            for document, sigma in zip(retrieval.documents, sigmas, strict=True):
                began = time.perf_counter()
                loss = slot.step(document.text)
                trace.append(Step(document.id, float(sigma), loss, time.perf_counter() - began))
            seconds["train"] = time.perf_counter() - start
            yield slot, retrieval, trace, seconds
