"""Slots: many prompts trained in lockstep on one model, each with its own weights.

A slot is a row of the flat parameters and, while a text of it is computed, a row of the batch; the
frozen weights are shared. Slots whose texts have one bucket length share a pass.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.adapt.batches import Batch, Tokens, TrainText, as_train_text, group_by_length
from whet.adapt.config import AdapterConfig, FullFineTuning, LMHead, LoRA, OptimizerConfig
from whet.adapt.cuda_graphs import CUDAGraphRunner
from whet.adapt.decoding.batch_decoding import BatchDecoder
from whet.adapt.decoding.sampling import SequenceGroup, TextPiece
from whet.adapt.flat_params import FlatParams, SlotIndex
from whet.adapt.loss import OutputProjection, chunked_cross_entropy
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.full import FullTuner
from whet.adapt.tuners.head import HeadTuner
from whet.adapt.tuners.lora import LoRATuner
from whet.adapt.tuners.state_cache import CacheLimits
from whet.errors import ModelError
from whet.maths.arrays import as_count

log = logging.getLogger("whet")
CPU_PASS_TOKENS = 1_024
"""Tokens per training pass on a CPU, padding included: what a larger pass saves for the backward pass
leaves the caches, and takes memory. 8 × 256 tokens at once are 24 % slower: benchmarks/LOG.md."""


@runtime_checkable
class Tuner(Protocol):
    """What is trained of a model, and how the network computes with it."""

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The tensors that every slot starts from."""

    @property
    def lm_head(self) -> OutputProjection:
        """The output layer as it is now."""

    def attached(self) -> AbstractContextManager[None]: ...

    def bind(self, params: Mapping[str, Tensor], grad: Mapping[str, Tensor] | None) -> None:
        """Compute with `params`, row by row of the batch, and add their gradients to `grad`."""

    def hidden_states(self, texts: Sequence[Tokens], batch: Batch) -> Float[Tensor, "b t d"]:
        """The inputs of `lm_head`."""

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Compute what does not depend on the steps, for all `texts` at once."""


class Slots:
    """`count` slots on `model`, whose weights change only within `attached`.

    With `torch_compile`, the trunk is compiled at the first step, which takes a minute and a C++
    compiler; not for LoRA.
    """

    def __init__(
        self,
        model: LanguageModel,
        adapter: AdapterConfig,
        optimizer: OptimizerConfig | None = None,
        *,
        count: int = 1,
        cache_limits: CacheLimits | None = None,
        torch_compile: bool = False,
        cuda_graphs: bool | None = None,
    ) -> None:
        as_count(count, "count")
        if isinstance(adapter, FullFineTuning) and count > 1:
            raise ValueError(f"count is {count}: expected 1 with full fine-tuning")
        check_compile(adapter, torch_compile)
        self.model, self.adapter = model, adapter
        with model.exclusive():  # otherwise adapted weights could be taken for the model's
            self._tuner = _make_tuner(model, adapter, cache_limits or CacheLimits(), torch_compile)
        dtype = next(model.hf_model.parameters()).dtype
        self.optimizer = optimizer or OptimizerConfig()
        self.params = FlatParams(self._tuner.initial, count, adapter.lr, self.optimizer, dtype)
        self.micro_batch_size = count  # texts per pass; lowered when memory runs out
        self._workspace = self._tuner.lm_head.workspace()
        self._bound: list[int] = []  # the slots whose rows the tuner computes with
        self._grad = self.params.gradients([0])
        self._decoder = BatchDecoder(model, self._bind_keys)
        if cuda_graphs is None:
            uses_cache = isinstance(adapter, LMHead) or adapter.layers != "all"
            cuda_graphs = model.device.type == "cuda" and not uses_cache
        self.graphs = CUDAGraphRunner(self._capturable_pass, model, count) if cuda_graphs else None
        """Runs small passes as CUDA graphs; by default on a GPU, except with cached states."""

    def __len__(self) -> int:
        return len(self.params)

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The trained tensors by name, as every slot starts with them."""
        return self._tuner.initial

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Use the model; on leaving, even by an error, it is restored bit for bit.

        Raises:
            ModelError: If the model is in use already.
        """
        with ExitStack() as stack:
            stack.enter_context(self.model.exclusive())
            stack.enter_context(_frozen(self.model.hf_model))
            stack.enter_context(self._tuner.attached())
            stack.callback(self.decode_step, {})  # drops the caches of unfinished sequences
            self.activate(0)
            yield

    def activate(self, slot: int) -> LanguageModel:
        """Make the model compute with the weights of `slot`, and return it.

        It is the same object for all slots, and valid until the next step or `activate`.
        """
        self._bind_no_grad([slot])
        return self.model

    def decode_step(
        self, groups: Mapping[int, SequenceGroup]
    ) -> dict[int, list[TextPiece] | Exception]:
        """Add one token to the sequences of each slot that have not ended, in one pass.

        Returns, for each slot, the text that became final, or why a sequence has no token: see
        `BatchDecoder.step`.
        """
        sequences = {
            (slot, index): sequence
            for slot, group in groups.items()
            for index, sequence in enumerate(group.sequences)
            if not sequence.finish_reason
        }
        pieces: dict[int, list[TextPiece] | Exception] = {}
        for (slot, _), piece in self._decoder.step(sequences).items():
            before = pieces.setdefault(slot, [])
            if isinstance(piece, Exception):
                pieces[slot] = piece
            elif isinstance(before, list):
                before.append(piece)
        return pieces

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Compute for all `texts` at once what does not depend on the steps on them."""
        try:
            self._tuner.precompute(texts)
        except RuntimeError as error:  # the steps compute it too, with fewer texts at once
            if not _is_out_of_memory(error):
                raise

    def reset(self, slot: int, *, optimizer: bool = True) -> None:
        """Restore the initial weights of `slot` exactly, and by default the optimizer's state."""
        self.params.reset(slot, optimizer=optimizer)

    def step(self, texts: Mapping[int, Sequence[Tokens | TrainText]]) -> dict[int, list[float]]:
        """One update of each slot in `texts`, on the mean gradient of its texts.

        The loss of a text is the mean over its tokens, or over those of its `loss_mask`. Slots do
        not depend on each other. If memory runs out, half as many texts share a pass from then on.

        Returns:
            The losses before the update, in nats per token. A slot with a loss that is not finite
            is not updated.

        Raises:
            ModelError: If one text alone does not fit in memory.
        """
        if not texts:
            return {}
        batches = {slot: [as_train_text(text) for text in batch] for slot, batch in texts.items()}
        while True:
            try:
                losses = self._forward_backward(batches)
                break
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve_batch(error)
        finite = [slot for slot, values in losses.items() if all(map(math.isfinite, values))]
        self.params.update(finite)
        return losses

    def repeat_step(self, slots: Sequence[int]) -> None:
        """One more update of `slots`, with the gradients of their last step."""
        self.params.update(slots)

    def _forward_backward(self, texts: Mapping[int, Sequence[TrainText]]) -> dict[int, list[float]]:
        losses: dict[int, list[float]] = {slot: [] for slot in texts}
        torch._foreach_zero_([self.params.grad[slot] for slot in texts])
        for i in range(max(map(len, texts.values()), default=0)):
            current = {slot: batch[i] for slot, batch in sorted(texts.items()) if i < len(batch)}
            for slots, length in self._passes(current):
                batch = [current[slot] for slot in slots]
                for slot, loss in zip(slots, self._pass(slots, batch, length), strict=True):
                    losses[slot].append(loss)
        for slot, every in texts.items():
            if len(every) > 1:
                self.params.grad[slot] /= len(every)
        return losses

    def _passes(self, texts: Mapping[int, TrainText]) -> Iterator[tuple[list[int], int]]:
        """The slots that share a pass, and its length.

        A single slot is not padded, except for CUDA graphs, which have one length each.
        """
        slots = list(texts)
        lengths = [len(text.tokens) for text in texts.values()]
        if len(self.params) > 1 or self.graphs is not None:
            lengths = [self.model.padded_length(length) for length in lengths]
        for length, positions in group_by_length(lengths).items():
            together = self.micro_batch_size
            if self.model.device.type == "cpu":
                together = min(together, max(1, CPU_PASS_TOKENS // length))
            for first in range(0, len(positions), together):
                yield [slots[i] for i in positions[first : first + together]], length

    def _pass(self, slots: list[int], texts: list[TrainText], length: int) -> list[float]:
        if self.graphs is not None and self.graphs.supports(len(slots), length):
            losses = self.graphs.run(slots, texts, length, self.model.bos_token_id)
        else:
            batch = Batch.from_texts(texts, length, self.model.bos_token_id).to(self.model.device)
            if self._bound != slots:
                self._bind(slots)
            losses = self._compute(slots, [text.tokens for text in texts], batch)
        return [float(loss) for loss in losses.tolist()]

    def _compute(
        self, slots: SlotIndex, texts: Sequence[Tokens], batch: Batch
    ) -> Float[Tensor, " b"]:
        states = self._tuner.hidden_states(texts, batch)
        losses = chunked_cross_entropy(states, self._tuner.lm_head, batch, self._workspace)
        self.params.accumulate(slots, self._grad)
        return losses

    def _capturable_pass(self, slots: Int[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """A pass that reads nothing back to the CPU, with the slots as an input."""
        self._bind(slots)
        self._bound = []  # it computes with tensors of the graph
        return self._compute(slots, (), batch)

    def _bind_no_grad(self, slots: Sequence[int]) -> OutputProjection:
        """Compute with `slots` without gradients; returns the output layer."""
        self._bound = []
        self._tuner.bind(self.params.views(self.params.weights(slots)), None)
        return self._tuner.lm_head

    def _bind_keys(self, keys: Sequence[tuple[int, int]]) -> OutputProjection:
        return self._bind_no_grad([slot for slot, _ in keys])

    def _bind(self, slots: SlotIndex) -> None:
        """Compute with `slots`; if their rows are views, later passes need not bind them again."""
        self._bound = []  # in case this fails
        values, self._grad = self.params.weights(slots), self.params.gradients(slots)
        self._tuner.bind(self.params.views(values), self.params.views(self._grad))
        if isinstance(slots, list) and self.params.is_view(self._grad):
            self._bound = slots

    def _halve_batch(self, error: RuntimeError) -> None:
        if self.micro_batch_size == 1:
            raise ModelError(
                f"model {self.model.name} runs out of memory on a single text: load it as bfloat16, "
                "train LoRA or LMHead, or use shorter texts"
            ) from error
        self.micro_batch_size //= 2
        if self.graphs is not None:
            self.graphs.clear()
        log.warning("out of memory: computing %d texts at once from now on", self.micro_batch_size)


def check_compile(adapter: AdapterConfig, torch_compile: bool) -> None:
    """Raises ValueError if `torch_compile` is combined with an adapter that it does not support."""
    if torch_compile and isinstance(adapter, LoRA):
        raise ValueError("torch_compile does not support LoRA: use it with full or head only")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _make_tuner(
    model: LanguageModel, adapter: AdapterConfig, limits: CacheLimits, torch_compile: bool
) -> Tuner:
    match adapter:
        case FullFineTuning():
            return FullTuner(model, adapter, limits, torch_compile)
        case LoRA():
            return LoRATuner(model, adapter, limits)
        case LMHead():
            return HeadTuner(model, limits, torch_compile)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Freeze the network; its flags, gradients and buffers are restored on leaving."""
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
