"""Vectors and invalid arguments for tests of selectors."""

import numpy as np


def unit(*shape, seed):
    """Random vectors of length one along the last axis."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def near_duplicates(k, d, *, seed=0, rank=16, copies=6, noise=1e-6):
    """Unit vectors in few dimensions, each with near-copies: where float32 state breaks down."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((-(-k // copies), rank)) @ rng.standard_normal((rank, d))
    rows = np.repeat(rows, copies, axis=0)[:k] + noise * rng.standard_normal((k, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


BAD_ARGUMENTS = [  # query, candidates, n, lam, and the error message
    (np.ones(3), np.ones((0, 3)), 1, 0.1, "empty"),
    (np.ones(3), np.ones(3), 1, 0.1, "expected a matrix"),
    (np.ones(3), np.ones((2, 3, 1)), 1, 0.1, "expected a matrix"),
    (np.ones(2), np.ones((2, 3)), 1, 0.1, "query has 2 dimensions, but the candidates have 3"),
    (np.ones((2, 3)), np.ones((2, 3)), 1, 0.1, "expected one vector"),
    (np.zeros(3), np.ones((2, 3)), 1, 0.1, "zero vector"),
    (np.array([1, np.nan, 1]), np.ones((2, 3)), 1, 0.1, "query contains nan at position 1"),
    (np.ones(3), np.array([[1, 1, 1], [1, np.inf, 1]]), 1, 0.1, "contains inf at row 1"),
    (np.ones(3), [[1, 2, 3], [1]], 1, 0.1, "ragged"),
    (np.ones(3), [["a", "b", "c"]], 1, 0.1, "expected real numbers"),
    (np.ones(3), np.ones((2, 3)), 0, 0.1, "n is 0"),
    (np.ones(3), np.ones((2, 3)), -1, 0.1, "n is -1"),
    (np.ones(3), np.ones((2, 3)), 1, 0, "lam is 0"),
    (np.ones(3), np.ones((2, 3)), 1, -1.0, "lam is -1"),
    (np.ones(3), np.ones((2, 3)), 1, float("nan"), "lam is nan"),
    (np.ones(3), np.eye(3) * 1e30, 3, 0.01, "lam is 0.01, too small for float64 next to a"),
]
