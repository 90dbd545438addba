"""The training loop of one prompt: every training in whet goes through `AdaptationSession`.

Source: test-time fine-tuning, SIFT, arXiv 2410.08020, Section 2: one gradient step on each selected
text.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from whet.errors import require

require("torch", "adapt")

from torch import Tensor

from whet.adapt.adapters import Adapter
from whet.adapt.batches import TrainText
from whet.adapt.config import AdapterConfig, OptimizerConfig, TrainingConfig
from whet.adapt.decoding.sampling import SequenceGroup, TextPiece
from whet.adapt.model import LanguageModel, Score
from whet.adapt.slots import Slots
from whet.adapt.updates import TrainExample, Update, lr_scale
from whet.errors import AdaptationError, ModelError

StopReason = Literal["n", "alpha", "learned", "deadline", "cancelled", "evidence", "no_match"]
BeforeUpdate = Callable[[Update], StopReason | None]
AfterUpdate = Callable[[Update, int], None]
ID_LENGTH = 40  # characters of a text that stand for its id


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One text, or chunk of a text, that the model was trained on."""

    id: str
    """Id of its document."""
    sigma: float | None
    """Standard deviation after the pick, relative to the prior's; None without a selection."""
    loss: float
    """Loss before the step, in nats per token; for a reused gradient, the loss when that gradient
    was computed."""
    seconds: float
    """Wall time of the update, which the texts of a batch and other requests share."""
    num_tokens: int = 0
    """Number of tokens of the text, or of its chunk, whose loss was trained on."""


@dataclass(frozen=True, slots=True)
class AdaptationTrace:
    """The steps that were taken for one prompt, and why there were no more."""

    steps: tuple[TrainStep, ...] = ()
    stop_reason: StopReason = "n"
    """n: all n steps were taken; alpha: adaptive stopping; learned: repeats of learned texts were
    skipped; deadline: the time was up; cancelled: the request was cancelled; evidence: some or all
    steps were undone, see `TrainingConfig.evidence`; no_match: no document is near the prompt."""

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[TrainStep]:
        return iter(self.steps)


class _Repeats:
    """Which texts are learned, so that repeats of them are skipped, with all of their chunks."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._losses: dict[bytes, tuple[float, float]] = {}  # the first and the last of each chunk
        self._chunks: dict[int, list[TrainText]] = {}  # of the text at each place
        self._begun: set[int] = set()
        for example in (example for update in updates for example in update.examples):
            self._chunks.setdefault(example.place, []).append(example.text)

    def are_learned(self, update: Update) -> bool:
        """Whether the last losses of every text were below the update's share of its first ones.

        A text that was begun is trained on to its end.
        """
        return bool(update.learned_ratio) and all(
            place not in self._begun
            and all(self._is_learned(chunk, update.learned_ratio) for chunk in self._chunks[place])
            for place in (example.place for example in update.examples)
        )

    def note(self, update: Update, losses: Sequence[float]) -> None:
        for example, loss in zip(update.examples, losses, strict=True):
            self._begun.add(example.place)
            first, _ = self._losses.get(example.text.key(), (loss, loss))
            self._losses[example.text.key()] = first, loss

    def _is_learned(self, chunk: TrainText, ratio: float) -> bool:
        first, last = self._losses.get(chunk.key(), (0.0, 0.0))
        return last < ratio * first


class AdaptationSession:
    """The adaptation of a model to one prompt, in one slot: train, score, generate.

    The slots must be attached while the session is used; `adapted` does that for a single prompt.
    """

    def __init__(
        self,
        slots: Slots,
        slot: int = 0,
        *,
        training: TrainingConfig | None = None,
        init_adapter: Adapter | None = None,
        lr_factor: float = 1.0,
        on_step: Callable[[TrainStep], None] | None = None,
    ) -> None:
        """Reset the slot, then load the initial adapter.

        Args:
            slots: The slots of the model.
            slot: Which one to use.
            training: How texts become updates; decides whether the optimizer's state is reset, and
                the scale of the learning rate.
            init_adapter: LoRA adapter to start from instead of the base model.
            lr_factor: Factor of the adapter's learning rate.
            on_step: Called with each step after it was taken.

        Raises:
            ModelError: If the adapter was made for another model.
            ValueError: If the adapter does not fit what the slots train.
        """
        self.training = training or TrainingConfig()
        self._slots, self._slot, self._on_step = slots, slot, on_step
        self._steps: list[TrainStep] = []
        self._init_adapter = init_adapter
        self._start(optimizer=not self.training.persist_optimizer)
        scale = lr_factor * lr_scale(self.training, slots.optimizer.name)
        slots.params.lr[slot] = slots.adapter.lr * scale

    @property
    def steps(self) -> tuple[TrainStep, ...]:
        """The steps taken so far."""
        return tuple(self._steps)

    @property
    def model(self) -> LanguageModel:
        """The model with this session's weights, until the next step in any slot."""
        return self._slots.activate(self._slot)

    @property
    def adapter(self) -> Adapter:
        """A copy of the LoRA adapter as it is now.

        Raises:
            ValueError: If something else than LoRA is trained.
        """
        return Adapter.from_slot(self._slots, self._slot)

    def run(
        self,
        updates: Sequence[Update],
        *,
        limit: int | None = None,
        before_update: BeforeUpdate = lambda update: None,
        after_update: AfterUpdate = lambda update, number: None,
    ) -> Generator[Update, list[float], StopReason | None]:
        """The training loop as a coroutine: yields each update and is sent its losses.

        The caller computes the update: `train`, or a scheduler that computes those of many
        sessions at once. For a reused gradient no losses are sent. Updates on texts that are
        learned are skipped, see `Update.learned_ratio`.

        Args:
            updates: What to train on.
            limit: Number of texts after which the training ends [default: all].
            before_update: Called before each update; a reason that it returns ends the training.
            after_update: Called after each update with the update and the number of those taken.

        Returns:
            The reason of `before_update`; `learned` if fewer texts than `limit` were not learned;
            otherwise None.

        Raises:
            AdaptationError: If a loss is not finite; it carries the steps before.
        """
        losses, number, num_texts, repeats = list[float](), 0, 0, _Repeats(updates)
        for update in updates:
            if limit is not None and num_texts >= limit:
                return None
            if repeats.are_learned(update):
                continue
            if (reason := before_update(update)) is not None:
                return reason
            if number == 0:
                self._slots.precompute([e.text.tokens for each in updates for e in each.examples])
            start = time.perf_counter()
            losses = (yield update) or losses
            self._record(update, losses, time.perf_counter() - start)
            repeats.note(update, losses)
            number += 1
            num_texts += sum(example.is_last for example in update.examples)
            after_update(update, number)
        is_complete = number == len(updates) or (limit is not None and num_texts >= limit)
        return None if is_complete else "learned"

    def train(
        self,
        updates: Sequence[Update],
        *,
        limit: int | None = None,
        before_update: BeforeUpdate = lambda update: None,
        after_update: AfterUpdate = lambda update, number: None,
    ) -> StopReason | None:
        """`run` to its end, in this thread.

        Raises:
            AdaptationError: If a loss is not finite.
            ModelError: If one text alone does not fit in memory.
        """
        loop = self.run(
            updates, limit=limit, before_update=before_update, after_update=after_update
        )
        try:
            update = next(loop)
            while True:
                update = loop.send(self._take(update))
        except StopIteration as stop:
            reason: StopReason | None = stop.value
            return reason

    def step(self, text: str) -> float:
        """One gradient step on the first `max_length` tokens of `text`.

        Returns:
            The loss before the step, in nats per token.

        Raises:
            ValueError: If the text has no tokens.
            AdaptationError: If the loss is not finite; the weights have not changed.
        """
        model = self._slots.model
        tokens = TrainText(model.training_tokens(text)[: model.max_length])
        self.train([Update((TrainExample(text[:ID_LENGTH], None, tokens),))])
        return self._steps[-1].loss

    def score(self, text: str, *, context: str = "") -> Score:
        """`LanguageModel.score` with the weights as they are now.

        Raises:
            AdaptationError: If the score is not finite.
            ValueError: If the text is empty.
        """
        return self.check(self.model.score(text, context=context))

    def check(self, score: Score) -> Score:
        """Pass on a score of this session's model if it is finite.

        Raises:
            AdaptationError: If it is not.
        """
        if not math.isfinite(score.bits):
            raise AdaptationError(
                f"score is {score.bits} bits after {len(self._steps)} steps: "
                "lower the learning rate",
                AdaptationTrace(self.steps),
            )
        return score

    def decode(
        self,
        group: SequenceGroup,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_text: Callable[[TextPiece], None] = lambda piece: None,
        accepts: Callable[[], bool] = lambda: True,
    ) -> Generator[SequenceGroup, list[TextPiece], bool]:
        """Generation as a coroutine: yields `group` for each token and is sent the new text.

        Args:
            group: The sequences to generate.
            should_stop: Called before each token; True ends the generation.
            on_text: Called with each piece of text.
            accepts: Called once, when the prompt was read, before any text is passed on.

        Returns:
            False if `accepts` has returned False: then nothing was generated.

        Raises:
            AdaptationError: If the logits of the adapted model are not finite.
        """
        is_read = False
        while not (group.finish_reason or should_stop()):
            pieces, failure = list[TextPiece](), None
            try:
                pieces = yield group
            except ModelError as error:
                failure = error
            if not is_read and not accepts():
                return False
            is_read = True
            if failure is not None:
                if not self._steps:  # the base model's fault
                    raise failure
                raise AdaptationError(str(failure), AdaptationTrace(self.steps)) from failure
            for piece in filter(None, pieces):
                on_text(piece)
        return True

    def snapshot(self) -> Tensor:
        """A copy of the trained weights as they are now, for `restore`."""
        return self._slots.params.values[self._slot].clone()

    def restore(self, snapshot: Tensor | None) -> None:
        """Go back to the weights of `snapshot`, or with None to those of the start, bit for bit.

        The optimizer's state stays, so this is for answering, not for further steps.
        """
        if snapshot is None:
            self._start(optimizer=False)
        else:
            self._slots.params.values[self._slot].copy_(snapshot)

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """`LanguageModel.generate` with the weights as they are now."""
        return self.model.generate(
            prompt, max_tokens=max_tokens, temperature=temperature, seed=seed
        )

    def _start(self, *, optimizer: bool) -> None:
        self._slots.reset(self._slot, optimizer=optimizer)
        if self._init_adapter is not None:
            self._init_adapter.load_into(self._slots, self._slot)

    def _take(self, update: Update) -> list[float]:
        """Take `update` alone: its losses, none for a reused gradient."""
        if update.reused:
            self._slots.repeat_step([self._slot])
            return []
        return self._slots.step({self._slot: [e.text for e in update.examples]})[self._slot]

    def _record(self, update: Update, losses: Sequence[float], seconds: float) -> None:
        for example, loss in zip(update.examples, losses, strict=True):
            if not math.isfinite(loss):
                raise AdaptationError(
                    f"loss is {loss} at step {len(self._steps) + 1} on document {example.id!r}: "
                    "lower the learning rate",
                    AdaptationTrace(self.steps),
                )
            step = TrainStep(example.id, example.sigma, loss, seconds, example.text.num_loss_tokens)
            self._steps.append(step)
            if self._on_step is not None:
                self._on_step(step)


@contextmanager
def adapted(
    model: LanguageModel,
    adapter: AdapterConfig | str | None = None,
    optimizer: OptimizerConfig | None = None,
    training: TrainingConfig | None = None,
) -> Iterator[AdaptationSession]:
    """Adapt `model` to one prompt; on leaving, even by an error, its weights are restored exactly.

    >>> import whet
    >>> model = whet.LanguageModel.from_pretrained("whet-pico", device="cpu")
    >>> text = "Bees dance to show where flowers are."
    >>> with whet.adapted(model, whet.LoRA()) as session:
    ...     losses = [session.step(text) for _ in range(3)]
    ...     adapted = session.score(text)
    >>> losses[0] > losses[1] > losses[2]
    True
    >>> adapted.bits < model.score(text).bits
    True

    Costs memory for a copy of the trained weights, their gradient and the optimizer's state.

    Args:
        model: The model, which nothing else can use meanwhile.
        adapter: What is trained: `LoRA`, `FullFineTuning` or `LMHead`, or by name `lora`, `full`,
            `head` or `auto` (the default).
        optimizer: How a gradient becomes a step.
        training: How texts become updates.

    Returns:
        A context manager that gives the `AdaptationSession`.

    Raises:
        ModelError: If the model is in use already.
    """
    if adapter is None or isinstance(adapter, str):
        adapter = model.adapter_config(adapter or "auto")
    slots = Slots(model, adapter, optimizer)
    with slots.attached():
        yield AdaptationSession(slots, training=training)
