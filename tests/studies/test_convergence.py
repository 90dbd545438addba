import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import reference
from support.vectors import unit

import whet
from studies.theory.convergence import (
    SUBMODULAR,
    convergence_bound,
    greedy_share,
    repeat_threshold,
    repeated_variance,
    spanning_subset,
    submodularity_violations,
    uncertainty_reduction,
)
from whet.maths.posterior import irreducible_variance

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0])
sizes = dict(seed=seeds, k=st.integers(1, 6), d=st.integers(2, 6))


@given(**sizes, n=st.integers(0, 8), lam=lams)
def test_reduction_is_the_loss_of_variance_and_never_falls(seed, k, d, n, lam):
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    chosen = whet.sift(prompt, candidates, n + 1, lam=lam)
    psi = [uncertainty_reduction(prompt, candidates[chosen.indices[:i]], lam) for i in range(n + 2)]
    np.testing.assert_allclose(psi, 1 - chosen.variance, rtol=1e-5, atol=1e-7)
    assert psi[0] == 0 and (np.diff(psi) >= -1e-8).all()


@given(**sizes)
def test_a_spanning_subset_spans_and_is_independent(seed, k, d):
    rows = unit(k, d, seed=seed)
    rows = np.concatenate([rows, rows[:1] + 2 * rows[-1:], np.zeros((1, d))])
    chosen = rows[spanning_subset(rows)]
    assert len(chosen) == np.linalg.matrix_rank(chosen) == np.linalg.matrix_rank(rows)
    assert spanning_subset(np.zeros((3, d))).size == 0


def axes(d, n, lam):
    """σ²_n and Theorem C.2's bound on orthogonal candidates, whose gains are submodular."""
    prompt = np.ones(d) / np.sqrt(d)
    chosen = whet.sift(prompt, np.eye(d), n, lam=lam)
    return chosen.variance[-1], convergence_bound(prompt, np.eye(d), np.eye(d)[chosen.indices], lam)


def test_variance_is_within_theorem_c2_whether_vacuous_or_not():
    results = {(d, n): axes(d, n, 0.01) for d in (1, 2, 4) for n in (10, 150, 500)}
    assert all(variance <= bound for variance, bound in results.values())
    useful = {case for case, (_, bound) in results.items() if bound < 1}
    assert useful == {(1, 150), (1, 500), (2, 500)}


@given(**sizes, n=st.integers(1, 12), lam=lams)
def test_variance_is_within_theorem_c2_on_any_candidates(seed, k, d, n, lam):
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    chosen = whet.sift(prompt, candidates, n, lam=lam)
    bound = convergence_bound(prompt, candidates, candidates[chosen.indices], lam)
    assert chosen.variance[-1] <= bound
    assert bound >= irreducible_variance(prompt, candidates)


def test_the_bound_requires_vectors_of_at_most_unit_length():
    with pytest.raises(ValueError, match=r"length 2\.0: expected at most 1"):
        convergence_bound(np.ones(2), 2 * np.eye(2), np.eye(2), 0.1)


@given(seed=seeds, d=st.integers(1, 5), n=st.integers(1, 40), lam=lams, scale=st.floats(0.2, 5))
def test_repeating_a_row_leaves_the_variance_of_proposition_k1(seed, d, n, lam, scale):
    prompt, row = unit(d, seed=seed), scale * unit(d, seed=seed + 1)
    left = repeated_variance(prompt, row, n, lam)
    dense = reference.variance(prompt, np.tile(row, (n, 1)), lam)
    assert left == pytest.approx(dense, rel=1e-6, abs=1e-8)
    limit = repeated_variance(prompt, row, np.inf, lam)
    assert left >= limit == pytest.approx(irreducible_variance(prompt, row[None]), abs=1e-12)


def test_sift_gets_below_the_limit_of_repetition():
    prompt, candidates = unit(4, seed=1), unit(9, 4, seed=2)
    nearest = candidates[whet.nearest(prompt, candidates, 1).indices[0]]
    limit = repeated_variance(prompt, nearest, np.inf, 0.01)
    assert whet.sift(prompt, candidates, 8).variance[-1] < 0.1 * limit


lengths = st.floats(0.3, 3)


@given(c1=st.floats(0.3, 0.9), ratio=st.floats(0.01, 0.99), first=lengths, other=lengths, lam=lams)
def test_the_second_pick_changes_at_the_threshold_of_k4(c1, ratio, first, other, lam):
    threshold = repeat_threshold(lam, first=first**2, other=other**2)
    c = c1 * np.sqrt(ratio)
    assume(c1**2 + c**2 < 1 and abs(ratio / threshold - 1) > 1e-3)
    prompt = np.array([c1, c, np.sqrt(1 - c1**2 - c**2)])
    x1, x = np.array([first, 0, 0]), np.array([0, other, 0])
    twice, both = (reference.variance(prompt, np.array([x1, b]), lam) for b in (x1, x))
    assert (both < twice) == (ratio > threshold)
    chosen = whet.sift(prompt, np.array([x1, x]), 2, lam=lam).indices
    if chosen[0] == 0:
        assert chosen[1] == int(ratio > threshold)


@given(lam=lams)
def test_the_threshold_of_unit_vectors_agrees_with_appendix_c1(lam):
    assert repeat_threshold(lam) == pytest.approx(lam / (2 + lam))
    assert repeat_threshold(1.0) == pytest.approx(1 / 3)


@given(seed=seeds, lam=lams, scale=st.floats(0.1, 1))
def test_the_first_pick_weighs_alignment_against_length_and_noise(seed, lam, scale):
    """K.4: (x*ᵀx)² / (|x|² + λ'), where unit vectors need only the cosine."""
    prompt = unit(4, seed=seed)
    candidates = unit(9, 4, seed=seed + 1) * np.linspace(scale, 3, 9)[:, None]
    score = (candidates @ prompt) ** 2 / ((candidates**2).sum(axis=1) + lam)
    assert whet.sift(prompt, candidates, 1, lam=lam).indices[0] == score.argmax()


def best_reduction(prompt, candidates, n, lam):
    """ψ of the best n observations, by trying every multiset."""
    picks = itertools.combinations_with_replacement(range(len(candidates)), n)
    return max(uncertainty_reduction(prompt, candidates[list(p)], lam) for p in picks)


def submodular(prompt, candidates, n, lam):
    """Eq. (6) on every chain of up to 2n observations, repeats included: greedy's and the best."""

    def psi(picks):
        return uncertainty_reduction(prompt, candidates[list(picks)], lam)

    k = range(len(candidates))
    for size in range(2 * n - 1):
        for seen in itertools.combinations_with_replacement(k, size):
            for y, x in itertools.product(k, k):
                earlier = psi([*seen, x]) - psi(seen)
                if psi([*seen, y, x]) - psi([*seen, y]) > earlier + 1e-9:
                    return False
    return True


def test_greedy_reaches_its_share_where_gains_are_submodular():
    cases = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        angles = np.append(rng.uniform(0, 1.2, 2), rng.uniform(1.8, 3))
        candidates = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        prompt, lam = np.array([np.cos(1.0), np.sin(1.0)]), float(rng.choice([0.5, 2.0, 10.0]))
        if submodular(prompt, candidates, 2, lam):
            cases += 1
            reached = 1 - whet.sift(prompt, candidates, 2, lam=lam).variance[-1]
            assert reached >= SUBMODULAR * best_reduction(prompt, candidates, 2, lam)
    assert 3 <= cases < 40


def test_greedy_may_miss_its_share_where_they_are_not():
    """Two candidates explain the prompt together and neither alone; a third one distracts."""
    e1, e2, e3 = np.eye(3)
    together = (0.1 * e1 + e2) / np.linalg.norm(0.1 * e1 + e2)
    candidates = np.array([together, e2, 0.3 * e1 + np.sqrt(1 - 0.09) * e3])
    reached = 1 - whet.sift(e1, candidates, 2, lam=1e-6).variance[-1]
    best = best_reduction(e1, candidates, 2, 1e-6)
    assert best > 0.99 and reached < SUBMODULAR * best
    assert not submodular(e1, candidates, 2, 1e-6)


@given(seed=seeds, k=st.integers(1, 5), d=st.integers(2, 4), n=st.integers(1, 3), lam=lams)
def test_greedy_reaches_a_share_on_any_candidates(seed, k, d, n, lam):
    prompt = unit(d, seed=seed)
    candidates = unit(k, d, seed=seed + 1) * np.linspace(0.5, 1.5, k)[:, None]
    longest = float((candidates**2).sum(axis=1).max())
    reached = prompt @ prompt - whet.sift(prompt, candidates, n, lam=lam).variance[-1]
    best = best_reduction(prompt, candidates, n, lam)
    assert greedy_share(lam, longest=longest) * best <= reached + 1e-9
    assert 0 < greedy_share(lam, longest=longest) < SUBMODULAR


def test_gains_of_orthogonal_candidates_never_rise_and_of_correlated_ones_do():
    prompt = np.ones(4) / 2
    order = whet.sift(prompt, np.eye(4), 12, lam=0.1).indices
    assert submodularity_violations(prompt, np.eye(4), order, 0.1) == 0
    e1, e2 = np.eye(2)  # e2 is uninformative about e1 until their sum is observed
    pair = np.array([(e1 + e2) / np.sqrt(2), e2])
    assert submodularity_violations(e1, pair, np.array([0]), 0.01) == 0.5


@given(seed=seeds, k=st.integers(2, 6), d=st.integers(2, 5), n=st.integers(1, 5), lam=lams)
def test_submodularity_violations_agree_with_brute_force(seed, k, d, n, lam):
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    order = np.random.default_rng(seed).integers(0, k, n)

    def gain(seen, j):
        after = reference.variance(prompt, candidates[[*seen, j]], lam)
        return reference.variance(prompt, candidates[list(seen)], lam) - after

    rises = [gain(order[: i + 1], j) - gain(order[:i], j) for i in range(n) for j in range(k)]
    assume(not any(1e-13 < abs(r) < 1e-7 for r in rises))
    share = np.mean([r > 1e-7 for r in rises])
    assert submodularity_violations(prompt, candidates, order, lam) == pytest.approx(share)
