import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support import reference_selectors as slow
from support.vectors import BAD_ARGUMENTS, unit

import whet
from whet.select.registry import REMOVED, SELECTORS, WITHOUT_REPEATS, selector
from whet.select.selectors.baselines import mmr, nearest_product
from whet.select.selectors.hull import hull, reconstruct, round_to_counts

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0])
sizes = dict(seed=seeds, k=st.integers(1, 9), d=st.integers(2, 6), n=st.integers(1, 7))
ONCE = ["nearest", "nearest-product", "random", "mmr"]


def test_only_selectors_without_repeats_refuse_more_picks_than_candidates():
    query, candidates = problem(3, 2, 0)
    for name, select in SELECTORS.items():
        if name in WITHOUT_REPEATS:
            with pytest.raises(ValueError, match="at most once"):
                select(query, candidates, 4)
        else:
            assert len(select(query, candidates, 4)) == 4


every = pytest.mark.parametrize("name", SELECTORS)


def problem(k, d, seed):
    """A query and `k` candidates."""
    return unit(d, seed=seed), unit(k, d, seed=seed + 1)


@given(**sizes, balance=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
def test_mmr_chooses_what_brute_force_chooses(seed, k, d, n, balance):
    query, candidates = problem(k, d, seed)
    n = min(n, k)
    chosen = mmr(query, candidates, n, balance=balance)
    assert list(chosen.indices) == slow.mmr(query, candidates, n, balance)


@given(**sizes)
def test_mmr_of_full_balance_is_nearest(seed, k, d, n):
    query, candidates = problem(k, d, seed)
    n = min(n, k)
    nearest = whet.nearest(query, candidates, n)
    assert list(mmr(query, candidates, n, balance=1.0).indices) == list(nearest.indices)


def test_hull_distributes_the_picks_as_the_projection_onto_the_hull():
    # the point of the segment e₁e₂ nearest to (3, 2)/√13 has weights .64, .36: of 5 picks, 3 and 2
    chosen = hull(np.array([3.0, 2.0]), np.eye(2), 5)
    assert list(chosen.indices) == [0, 0, 0, 1, 1]


@given(seed=seeds, k=st.integers(1, 8), d=st.integers(2, 5), wide=st.integers(1, 8))
def test_mixtures_are_those_of_plain_frank_wolfe(seed, k, d, wide):
    query, rows = problem(k, d, seed)
    result = reconstruct(rows, query, support=wide)
    weights, gap = slow.mixture(query, rows, wide)
    np.testing.assert_allclose(result.weights @ rows[result.support], weights @ rows, atol=1e-6)
    assert result.gap == pytest.approx(gap, abs=1e-6)
    assert len(result.support) <= wide and result.weights.sum() == pytest.approx(1)


@given(seed=seeds, k=st.integers(1, 5), d=st.integers(2, 4))
def test_no_mixture_is_nearer_than_the_gap_allows(seed, k, d):
    query, rows = problem(k, d, seed)
    result = reconstruct(rows, query, support=k)
    half = np.sum((query - result.weights @ rows[result.support]) ** 2) / 2
    assert 0 <= half - slow.nearest_mixture(query, rows) + 1e-9 <= result.gap + 2e-9


@given(seed=seeds, k=st.integers(1, 5), d=st.integers(2, 4), n=st.integers(1, 9))
def test_counts_are_those_of_brute_force(seed, k, d, n):
    query, rows = problem(k, d, seed)
    weights = np.random.default_rng(seed).dirichlet(np.ones(k))
    counts = round_to_counts(rows, query, weights, n)
    assert list(counts) == list(slow.round_to_counts(query, rows, weights, n))
    assert counts.sum() == n and (counts >= 0).all()


def test_hull_finds_the_best_mean_of_nearly_all_problems():
    """Rounding is a heuristic: about one small problem in eighty has a better mean."""
    excess = []
    for seed in range(200):
        k, n = np.random.default_rng(seed).integers((2, 2), (5, 7))
        query, candidates = problem(k, 3, seed)
        counts = np.bincount(hull(query, candidates, int(n)).indices, minlength=k)
        best = min(slow.squared_distance(query, candidates, c) for c in slow.all_counts(k, n))
        excess.append(slow.squared_distance(query, candidates, counts) - best)
    assert np.mean(np.array(excess) < 1e-9) >= 0.97 and np.mean(excess) < 0.01


@given(seed=seeds, k=st.integers(2, 4), n=st.integers(2, 6))
def test_hull_picks_the_most_repeated_first(seed, k, n):
    counts = list(hull(*problem(k, 3, seed), n).counts().values())
    assert counts == sorted(counts, reverse=True)


@every
@given(seed=seeds, lam=lams)
def test_variance_is_that_of_the_picks(name, seed, lam):
    query, candidates = problem(11, 5, seed)
    chosen = SELECTORS[name](query, candidates, 9, lam=lam)
    assert len(chosen) == 9
    for i in range(0, 10, 3):
        dense = reference.variance(query, candidates[chosen.indices[:i]], lam)
        assert chosen.variance[i] == pytest.approx(dense, rel=1e-5, abs=1e-8)


@every
@given(seed=seeds, lam=lams)
def test_the_first_of_identical_candidates_is_picked(name, seed, lam):
    query, candidates = problem(7, 40, seed)
    if name == "random":
        return
    chosen = SELECTORS[name](query, np.concatenate([candidates, candidates]), 7, lam=lam)
    for i, index in enumerate(chosen.indices):
        assert index < 7 or index - 7 in chosen.indices[:i]


@every
def test_the_same_call_gives_the_same_picks(name):
    query, candidates = problem(60, 8, 3)
    once, twice = (SELECTORS[name](query, candidates, 20).indices for _ in range(2))
    assert (once == twice).all()


@every
def test_zero_vectors_among_the_candidates_do_no_harm(name):
    query, candidates = problem(6, 4, 0)
    candidates[[1, 4]] = 0
    chosen = SELECTORS[name](query, candidates, 5)
    assert np.isfinite(chosen.variance).all()


@every
@pytest.mark.parametrize("query, candidates, n, lam, message", BAD_ARGUMENTS)
def test_invalid_input_is_an_error_with_the_value(name, query, candidates, n, lam, message):
    if name == "sift" and message == "expected one vector":
        return  # a matrix of queries is several targets to it
    with pytest.raises(ValueError, match=message):
        SELECTORS[name](query, candidates, n, lam=lam)


@pytest.mark.parametrize("name", ONCE)
def test_selectors_without_repeats_reject_more_picks_than_candidates(name):
    with pytest.raises(ValueError, match=f"n is 4, but {name} picks each of the 2 candidates"):
        SELECTORS[name](np.ones(2), np.eye(2), 4)


@pytest.mark.parametrize("name", sorted({*SELECTORS} - {*ONCE}))
def test_selectors_with_repeats_make_as_many_picks_as_requested(name):
    assert len(SELECTORS[name](np.ones(2), np.eye(2), 4)) == 4


def test_the_balance_of_mmr_is_checked():
    for balance in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="balance is"):
            mmr(np.ones(2), np.eye(2), 1, balance=balance)


def test_an_unknown_selector_is_an_error_that_lists_the_names():
    assert selector("sift") is whet.sift
    with pytest.raises(ValueError, match="selector is 'sfit': expected one of sift, sift-lazy, "):
        selector("sfit")


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_selector_names_its_replacement(name):
    with pytest.raises(ValueError, match=f"selector '{name}' was removed: use [a-z]+"):
        selector(name)
    assert any(other in REMOVED[name] for other in SELECTORS)


def test_the_lazy_queue_misses_a_gain_that_rises():
    """x* = e₁: e₂ has no gain until (e₁ + e₂) / √2 is observed; then it removes nearly all."""
    query = np.array([1.0, 0.0])
    candidates = np.array([[1, 1], [0, np.sqrt(2)]]) / np.sqrt(2)
    exact, lazy = whet.sift(query, candidates, 2), whet.sift_lazy(query, candidates, 2)
    assert list(exact.indices) == [0, 1] and exact.variance[-1] < 0.03
    assert list(lazy.indices) == [0, 0] and lazy.variance[-1] > 0.5


def test_the_lazy_queue_is_exact_where_gains_never_rise():
    """Orthogonal candidates: observing one does not change another's gain."""
    query = np.array([3.0, 2.0, 1.0, 0.5])
    for n in (1, 4, 9):
        exact, lazy = whet.sift(query, np.eye(4), n), whet.sift_lazy(query, np.eye(4), n)
        np.testing.assert_array_equal(exact.indices, lazy.indices)


def test_the_largest_products_are_picked_whatever_their_cosines():
    query, candidates = [1.0, 0.0], [[0.9, 0.0], [3.0, 4.0], [-9.0, 0.0], [2.0, 0.0]]
    made = nearest_product(query, candidates, 3)
    assert made.indices.tolist() == [1, 3, 0]
    assert whet.nearest(query, candidates, 3).indices.tolist() == [0, 3, 1]
    rows = np.random.default_rng(0).normal(size=(20, 5))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert (
        nearest_product(rows[0], unit, 9).indices == whet.nearest(rows[0], unit, 9).indices
    ).all()
