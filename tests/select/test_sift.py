"""`sift`, `sift_batch` and `SIFT`: threads, batches, continuation, options, invalid input."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.vectors import unit
from threadpoolctl import threadpool_limits

import whet
from whet.select import sift as sift_module
from whet.select.numba_backend import state as numba_state
from whet.select.numpy_backend import NumpyGreedy
from whet.select.sift import SIFT

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(300, 200), (900, 100)])
@pytest.mark.parametrize("parallel", [2**22, 2**10], ids=["serial", "parallel"])
def test_the_bits_do_not_depend_on_threads_or_the_batch(dtype, shape, parallel, monkeypatch):
    monkeypatch.setattr(numba_state, "PARALLEL_SIZE", parallel)  # else 32 MB of rows per query
    queries = unit(4, shape[1], seed=0)
    candidates = unit(4, *shape, seed=1).astype(dtype)
    alone = [
        whet.sift(p, c, 30, lam=1e-4, threads=1) for p, c in zip(queries, candidates, strict=True)
    ]
    with threadpool_limits(2):
        ways = [
            [
                whet.sift(p, c, 30, lam=1e-4, threads=3)
                for p, c in zip(queries, candidates, strict=True)
            ],
            whet.sift_batch(queries, candidates, 30, lam=1e-4, threads=2),
            whet.sift_batch(queries[::-1], candidates[::-1], 30, lam=1e-4)[::-1],
        ]
    with threadpool_limits(1):
        ways.append(whet.sift_batch(queries, list(candidates), 30, lam=1e-4, threads=1))
    for way in ways:
        for a, b in zip(way, alone, strict=True):
            assert (a.indices == b.indices).all() and (a.variance == b.variance).all()


@pytest.mark.parametrize("shape", [(60, 4), (300, 150), (400, 100)])
def test_a_selection_can_be_continued(shape):
    query, candidates = unit(shape[1], seed=0), unit(*shape, seed=1)
    whole = whet.sift(query, candidates, 40)
    parts = SIFT(query, candidates)
    lazily = [pick for pick in itertools.islice(parts, 7)]
    expected = f"SIFT(7 picks of {shape[0]} candidates, σ {whole.sigma[7]:.3f})"
    assert repr(parts) == expected and len(parts) == 7
    assert [p.index for p in lazily] == list(whole.indices[:7])
    np.testing.assert_array_equal([p.sigma for p in lazily], whole.sigma[1:8])
    np.testing.assert_array_equal(parts.advance(33).indices, whole.indices)
    np.testing.assert_array_equal(parts.selection().variance, whole.variance)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_adaptive_stopping_saves_the_work(alpha):
    query, candidates = unit(120, seed=0), unit(300, 120, seed=1)
    wanted = whet.sift(query, candidates, 30).stop_at(alpha)
    lazy = SIFT(query, candidates)
    got = lazy.stop_at(alpha, 30)
    np.testing.assert_array_equal(got.indices, wanted.indices)
    assert len(lazy) == min(len(wanted) + 1, 30)  # the pick that crossed, none after it
    np.testing.assert_array_equal(lazy.stop_at(alpha, 30).indices, wanted.indices)


@given(seed=seeds, lam=lams, m=st.integers(1, 4))
def test_weights_count_copies_of_a_target(seed, lam, m):
    targets, candidates = unit(m, 5, seed=seed), unit(9, 5, seed=seed + 1)
    weights = np.random.default_rng(seed).integers(1, 4, m)
    copied = whet.sift(np.repeat(targets, weights, axis=0), candidates, 5, lam=lam)
    weighted = whet.sift(targets, candidates, 5, lam=lam, weights=weights)
    np.testing.assert_allclose(weighted.variance, copied.variance, rtol=1e-9)
    dense = sum(
        w * reference.variance(goal, candidates[weighted.indices], lam)
        for w, goal in zip(weights, targets, strict=True)
    )
    assert weighted.variance[-1] == pytest.approx(dense, rel=1e-6, abs=1e-9)


def test_two_opposite_targets_are_both_served():
    query = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    assert set(whet.sift(query, np.eye(3), 2).indices) == {0, 1}
    assert whet.sift(query, np.eye(3), 4, weights=[1, 0]).counts() == {0: 4}


@pytest.mark.parametrize("shape", [(30, 4), (300, 150)])
def test_without_repeats_each_open_row_is_picked_once(shape):
    query, candidates = unit(shape[1], seed=0), unit(*shape, seed=1)
    selection = whet.sift(query, candidates, 20, lam=10.0, repeats=False, exclude=[3, 3, 5])
    assert len(selection.counts()) == 20 and not {3, 5} & set(selection.counts())
    rest = SIFT(query, candidates[:6], exclude=[1], repeats=False)
    assert sorted(p.index for p in rest) == [0, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="n is 1, but without repeats 0 candidates are left"):
        rest.advance(1)


def test_a_memory_mapped_file_works_as_an_array_does(tmp_path, monkeypatch):
    monkeypatch.setattr(numba_state, "PARALLEL_SIZE", 2**10)
    query, rows = unit(50, seed=0), unit(2000, 50, seed=1).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    a, b = whet.sift(query, mapped, 30, threads=2), whet.sift(query, rows, 30, threads=1)
    np.testing.assert_array_equal(a.indices, b.indices)
    slow = NumpyGreedy(rows, np.float64(query)[None], np.ones(2000, bool), lam=0.01, repeats=True)
    slow.advance(30)
    np.testing.assert_array_equal(a.indices, slow.picks)


def test_without_numba_the_picks_are_the_same(monkeypatch):
    query, candidates = unit(150, seed=0), unit(300, 150, seed=1).astype("f4")
    fast = whet.sift(query, candidates, 20)
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    sift_module.has_numba.cache_clear()
    slow = whet.sift(query, candidates, 20)
    sift_module.has_numba.cache_clear()
    np.testing.assert_array_equal(fast.indices, slow.indices)
    np.testing.assert_allclose(fast.variance, slow.variance, rtol=1e-12)


LARGE = np.ones((300, 150))
BAD = [
    ({"candidates": np.where(np.arange(300)[:, None] == 7, np.nan, LARGE)}, "nan at row 7"),
    ({"candidates": np.where(np.arange(300)[:, None] == 7, -np.inf, LARGE)}, "-inf at row 7"),
    ({"candidates": 1e200 * LARGE}, "1e.200 at row 0, whose square is infinite"),
    ({"query": 1e200 * LARGE[0]}, "query contains numbers up to"),
    ({"query": 1e-200 * LARGE[0]}, "query contains numbers up to 1e-200"),
    ({"query": LARGE[:2, :3]}, "query has 3 dimensions"),
    ({"query": np.zeros((2, 150))}, "zero vector"),
    ({"query": np.ones((1, 1, 150))}, r"query has shape \(1, 1, "),
    ({"query": LARGE[:0]}, r"query has shape \(0, "),
    ({"weights": [1, 2]}, r"weights has shape \(2,\): expected 1"),
    ({"weights": [-1.0]}, "expected no negative number"),
    ({"weights": [0.0]}, "at least one above zero"),
    ({"weights": [np.nan]}, "weights contains nan at position 0"),
    ({"exclude": [300]}, "exclude contains 300, but rows go from 0 to 299"),
    ({"exclude": [-1]}, "exclude contains -1"),
    ({"exclude": [0.5]}, "expected row numbers"),
    (
        {"exclude": np.ones(300, bool)},
        r"exclude is an array of bool, shape \(300,\): expected row",
    ),
    ({"exclude": range(300)}, "exclude contains all 300 candidates"),
    ({"n": 301, "repeats": False}, "n is 301, but without repeats 300 candidates are left"),
    ({"threads": 0}, "threads is 0"),
]


@pytest.mark.parametrize("changes, message", BAD)
@pytest.mark.parametrize("width", [150, 20])
def test_invalid_input_is_an_error_with_the_value(changes, message, width):
    cut = {
        key: value[..., :width] if key in ("query", "candidates") else value
        for key, value in ({"query": LARGE[0], "candidates": LARGE, "n": 2} | changes).items()
    }
    with pytest.raises(ValueError, match=message):
        whet.sift(**cut)


@given(data=st.data())
def test_random_input_is_rejected_or_selected_from_correctly(data):
    """Random shapes, types and values: an error, or picks with the variance of Eq. (2)."""
    draw = data.draw
    k, d = draw(st.integers(0, 6)), draw(st.integers(0, 4))
    number = st.floats(-2, 2).map(lambda x: x if abs(x) > 1e-30 else 0.0)  # float32 keeps these
    value = number | st.sampled_from([0.0, -0.0, 1e30, np.nan, np.inf, -np.inf])
    array = lambda *shape: np.array(  # noqa: E731
        draw(st.lists(value, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    ).reshape(shape)
    shape = draw(st.sampled_from([(k, d), (k, d), (k, d), (k,), (k, d, 1)]))
    rows, query = array(*shape), array(draw(st.sampled_from([d, d, d, d + 1])))
    kind = draw(st.sampled_from(["f8", "f4", "strided", "list"]))
    form = {
        "f8": lambda x: x,
        "f4": lambda x: x.astype("f4"),
        "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        "list": lambda x: x.tolist(),
    }[kind]
    lam = draw(st.sampled_from([0.01, 1.0, 0.0, -1.0, np.nan]))
    n = draw(st.sampled_from([1, 3, 9, 0, -1]))
    try:
        chosen = whet.sift(form(query), form(rows), n, lam=lam)
    except ValueError:
        good = k and d and rows.ndim == 2 and query.shape == (d,) and lam > 0 and n > 0
        good = good and np.isfinite(rows).all() and np.isfinite(query).all() and query.any()
        assert not (good and lam >= 1e-14 * np.square(rows).sum(1).max())
        return
    assert len(chosen) == n and np.isfinite(chosen.variance).all()
    if np.abs(rows).max() < 10 and np.abs(query).max() < 10:
        dense = reference.variance(query, rows[chosen.indices], lam)
        assert chosen.variance[-1] == pytest.approx(dense, rel=1e-4, abs=1e-4)


def test_a_batch_needs_at_least_one_thread():
    with pytest.raises(ValueError, match="threads is 0: expected a whole number"):
        whet.sift_batch(np.eye(2), np.ones((2, 1, 2)), 1, threads=0)


def test_a_batch_names_the_invalid_query():
    queries, candidates = unit(3, 4, seed=0), unit(3, 5, 4, seed=1)
    candidates[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="query 1: candidates contains nan at row 2"):
        whet.sift_batch(queries, candidates, 2)
    with pytest.raises(ValueError, match="3 queries, 2 sets of candidates"):
        whet.sift_batch(queries, candidates[:2], 2)


def test_a_batch_may_be_ragged_have_targets_and_exclusions():
    queries, candidates = unit(3, 2, 4, seed=0), [unit(k, 4, seed=k) for k in (5, 9, 2)]
    exclude = [[0], [], [1]]
    batch = whet.sift_batch(queries, candidates, 4, weights=[1, 2], exclude=exclude)
    for b in range(3):
        alone = whet.sift(queries[b], candidates[b], 4, weights=[1, 2], exclude=exclude[b])
        np.testing.assert_array_equal(batch[b].indices, alone.indices)
    assert whet.sift_batch([], [], 3) == []
