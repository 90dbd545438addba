"""The posterior of a linear model's response under noisy observations, one rank at a time.

Source: SIFT, arXiv 2410.08020, Eq. (2): with kernel k(x, y) = φ(x)ᵀφ(y) and observations X,

    σ²_X(x*) = k(x*, x*) − k_X(x*)ᵀ (K_X + λ'I)⁻¹ k_X(x*).

Conditioning on one more observation x changes every covariance by a matrix of rank one,

    k_X∪x(a, b) = k_X(a, b) − k_X(a, x) k_X(x, b) / (k_X(x, x) + λ'),

so the kernel matrix of the candidates is never formed: one row of a partial Cholesky factor per
observation suffices. How observations are chosen is not part of this module.
"""

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array


class Posterior:
    """Posterior variance of every candidate, and its covariance with the targets, in float64.

    With several targets, [m, d], `covariance` is [m, k] and the variance is the sum over targets
    (the trace). This is the plain form; `whet.select.numba_backend.kernels` computes the same in
    one pass over the rows. State is float64 whatever the type of the candidates: at λ' = 1e-8,
    float32 loses the noise next to a unit variance. `observe` costs O(k (d + n + m)); memory
    O(k (d + n + m)).
    """

    def __init__(
        self, candidates: Float[Array, "k d"], target: Float[Array, "*m d"], *, lam: float
    ) -> None:
        self._rows = candidates.astype(np.float64)
        self._lam = lam
        self._factor = np.empty((16, len(candidates)))
        self._num_observed = 0
        self._kernel: dict[int, Float[Array, " k"]] = {}  # a repeated pick needs no second product
        targets = target.astype(np.float64)
        self.variance: Float[Array, " k"] = np.einsum("kd,kd->k", self._rows, self._rows)
        self.covariance: Float[Array, "*m k"] = targets @ self._rows.T
        self._target_variances = np.einsum("...d,...d->...", targets, targets)

    @property
    def target_variance(self) -> float:
        """Posterior variance of the target, summed over several."""
        return float(self._target_variances.sum())

    def gains(self) -> Float[Array, " k"]:
        """How much observing each candidate would lower the target variance."""
        squares = (np.atleast_2d(self.covariance) ** 2).sum(0)
        gains: Float[Array, " k"] = squares / (self.variance + self._lam)
        return gains

    def observe(self, index: int) -> None:
        """Condition on a noisy response at candidate `index`, which may be observed repeatedly."""
        if index not in self._kernel:
            self._kernel[index] = self._rows @ self._rows[index]
        factor = self._factor[: self._num_observed]
        column = self._kernel[index] - factor[:, index] @ factor
        scale = np.sqrt(max(column[index], 0.0) + self._lam)
        row = column / scale
        coefficient = self.covariance[..., index] / scale
        self._append(row)
        self.covariance = self.covariance - np.multiply.outer(coefficient, row)
        self.variance = np.maximum(self.variance - row**2, 0.0)
        self._target_variances = np.maximum(self._target_variances - coefficient**2, 0.0)

    def _append(self, row: Float[Array, " k"]) -> None:
        if self._num_observed == len(self._factor):
            self._factor = np.concatenate([self._factor, np.empty_like(self._factor)])
        self._factor[self._num_observed] = row
        self._num_observed += 1


def irreducible_variance(query: Float[Array, " d"], candidates: Float[Array, "k d"]) -> float:
    """Return σ²_∞(x*), Eq. (5): the variance that remains after any number of observations.

    It is the squared length of the component of `query` orthogonal to all candidates; 0 if they
    span it. O(k d min(k, d)).

    >>> irreducible_variance(np.array([3.0, 4.0]), np.array([[1.0, 0.0]]))
    16.0
    """
    _, singular_values, axes = np.linalg.svd(candidates, full_matrices=False)
    smallest = singular_values[0] * max(candidates.shape) * np.finfo(float).eps
    axes = axes[singular_values > smallest]
    residual = query - axes.T @ (axes @ query)
    return float(residual @ residual)
