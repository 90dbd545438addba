"""Random input to every selector: correct picks, or a ValueError that says why."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import reference
from support.vectors import unit

import whet

ONCE = [whet.nearest, whet.random_selection]  # each candidate at most once
REPEATING = [whet.sift, whet.nearest_repeated, whet.uncertainty]
selectors = st.sampled_from(ONCE + REPEATING)
seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-8, 1e-4, 0.01, 1.0, 1e6])


def strided(x):
    return np.repeat(x, 2, axis=-1)[..., ::2]


def reversed_in_memory(x):
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


FORMS = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "big-endian": lambda x: x.astype(">f8"),
    "column-major": np.asfortranarray,
    "strided": strided,
    "reversed": reversed_in_memory,
    "read-only": read_only,
    "list": lambda x: x.tolist(),
    "int8": lambda x: np.int8(100 * x),
}


def exactly(x):
    """The numbers of `x` as a plain float64 array."""
    return np.array(x, dtype=np.float64, order="C")


@pytest.mark.parametrize("form", FORMS)
@given(seed=seeds, k=st.integers(1, 9), n=st.integers(1, 12), lam=lams, selector=selectors)
def test_every_form_of_an_array_gives_the_same_picks(form, seed, k, n, lam, selector):
    query, rows = FORMS[form](unit(6, seed=seed)), FORMS[form](unit(k, 6, seed=seed + 1))
    n = min(n, k) if selector in ONCE else n
    chosen = selector(query, rows, n, lam=lam)
    plain = selector(exactly(query), exactly(rows), n, lam=lam)
    np.testing.assert_array_equal(chosen.indices, plain.indices)
    np.testing.assert_allclose(chosen.variance, plain.variance, rtol=1e-9)


@given(seed=seeds, k=st.integers(1, 8), n=st.integers(1, 20), lam=lams, selector=selectors)
def test_variance_is_correct_with_copies_and_zero_rows(seed, k, n, lam, selector):
    rng = np.random.default_rng(seed)
    rows = unit(k, 5, seed=seed)[rng.integers(k, size=2 * k)]  # some twice or more
    rows[rng.random(2 * k) < 0.3] = 0
    query = unit(5, seed=seed + 1)
    n = min(n, 2 * k) if selector in ONCE else n
    chosen = selector(query, rows, n, lam=lam)
    assert chosen.indices.min() >= 0 and chosen.indices.max() < 2 * k
    for step in range(n + 1):
        dense = reference.variance(query, rows[chosen.indices[:step]], lam)
        assert chosen.variance[step] == pytest.approx(dense, rel=1e-5, abs=1e-7)


def with_bad(x, value, at):
    x = x.copy()
    x.flat[at % x.size] = value
    return x


INVALID = {
    "a bad number in the query": lambda p, x, v, at: (with_bad(p, v, at), x),
    "a bad number in the candidates": lambda p, x, v, at: (p, with_bad(x, v, at)),
    "a zero query": lambda p, x, v, at: (0 * p, x),
    "a vanishing query": lambda p, x, v, at: (1e-170 * p, x),
    "a short query": lambda p, x, v, at: (p[:-1], x),
    "a long query": lambda p, x, v, at: (np.append(p, 1.0), x),
    "a 3-d query": lambda p, x, v, at: (p[None, None], x),
    "an empty query": lambda p, x, v, at: (p[:0], x),
    "1-d candidates": lambda p, x, v, at: (p, x[0]),
    "3-d candidates": lambda p, x, v, at: (p, x[None]),
    "no candidates": lambda p, x, v, at: (p, x[:0]),
    "no dimensions": lambda p, x, v, at: (p, x[:, :0]),
    "ragged candidates": lambda p, x, v, at: (p, [*x.tolist(), [1.0]]),
    "complex candidates": lambda p, x, v, at: (p, x + 1j),
    "text for candidates": lambda p, x, v, at: (p, x.astype(str)),
    "objects for candidates": lambda p, x, v, at: (p, x.astype(object)),
}


@pytest.mark.parametrize("how", INVALID)
@given(
    seed=seeds,
    k=st.integers(1, 6),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 1e200, -1e200]),
    at=st.integers(0, 99),
    selector=selectors,
)
def test_an_invalid_array_is_an_error(how, seed, k, value, at, selector):
    query, rows = INVALID[how](unit(4, seed=seed), unit(k, 4, seed=seed + 1), value, at)
    with pytest.raises(ValueError, match=r"query|candidates"):
        selector(query, rows, 1)


@given(
    seed=seeds,
    k=st.integers(1, 6),
    bad=st.sampled_from(
        [{"n": 0}, {"n": -5}, {"n": True}, {"lam": 0.0}, {"lam": -1e-9}]
        + [{"lam": x} for x in (float("nan"), float("inf"), -float("inf"))]
    ),
    selector=selectors,
)
def test_a_number_out_of_range_is_an_error_with_its_name(seed, k, bad, selector):
    arguments = {"n": 1, "lam": 0.1} | bad
    with pytest.raises(ValueError, match=next(iter(bad)) + " is"):
        selector(unit(4, seed=seed), unit(k, 4, seed=seed + 1), **arguments)


@given(seed=seeds, k=st.integers(1, 6), more=st.integers(1, 30))
def test_more_picks_than_candidates_repeat_or_are_an_error(seed, k, more):
    query, rows = unit(4, seed=seed), unit(k, 4, seed=seed + 1)
    for selector in REPEATING:
        assert len(selector(query, rows, k + more)) == k + more
    for selector in ONCE:
        with pytest.raises(ValueError, match=f"n is {k + more}, but"):
            selector(query, rows, k + more)


@given(
    seed=seeds,
    sizes=st.tuples(*2 * [st.floats(-40, 40)]),
    lam=st.floats(-12, 12),
    selector=selectors,
)
def test_variances_are_valid_at_any_scale_of_float32(seed, sizes, lam, selector):
    """Lengths and noise far apart: an error, or never NaN, never negative, never rising."""
    query, rows = 10 ** sizes[0] * unit(4, seed=seed), 10 ** sizes[1] * unit(6, 4, seed=seed + 1)
    if lam < 2 * sizes[1] - 14:
        with pytest.raises(ValueError, match="too small for float64"):
            selector(query, rows, 6, lam=10**lam)
        return
    assume(lam > 2 * sizes[1] - 13.99)  # at the limit both are right
    chosen = selector(query, rows, 6, lam=10**lam)
    assert np.isfinite(chosen.variance).all() and np.isfinite(chosen.sigma).all()
    assert (chosen.variance >= 0).all() and (np.diff(chosen.variance) <= 0).all()
    assert chosen.sigma[0] == 1


CODE = """
import numpy as np, whet
for query in (None, 1.0, np.float64(1)):
    for selector in (whet.sift, whet.nearest, whet.uncertainty):
        try:
            selector(query, np.eye(2), 1)
        except ValueError as error:
            assert "query" in str(error), error
        else:
            raise AssertionError(query)
"""


def test_an_object_that_is_not_an_array_is_an_error():
    """In a process of its own, as users have it: without the type checker of the tests."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
