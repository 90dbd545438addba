"""The numba backend against the NumPy backend and against brute force."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference
from support.vectors import near_duplicates, unit

from whet.select.numba_backend.state import CACHE_SLOTS, NumbaGreedy
from whet.select.numpy_backend import NumpyGreedy
from whet.select.selection import TIE

pytest.importorskip("numba", reason="the numba backend needs whet[fast]")

from whet.select.numba_backend import kernels, products

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0])
tiny_lams = st.sampled_from([1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
dtypes = st.sampled_from(["f2", "f4", "f8"])


def both(query, candidates, n, lam, *, available=None, repeats=True):
    """The numba and the NumPy backend after `n` picks."""
    targets = np.atleast_2d(np.float64(query))
    available = np.ones(len(candidates), bool) if available is None else available
    fast = NumbaGreedy(candidates, targets, available, lam=lam, repeats=repeats, threads=1)
    slow = NumpyGreedy(candidates, targets, available, lam=lam, repeats=repeats)
    for backend in (fast, slow):
        backend.advance(n)
    return fast, slow


@settings(max_examples=250)
@given(
    seed=seeds,
    k=st.integers(1, 40),
    d=st.integers(1, 30),
    n=st.integers(1, 24),
    m=st.integers(1, 3),
    lam=lams,
    dtype=dtypes,
    repeats=st.booleans(),
)
def test_numba_picks_what_numpy_picks(seed, k, d, n, m, lam, dtype, repeats):
    query, candidates = unit(m, d, seed=seed), unit(k, d, seed=seed + 1).astype(dtype)
    available = np.random.default_rng(seed).random(k) < 0.8
    available[seed % k] = True
    fast, slow = both(query, candidates, n, lam, available=available, repeats=repeats)
    assert list(fast.picks) == list(slow.picks)
    np.testing.assert_allclose(fast.trace, slow.trace, rtol=1e-6, atol=1e-10)
    assert available[fast.picks].all()
    assert len(set(fast.picks)) == len(fast.picks) or repeats


@settings(max_examples=200)
@given(seed=seeds, k=st.integers(1, 12), d=st.integers(2, 8), n=st.integers(1, 8), lam=lams)
def test_numba_picks_what_brute_force_picks(seed, k, d, n, lam):
    query, candidates = unit(d, seed=seed), unit(k, d, seed=seed + 1)
    fast, _ = both(query, candidates, n, lam)
    chosen = []
    for pick in fast.picks:  # dense solves cannot separate gains this close: any of them is right
        before = reference.variance(query, candidates[chosen], lam)
        gains = [
            before - reference.variance(query, candidates[[*chosen, j]], lam) for j in range(k)
        ]
        assert gains[pick] >= max(gains) - 1e-9
        chosen.append(int(pick))
    dense = reference.variance(query, candidates[chosen], lam)
    assert fast.trace[-1] == pytest.approx(dense, rel=1e-6, abs=1e-9)


@given(seed=seeds, lam=tiny_lams, shape=st.sampled_from([(12, 3), (40, 60), (300, 8)]))
def test_long_selections_of_few_candidates_stay_exact(seed, lam, shape):
    """Repeats, evicted columns, and rows of the factor that the ring has overwritten."""
    query, candidates = unit(shape[1], seed=seed), unit(*shape, seed=seed + 1)
    fast, _ = both(query, candidates, 90, lam)
    for n in (1, 20, 90):
        dense = reference.variance(query, candidates[fast.picks[:n]], lam)
        assert fast.trace[n] == pytest.approx(dense, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("lam", [1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_variance_survives_tiny_noise_on_near_duplicates_of_low_rank(lam, dtype):
    candidates, query = near_duplicates(180, 64).astype(dtype), unit(64, seed=1)
    fast, _ = both(query, candidates, 60, lam)
    dense = reference.variance(query, np.float64(candidates[fast.picks]), lam)
    assert fast.trace[-1] == pytest.approx(dense, rel=1e-5)
    assert (fast.trace > 0).all() and (np.diff(fast.trace) <= 0).all()


@given(seed=seeds, lam=tiny_lams, dtype=dtypes, d=st.sampled_from([3, 40]))
def test_the_first_available_of_identical_rows_is_picked(seed, lam, dtype, d):
    query, rows = unit(d, seed=seed), unit(9, d, seed=seed + 1).astype(dtype)
    available = np.ones(27, bool)
    available[[0, 1, 2]] = False
    fast, _ = both(query, np.tile(rows, (3, 1)), 20, lam, available=available)
    assert ((fast.picks >= 3) & (fast.picks < 12)).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_identical_rows_have_identical_bits_at_any_position(dtype):
    for d in [*range(1, 40), 255, 1000]:
        rows = np.tile(unit(d, seed=d).astype(dtype), (9, 1))
        fast = NumbaGreedy(
            rows, unit(1, d, seed=0), np.ones(9, bool), lam=1e-4, repeats=True, threads=1
        )
        fast.advance(1)
        state = fast.state
        ahead = state.cache[state.pass_slots]
        for column in (state.variance, state.gains, *state.covariance, state.factor[0], *ahead):
            assert len(set(column.tolist())) == 1


def test_float16_is_read_exactly():
    """All finite float16: normal, subnormal, both zeros, each times its own sign."""
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rows = bits[np.isfinite(bits)].reshape(-1, 8)
    rows = rows[np.abs(np.float64(rows)).sum(1) > 0]
    targets = np.eye(8)[[3]]
    available = np.ones(len(rows), bool)
    fast = NumbaGreedy(rows, targets, available, lam=1.0, repeats=True, threads=1)
    np.testing.assert_array_equal(fast.state.covariance[0], np.float64(rows[:, 3]))
    np.testing.assert_allclose(fast.prior, (np.float64(rows) ** 2).sum(1), rtol=1e-15)


def test_more_columns_than_cache_slots():
    candidates = unit(200, 40, seed=0)
    assert CACHE_SLOTS < 60
    fast, slow = both(unit(40, seed=1), candidates, 120, 1e-3)
    assert list(fast.picks) == list(slow.picks)


@pytest.mark.parametrize("lam", [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_large_problems_of_near_duplicates_keep_their_variance(lam, noise):
    rows = near_duplicates(3000, 256, copies=4, noise=noise).astype("f4")
    query = unit(256, seed=1)
    fast = NumbaGreedy(rows, query[None], np.ones(3000, bool), lam=lam, repeats=True, threads=2)
    fast.advance(60)
    dense = reference.variance(query, rows[fast.picks], lam)
    assert fast.trace[-1] == pytest.approx(dense, rel=1e-5)


@pytest.mark.parametrize(("module", "calls"), [(products, ["jit"]), (kernels, ["jit", "products"])])
def test_machine_code_on_disk_is_renewed_with_what_it_calls(module, calls):
    """If this fails, set BUILT_ON of the module to the value on the left."""
    folder = Path(module.__file__).parent
    source = b"".join((folder / f"{name}.py").read_bytes() for name in calls) + str(TIE).encode()
    assert f"{zlib.crc32(source):08x}" == module.BUILT_ON
