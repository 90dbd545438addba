"""Greedy selection in plain NumPy: the reference for the numba backend, and used for small inputs."""

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.maths.arrays import Array, duplicate_groups
from whet.maths.posterior import Posterior
from whet.select.selection import argmax_first


class NumpyGreedy:
    """Greedy selection with `Posterior`. Needs O(k d) float64 in addition to the rows."""

    def __init__(
        self,
        rows: Float[Array, "k d"],
        targets: Float[Array, "m d"],
        available: Bool[Array, " k"],
        *,
        lam: float,
        repeats: bool,
    ) -> None:
        self._posterior = Posterior(rows, targets, lam=lam)
        self.prior: Float[Array, " k"] = self._posterior.variance
        self._available, self._repeats = available.copy(), repeats
        self._first_equal = duplicate_groups(rows)
        self._picks: list[int] = []
        self._trace = [self._posterior.target_variance]

    @property
    def picks(self) -> Int[Array, " n"]:
        """The picks so far."""
        return np.array(self._picks, dtype=np.int64)

    @property
    def trace(self) -> Float[Array, " steps"]:
        """The targets' summed variance after 0, 1, … picks."""
        return np.array(self._trace)

    def advance(self, steps: int) -> None:
        """Make up to `steps` more picks, fewer if no candidate is left."""
        for _ in range(steps):
            if not self._available.any():
                return
            index = self._best()
            self._posterior.observe(index)
            self._available[index] = self._repeats
            self._picks.append(index)
            self._trace.append(self._posterior.target_variance)

    def _best(self) -> int:
        """The first available row that equals the best one; products may separate equal rows."""
        best = argmax_first(np.where(self._available, self._posterior.gains(), -1.0))
        equal = self._first_equal == self._first_equal[best]
        return int(np.flatnonzero(self._available & equal)[0])
