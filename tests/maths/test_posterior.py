import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.vectors import unit

from whet.maths.posterior import Posterior


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
