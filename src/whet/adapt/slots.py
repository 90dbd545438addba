"""Many prompts sharpened in lock-step on one model: the hot step.

A slot is a row of the bank and, while a text of it is computed, a row of the batch; the frozen base
is shared. Slots whose texts have the same rounded length share a forward and a backward pass.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.adapt.batch_decoding import BatchDecoder
from whet.adapt.batches import Batch, Tokens, grouped
from whet.adapt.config import AdapterConfig, FullFineTuning, LMHead, LoRA, OptimizerConfig
from whet.adapt.cuda_graphs import Graphs
from whet.adapt.flat_params import FlatParams, Slotted
from whet.adapt.loss import OutputProjection, chunked_cross_entropy
from whet.adapt.model import LanguageModel
from whet.adapt.sampling import SequenceState
from whet.adapt.tuners.full import FullTuner
from whet.adapt.tuners.head import HeadTuner
from whet.adapt.tuners.lora import LoRATuner
from whet.errors import ModelError
from whet.maths.arrays import as_count

log = logging.getLogger("whet")

CACHE_BYTES = 2**28  # of hidden states, for head


@runtime_checkable
class Tuner(Protocol):
    """What one mode trains of a model."""

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The tensors that every slot starts from."""

    @property
    def lm_head(self) -> OutputProjection:
        """The last layer, as it is used now."""

    def attached(self) -> AbstractContextManager[None]: ...

    def bind(self, theta: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with `theta`, row by row of the batch, and add its gradients to `grad`."""

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        """The hidden states that `output` is given."""

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Do now, at once, what does not depend on the steps in between."""


class Slots:
    """`count` slots on `model`. Nothing of the model changes but within `attached`.

    With `compiled`, torch compiles the trunk in the first step, which takes a minute and a C++
    compiler; not for LoRA, whose layers it cannot read.
    """

    def __init__(
        self,
        model: LanguageModel,
        adapter: AdapterConfig,
        optimizer: OptimizerConfig | None = None,
        *,
        count: int = 1,
        cache_bytes: int = CACHE_BYTES,
        compiled: bool = False,
    ) -> None:
        as_count(count, "count")
        if isinstance(adapter, FullFineTuning) and count > 1:
            raise ValueError(f"count is {count}: full training has one slot, the network itself")
        check_compiled(adapter, compiled)
        self.model, self.adapter = model, adapter
        with model.exclusive():  # else it would take a borrower's weights for the model's
            self._tuner = _make_tuner(model, adapter, cache_bytes, compiled)
        dtype = next(model.hf_model.parameters()).dtype
        self.optimizer = optimizer or OptimizerConfig()
        self.params = FlatParams(self._tuner.initial, count, adapter.lr, self.optimizer, dtype)
        self.micro_batch_size = count  # texts in one pass; lowered when memory runs out
        self._room = self._tuner.lm_head.room()
        self._used: list[int] = []  # the slots whose own rows the form computes with
        self._grad = self.params.gradients([0])
        self._continuations = BatchDecoder(model, self._reading)
        self._graphs = (
            Graphs(self._recordable, model, count)
            if model.device.type == "cuda" and not isinstance(adapter, LMHead)
            else None
        )

    def __len__(self) -> int:
        return len(self.params)

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """What every slot starts from: the tensors that are trained, by name."""
        return self._tuner.initial

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Lend the model to the slots; on leaving, even by an error, it is as before, bit for bit.

        Raises:
            ModelError: If the model is lent out already.
        """
        with ExitStack() as stack:
            stack.enter_context(self.model.exclusive())
            stack.enter_context(_frozen(self.model.hf_model))
            stack.enter_context(self._tuner.attached())
            stack.callback(self.decode_step, {})  # nothing stays of those that were not finished
            self.activate(0)
            yield

    def activate(self, slot: int) -> LanguageModel:
        """The model as `slot` has it until the next step, to be scored."""
        self._reading([slot])
        return self.model

    def decode_step(self, decoders: Mapping[int, SequenceState]) -> dict[int, str | Exception]:
        """One token more of every slot's continuation, in one pass: see `BatchDecoder.step`."""
        return self._continuations.step(decoders)

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Texts that will be stepped on: what can be computed for all of them at once, is."""
        try:
            self._tuner.precompute(texts)
        except RuntimeError as error:  # a step computes them too, as few at once as it must
            if not _is_out_of_memory(error):
                raise

    def reset(self, slot: int, *, optimizer: bool = True) -> None:
        """Put `slot` back to the start, bit for bit."""
        self.params.reset(slot, optimizer=optimizer)

    def step(self, texts: Mapping[int, Sequence[Tokens]]) -> dict[int, list[float]]:
        """One update of every slot in `texts`, on the mean gradient of its texts.

        Returns the losses before it, nats per token. A slot with a loss that is not finite is not
        updated. What a slot computes depends on no other. Out of memory, half as many texts are
        computed at once from then on.

        Raises:
            ModelError: If memory does not hold one text alone.
        """
        if not texts:
            return {}
        while True:
            try:
                losses = self._gradients(texts)
                break
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(error)
        finite = [slot for slot, own in losses.items() if all(map(math.isfinite, own))]
        self.params.update(finite)
        return losses

    def repeat_step(self, slots: Sequence[int]) -> None:
        """One more update of `slots` with the gradients of their last step."""
        self.params.update(slots)

    def _gradients(self, texts: Mapping[int, Sequence[Tokens]]) -> dict[int, list[float]]:
        losses: dict[int, list[float]] = {slot: [] for slot in texts}
        torch._foreach_zero_([self.params.grad[slot] for slot in texts])
        for turn in range(max(map(len, texts.values()), default=0)):
            current = {slot: own[turn] for slot, own in sorted(texts.items()) if turn < len(own)}
            for slots, length in self._passes(current):
                part = [current[slot] for slot in slots]
                for slot, loss in zip(slots, self._pass(slots, part, length), strict=True):
                    losses[slot].append(loss)
        for slot, own in texts.items():
            if len(own) > 1:
                self.params.grad[slot] /= len(own)
        return losses

    def _passes(self, texts: Mapping[int, Tokens]) -> Iterator[tuple[list[int], int]]:
        """Slots whose texts are computed together, and at which length.

        One slot by itself pads nothing, but for graphs, which are of one length each.
        """
        slots = list(texts)
        lengths = [len(text) for text in texts.values()]
        if len(self.params) > 1 or self._graphs is not None:
            lengths = [self.model.padded_length(length) for length in lengths]
        for length, positions in grouped(lengths).items():
            for first in range(0, len(positions), self.micro_batch_size):
                yield [slots[i] for i in positions[first : first + self.micro_batch_size]], length

    def _pass(self, slots: list[int], texts: list[Tokens], length: int) -> list[float]:
        if self._graphs is not None and self._graphs.takes(len(slots), length):
            losses = self._graphs.losses(slots, texts, length, self.model.bos_token_id)
        else:
            batch = Batch.of(texts, length, self.model.bos_token_id).to(self.model.device)
            if self._used != slots:
                self._use(slots)
            losses = self._computed(slots, texts, batch)
        found: list[float] = losses.tolist()
        return found

    def _computed(
        self, slots: Slotted, texts: Sequence[Tokens], batch: Batch
    ) -> Float[Tensor, " b"]:
        states = self._tuner.hidden_states(texts, batch)
        losses = chunked_cross_entropy(states, self._tuner.lm_head, batch, self._room)
        self.params.accumulate(slots, self._grad)
        return losses

    def _recordable(self, slots: Int[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """A pass of which nothing is read back, and whose slots are data too."""
        self._use(slots)
        self._used = []  # what it computed with is the graph's own
        return self._computed(slots, (), batch)

    def _reading(self, slots: Sequence[int]) -> OutputProjection:
        """Compute with `slots` and keep no gradients; gives the last layer."""
        self._used = []
        self._tuner.bind(self.params.views(self.params.weights(slots)), None)
        return self._tuner.lm_head

    def _use(self, slots: Slotted) -> None:
        """Compute with `slots`, again and again where the form needs no copy of their rows."""
        self._used = []  # should this fail
        theta, self._grad = self.params.weights(slots), self.params.gradients(slots)
        self._tuner.bind(self.params.views(theta), self.params.views(self._grad))
        if isinstance(slots, list) and self.params.shares(self._grad):
            self._used = slots

    def _halve(self, error: RuntimeError) -> None:
        if self.micro_batch_size == 1:
            raise ModelError(
                f"model {self.model.name} runs out of memory on one text alone: load it in a "
                "smaller dtype, train less of it (lora, head), or lower the context"
            ) from error
        self.micro_batch_size //= 2
        if self._graphs is not None:
            self._graphs.clear()
        log.warning("out of memory: going on with %d texts at once", self.micro_batch_size)


def check_compiled(adapter: AdapterConfig, compiled: bool) -> None:
    """Refuse what torch cannot compile.

    Raises:
        ValueError: If that is asked.
    """
    if compiled and isinstance(adapter, LoRA):
        raise ValueError("compiled is for full and head training: leave it out for LoRA")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _make_tuner(
    model: LanguageModel, adapter: AdapterConfig, cache_bytes: int, compiled: bool
) -> Tuner:
    match adapter:
        case FullFineTuning():
            return FullTuner(model, compiled)
        case LoRA():
            return LoRATuner(model, adapter)
        case LMHead():
            return HeadTuner(model, cache_bytes, compiled)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Nothing trains but what a form says; flags, gradients and buffers come back."""
    before = [(p, p.requires_grad, p.grad) for p in network.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required, grad in before:
            parameter.requires_grad_(required)
            parameter.grad = grad
        for buffer, old in buffers:
            buffer.copy_(old)
