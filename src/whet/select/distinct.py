"""A selection in which each candidate is chosen at most once."""

from typing import Any

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array
from whet.maths.posterior import Posterior
from whet.select.selection import GreedyState, Selection, argmax_first


class WithoutReplacement:
    """A trial whose picks are taken out of the choice; `name` is the selector's, for the error."""

    def __init__(self, prompt: Any, candidates: Any, n: int, lam: float, *, name: str) -> None:
        self.trial = GreedyState(prompt, candidates, n, lam)
        self.first = self.trial.first
        self._order: list[int] = []
        self._left = np.ones(len(self.first), dtype=bool)
        if self.trial.n > len(self._left):
            raise ValueError(
                f"n is {self.trial.n}, but {name} chooses each of {len(self._left)} candidates at "
                "most once: lower n or raise k"
            )

    def pick(self, index: int) -> int:
        self._left[index] = False
        self._order.append(index)
        return index

    def pick_best(self, values: Float[Array, " k"]) -> int:
        """Pick the largest value of those left; identical candidates count as equal."""
        return self.pick(argmax_first(np.where(self._left, values[self.first], -np.inf)))

    def selection(self) -> Selection:
        """The picks, and the variance along them, to which other candidates make no difference."""
        rows = self.trial.candidates[self._order]
        posterior = Posterior(rows, self.trial.prompt, lam=self.trial.lam)
        variance = [posterior.target_variance]
        for place in range(len(rows)):
            posterior.observe(place)
            variance.append(posterior.target_variance)
        trace = np.array(variance)
        return Selection(np.array(self._order, dtype=np.int64), -np.diff(trace), trace)
