"""Slots: many prompts trained in lockstep on one model, each with its own weights.

A slot is a row of the flat parameters and, while a text of it is computed, a row of the batch; the
frozen weights are shared. Slots whose texts have one bucket length share a pass.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.adapt.batches import Batch, Tokens, TrainText, as_train_text, group_by_length
from whet.adapt.config import AdapterConfig, FullFineTuning, LMHead, OptimizerConfig
from whet.adapt.cuda_graphs import CUDAGraphRunner
from whet.adapt.decoding.batch_decoding import BatchDecoder
from whet.adapt.decoding.sampling import SequenceGroup, TextPiece
from whet.adapt.flat_params import FlatParams, SlotIndex
from whet.adapt.loss import OutputProjection, chunked_cross_entropy
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.lora import LoRATuner
from whet.adapt.tuners.state_cache import CacheLimits
from whet.adapt.tuners.tuner import check_compile, make_tuner
from whet.errors import ModelError
from whet.maths.arrays import as_count

log = logging.getLogger("whet")
CPU_PASS_TOKENS = 1_024
"""Tokens per training pass on a CPU, padding included: what a larger pass saves for the backward pass
leaves the caches, and takes memory. 8 × 256 tokens at once are 24 % slower: benchmarks/LOG.md."""
THREAD_PASS_TOKENS = 256
"""The same where each thread computes a pass of its own."""
MIN_THREAD_WORK = 2**31  # tokens × weights of a pass that is worth a thread of its own
SHORT_TEXT = 32  # tokens; a network is large if so few are worth a thread
MAX_BUSY_THREADS = 3  # as many have a pass each, however few texts there are
MAX_PASS_THREADS = 8  # each takes memory for a pass
Pass = tuple[list[int], list[TrainText], int]  # the slots, a text for each, and their length


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
            self._tuner = make_tuner(model, adapter, cache_limits or CacheLimits(), torch_compile)
        dtype = next(model.hf_model.parameters()).dtype
        self.optimizer = optimizer or OptimizerConfig()
        self.params = FlatParams(self._tuner.initial, count, adapter.lr, self.optimizer, dtype)
        self.micro_batch_size = count  # texts per pass; lowered when memory runs out
        self._workspace = self._tuner.lm_head.workspace()
        self._threads: PassThreads | None = None  # while attached, from the first use on
        self._num_weights = sum(p.numel() for p in model.hf_model.base_model.parameters())
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
            stack.callback(self._end_threads)
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
            threads = self._pass_threads(current)
            passes = [
                (slots, [current[slot] for slot in slots], length)
                for slots, length in self._passes(current, 1 if threads is None else len(threads))
            ]
            if threads is None:
                results = [self._pass(*each) for each in passes]
            else:
                results = threads.run(self._thread_pass, passes)
            for (slots, _, _), found in zip(passes, results, strict=True):
                for slot, loss in zip(slots, found, strict=True):
                    losses[slot].append(loss)
        for slot, every in texts.items():
            if len(every) > 1:
                self.params.grad[slot] /= len(every)
        return losses

    def _pass_threads(self, texts: Mapping[int, TrainText]) -> "PassThreads | None":
        """Threads that compute a pass each; None where one after the other is faster.

        Products of few rows use several threads badly, so a thread for each text is faster, unless
        there are more threads than texts or the passes are small.
        """
        threads = min(torch.get_num_threads(), len(self), self.micro_batch_size, MAX_PASS_THREADS)
        shortest = min((len(text.tokens) for text in texts.values()), default=0)
        is_work = shortest * self._num_weights >= MIN_THREAD_WORK
        if not (1 < threads < 2 * len(texts) and is_work and self._is_parallel):
            return None
        if self._threads is None or len(self._threads) != threads:
            self._end_threads()
            self._threads = PassThreads(threads, self._tuner.lm_head)
        return self._threads

    @property
    def _is_parallel(self) -> bool:
        return isinstance(self._tuner, LoRATuner) and self._tuner.is_parallel

    def _end_threads(self) -> None:
        if self._threads is not None:
            self._threads.close()
            self._threads = None

    def _passes(
        self, texts: Mapping[int, TrainText], threads: int
    ) -> Iterator[tuple[list[int], int]]:
        """The slots that share a pass, and its length; the longest first, which threads wait for."""
        slots = list(texts)
        lengths = [self._pass_length(len(text.tokens)) for text in texts.values()]
        for length, positions in reversed(group_by_length(lengths).items()):
            together = self.micro_batch_size
            if self.model.device.type == "cpu":
                limit = CPU_PASS_TOKENS if threads == 1 else THREAD_PASS_TOKENS
                together = min(together, -(-len(slots) // threads), max(1, limit // length))
            for first in range(0, len(positions), together):
                yield [slots[i] for i in positions[first : first + together]], length

    def _pass_length(self, tokens: int) -> int:
        """The length at which a text is computed, which depends on no other text.

        Padded where it may share a pass: not if few threads compute a large network text by text.
        """
        padded = self.model.padded_length(tokens)
        is_alone = len(self) == 1 or (
            2 * padded > THREAD_PASS_TOKENS
            and SHORT_TEXT * self._num_weights >= MIN_THREAD_WORK
            and min(torch.get_num_threads(), len(self)) <= MAX_BUSY_THREADS
            and self._is_parallel
        )
        return tokens if is_alone and self.graphs is None else padded

    def _pass(self, slots: list[int], texts: list[TrainText], length: int) -> list[float]:
        if self.graphs is not None and self.graphs.supports(len(slots), length):
            losses = self.graphs.run(slots, texts, length, self.model.bos_token_id)
        else:
            batch = Batch.from_texts(texts, length, self.model.bos_token_id).to(self.model.device)
            if self._bound != slots:
                self._bind(slots)
            tokens = [text.tokens for text in texts]
            losses = self._compute(slots, tokens, batch, self._grad, self._workspace)
        return [float(loss) for loss in losses.tolist()]

    def _thread_pass(self, workspace: Tensor, work: Pass) -> list[float]:
        """The losses of a pass in a thread of its own."""
        slots, texts, length = work
        assert isinstance(self._tuner, LoRATuner)
        values, grad = self.params.weights(slots), self.params.gradients(slots)
        views = self.params.views(values), self.params.views(grad)
        self._tuner.bind(*views, this_thread=True)
        batch = Batch.from_texts(texts, length, self.model.bos_token_id)
        losses = self._compute(slots, (), batch, grad, workspace)
        return [float(loss) for loss in losses.tolist()]

    def _compute(
        self,
        slots: SlotIndex,
        texts: Sequence[Tokens],
        batch: Batch,
        grad: Float[Tensor, "b n"],
        workspace: Float[Tensor, " c"],
    ) -> Float[Tensor, " b"]:
        states = self._tuner.hidden_states(texts, batch)
        losses = chunked_cross_entropy(states, self._tuner.lm_head, batch, workspace)
        self.params.accumulate(slots, grad)
        return losses

    def _capturable_pass(self, slots: Int[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """A pass that reads nothing back to the CPU, with the slots as an input."""
        self._bind(slots)
        self._bound = []  # it computes with tensors of the graph
        return self._compute(slots, (), batch, self._grad, self._workspace)

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


class PassThreads:
    """Threads that compute a pass each, with an equal share of torch's threads."""

    def __init__(self, count: int, output: OutputProjection) -> None:
        self._count, self._output, self._local = count, output, threading.local()
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="whet-pass")
        total, barrier = torch.get_num_threads(), threading.Barrier(count)
        begun = [self._executor.submit(self._begin, barrier, total // count) for _ in range(count)]
        wait(begun)
        torch.set_num_threads(total)  # a thread's number is also that of all later threads

    def __len__(self) -> int:
        return self._count

    def _begin(self, barrier: threading.Barrier, share: int) -> None:
        torch.set_num_threads(share)
        self._local.workspace = self._output.workspace()
        barrier.wait()  # so that each thread comes here

    def run(
        self, compute: Callable[[Tensor, Pass], list[float]], passes: Sequence[Pass]
    ) -> list[list[float]]:
        """What `compute` returns for each pass; on an error, after all that have begun ended."""
        futures = [self._executor.submit(self._run, compute, each) for each in passes]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def _run(self, compute: Callable[[Tensor, Pass], list[float]], work: Pass) -> list[float]:
        return compute(self._local.workspace, work)

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
