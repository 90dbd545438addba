"""What noisy observations of a linear model tell about its response, one rank at a time.

Source: SIFT, arXiv 2410.08020, Eq. (2): with kernel k(x, y) = φ(x)ᵀφ(y) and observations X,

    σ²_X(x*) = k(x*, x*) − k_X(x*)ᵀ (K_X + λ'I)⁻¹ k_X(x*).

Conditioning on one more observation x changes every covariance by a matrix of rank one,

    k_X∪x(a, b) = k_X(a, b) − k_X(a, x) k_X(x, b) / (k_X(x, x) + λ'),

so the kernel matrix of the candidates is never formed: one row of a partial Cholesky factor an
observation suffices. Knows nothing of how observations are chosen.
"""

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array


class Posterior:
    """Posterior variance of every candidate, and its covariance with the targets, in float64.

    Of several targets [m, d], `covariance` is [m, k] and the variance is their sum (the trace). The
    plain form: `whet.select.numba_backend.kernels` does the same in one pass. `observe` costs O(k (d + n + m));
    memory O(k (d + n + m)). State is float64 whatever the candidates are: at λ' = 1e-8, float32
    loses the noise beside a unit variance.
    """

    def __init__(
        self, candidates: Float[Array, "k d"], target: Float[Array, "*m d"], *, lam: float
    ) -> None:
        self._rows = candidates.astype(np.float64)
        self._lam = lam
        self._factor = np.empty((16, len(candidates)))
        self._observed = 0
        self._kernel: dict[int, Float[Array, " k"]] = {}  # a repeated pick needs no second product
        goals = target.astype(np.float64)
        self.variance: Float[Array, " k"] = np.einsum("kd,kd->k", self._rows, self._rows)
        self.covariance: Float[Array, "*m k"] = goals @ self._rows.T
        self._left = np.einsum("...d,...d->...", goals, goals)

    @property
    def target_variance(self) -> float:
        """What is not yet known of the targets."""
        return float(self._left.sum())

    def gains(self) -> Float[Array, " k"]:
        """By how much observing each candidate would lower the targets' variance."""
        told = (np.atleast_2d(self.covariance) ** 2).sum(0)
        gains: Float[Array, " k"] = told / (self.variance + self._lam)
        return gains

    def observe(self, index: int) -> None:
        """Condition on a noisy response at candidate `index`; one may be observed again."""
        if index not in self._kernel:
            self._kernel[index] = self._rows @ self._rows[index]
        earlier = self._factor[: self._observed]
        column = self._kernel[index] - earlier[:, index] @ earlier
        scale = np.sqrt(max(column[index], 0.0) + self._lam)
        row = column / scale
        told = self.covariance[..., index] / scale
        self._keep(row)
        self.covariance = self.covariance - np.multiply.outer(told, row)
        self.variance = np.maximum(self.variance - row**2, 0.0)
        self._left = np.maximum(self._left - told**2, 0.0)

    def _keep(self, row: Float[Array, " k"]) -> None:
        if self._observed == len(self._factor):
            self._factor = np.concatenate([self._factor, np.empty_like(self._factor)])
        self._factor[self._observed] = row
        self._observed += 1
