"""The compiled form against the plain one and against brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference
from threadpoolctl import threadpool_limits

import whet
from whet.select import sifting
from whet.select.numba_backend import state as compiled
from whet.select.numba_backend.state import SPARES, NumbaGreedy
from whet.select.numpy_backend import NumpyGreedy
from whet.select.sifting import SIFT

pytest.importorskip("numba", reason="the compiled form needs whet[fast]")

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0])
tiny = st.sampled_from([1e-8, 1e-6, *[1e-4, 1e-2, 1.0, 10.0]])
dtypes = st.sampled_from(["f2", "f4", "f8"])


def unit(*shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def low_rank(k=180, d=64, rank=16):
    """Near-duplicates six at a time, in few dimensions: where float32 state breaks down."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((k // 6, rank)) @ rng.standard_normal((rank, d))
    pool = np.repeat(pool, 6, axis=0) + 1e-6 * rng.standard_normal((k, d))
    return pool / np.linalg.norm(pool, axis=1, keepdims=True)


def both(prompt, candidates, n, lam, *, open=None, once=False, threads=1):
    goals = np.atleast_2d(np.float64(prompt))
    open = np.ones(len(candidates), bool) if open is None else open
    fast = NumbaGreedy(candidates, goals, open, lam=lam, once=once, threads=threads)
    slow = NumpyGreedy(candidates, goals, open, lam=lam, once=once)
    for form in (fast, slow):
        form.advance(n)
    return fast, slow


@settings(max_examples=600)
@given(
    seed=seeds,
    k=st.integers(1, 40),
    d=st.integers(1, 30),
    n=st.integers(1, 24),
    m=st.integers(1, 3),
    lam=lams,
    dtype=dtypes,
    once=st.booleans(),
)
def test_compiled_form_picks_what_the_plain_form_picks(seed, k, d, n, m, lam, dtype, once):
    prompt, candidates = unit(m, d, seed=seed), unit(k, d, seed=seed + 1).astype(dtype)
    open = np.random.default_rng(seed).random(k) < 0.8
    open[seed % k] = True
    fast, slow = both(prompt, candidates, n, lam, open=open, once=once)
    assert list(fast.picks) == list(slow.picks)
    np.testing.assert_allclose(fast.trace, slow.trace, rtol=1e-6, atol=1e-10)
    assert open[fast.picks].all()
    assert len(set(fast.picks)) == len(fast.picks) or not once


@settings(max_examples=1000)
@given(seed=seeds, k=st.integers(1, 12), d=st.integers(2, 8), n=st.integers(1, 8), lam=lams)
def test_compiled_form_picks_what_brute_force_picks(seed, k, d, n, lam):
    prompt, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    fast, _ = both(prompt, candidates, n, lam)
    chosen = []
    for pick in fast.picks:  # of gains too near to be told apart by dense solves any will do
        before = reference.variance(prompt, candidates[chosen], lam)
        gains = [
            before - reference.variance(prompt, candidates[[*chosen, j]], lam) for j in range(k)
        ]
        assert gains[pick] >= max(gains) - 1e-9
        chosen.append(int(pick))
    dense = reference.variance(prompt, candidates[chosen], lam)
    assert fast.trace[-1] == pytest.approx(dense, rel=1e-6, abs=1e-9)


@given(seed=seeds, lam=tiny, shape=st.sampled_from([(12, 3), (40, 60), (300, 8)]))
def test_long_selections_of_few_candidates_stay_exact(seed, lam, shape):
    """Repeats, evicted columns and rows of the factor that the ring has dropped."""
    prompt, candidates = unit(shape[1], seed=seed), unit(*shape, seed=seed + 1)
    fast, _ = both(prompt, candidates, 90, lam)
    for n in (1, 20, 90):
        dense = reference.variance(prompt, candidates[fast.picks[:n]], lam)
        assert fast.trace[n] == pytest.approx(dense, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("lam", [1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_variance_survives_tiny_noise_on_a_low_rank_pool_of_near_duplicates(lam, dtype):
    pool, prompt = low_rank().astype(dtype), unit(64, seed=1)
    fast, _ = both(prompt, pool, 60, lam)
    dense = reference.variance(prompt, np.float64(pool[fast.picks]), lam)
    assert fast.trace[-1] == pytest.approx(dense, rel=1e-5)
    assert (fast.trace > 0).all() and (np.diff(fast.trace) <= 0).all()


@given(seed=seeds, lam=tiny, dtype=dtypes, d=st.sampled_from([3, 40]))
def test_of_identical_rows_the_lowest_open_one_is_picked(seed, lam, dtype, d):
    prompt, rows = unit(d, seed=seed), unit(9, d, seed=seed + 1).astype(dtype)
    open = np.ones(27, bool)
    open[[0, 1, 2]] = False
    fast, _ = both(prompt, np.tile(rows, (3, 1)), 20, lam, open=open)
    assert ((fast.picks >= 3) & (fast.picks < 12)).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_identical_rows_have_identical_bits_wherever_they_stand(dtype):
    for d in [*range(1, 40), 255, 1000]:
        rows = np.tile(unit(d, seed=d).astype(dtype), (9, 1))
        fast = NumbaGreedy(
            rows, unit(1, d, seed=0), np.ones(9, bool), lam=1e-4, once=False, threads=1
        )
        fast.advance(1)
        state = fast._state
        ahead = state.spares[state.slots]
        for column in (state.variance, state.gains, *state.covariance, state.factor[0], *ahead):
            assert len(set(column.tolist())) == 1


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(300, 200), (900, 100)])
@pytest.mark.parametrize("shared", [2**22, 2**10], ids=["small", "shared"])
def test_the_bits_do_not_depend_on_threads_or_batch_mates(dtype, shape, shared, monkeypatch):
    monkeypatch.setattr(compiled, "SHARED", shared)
    prompts = unit(4, shape[1], seed=0)
    candidates = unit(4, *shape, seed=1).astype(dtype)
    alone = [
        whet.sift(p, c, 30, lam=1e-4, threads=1) for p, c in zip(prompts, candidates, strict=True)
    ]
    with threadpool_limits(2):
        ways = [
            [
                whet.sift(p, c, 30, lam=1e-4, threads=3)
                for p, c in zip(prompts, candidates, strict=True)
            ],
            whet.sift_batch(prompts, candidates, 30, lam=1e-4, threads=2),
            whet.sift_batch(prompts[::-1], candidates[::-1], 30, lam=1e-4)[::-1],
        ]
    with threadpool_limits(1):
        ways.append(whet.sift_batch(prompts, list(candidates), 30, lam=1e-4, threads=1))
    for way in ways:
        for a, b in zip(way, alone, strict=True):
            assert (a.indices == b.indices).all() and (a.variance == b.variance).all()


@pytest.mark.parametrize("shape", [(60, 4), (300, 150), (400, 100)])
def test_a_selection_can_be_continued(shape):
    prompt, candidates = unit(shape[1], seed=0), unit(*shape, seed=1)
    whole = whet.sift(prompt, candidates, 40)
    parts = SIFT(prompt, candidates)
    lazily = [pick for pick in itertools.islice(parts, 7)]
    told = f"SIFT(7 picks of {shape[0]} candidates, σ {whole.sigma[7]:.3f})"
    assert repr(parts) == told and len(parts) == 7
    assert [p.index for p in lazily] == list(whole.indices[:7])
    np.testing.assert_array_equal([p.sigma for p in lazily], whole.sigma[1:8])
    np.testing.assert_array_equal(parts.advance(33).indices, whole.indices)
    np.testing.assert_array_equal(parts.selection().variance, whole.variance)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_adaptive_stopping_saves_the_work(alpha):
    prompt, candidates = unit(120, seed=0), unit(300, 120, seed=1)
    wanted = whet.sift(prompt, candidates, 30).stop_at(alpha)
    lazy = SIFT(prompt, candidates)
    got = lazy.stop_at(alpha, 30)
    np.testing.assert_array_equal(got.indices, wanted.indices)
    assert len(lazy) == min(len(wanted) + 1, 30)  # the pick that crossed, none after it
    np.testing.assert_array_equal(lazy.stop_at(alpha, 30).indices, wanted.indices)


@given(seed=seeds, lam=lams, m=st.integers(1, 4))
def test_weights_count_copies_of_a_target(seed, lam, m):
    goals, candidates = unit(m, 5, seed=seed), unit(9, 5, seed=seed + 1)
    weights = np.random.default_rng(seed).integers(1, 4, m)
    copied = whet.sift(np.repeat(goals, weights, axis=0), candidates, 5, lam=lam)
    weighted = whet.sift(goals, candidates, 5, lam=lam, weights=weights)
    np.testing.assert_allclose(weighted.variance, copied.variance, rtol=1e-9)
    dense = sum(
        w * reference.variance(goal, candidates[weighted.indices], lam)
        for w, goal in zip(weights, goals, strict=True)
    )
    assert weighted.variance[-1] == pytest.approx(dense, rel=1e-6, abs=1e-9)


def test_two_opposite_targets_are_both_served():
    prompt = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    assert set(whet.sift(prompt, np.eye(3), 2).indices) == {0, 1}
    assert whet.sift(prompt, np.eye(3), 4, weights=[1, 0]).counts() == {0: 4}


@pytest.mark.parametrize("shape", [(30, 4), (300, 150)])
def test_without_repeats_each_open_row_is_picked_once(shape):
    prompt, candidates = unit(shape[1], seed=0), unit(*shape, seed=1)
    some = whet.sift(prompt, candidates, 20, lam=10.0, repeats=False, exclude=[3, 3, 5])
    assert len(some.counts()) == 20 and not {3, 5} & set(some.counts())
    rest = SIFT(prompt, candidates[:6], exclude=[1], repeats=False)
    assert sorted(p.index for p in rest) == [0, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="n is 1, but without repeats 0 candidates are left"):
        rest.advance(1)


def test_a_memory_mapped_file_serves_as_an_array_does(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "SHARED", 2**10)
    prompt, rows = unit(50, seed=0), unit(2000, 50, seed=1).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    a, b = whet.sift(prompt, mapped, 30, threads=2), whet.sift(prompt, rows, 30, threads=1)
    np.testing.assert_array_equal(a.indices, b.indices)
    slow = NumpyGreedy(rows, np.float64(prompt)[None], np.ones(2000, bool), lam=0.01, once=False)
    slow.advance(30)
    np.testing.assert_array_equal(a.indices, slow.picks)


def test_half_numbers_are_read_exactly():
    """All finite float16: normal, subnormal, both zeros, each times its own sign."""
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rows = bits[np.isfinite(bits)].reshape(-1, 8)
    rows = rows[np.abs(np.float64(rows)).sum(1) > 0]
    goals = np.eye(8)[[3]]
    open = np.ones(len(rows), bool)
    fast = NumbaGreedy(rows, goals, open, lam=1.0, once=False, threads=1)
    np.testing.assert_array_equal(fast._state.covariance[0], np.float64(rows[:, 3]))
    np.testing.assert_allclose(fast.prior, (np.float64(rows) ** 2).sum(1), rtol=1e-15)


def test_more_columns_ahead_than_slots():
    candidates = unit(200, 40, seed=0)
    assert SPARES < 60
    fast, slow = both(unit(40, seed=1), candidates, 120, 1e-3)
    assert list(fast.picks) == list(slow.picks)


def test_without_numba_the_picks_are_the_same(monkeypatch):
    prompt, candidates = unit(150, seed=0), unit(300, 150, seed=1).astype("f4")
    fast = whet.sift(prompt, candidates, 20)
    monkeypatch.setattr(sifting, "has_compiler", lambda: False)
    slow = whet.sift(prompt, candidates, 20)
    np.testing.assert_array_equal(fast.indices, slow.indices)
    np.testing.assert_allclose(fast.variance, slow.variance, rtol=1e-12)


def test_torch_tensors_on_the_cpu_are_welcome():
    prompt, candidates = (
        torch.from_numpy(unit(150, seed=0)),
        torch.from_numpy(unit(300, 150, seed=1)),
    )
    a = whet.sift(prompt.float(), candidates.half(), 9)
    b = whet.sift(prompt.float().numpy(), candidates.half().float().numpy(), 9)
    np.testing.assert_array_equal(a.indices, b.indices)


LARGE = np.ones((300, 150))
BAD = [
    ({"candidates": np.where(np.arange(300)[:, None] == 7, np.nan, LARGE)}, "nan at row 7"),
    ({"candidates": np.where(np.arange(300)[:, None] == 7, -np.inf, LARGE)}, "-inf at row 7"),
    ({"candidates": 1e200 * LARGE}, "1e.200 at row 0, whose square is infinite"),
    ({"prompt": 1e200 * LARGE[0]}, "prompt holds numbers up to"),
    ({"prompt": LARGE[:2, :3]}, "prompt has 3 dimensions"),
    ({"prompt": np.zeros((2, 150))}, "zero vector"),
    ({"prompt": np.ones((1, 1, 150))}, r"prompt has shape \(1, 1, "),
    ({"prompt": LARGE[:0]}, r"prompt has shape \(0, "),
    ({"weights": [1, 2]}, r"weights has shape \(2,\): expected 1"),
    ({"weights": [-1.0]}, "expected no negative number"),
    ({"weights": [0.0]}, "one above zero"),
    ({"weights": [np.nan]}, "weights holds nan at position 0"),
    ({"exclude": [300]}, "exclude holds 300, but rows go from 0 to 299"),
    ({"exclude": [-1]}, "exclude holds -1"),
    ({"exclude": [0.5]}, "expected whole numbers"),
    (
        {"exclude": np.ones(300, bool)},
        r"exclude is an array of bool, shape \(300,\): expected whole",
    ),
    ({"exclude": range(300)}, "exclude names all 300 candidates"),
    ({"n": 301, "repeats": False}, "n is 301, but without repeats 300 candidates are left"),
    ({"threads": 0}, "threads is 0"),
]


@pytest.mark.parametrize("changes, message", BAD)
@pytest.mark.parametrize("width", [150, 20])
def test_bad_input_is_refused_with_its_value(changes, message, width):
    cut = {
        key: value[..., :width] if key in ("prompt", "candidates") else value
        for key, value in ({"prompt": LARGE[0], "candidates": LARGE, "n": 2} | changes).items()
    }
    with pytest.raises(ValueError, match=message):
        whet.sift(**cut)


@settings(max_examples=200)
@given(data=st.data())
def test_whatever_comes_in_is_refused_or_rightly_chosen_from(data):
    """Shapes, types and values at random: refused, or chosen with the variance of Eq. (2)."""
    draw = data.draw
    k, d = draw(st.integers(0, 6)), draw(st.integers(0, 4))
    value = st.floats(-2, 2) | st.sampled_from([0.0, -0.0, 1e30, np.nan, np.inf, -np.inf])
    some = lambda *shape: np.array(  # noqa: E731
        draw(st.lists(value, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    ).reshape(shape)
    shape = draw(st.sampled_from([(k, d), (k, d), (k, d), (k,), (k, d, 1)]))
    rows, prompt = some(*shape), some(draw(st.sampled_from([d, d, d, d + 1])))
    kind = draw(st.sampled_from(["f8", "f4", "torch", "strided", "list"]))
    form = {
        "f8": lambda x: x,
        "f4": lambda x: x.astype("f4"),
        "torch": torch.from_numpy,
        "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        "list": lambda x: x.tolist(),
    }[kind]
    lam = draw(st.sampled_from([0.01, 1.0, 0.0, -1.0, np.nan]))
    n = draw(st.sampled_from([1, 3, 9, 0, -1]))
    try:
        chosen = whet.sift(form(prompt), form(rows), n, lam=lam)
    except ValueError:
        good = k and d and rows.ndim == 2 and prompt.shape == (d,) and lam > 0 and n > 0
        good = good and np.isfinite(rows).all() and np.isfinite(prompt).all() and prompt.any()
        assert not (good and lam >= 1e-14 * np.square(rows).sum(1).max())
        return
    assert len(chosen) == n and np.isfinite(chosen.variance).all()
    if np.abs(rows).max() < 10 and np.abs(prompt).max() < 10:
        dense = reference.variance(prompt, rows[chosen.indices], lam)
        assert chosen.variance[-1] == pytest.approx(dense, rel=1e-4, abs=1e-4)


def test_a_batch_of_no_threads_is_refused():
    with pytest.raises(ValueError, match="threads is 0: expected a whole number"):
        whet.sift_batch(np.eye(2), np.ones((2, 1, 2)), 1, threads=0)


def test_a_batch_names_the_prompt_that_is_wrong():
    prompts, candidates = unit(3, 4, seed=0), unit(3, 5, 4, seed=1)
    candidates[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="prompt 1: candidates holds nan at row 2"):
        whet.sift_batch(prompts, candidates, 2)
    with pytest.raises(ValueError, match="3 prompts, 2 sets of candidates"):
        whet.sift_batch(prompts, candidates[:2], 2)


def test_a_batch_may_be_ragged_have_targets_and_exclusions():
    prompts, candidates = unit(3, 2, 4, seed=0), [unit(k, 4, seed=k) for k in (5, 9, 2)]
    exclude = [[0], [], [1]]
    batch = whet.sift_batch(prompts, candidates, 4, weights=[1, 2], exclude=exclude)
    for b in range(3):
        alone = whet.sift(prompts[b], candidates[b], 4, weights=[1, 2], exclude=exclude[b])
        np.testing.assert_array_equal(batch[b].indices, alone.indices)
    assert whet.sift_batch([], [], 3) == []
