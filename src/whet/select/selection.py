"""The result of a selection, the rule for ties, and the state that greedy selectors share.

Source: SIFT, arXiv 2410.08020: σ_n of Section 3, the stopping rule of Section 6.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from whet.maths.arrays import (
    Array,
    ArrayLike,
    as_count,
    as_positive,
    as_vector,
    check_matrix,
    check_noise,
    duplicate_groups,
)
from whet.maths.posterior import Posterior

TIE = 1e-9  # relative; docs/concepts.md, "Ties"
_SHOWN = 8  # rows in the representation of a selection


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Selection:
    """An ordered choice among candidates, with what each pick contributes.

    The posterior variance is that of the model's response to the query, given a noisy observation
    of each pick.
    """

    indices: Int[Array, " n"]
    """Rows of the candidates in the order chosen; a row may occur more than once."""
    gains: Float[Array, " n"]
    """How much each pick lowers the posterior variance."""
    variance: Float[Array, " n+1"]
    """Posterior variance after 0, 1, … n picks."""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rows = ", ".join(map(str, self.indices[:_SHOWN].tolist()))
        picks = f"[{rows}, …] ({len(self)} picks)" if len(self) > _SHOWN else f"[{rows}]"
        return f"Selection({picks}, σ {self.sigma[-1]:.3f})"

    @property
    def sigma(self) -> Float[Array, " steps"]:
        """σ_n: posterior standard deviation as a fraction of the prior's, so it starts at 1."""
        sigma: Float[Array, " steps"] = np.sqrt(self.variance / self.variance[0])
        return sigma

    def stop_at(self, alpha: float) -> "Selection":
        """Return the picks before the first step m ≥ 1 with σ_m > 1 / (α m): ADAPTIVE SIFT(α).

        Large `alpha` stops early; the result may be empty. Section 6 of the paper.

        Args:
            alpha: α of the paper; positive.

        Returns:
            The leading part of this selection.

        Raises:
            ValueError: If `alpha` is not positive.

        >>> import whet
        >>> selection = whet.sift([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], n=4, lam=0.1)
        >>> [len(selection.stop_at(alpha)) for alpha in (1.0, 1.3, 2.0)]
        [4, 2, 0]
        """
        steps = np.arange(1, len(self) + 1)
        crossings = np.flatnonzero(self.sigma[1:] > 1 / (as_positive(alpha, "alpha") * steps))
        return self.head(int(crossings[0]) if len(crossings) else len(self))

    def head(self, n: int) -> "Selection":
        """Return the first `n` picks, or all if there are fewer."""
        return Selection(self.indices[:n], self.gains[:n], self.variance[: n + 1])

    def counts(self) -> dict[int, int]:
        """Return how often each row was chosen, in the order of first choice."""
        return dict(Counter(self.indices.tolist()))


@runtime_checkable
class Selector(Protocol):
    """A function that picks `n` of the candidates for a query; `lam` is λ', the noise variance."""

    def __call__(
        self, query: ArrayLike, candidates: ArrayLike, n: int, *, lam: float = ...
    ) -> Selection: ...


def argmax_first(values: Float[Array, " k"]) -> int:
    """Return the lowest index whose value is within a relative 1e-9 of the largest.

    >>> argmax_first(np.array([1.0, 2.0, 2.0]))
    1
    """
    best = values.max()
    return int(np.argmax(values >= best - TIE * abs(best)))


class GreedyState:
    """A selection in progress: validated inputs, their posterior, and the picks so far."""

    def __init__(self, query: ArrayLike, candidates: ArrayLike, n: int, lam: float) -> None:
        self.candidates = check_matrix(candidates, "candidates")
        self.query = as_vector(query, "query", self.candidates.shape[1])
        if not self.query.any():
            raise ValueError("query is the zero vector: every candidate is equally uninformative")
        self.n, self.lam = as_count(n, "n"), as_positive(lam, "lam")
        self.posterior = Posterior(self.candidates, self.query, lam=self.lam)
        self._squared_lengths = self.posterior.variance
        self._products = self.posterior.covariance
        check_noise(lam, self._squared_lengths)
        self.first_equal = duplicate_groups(self.candidates)
        self._indices: list[int] = []
        self._variance = [self.posterior.target_variance]

    def cosines(self) -> Float[Array, " k"]:
        """Return the signed cosine of every candidate to the query; 0 for a zero vector."""
        lengths = np.sqrt(self._squared_lengths) * np.linalg.norm(self.query.astype(np.float64))
        cosines: Float[Array, " k"] = np.zeros(len(lengths))
        np.divide(self._products, lengths, out=cosines, where=lengths > 0)
        return cosines

    def products(self) -> Float[Array, " k"]:
        """Return the inner product of every candidate with the query, before any pick."""
        return self._products

    def pick_best(self, values: Float[Array, " k"]) -> None:
        """Pick the candidate with the largest value; among identical candidates the first.

        The rule for identical rows is separate from that for ties, because a matrix product may
        give identical rows values that differ by more than the tie when all gains are tiny.
        """
        self.pick(int(self.first_equal[argmax_first(values)]))

    def pick(self, index: int) -> None:
        """Pick candidate `index`."""
        self.posterior.observe(index)
        self._indices.append(index)
        self._variance.append(self.posterior.target_variance)

    def selection(self) -> Selection:
        """Return the picks so far."""
        return _selection(self._indices, self._variance)


class WithoutReplacement:
    """A selection in progress in which each candidate is picked at most once.

    `name` is the selector's name, for the error message. `state` holds the validated inputs; its
    posterior stays the prior.
    """

    def __init__(
        self, query: ArrayLike, candidates: ArrayLike, n: int, lam: float, *, name: str
    ) -> None:
        self.state = GreedyState(query, candidates, n, lam)
        self._picks: list[int] = []
        self._available = np.ones(len(self.state.candidates), dtype=bool)
        if self.state.n > len(self._available):
            raise ValueError(
                f"n is {self.state.n}, but {name} picks each of the {len(self._available)} "
                "candidates at most once: lower n or raise k"
            )

    def pick(self, index: int) -> int:
        """Pick candidate `index` and return it."""
        self._available[index] = False
        self._picks.append(index)
        return index

    def pick_best(self, values: Float[Array, " k"]) -> int:
        """Pick the available candidate with the largest value; identical candidates are equal."""
        values = values[self.state.first_equal]
        return self.pick(argmax_first(np.where(self._available, values, -np.inf)))

    def selection(self) -> Selection:
        """Return the picks with the variance along them."""
        return selection_along(np.array(self._picks, np.int64), self.state)


def selection_along(picks: Int[Array, " n"], state: GreedyState) -> Selection:
    """Return `picks` with the variance along them, which needs no other candidates. O(n² d).

    Args:
        picks: Rows of the candidates.
        state: The validated inputs; its posterior stays the prior.
    """
    rows = state.candidates[picks]
    posterior = Posterior(rows, state.query, lam=state.lam)
    variance = [posterior.target_variance]
    for position in range(len(rows)):
        posterior.observe(position)
        variance.append(posterior.target_variance)
    return _selection(picks.tolist(), variance)


def _selection(picks: list[int], variance: list[float]) -> Selection:
    trace = np.array(variance)
    return Selection(np.array(picks, dtype=np.int64), -np.diff(trace), trace)
