"""Random projection of a sum of outer products, of which none is ever formed.

A linear layer's gradient is Σ_t u_t v_tᵀ over the tokens: the loss's gradient at its output times
its input. A count sketch (Charikar et al. 2002) adds the numbers of a vector, each with a random
sign, into m random buckets; the circular convolution of the sketches of u and v is a count sketch
of u vᵀ, so that in Fourier space one product a token is enough (TensorSketch: Pham & Pagh 2013,
"Fast and scalable polynomial kernels via explicit feature maps").
"""

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 512  # tokens at a time: what is kept of a block fits the cache


class TensorSketch:
    """A random linear map from matrices to `dimension` numbers that keeps inner products.

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
        """The sketch of Σ_t left_t right_tᵀ. O(t (l + r + m log m)) time, O(m) memory a token."""
        total = torch.zeros(self._dimension // 2 + 1, dtype=torch.complex64, device=left.device)
        for start in range(0, len(left), BLOCK):
            part = (left[start : start + BLOCK], right[start : start + BLOCK])
            u, v = (
                torch.fft.rfft(self._counted(x, *side))
                for x, side in zip(part, self._sides, strict=True)
            )
            total += (u * v).sum(0)
        made: Tensor = torch.fft.irfft(total, n=self._dimension)
        return made

    def _counted(
        self, vectors: Float[Tensor, "t l"], buckets: Tensor, signs: Tensor
    ) -> Float[Tensor, "t m"]:
        device = vectors.device
        signed = vectors.float() * signs.to(device)
        counted = torch.zeros(len(vectors), self._dimension, device=device)
        return counted.index_add_(1, buckets.to(device), signed)


def _hash(size: int, dimension: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    buckets = torch.randint(dimension, (size,), generator=generator)
    return buckets, torch.randint(2, (size,), generator=generator).float() * 2 - 1
