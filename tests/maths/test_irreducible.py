import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.vectors import unit

from whet.maths.irreducible import irreducible_variance

seeds = st.integers(0, 2**32 - 1)


@given(
    seed=seeds,
    k=st.integers(1, 6),
    d=st.integers(2, 6),
    n=st.integers(1, 10),
    lam=st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0]),
)
def test_no_observations_go_below_the_irreducible_variance(seed, k, d, n, lam):
    query, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    limit = irreducible_variance(query, candidates)
    observed = candidates[np.random.default_rng(seed).integers(0, k, n)]
    assert reference.variance(query, observed, lam) >= limit - 1e-9
    if k >= d:
        assert limit == pytest.approx(0, abs=1e-20)
    else:  # each candidate observed almost without noise
        assert reference.variance(query, candidates, 1e-9) == pytest.approx(limit, abs=1e-4)


def test_irreducible_variance_inside_and_outside_the_span():
    candidates = np.array([[1.0, 0, 0], [1, 1, 0], [2, 1, 0]])
    assert irreducible_variance(np.array([0.0, 0, 2]), candidates) == 4
    assert irreducible_variance(np.array([3.0, -1, 0]), candidates) == pytest.approx(0, abs=1e-28)
    assert irreducible_variance(np.array([3.0, 4, 5]), np.zeros((2, 3))) == 50
