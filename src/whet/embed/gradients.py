"""Text to vectors by the gradient of a language model's loss on it.

`ntk`: the gradient at the head, whose inner products are the last layer's empirical neural tangent
kernel (Wei et al. 2022, arXiv 2206.12569; the paper's Section 4). `influence`: the gradient at the
linear layers of the trunk, whose cosines are first-order influences (LESS: Xia et al. 2024, arXiv
2402.04333; without its warm-up and its preconditioning by Adam's moments). Both are of the loss
that a step of the engine follows. Cosines have either sign.

A linear layer's gradient is a sum of outer products over the tokens, so that one backward pass
gives those of every text in a batch, and no weight's gradient is made.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from whet.adapt.loading import start_token
from whet.adapt.tuners.lora import linear_layers, widths
from whet.embed.encoder import Batch, Reader, named
from whet.embed.tensor_sketch import TensorSketch
from whet.maths.arrays import Array, as_count

DIMENSION = 2048
LOGITS = 2**25  # of a batch: 128 MiB in fp32, and there are about four such arrays


class LossGradients:
    """The gradient of a causal model's mean loss, sketched (`ntk:NAME`, `influence:NAME`)."""

    def __init__(
        self,
        model: str,
        kind: Literal["ntk", "influence"],
        *,
        targets: tuple[str, ...] = (),
        dimension: int = DIMENSION,
        seed: int = 0,
        dtype: str = "fp32",
        context: int | None = None,
        normalize: bool = True,
        device: str | None = None,
    ) -> None:
        """Load `model`: bundled, a folder or a hub id.

        Args:
            model: Its name.
            kind: Where the gradient is taken: at the head (tied ones as if they were not), or at
                the linear layers of the trunk.
            targets: Names of the trunk's layers that count, as for LoRA; by default all.
            dimension: Length of a row; see `TensorSketch` for what it costs in accuracy.
            seed: Of the random projection.
            dtype: Precision of the weights; the sketch is in fp32.
            context: Tokens of a text that are read, by default as many as the model takes, at most
                2,048.
            normalize: Whether rows have length 1.
            device: By default a GPU if there is one.

        Raises:
            ModelError: If it cannot be loaded, or its tokenizer has no token to begin with.
            ValueError: If an option is out of range, or a target names no layer.
        """
        if kind == "ntk" and targets:
            raise ValueError(f"targets is {targets}, but ntk is of the head alone: leave them out")
        self.dimension, self.normalized = as_count(dimension, "dimension"), normalize
        self._reader = Reader(
            model,
            "AutoModelForCausalLM",
            special=False,
            dtype=dtype,
            context=context,
            device=device,
        )
        options = {
            "targets": "+".join(targets) or None,
            "dimension": None if dimension == DIMENSION else dimension,
            "seed": seed or None,
            "dtype": None if dtype == "fp32" else dtype,
            "context": context,
            "normalize": None if normalize else "false",
        }
        self.name = named(kind, model, **options)
        self.fingerprint = self._reader.fingerprint(kind=kind, **options)
        network = self._reader.network
        head = network.get_output_embeddings()
        self._start = start_token(self._reader.tokenizer, model)
        self._vocabulary = min(len(self._reader.tokenizer), len(head.weight))
        self._entry = head if kind == "ntk" else network.get_input_embeddings()
        layers = [head] if kind == "ntk" else linear_layers(network, targets).values()
        self._layers = [
            (layer, TensorSketch(*widths(layer)[::-1], dimension, seed=seed + number))
            for number, layer in enumerate(layers)
        ]
        self._one_at_a_time = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Texts are cut at the context; those without a token give zero rows.

        A text's row depends on its batch by no more than rounding. Threads take turns. A forward
        pass, and for `influence` a backward pass through the activations.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text holds half of a surrogate pair.
        """
        with self._one_at_a_time:
            return self._reader.encode(
                texts,
                self.dimension,
                self._gradients,
                normalize=self.normalized,
                tokens=LOGITS // self._vocabulary,
            )

    @torch.enable_grad()
    def _gradients(self, batch: Batch) -> Float[Tensor, "b d"]:
        inputs = functional.pad(batch.tokens, (1, 0), value=self._start)[:, :-1]
        rows = torch.zeros(len(inputs), self.dimension, device=inputs.device)
        with self._watched(batch.lengths, rows):
            output = self._reader.network(input_ids=inputs, attention_mask=batch.mask.long())
            logits = output.logits[:, :, : self._vocabulary].flatten(0, 1).float()
            losses = functional.cross_entropy(logits, batch.tokens.flatten(), reduction="none")
            weights = batch.mask / batch.mask.sum(1, keepdim=True)
            (losses * weights.flatten()).sum().backward()  # type: ignore[no-untyped-call]
        return rows

    @contextmanager
    def _watched(self, lengths: list[int], rows: Float[Tensor, "b d"]) -> Iterator[None]:
        """Add to `rows` the sketch of each layer's gradient when the backward pass reaches it."""
        with ExitStack() as hooks:
            hooks.callback(self._entry.register_forward_hook(_begin).remove)
            for layer, sketch in self._layers:
                hook = partial(_watch, sketch, lengths, rows)
                hooks.callback(layer.register_forward_hook(hook).remove)
            yield


def _begin(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    """Where the backward pass ends: nothing before it has a gradient."""
    return output.detach().requires_grad_()


def _watch(
    sketch: TensorSketch,
    lengths: list[int],
    rows: Float[Tensor, "b d"],
    _: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    states = inputs[0].detach()

    def reached(gradients: Tensor) -> None:
        for row, gradient, state, n in zip(rows, gradients, states, lengths, strict=True):
            row += sketch(gradient[:n], state[:n])

    output.register_hook(reached)  # type: ignore[no-untyped-call]
