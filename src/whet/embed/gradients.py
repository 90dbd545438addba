"""Embedders from the gradient of a language model's loss on the text.

`ntk`: the gradient at the head, whose inner products are the last layer's empirical neural tangent
kernel (Wei et al. 2022, arXiv 2206.12569; the paper's Section 4). `influence`: the gradient at the
linear layers of the trunk, whose cosines are first-order influences (LESS: Xia et al. 2024, arXiv
2402.04333; without its warm-up and its preconditioning by Adam's moments). Both use the loss
that a training step minimizes. Cosines have either sign.

A linear layer's gradient is Σ_t u_t v_tᵀ over the tokens: the loss's gradient at its output times
its input. So one backward pass gives the gradients of all texts in a batch, and no weight's
gradient is formed. A count sketch (Charikar et al. 2002) adds the numbers of a vector, each with a
random sign, into m random buckets; the circular convolution of the sketches of u and v is a count
sketch of u vᵀ, so in Fourier space one product per token is enough (TensorSketch: Pham & Pagh 2013,
"Fast and scalable polynomial kernels via explicit feature maps").
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

from whet.errors import require

require("torch", "adapt")

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from whet.adapt.checkpoints.loading import start_token
from whet.adapt.tuners.lora import in_out_features, linear_layers
from whet.embed.embedder import spec_of
from whet.embed.encoder import EncodedBatch, TextEncoder
from whet.maths.arrays import Array, as_count

DIMENSION = 2048
LOGITS = 2**25  # per batch: 128 MiB in fp32, and there are about four such arrays
BLOCK = 512  # tokens that are sketched at a time: a block fits the cache


class TensorSketch:
    """A random linear map from matrices to `dimension` numbers that preserves inner products.

    The inner product of two sketches is that of the matrices on average, with a variance of at most
    11 / `dimension` of the product of their squared Frobenius norms (Avron et al. 2014, "Subspace
    embeddings for the polynomial kernel", Lemma 4).
    """

    def __init__(self, left: int, right: int, dimension: int, seed: int) -> None:
        """For matrices of shape [left, right]; the same seed gives the same map."""
        generator = torch.Generator().manual_seed(seed)
        self._sides = [_hash(size, dimension, generator) for size in (left, right)]
        self._dimension = dimension

    def __call__(
        self, left: Float[Tensor, "t l"], right: Float[Tensor, "t r"]
    ) -> Float[Tensor, " m"]:
        """Sketch Σ_t left_t right_tᵀ in O(t (l + r + m log m)) time and O(m) memory per token."""
        total = torch.zeros(self._dimension // 2 + 1, dtype=torch.complex64, device=left.device)
        for start in range(0, len(left), BLOCK):
            block = (left[start : start + BLOCK], right[start : start + BLOCK])
            u, v = (
                torch.fft.rfft(self._count_sketch(x, *side))
                for x, side in zip(block, self._sides, strict=True)
            )
            total += (u * v).sum(0)
        sketch: Tensor = torch.fft.irfft(total, n=self._dimension)
        return sketch

    def _count_sketch(
        self, vectors: Float[Tensor, "t l"], buckets: Tensor, signs: Tensor
    ) -> Float[Tensor, "t m"]:
        device = vectors.device
        signed = vectors.float() * signs.to(device)
        buckets_sum = torch.zeros(len(vectors), self._dimension, device=device)
        return buckets_sum.index_add_(1, buckets.to(device), signed)


def _hash(size: int, dimension: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    buckets = torch.randint(dimension, (size,), generator=generator)
    return buckets, torch.randint(2, (size,), generator=generator).float() * 2 - 1


class LossGradients:
    """Sketched gradient of a causal model's mean loss (`ntk:NAME`, `influence:NAME`)."""

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
        trust_remote_code: bool = False,
        local_files_only: bool = False,
    ) -> None:
        """Load `model`: bundled, a folder or a hub id.

        Args:
            model: Name, folder or hub id.
            kind: `ntk` takes the gradient at the head (as if it were not tied), `influence` at the
                linear layers of the trunk.
            targets: Names of the trunk's layers that are used, as for LoRA; by default all.
            dimension: Length of the vectors; see `TensorSketch` for its effect on accuracy.
            seed: Seed of the random projection.
            dtype: Precision of the weights; the sketch is in fp32.
            context: Tokens of a text that are read, by default as many as the model accepts, at
                most 2,048.
            normalize: Whether vectors are scaled to length 1.
            device: By default a GPU if there is one.
            trust_remote_code: Run the code that the model brings.
            local_files_only: Never download.

        Raises:
            ModelError: If the model cannot be loaded, or its tokenizer has no start token.
            ValueError: If an option is out of range, or a target matches no layer.
        """
        if kind == "ntk" and targets:
            raise ValueError(f"targets is {targets}, but ntk uses the head alone: remove targets")
        self.dimension, self.normalized = as_count(dimension, "dimension"), normalize
        self._encoder = TextEncoder(
            model,
            "AutoModelForCausalLM",
            add_special_tokens=False,
            dtype=dtype,
            context=context,
            device=device,
            trust_remote_code=trust_remote_code,
            local_files_only=local_files_only,
        )
        options = {
            "targets": "+".join(targets) or None,
            "dimension": None if dimension == DIMENSION else dimension,
            "seed": seed or None,
            "dtype": None if dtype == "fp32" else dtype,
            "context": context,
            "normalize": None if normalize else "false",
        }
        self.name = spec_of(kind, model, **options)
        self.fingerprint, former = self._encoder.fingerprints(kind=kind, **options)
        self.former_fingerprints = (former,)
        network = self._encoder.network
        head = network.get_output_embeddings()
        self._start = start_token(self._encoder.tokenizer, model)
        self._vocabulary = min(len(self._encoder.tokenizer), len(head.weight))
        self._entry = head if kind == "ntk" else network.get_input_embeddings()
        layers = [head] if kind == "ntk" else linear_layers(network, targets).values()
        self._layers = [
            (layer, TensorSketch(*in_out_features(layer)[::-1], dimension, seed=seed + number))
            for number, layer in enumerate(layers)
        ]
        self._lock = threading.Lock()

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read."""
        return self._encoder.context

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts have more tokens."""
        return self._encoder.count_truncated(texts)

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """Embed texts, truncated to the context; those without a token get zero rows.

        A row depends on the other texts by no more than rounding. Threads take turns. Costs a
        forward pass and, for `influence`, a backward pass through the activations.

        Raises:
            ModelError: If a row is not finite.
            ValueError: If a text contains an unpaired surrogate.
        """
        with self._lock:
            return self._encoder.encode(
                texts,
                self.dimension,
                self._gradients,
                normalize=self.normalized,
                batch_tokens=LOGITS // self._vocabulary,
            )

    @torch.enable_grad()
    def _gradients(self, batch: EncodedBatch) -> Float[Tensor, "b d"]:
        inputs = functional.pad(batch.tokens, (1, 0), value=self._start)[:, :-1]
        rows = torch.zeros(len(inputs), self.dimension, device=inputs.device)
        with self._sketching(batch.lengths, rows):
            output = self._encoder.network(input_ids=inputs, attention_mask=batch.mask.long())
            logits = output.logits[:, :, : self._vocabulary].flatten(0, 1).float()
            losses = functional.cross_entropy(logits, batch.tokens.flatten(), reduction="none")
            weights = batch.mask / batch.mask.sum(1, keepdim=True)
            (losses * weights.flatten()).sum().backward()  # type: ignore[no-untyped-call]
        return rows

    @contextmanager
    def _sketching(self, lengths: list[int], rows: Float[Tensor, "b d"]) -> Iterator[None]:
        """Add to `rows` the sketch of each layer's gradient when the backward pass reaches it."""
        with ExitStack() as hooks:
            hooks.callback(self._entry.register_forward_hook(_start_gradients).remove)
            for layer, sketch in self._layers:
                hook = partial(_sketch_gradient, sketch, lengths, rows)
                hooks.callback(layer.register_forward_hook(hook).remove)
            yield


def _start_gradients(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    """Forward hook: the backward pass ends here, as nothing before it needs a gradient."""
    return output.detach().requires_grad_()


def _sketch_gradient(
    sketch: TensorSketch,
    lengths: list[int],
    rows: Float[Tensor, "b d"],
    _: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    """Forward hook: add the sketch of the layer's gradient to `rows` in the backward pass."""
    states = inputs[0].detach()

    def add_sketches(gradients: Tensor) -> None:
        for row, gradient, state, n in zip(rows, gradients, states, lengths, strict=True):
            row += sketch(gradient[:n], state[:n])

    output.register_hook(add_sketches)  # type: ignore[no-untyped-call]
