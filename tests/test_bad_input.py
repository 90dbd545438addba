"""Whatever comes in is selected from rightly or refused with a ValueError that says why."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import reference

import whet
from whet.config import parsed
from whet.integrations.activeft import Retriever
from whet.select.config import SelectionConfig

ONCE = [whet.nearest, whet.random_selection]  # each candidate at most once
ANY = [whet.sift, whet.nearest_repeated, whet.uncertainty]
selectors = st.sampled_from(ONCE + ANY)
seeds = st.integers(0, 2**32 - 1)
lams = st.sampled_from([1e-8, 1e-4, 0.01, 1.0, 1e6])


def unit(*shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


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
    "torch": torch.tensor,
    "torch with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "torch transposed": lambda x: torch.tensor(x.T.copy()).T if x.ndim == 2 else torch.tensor(x),
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "int8": lambda x: np.int8(100 * x),
    "torch int64": lambda x: torch.tensor(np.int64(100 * x)),
}


def exactly(x):
    """What `x` holds, as a plain float64 array."""
    if isinstance(x, torch.Tensor):
        x = x.detach().double().numpy()
    return np.array(x, dtype=np.float64, order="C")


@pytest.mark.parametrize("form", FORMS)
@given(seed=seeds, k=st.integers(1, 9), n=st.integers(1, 12), lam=lams, selector=selectors)
def test_every_form_of_an_array_selects_as_the_plain_one(form, seed, k, n, lam, selector):
    prompt, rows = FORMS[form](unit(6, seed=seed)), FORMS[form](unit(k, 6, seed=seed + 1))
    n = min(n, k) if selector in ONCE else n
    chosen = selector(prompt, rows, n, lam=lam)
    plain = selector(exactly(prompt), exactly(rows), n, lam=lam)
    np.testing.assert_array_equal(chosen.indices, plain.indices)
    np.testing.assert_allclose(chosen.variance, plain.variance, rtol=1e-9)


@given(seed=seeds, k=st.integers(1, 8), n=st.integers(1, 20), lam=lams, selector=selectors)
def test_copies_and_zero_rows_leave_the_variance_right(seed, k, n, lam, selector):
    rng = np.random.default_rng(seed)
    rows = unit(k, 5, seed=seed)[rng.integers(k, size=2 * k)]  # some twice or more
    rows[rng.random(2 * k) < 0.3] = 0
    prompt = unit(5, seed=seed + 1)
    n = min(n, 2 * k) if selector in ONCE else n
    chosen = selector(prompt, rows, n, lam=lam)
    assert chosen.indices.min() >= 0 and chosen.indices.max() < 2 * k
    for step in range(n + 1):
        dense = reference.variance(prompt, rows[chosen.indices[:step]], lam)
        assert chosen.variance[step] == pytest.approx(dense, rel=1e-5, abs=1e-7)


def with_bad(x, value, at):
    x = x.copy()
    x.flat[at % x.size] = value
    return x


SPOILED = {
    "a bad number in the prompt": lambda p, x, v, at: (with_bad(p, v, at), x),
    "a bad number in the candidates": lambda p, x, v, at: (p, with_bad(x, v, at)),
    "a zero prompt": lambda p, x, v, at: (0 * p, x),
    "a vanishing prompt": lambda p, x, v, at: (1e-170 * p, x),
    "a short prompt": lambda p, x, v, at: (p[:-1], x),
    "a long prompt": lambda p, x, v, at: (np.append(p, 1.0), x),
    "a scalar prompt": lambda p, x, v, at: (p[0], x),
    "a 3-d prompt": lambda p, x, v, at: (p[None, None], x),
    "an empty prompt": lambda p, x, v, at: (p[:0], x),
    "1-d candidates": lambda p, x, v, at: (p, x[0]),
    "3-d candidates": lambda p, x, v, at: (p, x[None]),
    "no candidates": lambda p, x, v, at: (p, x[:0]),
    "no dimensions": lambda p, x, v, at: (p, x[:, :0]),
    "ragged candidates": lambda p, x, v, at: (p, [*x.tolist(), [1.0]]),
    "complex candidates": lambda p, x, v, at: (p, x + 1j),
    "text for candidates": lambda p, x, v, at: (p, x.astype(str)),
    "objects for candidates": lambda p, x, v, at: (p, x.astype(object)),
    "no prompt": lambda p, x, v, at: (None, x),
}


@pytest.mark.parametrize("how", SPOILED)
@given(
    seed=seeds,
    k=st.integers(1, 6),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 1e200, -1e200]),
    at=st.integers(0, 99),
    as_torch=st.booleans(),
    selector=selectors,
)
def test_a_spoiled_array_is_refused(how, seed, k, value, at, as_torch, selector):
    prompt, rows = SPOILED[how](unit(4, seed=seed), unit(k, 4, seed=seed + 1), value, at)
    if as_torch and isinstance(rows, np.ndarray) and rows.dtype.kind in "fc":
        rows = torch.tensor(rows)
    with pytest.raises(ValueError, match=r"prompt|candidates"):
        selector(prompt, rows, 1)


@given(
    seed=seeds,
    k=st.integers(1, 6),
    bad=st.sampled_from(
        [{"n": 0}, {"n": -5}, {"n": True}, {"lam": 0.0}, {"lam": -1e-9}]
        + [{"lam": x} for x in (float("nan"), float("inf"), -float("inf"))]
    ),
    selector=selectors,
)
def test_a_number_out_of_range_is_refused_by_name(seed, k, bad, selector):
    asked = {"n": 1, "lam": 0.1} | bad
    with pytest.raises(ValueError, match=next(iter(bad)) + " is"):
        selector(unit(4, seed=seed), unit(k, 4, seed=seed + 1), asked["n"], lam=asked["lam"])


@given(seed=seeds, k=st.integers(1, 6), more=st.integers(1, 30))
def test_more_picks_than_candidates_repeat_or_are_refused(seed, k, more):
    prompt, rows = unit(4, seed=seed), unit(k, 4, seed=seed + 1)
    for selector in ANY:
        assert len(selector(prompt, rows, k + more)) == k + more
    for selector in ONCE:
        with pytest.raises(ValueError, match=f"n is {k + more}, but"):
            selector(prompt, rows, k + more)


@given(
    seed=seeds,
    sizes=st.tuples(*2 * [st.floats(-40, 40)]),
    lam=st.floats(-12, 12),
    selector=selectors,
)
def test_any_scale_that_float32_holds_stays_a_variance(seed, sizes, lam, selector):
    """Lengths and noise far apart: refused, or never NaN, never negative, never rising."""
    prompt, rows = 10 ** sizes[0] * unit(4, seed=seed), 10 ** sizes[1] * unit(6, 4, seed=seed + 1)
    if lam < 2 * sizes[1] - 14:
        with pytest.raises(ValueError, match="too small for float64"):
            selector(prompt, rows, 6, lam=10**lam)
        return
    assume(lam > 2 * sizes[1] - 13.99)  # at the limit either is right
    chosen = selector(prompt, rows, 6, lam=10**lam)
    assert np.isfinite(chosen.variance).all() and np.isfinite(chosen.sigma).all()
    assert (chosen.variance >= 0).all() and (np.diff(chosen.variance) <= 0).all()
    assert chosen.sigma[0] == 1


class Careless:
    """An index that finds some rows only, fills up as Faiss does, and repeats across signs."""

    d, metric_type = 4, 0

    def __init__(self, rows, hidden):
        self.rows, self.hidden, self.ntotal = rows, hidden, len(rows)

    def search_and_reconstruct(self, x, k):
        scores = np.where(self.hidden, -np.inf, x @ self.rows.T)
        ids = np.argsort(-scores, axis=1)[:, :k]
        scores, vectors = np.take_along_axis(scores, ids, 1), self.rows[ids]
        lost = self.hidden[ids]
        return (
            np.where(lost, -np.finfo(np.float32).max, scores),
            np.where(lost, -1, ids),
            np.where(lost[:, :, None], np.nan, vectors),
        )


@given(seed=seeds, size=st.integers(1, 12), k=st.integers(1, 30), made=st.integers(0, 2))
def test_what_an_index_does_not_find_is_never_chosen(seed, size, k, made):
    rng = np.random.default_rng(seed)
    rows = unit(size, 4, seed=seed + 1).astype(np.float32)
    hidden, query = rng.random(size) < 0.4, unit(1, 4, seed=seed + 2)
    retriever = Retriever(
        Careless(rows, hidden), **[{}, {"fast": True}, {"also_query_opposite": False}][made]
    )
    if hidden.all():
        with pytest.raises(ValueError, match="found none"):
            retriever.search(query, N=3, K=k)
        return
    values, indices, vectors, _ = retriever.search(query, N=5, K=k)
    assert not hidden[indices].any() and len(indices) == 5
    assert np.isfinite(values).all() and len(set(indices)) <= k
    np.testing.assert_array_equal(vectors, rows[indices])
    if k >= size:  # all that is found is a candidate, once
        seen = np.flatnonzero(~hidden)
        wide = rows[seen].astype(np.float64)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        np.testing.assert_array_equal(indices, seen[whet.sift(query[0], wide, 5).indices])


def test_a_line_that_is_no_toml_is_told_with_its_source():
    with pytest.raises(ValueError, match="--set has '=1': expected KEY=VALUE"):
        parsed("=1", "--set")


def test_no_steps_are_an_option_and_fewer_are_not():
    assert SelectionConfig(n=0).n == 0 and SelectionConfig().k is None
    with pytest.raises(ValueError, match="n is -1"):
        SelectionConfig(n=-1)
