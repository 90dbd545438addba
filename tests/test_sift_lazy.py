import numpy as np
import pytest
from support import reference

import whet
from whet.select.selectors.lazy import sift_lazy


def test_the_lazy_queue_misses_a_gain_that_rises():
    """x* = e₁: e₂ tells nothing until (e₁ + e₂) / √2 is known; then it tells nearly all."""
    prompt = np.array([1.0, 0.0])
    candidates = np.array([[1, 1], [0, np.sqrt(2)]]) / np.sqrt(2)
    exact, lazy = whet.sift(prompt, candidates, 2), sift_lazy(prompt, candidates, 2)
    assert list(exact.indices) == [0, 1] and exact.variance[-1] < 0.03
    assert list(lazy.indices) == [0, 0] and lazy.variance[-1] > 0.5


def test_the_lazy_queue_is_exact_where_gains_never_rise():
    """Orthogonal candidates: nothing that is learnt of one changes another's gain."""
    prompt = np.array([3.0, 2.0, 1.0, 0.5])
    for n in (1, 4, 9):
        exact, lazy = whet.sift(prompt, np.eye(4), n), sift_lazy(prompt, np.eye(4), n)
        np.testing.assert_array_equal(exact.indices, lazy.indices)


def test_the_lazy_queue_reports_its_own_variance():
    rng = np.random.default_rng(0)
    prompt, candidates = rng.standard_normal(6), rng.standard_normal((30, 6))
    lazy = sift_lazy(prompt, candidates, 8)
    dense = reference.variance(prompt, candidates[lazy.indices], 0.01)
    assert lazy.variance[-1] == pytest.approx(dense)
