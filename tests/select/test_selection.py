import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.vectors import near_duplicates, unit

import whet
from whet.select.selection import Selection

SELECTORS = [
    whet.sift,
    whet.nearest,
    whet.nearest_repeated,
    whet.uncertainty,
    whet.random_selection,
]
seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-8, 1e-4, 1e-2, 0.1, 1.0, 10.0])


@given(seed=seeds, k=st.integers(1, 12), d=st.integers(1, 6), n=st.integers(1, 8), lam=lams)
def test_variance_matches_dense_solve(seed, k, d, n, lam):
    query, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    chosen = whet.sift(query, candidates, n, lam=lam)
    for i in range(n + 1):
        dense = reference.variance(query, candidates[chosen.indices[:i]], lam)
        assert chosen.variance[i] == pytest.approx(dense, rel=1e-5, abs=1e-7)


@given(seed=seeds, k=st.integers(1, 12), d=st.integers(2, 6), n=st.integers(1, 8), lam=lams)
def test_sift_leaves_no_more_variance_than_trying_every_candidate(seed, k, d, n, lam):
    query, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    chosen = whet.sift(query, candidates, n, lam=lam).indices
    for i in range(n):
        after = [reference.variance(query, candidates[[*chosen[:i], j]], lam) for j in range(k)]
        assert after[chosen[i]] <= min(after) + 1e-7


@given(seed=seeds, k=st.integers(2, 12), d=st.integers(2, 6), n=st.integers(1, 8))
def test_selectors_choose_what_brute_force_chooses(seed, k, d, n):
    query, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    assert list(whet.sift(query, candidates, n, lam=0.1).indices) == reference.sift(
        query, candidates, n, 0.1
    )
    assert list(whet.uncertainty(query, candidates, n, lam=0.1).indices) == (
        reference.uncertainty(query, candidates, n, 0.1)
    )
    n = min(n, k)
    assert list(whet.nearest(query, candidates, n).indices) == reference.nearest(
        query, candidates, n
    )


@given(seed=seeds, lam=lams, selector=st.sampled_from(SELECTORS))
def test_gains_add_up_and_variance_never_rises(seed, lam, selector):
    query, candidates = unit(5, seed=seed), unit(12, 5, seed=seed + 1)
    chosen = selector(query, candidates, 10, lam=lam)
    assert (np.diff(chosen.variance) <= 1e-12).all() and (chosen.variance >= 0).all()
    np.testing.assert_allclose(chosen.gains, -np.diff(chosen.variance), atol=1e-12)
    assert sum(chosen.counts().values()) == len(chosen) == 10


@given(seed=seeds, lam=lams)
def test_first_pick_is_most_parallel_of_either_sign(seed, lam):
    query, candidates = unit(4, seed=seed), unit(9, 4, seed=seed + 1)
    first = whet.sift(query, candidates, 1, lam=lam).indices[0]
    assert first == np.argmax(np.abs(candidates @ query))


@given(c1=st.floats(0.5, 0.95), c=st.floats(0.05, 0.45), lam=lams)
def test_repeats_the_nearest_until_the_threshold_of_appendix_c1(c1, c, lam):
    """App. C.1: an orthogonal x beats x₁ again iff cos²(x*, x) > λ'/(2 + λ') cos²(x*, x₁)."""
    threshold = lam / (2 + lam) * c1**2
    if c1**2 + c**2 > 1 or abs(c**2 - threshold) < 1e-3 * threshold:
        return
    query = np.array([c1, c, np.sqrt(1 - c1**2 - c**2)])
    second = whet.sift(query, np.eye(3)[:2], 2, lam=lam).indices[1]
    assert second == (1 if c**2 > threshold else 0)


@given(seed=seeds, n=st.integers(1, 40), lam=lams)
def test_repeats_of_the_nearest_stay_above_the_bound_of_proposition_k1(seed, n, lam):
    query, candidates = unit(4, seed=seed), unit(9, 4, seed=seed + 1)
    chosen = whet.nearest_repeated(query, candidates, n, lam=lam)
    cosine = candidates[chosen.indices[0]] @ query
    assert chosen.variance[-1] >= 1 - cosine**2 - 1e-9
    assert chosen.variance[-1] == pytest.approx(1 - n * cosine**2 / (n + lam), abs=1e-7)


def test_nearest_returns_the_same_fact_twice_where_sift_returns_both():
    """Figure 3: the query asks for two facts; two texts state the first, one the second."""
    query = np.array([1.0, 0.8, 0.0])
    candidates = np.array([[1.0, 0.1, 0.0], [1.0, 0.1, 0.05], [0.2, 1.0, 0.3]])
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    assert set(whet.nearest(query, candidates, 2).indices) == {0, 1}
    assert set(whet.sift(query, candidates, 2).indices) == {0, 2}


@given(seed=seeds, lam=lams, selector=st.sampled_from([whet.sift, whet.uncertainty]))
def test_the_first_of_identical_candidates_is_picked(seed, lam, selector):
    query, candidates = unit(40, seed=seed), unit(7, 40, seed=seed + 1).astype(np.float32)
    chosen = selector(query, np.concatenate([candidates, candidates]), 12, lam=lam)
    assert chosen.indices.max() < 7


def test_sigma_survives_tiny_noise_on_near_duplicates_of_low_rank():
    candidates, query = near_duplicates(180, 64), unit(64, seed=1)
    for lam in (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0):
        chosen = whet.sift(query, candidates, 60, lam=lam)
        dense = reference.variance(query, candidates[chosen.indices], lam)
        assert chosen.variance[-1] == pytest.approx(dense, rel=1e-4)


def test_adaptive_stops_before_the_first_step_over_the_line():
    # σ = 1, .5, .45, .3, .29 against 1/(αn): with α = 1 the lines are 1, .5, .333, .25
    chosen = Selection(np.arange(4), np.zeros(4), np.array([1, 0.5, 0.45, 0.3, 0.29]) ** 2)
    assert [len(chosen.stop_at(a)) for a in (1.0, 0.6, 1.2, 2.1, 3.0)] == [3, 4, 1, 0, 0]


def test_adaptive_keeps_nothing_beyond_the_first_crossing():
    chosen = Selection(np.arange(3), np.zeros(3), np.array([1, 0.9, 0.6, 0.01]) ** 2)
    assert len(chosen.stop_at(1.0)) == 1  # step 2 is over the line, step 3 is under it again


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("kind", ["float16", "float64", "strided", "row"])
def test_any_float_array_is_accepted(selector, kind):
    query, candidates = unit(6, seed=0).astype("f4"), unit(9, 6, seed=1).astype("f4")
    as_kind = {
        "float16": lambda x: x.astype(np.float16),
        "float64": lambda x: x.astype(np.float64),
        "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        "row": lambda x: np.atleast_2d(x),
    }[kind]
    chosen = selector(as_kind(query), as_kind(candidates), 3, lam=0.1)
    assert len(chosen) == 3
    assert chosen.variance[-1] == pytest.approx(
        reference.variance(query, candidates[chosen.indices], 0.1), abs=0.05
    )


def test_a_selection_is_shown_in_one_short_line():
    query, candidates = unit(4, seed=0), unit(30, 4, seed=1)
    short, long = whet.sift(query, candidates, 2), whet.sift(query, candidates, 30)
    assert repr(short) == f"Selection({short.indices.tolist()}, σ {short.sigma[-1]:.3f})"
    assert "(30 picks)" in repr(long) and len(repr(long)) < 80
    assert repr(short.head(0)) == "Selection([], σ 1.000)"


def test_a_renamed_name_says_its_new_one():
    with pytest.raises(AttributeError, match=r"whet.random is now whet.random_selection"):
        whet.random  # noqa: B018
