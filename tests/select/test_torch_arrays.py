"""Torch tensors are accepted wherever NumPy arrays are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vectors import unit

import whet

torch = pytest.importorskip("torch", reason="torch is not installed (extra: adapt)")
pytestmark = pytest.mark.model

SELECTORS = [
    whet.sift,
    whet.nearest,
    whet.nearest_repeated,
    whet.uncertainty,
    whet.random_selection,
]
FORMS = {
    "float64": torch.tensor,
    "with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "transposed": lambda x: torch.tensor(x.T.copy()).T if x.ndim == 2 else torch.tensor(x),
    "float16": lambda x: torch.tensor(x).half(),
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "int64": lambda x: torch.tensor(np.int64(100 * x)),
}
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("form", FORMS)
@given(seed=seeds, k=st.integers(1, 9), selector=st.sampled_from(SELECTORS))
def test_a_tensor_gives_the_picks_of_its_numbers(form, seed, k, selector):
    query, rows = FORMS[form](unit(6, seed=seed)), FORMS[form](unit(k, 6, seed=seed + 1))
    chosen = selector(query, rows, 1, lam=0.1)
    same = selector(query.detach().double().numpy(), rows.detach().double().numpy(), 1, lam=0.1)
    np.testing.assert_array_equal(chosen.indices, same.indices)
    np.testing.assert_allclose(chosen.variance, same.variance, rtol=1e-9)


def test_large_tensors_give_the_picks_of_arrays():
    query, rows = torch.from_numpy(unit(150, seed=0)), torch.from_numpy(unit(300, 150, seed=1))
    a = whet.sift(query.float(), rows.half(), 9)
    b = whet.sift(query.float().numpy(), rows.half().float().numpy(), 9)
    np.testing.assert_array_equal(a.indices, b.indices)
    batch = whet.sift_batch(torch.stack([query, -query]), torch.stack([rows, rows]), 9)
    np.testing.assert_array_equal(batch[0].indices, batch[1].indices)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("selector", SELECTORS)
def test_an_invalid_tensor_is_an_error(selector, value):
    rows = torch.ones(3, 4, dtype=torch.float64)
    rows[1, 2] = value
    with pytest.raises(ValueError, match="candidates"):
        selector(torch.ones(4), rows, 1)
