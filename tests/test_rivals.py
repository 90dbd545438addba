import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support import reference_rivals as slow
from test_select import BAD

import whet
from whet.select.registry import SELECTORS, selector
from whet.select.selectors.active_learning import ctl, information_density, itl, undirected_vtl
from whet.select.selectors.diversity import facility_location, farthest_first, kmeanspp, mmr
from whet.select.selectors.hull import hull, reconstruct, whole_counts

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0])
sizes = dict(seed=seeds, k=st.integers(1, 9), d=st.integers(2, 6), n=st.integers(1, 7))
ONCE = ["nearest", "random", "mmr", "kmeanspp", "farthest-first", "facility"]
every = pytest.mark.parametrize("name", SELECTORS)


def world(k, d, seed):
    rng = np.random.default_rng(seed)
    prompt, candidates = rng.standard_normal(d), rng.standard_normal((k, d))
    return prompt / np.linalg.norm(prompt), candidates / np.linalg.norm(candidates, axis=1)[:, None]


@given(**sizes, balance=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
def test_mmr_chooses_what_brute_force_chooses(seed, k, d, n, balance):
    prompt, candidates = world(k, d, seed)
    n = min(n, k)
    chosen = mmr(prompt, candidates, n, balance=balance)
    assert list(chosen.indices) == slow.mmr(prompt, candidates, n, balance)


@given(**sizes)
def test_mmr_of_full_balance_is_nearest(seed, k, d, n):
    prompt, candidates = world(k, d, seed)
    n = min(n, k)
    nearest = whet.nearest(prompt, candidates, n)
    assert list(mmr(prompt, candidates, n, balance=1.0).indices) == list(nearest.indices)


@given(**sizes)
def test_farthest_first_chooses_what_brute_force_chooses(seed, k, d, n):
    prompt, candidates = world(k, d, seed)
    n = min(n, k)
    chosen = farthest_first(prompt, candidates, n).indices
    assert list(chosen) == slow.farthest_first(prompt, candidates, n)


def test_kmeanspp_draws_by_squared_distance():
    prompt = np.array([1.0, 0.0])
    angles = np.array([0.0, 0.5, 2.0])
    candidates = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    second = [kmeanspp(prompt, candidates, 2, seed=seed).indices[1] for seed in range(400)]
    near, far = 2 - 2 * np.cos(angles[1:])
    assert np.mean(np.array(second) == 1) == pytest.approx(near / (near + far), abs=0.04)


def test_kmeanspp_on_copies_takes_the_first_left():
    candidates = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    for seed in range(5):
        chosen = kmeanspp(np.array([1.0, 0.5]), candidates, 4, seed=seed)
        assert list(chosen.indices) == [0, 1, 2, 3]


@given(**sizes)
def test_facility_location_serves_as_well_as_brute_force(seed, k, d, n):
    prompt, candidates = world(k, d, seed)
    n = min(n, k)
    chosen = list(facility_location(prompt, candidates, n).indices)
    assert chosen == slow.facility_location(candidates, n)


@given(seed=seeds, k=st.integers(2, 7), n=st.integers(1, 3))
def test_facility_location_reaches_its_guarantee(seed, k, n):
    prompt, candidates = world(k, 3, seed)
    n = min(n, k)
    best = max(slow.served(candidates, s) for s in slow.itertools.combinations(range(k), n))
    chosen = facility_location(prompt, candidates, n).indices
    assert slow.served(candidates, chosen) >= (1 - 1 / np.e) * best - 1e-12


@given(**sizes, lam=lams)
def test_information_about_the_prompt_is_sift_by_another_formula(seed, k, d, n, lam):
    """App. G: with one target, most information and least variance are the same choice."""
    prompt, candidates = world(k, d, seed)
    chosen = itl(prompt, candidates, n, lam=lam)
    sift = whet.sift(prompt, candidates, n, lam=lam)
    np.testing.assert_allclose(chosen.variance, sift.variance, rtol=1e-6, atol=1e-9)


@given(seed=seeds, k=st.integers(2, 8), n=st.integers(1, 5), lam=st.sampled_from([0.01, 0.1, 1.0]))
def test_itl_takes_the_most_information(seed, k, n, lam):
    prompt, candidates = world(k, 4, seed)
    chosen = list(itl(prompt, candidates, n, lam=lam).indices)
    for i in range(n):
        told = [slow.information(prompt, x, candidates[chosen[:i]], lam) for x in candidates]
        assert told[chosen[i]] >= max(told) * (1 - 1e-6)


@given(seed=seeds, k=st.integers(2, 8), n=st.integers(1, 6), lam=st.sampled_from([0.01, 0.1, 1.0]))
def test_learners_choose_what_brute_force_chooses(seed, k, n, lam):
    prompt, candidates = world(k, 4, seed)
    chosen = list(ctl(prompt, candidates, n, lam=lam).indices)
    assert chosen == slow.ctl(prompt, candidates, n, lam)
    chosen = list(undirected_vtl(prompt, candidates, n, lam=lam).indices)
    assert chosen == slow.undirected_vtl(candidates, n, lam)
    chosen = list(information_density(prompt, candidates, n, lam=lam, beta=0.5).indices)
    assert chosen == slow.information_density(prompt, candidates, n, lam, 0.5)


def test_correlation_has_a_sign_and_variance_has_none():
    prompt, candidates = np.array([1.0, 0.0]), np.array([[-1.0, 0.1], [0.6, 0.8]])
    assert ctl(prompt, candidates, 1).indices[0] == 1
    assert whet.sift(prompt, candidates, 1).indices[0] == 0


def test_hull_shares_the_picks_as_the_projection_on_the_hull_does():
    # the point of the segment e₁e₂ nearest to (3, 2)/√13 has weights .64, .36: of 5 picks, 3 and 2
    chosen = hull(np.array([3.0, 2.0]), np.eye(2), 5)
    assert list(chosen.indices) == [0, 0, 0, 1, 1]


@given(seed=seeds, k=st.integers(1, 8), d=st.integers(2, 5), wide=st.integers(1, 8))
def test_mixtures_are_those_of_plain_frank_wolfe(seed, k, d, wide):
    prompt, rows = world(k, d, seed)
    found = reconstruct(rows, prompt, support=wide)
    weights, gap = slow.mixture(prompt, rows, wide)
    np.testing.assert_allclose(found.weights @ rows[found.support], weights @ rows, atol=1e-6)
    assert found.gap == pytest.approx(gap, abs=1e-6)
    assert len(found.support) <= wide and found.weights.sum() == pytest.approx(1)


@given(seed=seeds, k=st.integers(1, 5), d=st.integers(2, 4))
def test_no_mixture_is_nearer_than_the_gap_says(seed, k, d):
    prompt, rows = world(k, d, seed)
    found = reconstruct(rows, prompt, support=k)
    half = np.sum((prompt - found.weights @ rows[found.support]) ** 2) / 2
    assert 0 <= half - slow.nearest_mixture(prompt, rows) + 1e-9 <= found.gap + 2e-9


@given(seed=seeds, k=st.integers(1, 5), d=st.integers(2, 4), n=st.integers(1, 9))
def test_counts_are_as_near_as_those_found_by_measuring(seed, k, d, n):
    prompt, rows = world(k, d, seed)
    weights = np.random.default_rng(seed).dirichlet(np.ones(k))
    counts = whole_counts(rows, prompt, weights, n)
    assert list(counts) == list(slow.whole_counts(prompt, rows, weights, n))
    assert counts.sum() == n and (counts >= 0).all()


@given(seed=seeds, k=st.integers(2, 4), n=st.integers(2, 6))
def test_hull_is_near_the_best_mean_there_is(seed, k, n):
    prompt, candidates = world(k, 3, seed)
    chosen = hull(prompt, candidates, n)
    counts = np.bincount(chosen.indices, minlength=k)
    best = min(slow.apart(prompt, candidates, c) for c in slow.all_counts(k, n))
    assert slow.apart(prompt, candidates, counts) <= best + 0.05
    assert list(chosen.counts().values()) == sorted(chosen.counts().values(), reverse=True)


@every
@given(seed=seeds, lam=lams)
def test_variance_is_that_of_the_picks(name, seed, lam):
    prompt, candidates = world(11, 5, seed)
    chosen = SELECTORS[name](prompt, candidates, 9, lam=lam)
    assert len(chosen) == 9
    for i in range(0, 10, 3):
        dense = reference.variance(prompt, candidates[chosen.indices[:i]], lam)
        assert chosen.variance[i] == pytest.approx(dense, rel=1e-5, abs=1e-8)


@every
@given(seed=seeds, lam=lams)
def test_of_identical_candidates_the_first_is_chosen(name, seed, lam):
    prompt, candidates = world(7, 40, seed)
    if name == "random":
        return
    chosen = SELECTORS[name](prompt, np.concatenate([candidates, candidates]), 7, lam=lam)
    for i, index in enumerate(chosen.indices):
        assert index < 7 or index - 7 in chosen.indices[:i]


@every
def test_the_same_call_gives_the_same_picks(name):
    prompt, candidates = world(60, 8, 3)
    once, twice = (SELECTORS[name](prompt, candidates, 20).indices for _ in range(2))
    assert (once == twice).all()


@every
def test_zero_vectors_among_the_candidates_do_no_harm(name):
    prompt, candidates = world(6, 4, 0)
    candidates[[1, 4]] = 0
    chosen = SELECTORS[name](prompt, candidates, 5)
    assert np.isfinite(chosen.variance).all()


@every
@pytest.mark.parametrize("prompt, candidates, n, lam, message", BAD)
def test_bad_input_is_refused_with_its_value(name, prompt, candidates, n, lam, message):
    if name == "sift" and message == "expected one vector":
        return  # a matrix of prompts is several targets to it
    with pytest.raises(ValueError, match=message):
        SELECTORS[name](prompt, candidates, n, lam=lam)


@pytest.mark.parametrize("name", ONCE)
def test_what_chooses_once_refuses_more_picks_than_candidates(name):
    with pytest.raises(ValueError, match=f"n is 4, but {name} chooses each of 2 candidates"):
        SELECTORS[name](np.ones(2), np.eye(2), 4)


@pytest.mark.parametrize("name", sorted({*SELECTORS} - {*ONCE}))
def test_what_repeats_gives_as_many_picks_as_asked(name):
    assert len(SELECTORS[name](np.ones(2), np.eye(2), 4)) == 4


@pytest.mark.parametrize("rule, key", [(mmr, "balance"), (information_density, "beta")])
def test_options_are_checked(rule, key):
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"{key} is"):
            rule(np.ones(2), np.eye(2), 1, **{key: bad})


def test_a_selector_is_found_by_name_or_refused_with_the_list():
    assert selector("sift") is whet.sift
    with pytest.raises(ValueError, match="selector is 'sfit': expected one of sift, sift-lazy, "):
        selector("sfit")
