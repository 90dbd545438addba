import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.vectors import unit

import whet
from studies.theory import surrogate
from studies.theory.confidence import (
    beta,
    beta_regression,
    count_vacuous,
    information,
    information_gain,
)
from studies.theory.convergence import repeated_variance

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0])


def distance(a, b):
    """Total variation distance between rows of probabilities."""
    return np.abs(a - b).sum(axis=-1) / 2


def trial(seed, *, n, V=2, d=2, radius=0.1, lam=10.0, delta=0.1):
    """One trial of Theorem 3.2: distances from the truth after `n` labels, and their bounds."""
    rng = np.random.default_rng(seed)
    inputs, probes = unit(n, d, seed=seed), unit(20, d, seed=seed + 1)
    pretrained = 0.3 * rng.standard_normal((V, d))
    away = rng.standard_normal((V, d))
    truth = pretrained + away * radius * rng.uniform() / np.linalg.norm(away)
    odds = surrogate.probabilities(inputs @ truth.T).cumsum(axis=1)
    labels = np.minimum((rng.uniform(size=(n, 1)) > odds).sum(axis=1), V - 1)
    every = np.concatenate([inputs, probes])
    kappa = surrogate.curvature_bound(every @ pretrained.T, radius).kappa
    width = beta(n, delta, classes=V, dimension=d, radius=radius, lam=lam)
    fitted = surrogate.minimizer(inputs, labels, pretrained, lam=lam, radius=radius)
    errors = distance(*(surrogate.probabilities(probes @ w.T) for w in (fitted, truth)))
    precision = inputs.T @ inputs / (lam * kappa) + np.eye(d)  # Eq. (2): σ²(x) = xᵀ A⁻¹ x
    return errors, width * np.sqrt(np.sum(probes * np.linalg.solve(precision, probes.T).T, axis=1))


@pytest.mark.parametrize("n, V, vacuous", [(1, 3, 20), (30, 3, 20), (4000, 2, 0)])
def test_predictions_stay_within_theorem_32(n, V, vacuous):
    for seed in range(5):
        errors, bounds = trial(seed, n=n, V=V)
        assert (errors <= bounds).all()
        assert count_vacuous(bounds) == vacuous


def test_with_a_large_radius_the_bound_is_vacuous_until_many_observations():
    lam, radius, kappa = 5.0, 1.0, 2 * np.exp(np.sqrt(2))

    def bound(n):
        sigma = np.sqrt(repeated_variance(np.ones(1), np.ones(1), n, lam * kappa))
        return sigma * beta(n, 0.05, classes=2, dimension=1, radius=radius, lam=lam)

    assert count_vacuous(np.array([bound(n) for n in (1, 10, 100, 1000)])) == 4
    assert count_vacuous(np.array([bound(50_000)])) == 0


@given(n=st.integers(1, 10**6), V=st.integers(2, 50), d=st.integers(1, 50), lam=lams)
def test_beta_is_eq_3_and_rises_with_everything_that_makes_learning_harder(n, V, d, lam):
    options = dict(classes=V, dimension=d, radius=0.5, lam=lam)
    base = beta(n, 0.1, **options)
    term = V**1.5 * d / (2 * lam) * np.log(2 / 0.1 * (1 + n / (d * lam)) ** 0.5)
    assert base == pytest.approx(2 * np.sqrt(2 * V) * (0.5 + term))
    harder = [{"classes": V + 1}, {"radius": 0.6}, {"lam": lam / 2}]
    assert all(beta(n, 0.1, **{**options, **change}) > base for change in harder)
    assert beta(2 * n, 0.1, **options) > base and beta(n, 0.05, **options) > base
    tenfold = np.log(10) * np.sqrt(2 * V) * V**1.5 * d / lam  # O(log n/δ)
    assert beta(10 * n, 0.01, **options) - base <= 1.5 * tenfold


def test_regression_stays_within_a_band_that_is_not_vacuous():
    lam, noise, delta, d = 0.5, 0.2, 0.1, 3
    failures = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        inputs, probes, truth = (
            unit(40, d, seed=seed),
            unit(15, d, seed=seed + 1),
            rng.normal(size=d),
        )
        truth /= np.linalg.norm(truth)
        labels = inputs @ truth + noise * rng.standard_normal(40)
        within = []
        for n in (1, 3, 10, 40):
            seen = inputs[:n]
            fitted = np.linalg.solve(seen.T @ seen + lam * np.eye(d), seen.T @ labels[:n])
            width = beta_regression(information(seen, lam), delta, radius=1.0, noise=noise, lam=lam)
            sigma = np.sqrt([reference.variance(x, seen, lam) for x in probes])
            within.append((np.abs(probes @ (fitted - truth)) <= width * sigma).all())
        failures += not all(within)
        assert count_vacuous(width * sigma) == 0  # |f*| ≤ 1 holds trivially
    assert failures <= delta * 60


def test_the_band_of_regression_is_the_radius_plus_a_noise_term():
    assert beta_regression(2.0, np.exp(-1.0), radius=0.5, noise=3.0, lam=4.0) == pytest.approx(
        0.5 + 3 / 2 * np.sqrt(2 * (2 + 1))
    )


@given(seed=seeds, n=st.integers(1, 8), d=st.integers(1, 5), lam=lams)
def test_information_is_a_log_determinant_and_adds_up_along_the_order(seed, n, d, lam):
    rows = unit(n, d, seed=seed)
    dense = np.linalg.slogdet(np.eye(n) + rows @ rows.T / lam)[1] / 2
    assert information(rows, lam) == pytest.approx(dense, rel=1e-9)
    steps = [np.log1p(reference.variance(rows[i], rows[:i], lam) / lam) / 2 for i in range(n)]
    assert sum(steps) == pytest.approx(dense, rel=1e-6)
    most = np.linalg.eigvalsh(rows @ rows.T)[-1]
    assert dense <= min(n, d) * np.log1p(most / lam) / 2 + 1e-12


@given(seed=seeds, k=st.integers(1, 8), d=st.integers(2, 5), n=st.integers(1, 5), lam=lams)
def test_least_variance_is_most_information_about_the_prompt(seed, k, d, n, lam):
    """App. G: each pick of SIFT is the most informative observation about f(x*)."""
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    chosen = whet.sift(prompt, candidates, n, lam=lam)
    for i, pick in enumerate(chosen.indices):
        seen = candidates[chosen.indices[:i]]
        gains = [reference.information(prompt, x, seen, lam) for x in candidates]
        gain = information_gain(float(chosen.variance[i]), float(chosen.variance[i + 1]))
        assert gain == pytest.approx(gains[pick], rel=1e-4, abs=1e-8)
        assert gain >= max(gains) * (1 - 1e-4) - 1e-8


def test_information_is_infinite_if_no_variance_remains():
    assert information_gain(0.5, 0.0) == np.inf
    assert information_gain(0.0, 0.0) == 0


@pytest.mark.parametrize("delta", [0, 1, -0.1, 2, float("nan")])
def test_a_probability_of_error_is_between_zero_and_one(delta):
    with pytest.raises(ValueError, match="delta is"):
        beta(1, delta, classes=2, dimension=1, radius=1, lam=1)
    with pytest.raises(ValueError, match="delta is"):
        beta_regression(1, delta, radius=1, noise=1, lam=1)
