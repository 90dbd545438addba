import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.theory import surrogate

seeds = st.integers(0, 2**32 - 1)
problems = dict(seed=seeds, V=st.integers(2, 4), d=st.integers(1, 3), n=st.integers(1, 12))


def problem(seed, V, d, n):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n, d))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    return inputs, rng.integers(0, V, n), rng.standard_normal((V, d))


@given(seed=seeds, V=st.integers(2, 6))
def test_the_logistic_matrix_is_the_derivative_of_softmax_and_maps_ones_to_zero(seed, V):
    rng = np.random.default_rng(seed)
    logits, change = rng.standard_normal(V), 1e-6 * rng.standard_normal(V)
    moved = surrogate.probabilities(logits + change) - surrogate.probabilities(logits - change)
    np.testing.assert_allclose(surrogate.logistic_matrix(logits) @ change, moved / 2, atol=1e-12)
    np.testing.assert_allclose(surrogate.logistic_matrix(logits) @ np.ones(V), 0, atol=1e-15)


@given(**problems)
def test_the_gradient_agrees_with_the_loss_and_its_columns_sum_to_zero(seed, V, d, n):
    inputs, labels, weights = problem(seed, V, d, n)
    along = np.random.default_rng(seed + 1).standard_normal(weights.shape)
    rise = surrogate.loss(weights + 1e-5 * along, inputs, labels)
    rise -= surrogate.loss(weights - 1e-5 * along, inputs, labels)
    slope = surrogate.gradient(weights, inputs, labels)
    assert np.sum(slope * along) == pytest.approx(rise / 2e-5, abs=1e-6)
    np.testing.assert_allclose(slope.sum(axis=0), 0, atol=1e-12)


@given(**problems, lam=st.sampled_from([0.01, 0.3, 1.0, 100.0]))
def test_no_model_near_the_minimizer_has_less_regularized_loss(seed, V, d, n, lam):
    inputs, labels, pretrained = problem(seed, V, d, n)
    fitted = surrogate.minimizer(inputs, labels, pretrained, lam=lam)
    slope = surrogate.gradient(fitted, inputs, labels) + lam * (fitted - pretrained)
    np.testing.assert_allclose(slope, 0, atol=1e-9)  # the objective is convex
    np.testing.assert_allclose((fitted - pretrained).sum(axis=0), 0, atol=1e-8)  # never along 1


@settings(max_examples=8)
@given(**problems, radius=st.sampled_from([0.01, 0.1, 0.5]))
def test_the_minimizer_is_in_the_ball_and_beats_others_in_it(seed, V, d, n, radius):
    inputs, labels, pretrained = problem(seed, V, d, n)

    def value(weights):
        away = np.sum((weights - pretrained) ** 2)
        return surrogate.loss(weights, inputs, labels) + 0.05 * away

    fitted = surrogate.minimizer(inputs, labels, pretrained, lam=0.1, radius=radius)
    assert np.linalg.norm(fitted - pretrained) <= radius * (1 + 1e-9)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        other = rng.standard_normal(fitted.shape)
        other *= radius / np.linalg.norm(other)
        assert value(fitted) <= value(pretrained + other) + 1e-9
        assert value(fitted) <= value(0.99 * fitted + 0.01 * (pretrained + other)) + 1e-9


@given(**problems, rate=st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0]))
def test_one_step_is_within_proposition_33_of_the_minimizer(seed, V, d, n, rate):
    gap = surrogate.step_gap(*problem(seed, V, d, n), rate=rate)
    assert gap.distance <= gap.bound * (1 + 1e-6) + 1e-12
    assert gap.distance == pytest.approx(gap.bound, rel=1e-5, abs=1e-12)  # it is an equality
    assert gap.distance <= gap.smooth_bound * (1 + 1e-6) + 1e-12


def test_a_step_of_half_the_size_is_four_times_closer():
    inputs, labels, pretrained = problem(0, 3, 2, 8)
    gaps = [surrogate.step_gap(inputs, labels, pretrained, rate=r).distance for r in (2e-3, 1e-3)]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)


@given(**problems, radius=st.sampled_from([0.1, 0.5, 2.0]))
def test_curvature_within_the_ball_is_within_its_bound(seed, V, d, n, radius):
    inputs, _, pretrained = problem(seed, V, d, n)
    bound = surrogate.curvature_bound(inputs @ pretrained.T, radius)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        away = rng.standard_normal(pretrained.shape)
        away *= radius * rng.uniform() / np.linalg.norm(away)
        real = surrogate.curvature(inputs @ (pretrained + away).T)
        assert real.kappa <= bound.kappa * (1 + 1e-9)
        assert real.largest <= bound.largest + 1e-12


@pytest.mark.parametrize("V", [2, 5, 40])
def test_kappa_of_uniform_probabilities_is_the_number_of_classes(V):
    assert surrogate.curvature(np.zeros((1, V))).kappa == pytest.approx(V)
    assert surrogate.curvature_bound(np.zeros((1, V)), 0.0).kappa == pytest.approx(V)
