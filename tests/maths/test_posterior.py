import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.vectors import unit

from whet.maths.posterior import Posterior, irreducible_variance


@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 8),
    d=st.integers(1, 6),
    m=st.integers(1, 3),
    n=st.integers(0, 20),
    lam=st.sampled_from([1e-4, 1e-2, 1.0]),
)
def test_the_posterior_is_that_of_dense_solves(seed, k, d, m, n, lam):
    targets, candidates = unit(m, d, seed=seed), unit(k, d, seed=seed + 1)
    posterior = Posterior(candidates, targets, lam=lam)
    order = np.random.default_rng(seed).integers(0, k, n)
    for index in order:
        posterior.observe(int(index))
    dense = [reference.variance(x, candidates[order], lam) for x in candidates]
    np.testing.assert_allclose(posterior.variance, dense, rtol=1e-6, atol=1e-8)
    total = sum(reference.variance(target, candidates[order], lam) for target in targets)
    np.testing.assert_allclose(posterior.target_variance, total, rtol=1e-6, atol=1e-8)


def test_gains_are_what_observing_takes_away():
    targets, candidates = unit(2, 4, seed=0), unit(6, 4, seed=1)
    for index in range(6):
        posterior = Posterior(candidates, targets, lam=0.1)
        before, gain = posterior.target_variance, posterior.gains()[index]
        posterior.observe(index)
        np.testing.assert_allclose(before - posterior.target_variance, gain, rtol=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1),
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
