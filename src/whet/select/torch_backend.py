"""Exact SIFT for many prompts at once on a torch device, in one sequence of launches.

Source: arXiv 2410.08020, Eq. (3), by the updates of `whet.maths.posterior`. State and products are
float64 wherever the device has it, which is what a GPU for computing is good at; rows stay in the
type that they came in and are widened in blocks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.maths.arrays import as_count, as_indices, as_positive, as_weights, check_noise
from whet.select.selection import TIE, Selection

BLOCK = 2**26  # numbers widened to float64 at a time: 512 MiB


def sift_torch(
    prompts: Any,
    candidates: Any,
    n: int,
    *,
    lam: float = 0.01,
    weights: Any = None,
    exclude: Sequence[Any] | None = None,
    repeats: bool = True,
) -> list[Selection]:
    """`sift_batch` of torch tensors where they are: [B, d] or [B, m, d] against [B, k, d].

    No step waits for the device. Identical rows have their first picked by the rule of ties; sums
    depend on the device in their last bits. O(B n k (d + n)) and B k n float64 of memory. To
    continue a selection, ask for a longer one or use `SIFT`.

    Args:
        weights: What each of the m targets counts, [m], the same for all prompts.
        exclude: For each prompt the rows that are never picked.
        repeats: Whether a row may be picked again.

    Raises:
        ValueError: As `sift`, for the batch as a whole.
    """
    import torch

    n, lam = as_count(n, "n"), as_positive(lam, "lam")
    goals = prompts[:, None] if prompts.ndim == 2 else prompts
    _check_shapes(goals, prompts, candidates)
    goals = goals.double()
    if not goals.isfinite().all():
        raise ValueError("prompts hold nan or inf: expected finite numbers")
    if weights is not None:  # w σ² is the variance of √w times the response
        wide = torch.as_tensor(as_weights(weights, "weights", goals.shape[1]))
        goals = goals * wide.sqrt().to(goals.device)[:, None]
    if not goals.flatten(1).any(1).all():
        raise ValueError("a prompt is the zero vector: no candidate tells anything about it")
    open = _open(torch, candidates, exclude, n, repeats)
    with torch.no_grad():
        variance = _products(torch, candidates, None)
        if not variance.isfinite().all():
            raise ValueError("candidates hold nan, inf or a number whose square is infinite")
        check_noise(lam, variance.amax(1).cpu().numpy())
        picks, trace = _picks(torch, goals, candidates, variance, open, n, lam, not repeats)
    picks, trace = picks.cpu().numpy(), trace.cpu().numpy()
    return [Selection(p, -np.diff(t), t) for p, t in zip(picks, trace, strict=True)]


def _check_shapes(goals: Any, prompts: Any, candidates: Any) -> None:
    if candidates.ndim != 3 or goals.ndim != 3 or 0 in (*candidates.shape, *goals.shape):
        raise ValueError(
            f"prompts {tuple(prompts.shape)} and candidates {tuple(candidates.shape)}: expected "
            "[B, d] or [B, m, d] and [B, k, d], none of them empty"
        )
    if (len(goals), goals.shape[2]) != (len(candidates), candidates.shape[2]):
        raise ValueError(
            f"prompts {tuple(prompts.shape)} and candidates {tuple(candidates.shape)} differ in "
            "the number of prompts or of dimensions"
        )


def _open(torch: Any, rows: Any, exclude: Sequence[Any] | None, n: int, repeats: bool) -> Any:
    """Which rows may be picked, [B, k]."""
    b, k, _ = rows.shape
    exclude = [()] * b if exclude is None else exclude
    if len(exclude) != b:
        raise ValueError(f"exclude has {len(exclude)} entries: expected {b}, one a prompt")
    open = np.ones((b, k), dtype=bool)
    for mine, shut in zip(open, exclude, strict=True):
        mine[as_indices(shut, "exclude", k)] = False
    left = int(open.sum(axis=1).min())
    if left == 0:
        raise ValueError(f"exclude names all {k} candidates of a prompt: none is left to choose")
    if not repeats and n > left:
        raise ValueError(
            f"n is {n}, but without repeats {left} candidates are left: lower n or raise k"
        )
    return torch.as_tensor(open, device=rows.device)


def _picks(
    torch: Any, goals: Any, rows: Any, variance: Any, open: Any, n: int, lam: float, once: bool
) -> tuple[Any, Any]:
    b, k, _ = rows.shape
    every = torch.arange(b, device=rows.device)
    covariance = _products(torch, rows, goals)
    left = goals.square().sum(2)
    factor = variance.new_empty(b, n, k)
    picks = torch.empty(b, n, dtype=torch.int64, device=rows.device)
    trace = [left.sum(1)]
    for t in range(n):
        gains = torch.where(open, covariance.square().sum(1) / (variance + lam), -1.0)
        best = gains.amax(1, keepdim=True)
        picks[:, t] = (gains >= best - TIE * best).to(torch.uint8).argmax(1)
        i = picks[:, t]
        if once:
            open[every, i] = False
        column = _products(torch, rows, rows[every, i][:, None].double())[:, 0]
        earlier = factor[:, :t]
        column -= torch.einsum("bt,btk->bk", earlier[every, :, i], earlier)
        scale = (column[every, i].clamp_min(0) + lam).sqrt()
        factor[:, t] = column / scale[:, None]
        told = covariance[every, :, i] / scale[:, None]
        covariance -= told[:, :, None] * factor[:, t, None]
        variance = (variance - factor[:, t].square()).clamp_min(0)
        left = (left - told.square()).clamp_min(0)
        trace.append(left.sum(1))
    return picks, torch.stack(trace, 1)


def _products(torch: Any, rows: Any, goals: Any) -> Any:
    """Rows times goals [b, m, k], or the rows' squared norms [b, k], block by block in float64."""
    size = max(1, BLOCK // (rows.shape[0] * rows.shape[2]))
    parts = []
    for low in range(0, rows.shape[1], size):
        wide = rows[:, low : low + size].double()
        parts.append(wide.square().sum(2) if goals is None else goals @ wide.mT)
    return torch.cat(parts, -1)
