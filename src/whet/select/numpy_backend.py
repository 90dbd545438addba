"""The plain greedy selection, on NumPy alone: the fast form's reference, and small inputs' form."""

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.maths.arrays import Array, duplicate_groups
from whet.maths.posterior import Posterior
from whet.select.selection import argmax_first


class NumpyGreedy:
    """Greedy selection by `Posterior`. O(k d) float64 beside the rows."""

    def __init__(
        self,
        rows: Float[Array, "k d"],
        goals: Float[Array, "m d"],
        open: Bool[Array, " k"],
        *,
        lam: float,
        once: bool,
    ) -> None:
        self._posterior = Posterior(rows, goals, lam=lam)
        self.prior: Float[Array, " k"] = self._posterior.variance
        self._open, self._once = open.copy(), once
        self._twin = duplicate_groups(rows)
        self._picks: list[int] = []
        self._trace = [self._posterior.target_variance]

    @property
    def picks(self) -> Int[Array, " n"]:
        return np.array(self._picks, dtype=np.int64)

    @property
    def trace(self) -> Float[Array, " steps"]:
        return np.array(self._trace)

    def advance(self, steps: int) -> None:
        """Up to `steps` more picks; fewer when no candidate is left."""
        for _ in range(steps):
            if not self._open.any():
                return
            index = self._best()
            self._posterior.observe(index)
            self._open[index] = not self._once
            self._picks.append(index)
            self._trace.append(self._posterior.target_variance)

    def _best(self) -> int:
        """The first open row of the best one's group: a product may tell identical rows apart."""
        best = argmax_first(np.where(self._open, self._posterior.gains(), -1.0))
        return int(np.flatnonzero(self._open & (self._twin == self._twin[best]))[0])
