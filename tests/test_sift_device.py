import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import whet
from whet.select import torch_backend as device
from whet.select.torch_backend import sift_torch

seeds = st.integers(0, 2**31)
lams = st.sampled_from([1e-4, 0.01, 1.0])
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def unit(*shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("where", DEVICES)
@given(
    seed=seeds,
    b=st.integers(1, 4),
    m=st.integers(1, 3),
    k=st.integers(1, 20),
    d=st.integers(2, 9),
    lam=lams,
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_the_torch_form_picks_what_sift_picks(where, seed, b, m, k, d, lam, dtype):
    prompts = torch.from_numpy(unit(b, m, d, seed=seed))
    candidates = torch.from_numpy(unit(b, k, d, seed=seed + 1)).to(dtype)
    got = sift_torch(prompts.to(where), candidates.to(where), 8, lam=lam)
    for a, w in zip(got, whet.sift_batch(prompts, candidates, 8, lam=lam), strict=True):
        np.testing.assert_array_equal(a.indices, w.indices)
        np.testing.assert_allclose(a.variance, w.variance, rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(a.gains, w.gains, rtol=1e-6, atol=1e-10)


def test_blocks_and_a_single_target_change_nothing(monkeypatch):
    prompts = torch.from_numpy(unit(2, 5, seed=0))
    candidates = torch.from_numpy(unit(2, 30, 5, seed=1))
    whole = sift_torch(prompts, candidates, 6)
    monkeypatch.setattr(device, "BLOCK", 70)
    parts = sift_torch(prompts[:, None], candidates, 6)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)


@given(seed=seeds, lam=lams, m=st.integers(1, 3), repeats=st.booleans())
def test_weights_exclusions_and_picking_once_are_those_of_the_batch(seed, lam, m, repeats):
    rng = np.random.default_rng(seed)
    prompts, candidates = unit(3, m, 6, seed=seed), unit(3, 14, 6, seed=seed + 1)
    told = dict(lam=lam, weights=rng.uniform(0.1, 3, m), repeats=repeats)
    told["exclude"] = [rng.choice(14, count, replace=False) for count in (0, 1, 5)]
    got = sift_torch(torch.from_numpy(prompts), torch.from_numpy(candidates), 9, **told)
    for a, w in zip(got, whet.sift_batch(prompts, candidates, 9, **told), strict=True):
        np.testing.assert_array_equal(a.indices, w.indices)
        np.testing.assert_allclose(a.variance, w.variance, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": [1, 2]}, r"weights has shape \(2,\): expected 1"),
        ({"exclude": [[0]]}, "exclude has 1 entries: expected 2"),
        ({"exclude": [[0], [4]]}, "exclude holds 4, but rows go from 0 to 3"),
        ({"exclude": [[], range(4)]}, "exclude names all 4 candidates of a prompt"),
        ({"exclude": [[], [1, 2, 3]], "repeats": False}, "n is 2, but without repeats 1"),
        ({"lam": 1e-17}, "lost in float64"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sift_torch(torch.ones(2, 3), torch.ones(2, 4, 3), 2, **changes)


@pytest.mark.parametrize(
    "prompts, candidates, message",
    [
        (torch.ones(2, 3), torch.ones(2, 3), "expected"),
        (torch.ones(2, 3), torch.ones(2, 0, 3), "none of them empty"),
        (torch.ones(2, 3), torch.ones(3, 4, 3), "differ in the number"),
        (torch.ones(2, 3), torch.ones(2, 4, 5), "differ in the number"),
        (torch.ones(2, 3) * torch.nan, torch.ones(2, 4, 3), "prompts hold nan or inf"),
        (torch.ones(2, 3), torch.inf * torch.ones(2, 4, 3), "candidates hold nan, inf"),
        (torch.ones(2, 3), 1e200 * torch.ones(2, 4, 3).double(), "whose square is infinite"),
        (torch.eye(2, 3) * torch.tensor([[1.0], [0]]), torch.ones(2, 4, 3), "zero vector"),
    ],
)
def test_bad_tensors_are_refused(prompts, candidates, message):
    with pytest.raises(ValueError, match=message):
        sift_torch(prompts, candidates, 2)
