import numpy as np
import pytest
from scipy import stats

from whet.maths.statistics import bootstrap, mean_estimate, resampled


def test_mean_interval_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    ours = mean_estimate(values)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=5000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert ours.value == values.mean() and ours.n == 60
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)
    assert ours.half == (ours.high - ours.low) / 2


def test_the_interval_of_a_mean_covers_it_nine_times_in_ten():
    rng = np.random.default_rng(0)
    covered = [
        e.low <= 1.0 <= e.high for e in (mean_estimate(rng.normal(1, 1, 80)) for _ in range(200))
    ]
    assert 0.84 <= np.mean(covered) <= 0.95


def test_groups_keep_their_size():
    values = np.array([0.0] * 5 + [1.0] * 15)
    inside = bootstrap(values, lambda x: float(x.mean()), groups=values)
    assert inside.low == inside.high == 0.75


def test_one_value_has_an_empty_interval():
    estimate = mean_estimate([3.0])
    assert (estimate.value, estimate.low, estimate.high, estimate.half) == (3.0, 3.0, 3.0, 0.0)


def test_all_resamples_at_once_are_those_of_one_at_a_time():
    values, groups = np.random.default_rng(0).normal(size=30), np.arange(30) % 3
    one = bootstrap(values, lambda x: float(x.max()), groups=groups)
    assert resampled(30, lambda draws: values[draws].max(axis=1), groups=groups) == one
