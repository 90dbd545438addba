"""The float32 screen: its bounds hold, and nothing that is picked or reported depends on it."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference

from whet.select.numba_backend import state as compiled
from whet.select.numba_backend.state import NumbaGreedy
from whet.select.numpy_backend import NumpyGreedy

pytest.importorskip("numba", reason="the compiled form needs whet[fast]")

from whet.select.numba_backend import kernels, products
from whet.select.numba_backend.screen import bounds

seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0])
dtypes = st.sampled_from(["f2", "f4"])


def pool(k, d, seed, *, rank=16, spread=1e-2, lengths=0.0):
    """Near-duplicates, four at a time, in few dimensions; of unit length, or of various ones."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((-(-k // 4), rank)) @ rng.standard_normal((rank, d))
    rows = np.repeat(rows, 4, axis=0)[:k] + spread * rng.standard_normal((k, d))
    rows *= np.exp(lengths * rng.standard_normal((k, 1))) / np.linalg.norm(rows, axis=1)[:, None]
    return rows


def form(prompt, rows, lam, *, screened, shared=2**22, threads=1, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "SCREENED", 0 if screened else 2**60)
        patch.setattr(compiled, "SHARED", shared)
        options = {"open": np.ones(len(rows), bool), "once": False} | options
        goals = np.atleast_2d(np.float64(prompt))
        return NumbaGreedy(rows, goals, lam=lam, threads=threads, **options)


@settings(max_examples=150)
@given(
    seed=seeds,
    lam=lams,
    dtype=dtypes,
    m=st.integers(1, 3),
    d=st.sampled_from([24, 100, 700]),
    spread=st.sampled_from([1e-6, 1e-3, 1.0]),
    lengths=st.sampled_from([0.0, 1.0]),
)
def test_rough_numbers_are_off_by_no_more_than_the_bounds(seed, lam, dtype, m, d, spread, lengths):
    rows = pool(48, d, seed, spread=spread, lengths=lengths).astype(dtype)
    prompt = pool(m, d, seed + 1, rank=4)
    rough = form(prompt, rows, lam, screened=True)
    exact = NumpyGreedy(rows, np.float64(prompt), np.ones(48, bool), lam=lam, once=False)._posterior
    for _ in range(12):
        rough.advance(1)
        exact.observe(int(rough.picks[-1]))
        if not rough._state.screen.on[0]:
            break
        of_covariance, of_variance = bounds(rough._state)
        off = np.linalg.norm(rough._state.covariance - exact.covariance, axis=0)
        assert (off <= of_covariance + 1e-9).all()
        assert (np.abs(rough._state.variance - exact.variance) <= of_variance + 1e-9).all()


@settings(max_examples=300)
@given(
    seed=seeds,
    k=st.integers(1, 80),
    d=st.sampled_from([40, 130]),
    n=st.integers(1, 40),
    m=st.integers(1, 3),
    lam=st.sampled_from([1e-4, 1e-2, 1.0, 10.0]),
    dtype=dtypes,
    once=st.booleans(),
    lengths=st.sampled_from([0.0, 0.5]),
)
def test_a_screened_selection_is_that_of_float64(seed, k, d, n, m, lam, dtype, once, lengths):
    prompt = pool(m, d, seed)
    rows = pool(k, d, seed + 1, spread=1.0, lengths=lengths).astype(dtype)
    open = np.random.default_rng(seed).random(k) < 0.8
    open[seed % k] = True
    ways = [
        form(prompt, rows, lam, screened=screened, open=open, once=once)
        for screened in (True, False)
    ]
    for way in ways:
        way.advance(n)
    assert list(ways[0].picks) == list(ways[1].picks)
    np.testing.assert_allclose(ways[0].trace, ways[1].trace, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("lam", [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("spread", [1e-6, 1e-3])
def test_near_duplicates_of_low_rank_keep_their_variance(lam, spread):
    rows, prompt = pool(400, 256, 0, spread=spread).astype("f4"), pool(1, 256, 1)[0]
    way = form(prompt, rows, lam, screened=True)
    way.advance(60)
    dense = reference.variance(prompt, rows[way.picks], lam)
    assert way.trace[-1] == pytest.approx(dense, rel=1e-5)


def test_the_screen_stays_where_gains_differ_and_goes_where_all_contend():
    prompt = pool(1, 400, 0)[0]
    apart = form(prompt, pool(700, 400, 1, rank=300, spread=1.0).astype("f4"), 0.01, screened=True)
    alike = form(prompt, pool(700, 400, 1, rank=2, spread=1e-7).astype("f4"), 1e-6, screened=True)
    for way, stays in ((apart, True), (alike, False)):
        assert way._state.screen.on[0]
        way.advance(20)
        assert bool(way._state.screen.on[0]) is stays
    sharp = (apart._state.screen.known > 0).sum()
    assert len(set(apart.picks)) <= sharp + 1 < 100  # few of 700 were ever made exact


@pytest.mark.parametrize("length, dtype", [(1.0, "f8"), (1e-7, "f4"), (1e7, "f4")])
def test_no_screen_without_the_range_of_float32(length, dtype):
    rows = np.full((9, 4), length, dtype)
    assert not form(np.ones(4), rows, 1.0, screened=True)._state.screen.on[0]


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("shared", [2**22, 2**10], ids=["small", "shared"])
def test_neither_threads_nor_parts_change_the_bits_of_a_screened_selection(dtype, shared):
    prompt = pool(1, 300, 0)[0]
    rows = pool(500, 300, 1, rank=200, spread=1.0).astype(dtype)
    whole, parts = (
        form(prompt, rows, 0.01, screened=True, shared=shared, threads=threads)
        for threads in (1, 3)
    )
    whole.advance(40)
    for n in (1, 2, 17, 20):
        parts.advance(n)
    assert whole._state.screen.on[0] and parts._state.screen.on[0]
    np.testing.assert_array_equal(whole.picks, parts.picks)
    np.testing.assert_array_equal(whole.trace, parts.trace)


@given(seed=seeds, lam=lams, dtype=dtypes)
def test_of_identical_rows_the_screen_picks_the_lowest_open_one(seed, lam, dtype):
    rows, open = (
        np.tile(pool(20, 90, seed, rank=60, spread=1.0).astype(dtype), (3, 1)),
        np.ones(60, bool),
    )
    open[[0, 1, 2]] = False
    way = form(pool(1, 90, seed + 1)[0], rows, lam, screened=True, open=open)
    way.advance(25)
    assert ((way.picks >= 3) & (way.picks < 23)).all()


@pytest.mark.parametrize(
    ("module", "calls"),
    [(products, ["machine"]), (kernels, ["machine", "products", "screen", "selection"])],
)
def test_machine_code_on_disk_is_renewed_with_what_it_calls(module, calls):
    """If this fails, the digest below is the new value of BUILT_ON."""
    folder = Path(module.__file__).parent
    source = b"".join((folder / f"{name}.py").read_bytes() for name in calls)
    assert f"{zlib.crc32(source):08x}" == module.BUILT_ON
