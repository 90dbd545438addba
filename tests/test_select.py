import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference

import whet
from whet.select.selection import Selection

SELECTORS = [whet.sift, whet.nearest, whet.nearest_repeated, whet.uncertainty, whet.random]
seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-8, 1e-4, 1e-2, 0.1, 1.0, 10.0])


def unit(*shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@given(seed=seeds, k=st.integers(1, 12), d=st.integers(1, 6), n=st.integers(1, 8), lam=lams)
def test_variance_matches_dense_solve(seed, k, d, n, lam):
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    chosen = whet.sift(prompt, candidates, n, lam=lam)
    for i in range(n + 1):
        dense = reference.variance(prompt, candidates[chosen.indices[:i]], lam)
        assert chosen.variance[i] == pytest.approx(dense, rel=1e-5, abs=1e-7)


@given(seed=seeds, k=st.integers(1, 12), d=st.integers(2, 6), n=st.integers(1, 8), lam=lams)
def test_sift_leaves_no_more_variance_than_trying_every_candidate(seed, k, d, n, lam):
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    chosen = whet.sift(prompt, candidates, n, lam=lam).indices
    for i in range(n):
        after = [reference.variance(prompt, candidates[[*chosen[:i], j]], lam) for j in range(k)]
        assert after[chosen[i]] <= min(after) + 1e-7


@given(seed=seeds, k=st.integers(2, 12), d=st.integers(2, 6), n=st.integers(1, 8))
def test_selectors_choose_what_brute_force_chooses(seed, k, d, n):
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    assert list(whet.sift(prompt, candidates, n, lam=0.1).indices) == reference.sift(
        prompt, candidates, n, 0.1
    )
    assert list(whet.uncertainty(prompt, candidates, n, lam=0.1).indices) == (
        reference.uncertainty(prompt, candidates, n, 0.1)
    )
    n = min(n, k)
    assert list(whet.nearest(prompt, candidates, n).indices) == reference.nearest(
        prompt, candidates, n
    )


@given(seed=seeds, lam=lams, selector=st.sampled_from(SELECTORS))
def test_gains_add_up_and_variance_never_rises(seed, lam, selector):
    prompt, candidates = unit(5, seed=seed), unit(12, 5, seed=seed + 1)
    chosen = selector(prompt, candidates, 10, lam=lam)
    assert (np.diff(chosen.variance) <= 1e-12).all() and (chosen.variance >= 0).all()
    np.testing.assert_allclose(chosen.gains, -np.diff(chosen.variance), atol=1e-12)
    assert sum(chosen.counts().values()) == len(chosen) == 10


@given(seed=seeds, lam=lams)
def test_first_pick_is_most_parallel_of_either_sign(seed, lam):
    prompt, candidates = unit(4, seed=seed), unit(9, 4, seed=seed + 1)
    first = whet.sift(prompt, candidates, 1, lam=lam).indices[0]
    assert first == np.argmax(np.abs(candidates @ prompt))


@given(c1=st.floats(0.5, 0.95), c=st.floats(0.05, 0.45), lam=lams)
def test_repeats_the_nearest_until_the_threshold_of_appendix_c1(c1, c, lam):
    """App. C.1: an orthogonal x beats x₁ again iff cos²(x*, x) > λ'/(2 + λ') cos²(x*, x₁)."""
    threshold = lam / (2 + lam) * c1**2
    if c1**2 + c**2 > 1 or abs(c**2 - threshold) < 1e-3 * threshold:
        return
    prompt = np.array([c1, c, np.sqrt(1 - c1**2 - c**2)])
    second = whet.sift(prompt, np.eye(3)[:2], 2, lam=lam).indices[1]
    assert second == (1 if c**2 > threshold else 0)


@given(seed=seeds, n=st.integers(1, 40), lam=lams)
def test_copies_of_the_nearest_never_pass_the_bound_of_proposition_k1(seed, n, lam):
    prompt, candidates = unit(4, seed=seed), unit(9, 4, seed=seed + 1)
    chosen = whet.nearest_repeated(prompt, candidates, n, lam=lam)
    cosine = candidates[chosen.indices[0]] @ prompt
    assert chosen.variance[-1] >= 1 - cosine**2 - 1e-9
    assert chosen.variance[-1] == pytest.approx(1 - n * cosine**2 / (n + lam), abs=1e-7)


def test_two_facts_asked_nearest_returns_one_twice_and_sift_both():
    """Figure 3: the prompt asks two facts; two texts say the first, one text the second."""
    prompt = np.array([1.0, 0.8, 0.0])
    candidates = np.array([[1.0, 0.1, 0.0], [1.0, 0.1, 0.05], [0.2, 1.0, 0.3]])
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    assert set(whet.nearest(prompt, candidates, 2).indices) == {0, 1}
    assert set(whet.sift(prompt, candidates, 2).indices) == {0, 2}


@given(seed=seeds, lam=lams, selector=st.sampled_from([whet.sift, whet.uncertainty]))
def test_of_identical_candidates_the_first_is_chosen(seed, lam, selector):
    prompt, candidates = unit(40, seed=seed), unit(7, 40, seed=seed + 1).astype(np.float32)
    chosen = selector(prompt, np.concatenate([candidates, candidates]), 12, lam=lam)
    assert chosen.indices.max() < 7


def test_sigma_survives_tiny_noise_on_a_low_rank_pool_of_near_duplicates():
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((30, 16)) @ rng.standard_normal((16, 64))
    pool = np.repeat(pool, 6, axis=0) + 1e-6 * rng.standard_normal((180, 64))
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    prompt = unit(64, seed=1)
    for lam in (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0):
        chosen = whet.sift(prompt, pool, 60, lam=lam)
        dense = reference.variance(prompt, pool[chosen.indices], lam)
        assert chosen.variance[-1] == pytest.approx(dense, rel=1e-4)


def test_adaptive_stops_before_the_first_step_over_the_line():
    # σ = 1, .5, .45, .3, .29 against 1/(αn): with α = 1 the lines are 1, .5, .333, .25
    chosen = Selection(np.arange(4), np.zeros(4), np.array([1, 0.5, 0.45, 0.3, 0.29]) ** 2)
    assert [len(chosen.stop_at(a)) for a in (1.0, 0.6, 1.2, 2.1, 3.0)] == [3, 4, 1, 0, 0]


def test_adaptive_keeps_nothing_beyond_the_first_crossing():
    chosen = Selection(np.arange(3), np.zeros(3), np.array([1, 0.9, 0.6, 0.01]) ** 2)
    assert len(chosen.stop_at(1.0)) == 1  # step 2 is over the line, step 3 is under it again


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("kind", ["float16", "float64", "torch", "strided", "row", "bfloat16"])
def test_any_float_array_is_welcome(selector, kind):
    prompt, candidates = unit(6, seed=0).astype("f4"), unit(9, 6, seed=1).astype("f4")
    as_kind = {
        "float16": lambda x: x.astype(np.float16),
        "float64": lambda x: x.astype(np.float64),
        "torch": lambda x: torch.from_numpy(x).requires_grad_(),
        "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        "row": lambda x: np.atleast_2d(x),
        "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    }[kind]
    chosen = selector(as_kind(prompt), as_kind(candidates), 3, lam=0.1)
    assert len(chosen) == 3
    assert chosen.variance[-1] == pytest.approx(
        reference.variance(prompt, candidates[chosen.indices], 0.1), abs=0.05
    )


BAD = [
    (np.ones(3), np.ones((0, 3)), 1, 0.1, "empty"),
    (np.ones(3), np.ones(3), 1, 0.1, "expected a matrix"),
    (np.ones(3), np.ones((2, 3, 1)), 1, 0.1, "expected a matrix"),
    (np.ones(2), np.ones((2, 3)), 1, 0.1, "prompt has 2 dimensions, but the candidates have 3"),
    (np.ones((2, 3)), np.ones((2, 3)), 1, 0.1, "expected one vector"),
    (np.zeros(3), np.ones((2, 3)), 1, 0.1, "zero vector"),
    (np.array([1, np.nan, 1]), np.ones((2, 3)), 1, 0.1, "prompt holds nan at position 1"),
    (np.ones(3), np.array([[1, 1, 1], [1, np.inf, 1]]), 1, 0.1, "holds inf at row 1"),
    (np.ones(3), [[1, 2, 3], [1]], 1, 0.1, "ragged"),
    (np.ones(3), [["a", "b", "c"]], 1, 0.1, "expected real numbers"),
    (np.ones(3), np.ones((2, 3)), 0, 0.1, "n is 0"),
    (np.ones(3), np.ones((2, 3)), -1, 0.1, "n is -1"),
    (np.ones(3), np.ones((2, 3)), 1, 0, "lam is 0"),
    (np.ones(3), np.ones((2, 3)), 1, -1.0, "lam is -1"),
    (np.ones(3), np.ones((2, 3)), 1, float("nan"), "lam is nan"),
    (np.ones(3), np.eye(3) * 1e30, 3, 0.01, "lam is 0.01, lost in float64 beside a candidate"),
]


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("prompt, candidates, n, lam, message", BAD)
def test_bad_input_is_refused_with_its_value(selector, prompt, candidates, n, lam, message):
    if selector is whet.sift and message == "expected one vector":
        return  # a matrix of prompts is several targets to it
    with pytest.raises(ValueError, match=message):
        selector(prompt, candidates, n, lam=lam)


@pytest.mark.parametrize("selector", [whet.nearest, whet.random])
def test_selectors_without_repeats_refuse_more_picks_than_candidates(selector):
    with pytest.raises(ValueError, match="n is 4, but"):
        selector(np.ones(2), np.eye(2), 4)
