"""What a selector returns, and the one rule of ties.

Source: SIFT, arXiv 2410.08020: σ_n of Section 3, the stopping rule of Section 6.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import (
    Array,
    as_count,
    as_positive,
    as_vector,
    check_matrix,
    check_noise,
    duplicate_groups,
)
from whet.maths.posterior import Posterior

TIE = 1e-9  # relative; docs/method.md, "Ties"


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """An ordered choice among candidates, with what each pick told about the prompt's response."""

    indices: Int[Array, " n"]
    """Rows of the candidates in the order chosen; a row may be chosen again."""
    gains: Float[Array, " n"]
    """By how much each pick lowered the posterior variance."""
    variance: Float[Array, " n+1"]
    """Posterior variance of the prompt's response after 0, 1, … n picks."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sigma(self) -> Float[Array, " steps"]:
        """σ_n: posterior standard deviation as a share of the prior's, so it starts at 1."""
        sigma: Float[Array, " steps"] = np.sqrt(self.variance / self.variance[0])
        return sigma

    def stop_at(self, alpha: float) -> "Selection":
        """The picks before the first step m ≥ 1 with σ_m > 1 / (α m): ADAPTIVE SIFT(α).

        Section 6 of the paper. May be empty.
        """
        steps = np.arange(1, len(self) + 1)
        over = np.flatnonzero(self.sigma[1:] > 1 / (as_positive(alpha, "alpha") * steps))
        return self.first(int(over[0]) if len(over) else len(self))

    def first(self, n: int) -> "Selection":
        """The first `n` picks."""
        return Selection(self.indices[:n], self.gains[:n], self.variance[: n + 1])

    def counts(self) -> dict[int, int]:
        """How often each row was chosen, in the order of first choice."""
        return dict(Counter(self.indices.tolist()))


@runtime_checkable
class Selector(Protocol):
    """Orders `n` of the candidates for a prompt; `lam` is λ', the observation noise."""

    def __call__(self, prompt: Any, candidates: Any, n: int, *, lam: float = ...) -> Selection: ...


def argmax_first(values: Float[Array, " k"]) -> int:
    """The lowest index whose value is within a relative 1e-9 of the largest."""
    best = values.max()
    return int(np.argmax(values >= best - TIE * abs(best)))


class GreedyState:
    """A selection in the making: the checked inputs, their posterior, and the picks so far."""

    def __init__(self, prompt: Any, candidates: Any, n: int, lam: float) -> None:
        self.candidates = check_matrix(candidates, "candidates")
        self.prompt = as_vector(prompt, "prompt", self.candidates.shape[1])
        if not self.prompt.any():
            raise ValueError("prompt is the zero vector: no candidate tells anything about it")
        self.n, self.lam = as_count(n, "n"), as_positive(lam, "lam")
        self.posterior = Posterior(self.candidates, self.prompt, lam=self.lam)
        self._lengths, self._products = self.posterior.variance, self.posterior.covariance
        check_noise(lam, self._lengths)
        self.first = duplicate_groups(self.candidates)
        self._indices: list[int] = []
        self._gains: list[float] = []
        self._variance = [self.posterior.target_variance]

    def cosines(self) -> Float[Array, " k"]:
        """Signed cosine of every candidate to the prompt; 0 for a zero vector."""
        scale = np.sqrt(self._lengths) * np.linalg.norm(self.prompt.astype(np.float64))
        cosines: Float[Array, " k"] = np.zeros(len(scale))
        np.divide(self._products, scale, out=cosines, where=scale > 0)
        return cosines

    def pick_best(self, values: Float[Array, " k"]) -> None:
        """Pick the candidate of the largest value; of identical candidates always the first.

        A matrix product may give identical rows values that differ by more than the tie when all
        gains are tiny.
        """
        self.pick(int(self.first[argmax_first(values)]))

    def pick(self, index: int) -> None:
        before = self.posterior.target_variance
        self.posterior.observe(index)
        self._indices.append(index)
        self._gains.append(before - self.posterior.target_variance)
        self._variance.append(self.posterior.target_variance)

    def selection(self) -> Selection:
        return Selection(
            np.array(self._indices, dtype=np.int64),
            np.array(self._gains),
            np.array(self._variance),
        )
