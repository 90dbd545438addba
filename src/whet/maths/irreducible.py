"""Irreducible uncertainty: the part of a query that no candidate spans.

Source: SIFT, arXiv 2410.08020, Eq. (5) and Appendix C. How the variance approaches this limit is
studied in `studies/theory/convergence.py`.
"""

import numpy as np
from jaxtyping import Float

from whet.maths.arrays import Array


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
