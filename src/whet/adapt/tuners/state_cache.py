"""Hidden states of the frozen part of a network, computed once per text.

What does not change by training need not be computed again: everything below the output matrix when
only that is trained, everything below the last layers when only those are.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from whet.adapt.batches import CPU_TOKENS, TOKENS, Batch, Tokens, group_by_length
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.disk_states import DiskStates
from whet.errors import ModelError

STATES_FOLDER = "cached-states"  # in the folder of a data space
Compute = Callable[[Int[Tensor, "b t"]], Float[Tensor, "b t d"]]


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How many hidden states are cached, and where."""

    memory_bytes: int = 2**28
    """In memory, in the precision that the network computes in."""
    folder: Path | None = None
    """Where they are stored, too, in float16; None for nowhere."""
    folder_bytes: int = 2**30
    """Largest size of the folder."""

    @classmethod
    def in_space(cls, space: Path, mib: int) -> "CacheLimits":
        """Also in the folder of a data space, up to `mib` MiB; 0 for in memory only."""
        return cls(folder=space / STATES_FOLDER if mib else None, folder_bytes=mib * 2**20)


class StateCache:
    """The states of texts that `compute` gives, the most recently used ones up to a size.

    A text is always computed at its own bucket length, so its states do not depend on the others.
    With a folder, states are rounded to float16 before their first use, so that a result does not
    depend on what the folder contains; those beyond the range of float16 are not stored.
    """

    def __init__(
        self, model: LanguageModel, compute: Compute, limits: CacheLimits, name: str
    ) -> None:
        """`name` says which layer's inputs `compute` gives."""
        self._model, self._compute, self._limits, self._name = model, compute, limits, name
        self._cached: OrderedDict[bytes, Tensor] = OrderedDict()
        self._disk: DiskStates | None = None
        self._version = -1

    @property
    def num_tokens(self) -> int:
        """Number of tokens whose states are cached."""
        return sum(map(len, self._cached.values()))

    def refresh(self) -> None:
        """Drop everything if the model's weights have changed, as by `Adapter.merge_into`."""
        version = sum(p._version for p in self._model.hf_model.parameters())
        if version == self._version:
            return
        self._cached.clear()
        self._version, folder = version, self._limits.folder
        if folder is not None:
            model = self._model
            dtype = str(model.hf_model.dtype).removeprefix("torch.")
            name = f"{model.fingerprint}-{self._name}-{model.bos_token_id}-{dtype}"
            self._disk = DiskStates(folder, name, self._limits.folder_bytes)

    def states(self, texts: Sequence[Tokens], length: int) -> Float[Tensor, "b t d"]:
        """The states of `texts`, padded with zeros to `length`."""
        self.precompute(texts)
        rows = [self._cached[_key(text)] for text in texts]
        return torch.stack([functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])

    def precompute(self, texts: Sequence[Tokens]) -> None:
        """Load or compute the states of `texts` that are not cached, batched by length.

        The least recently used ones are dropped, but never those of `texts`.
        """
        wanted = {_key(text): text for text in texts}
        new = [
            text
            for key, text in wanted.items()
            if key not in self._cached and not self._load(key, len(text))
        ]
        max_tokens = CPU_TOKENS if self._model.device.type == "cpu" else TOKENS
        lengths = [self._model.padded_length(len(text)) for text in new]
        for length, positions in group_by_length(lengths).items():
            batch_size = max(1, max_tokens // length)
            for first in range(0, len(positions), batch_size):
                chunk = [new[position] for position in positions[first : first + batch_size]]
                batch = Batch.from_texts(chunk, length, self._model.bos_token_id)
                with torch.no_grad():
                    states = self._compute(batch.ids.to(self._model.device))
                for text, row in zip(chunk, states, strict=True):
                    self._cached[_key(text)] = self._stored(_key(text), row[: len(text)].clone())
        for key in wanted:
            self._cached.move_to_end(key)
        size = sum(states.nbytes for states in self._cached.values())
        while size > self._limits.memory_bytes and len(self._cached) > len(wanted):
            size -= self._cached.popitem(last=False)[1].nbytes

    def _load(self, key: bytes, tokens: int) -> bool:
        """Whether the states of a text were on disk; then they are cached."""
        states = None if self._disk is None else self._disk.read(key, tokens)
        if states is not None:
            self._cached[key] = states.to(self._model.device, self._model.hf_model.dtype)
        return states is not None

    def _stored(self, key: bytes, states: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        """Store new states on disk, and return them as they will be read."""
        if self._disk is None:
            return states
        rounded = states.half()
        if not rounded.isfinite().all():
            return states
        self._disk.write(key, rounded)
        return rounded.to(states.dtype)


class LastLayers:
    """The last `count` layers of a network, run on cached states of the layers below them."""

    def __init__(self, model: LanguageModel, count: int, limits: CacheLimits) -> None:
        """Raises ModelError or ValueError as `layer_list`, or if there are fewer layers."""
        self._model = model
        name, layers = layer_list(model.hf_model)
        if count > len(layers):
            raise ValueError(
                f"layers is 'last:{count}', but {model.name} has {len(layers)} layers: lower the number"
            )
        self.prefixes = tuple(f"{name}.{i}." for i in range(len(layers) - count, len(layers)))
        """Beginnings of the names of the parameters and modules in the last layers."""
        self._below, self._first = list(layers)[: len(layers) - count], layers[len(layers) - count]
        self._returns_tuple = False
        self.cache = StateCache(model, self._run_below, limits, f"{len(layers) - count}")

    @property
    def has_layers_below(self) -> bool:
        return bool(self._below)

    def hidden_states(self, texts: Sequence[Tokens], length: int) -> Float[Tensor, "b t d"]:
        """The inputs of the output layer; differentiable in the last layers."""
        states = self.cache.states(texts, length)
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)

        def skip(inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (inputs,) if self._returns_tuple else inputs

        def start(inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
            return skip(states)

        replaced = {module: start if i == 0 else skip for i, module in enumerate(self._below)}
        with _replaced_forwards(replaced):
            return self._model.hidden_states(ids)

    def _run_below(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The inputs of the first of the last layers; nothing above is computed."""
        last = self._below[-1]
        run = last.forward

        def stop(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            self._returns_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if self._returns_tuple else output)

        try:
            with _replaced_forwards({last: stop}):
                self._model.hidden_states(ids)
        except _Reached as reached:
            return reached.states
        raise ModelError(
            f"the layers of {self._model.name} are not run in order: train all of them (layers 'all')"
        )


def last_layers(model: LanguageModel, layers: str, limits: CacheLimits) -> LastLayers | None:
    """The layers that are trained, if these are not all (`layers` is `all` or `last:N`).

    Raises:
        ValueError: If the model has fewer layers.
        ModelError: If its layers cannot be found.
    """
    if layers == "all":
        return None
    count = int(layers.removeprefix("last:"))
    last = LastLayers(model, count, limits)
    return last if last.has_layers_below else None


class _Reached(Exception):
    """The states below the last layers are computed."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def layer_list(hf_model: Any) -> tuple[str, nn.ModuleList]:
    """The name and the list of the layers of a network.

    Raises:
        ModelError: If no list of modules has as many items as the configuration has layers.
    """
    config = hf_model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    for name, module in hf_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ModelError(
        f"the {count} layers of {type(hf_model).__name__} cannot be found by name: train all of "
        "them (layers 'all')"
    )


@contextmanager
def _replaced_forwards(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, forward in forwards.items():
            stack.callback(restore_forward, module, vars(module).get("forward"))
            module.forward = forward
        yield


def restore_forward(module: Any, forward: Any) -> None:
    """Give `module` the `forward` that it had as an attribute of its own, or that of its class."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _key(text: Tokens) -> bytes:
    return text.numpy().tobytes()
