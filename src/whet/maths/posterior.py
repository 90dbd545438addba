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
    """Posterior variance of every candidate, and its covariance with one target, in float64.

    `observe` costs O(k (d + n)); memory O(k (d + n)). State is float64 whatever the candidates are:
    at λ' = 1e-8, float32 loses the noise beside a unit variance.
    """

    def __init__(
        self, candidates: Float[Array, "k d"], target: Float[Array, " d"], *, lam: float
    ) -> None:
        self._rows = candidates.astype(np.float64)
        self._lam = lam
        self._factor: list[Float[Array, " k"]] = []
        self._kernel: dict[int, Float[Array, " k"]] = {}  # a repeated pick needs no second product
        goal = target.astype(np.float64)
        self.variance: Float[Array, " k"] = np.einsum("kd,kd->k", self._rows, self._rows)
        self.covariance: Float[Array, " k"] = self._rows @ goal
        self.target_variance = float(goal @ goal)

    def gains(self) -> Float[Array, " k"]:
        """By how much observing each candidate would lower the target's variance."""
        gains: Float[Array, " k"] = self.covariance**2 / (self.variance + self._lam)
        return gains

    def observe(self, index: int) -> None:
        """Condition on a noisy response at candidate `index`; one may be observed again."""
        if index not in self._kernel:
            self._kernel[index] = self._rows @ self._rows[index]
        column = self._kernel[index].copy()
        for earlier in self._factor:
            column -= earlier * earlier[index]
        scale = np.sqrt(max(column[index], 0.0) + self._lam)
        row = column / scale
        told = self.covariance[index] / scale
        self._factor.append(row)
        self.covariance -= row * told
        self.variance = np.maximum(self.variance - row**2, 0.0)
        self.target_variance = max(self.target_variance - float(told) ** 2, 0.0)
