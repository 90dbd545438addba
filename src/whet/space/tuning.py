"""λ' and α from the data space alone, by how well its own held-out documents are foretold.

Ours; the reasoning and the measurements are in docs/method.md, "λ' and α by themselves". A document
is cut in halves. SIFT picks for the first half, without the document itself; a linear model that is
told, of each pick, the embedding of its second half, foretells that of the document. This is the
paper's surrogate (arXiv 2410.08020, Section 3; K.5 for squared error) with a response that is real
and needs no language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.maths.arrays import Array, as_count, as_positive
from whet.select.config import SelectionConfig
from whet.select.selection import Selection, Selector
from whet.select.sift import sift
from whet.space.progress import bar
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace
from whet.space.store.protocol import Metric, Neighbors

GRID = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # both of λ' and of the model's noise
FEWEST = 8  # prompts: fewer say nothing about a standard error
PIECE = 256  # texts that are embedded before the bar moves


@dataclass(frozen=True, slots=True)
class LambdaResult:
    """How one λ' did."""

    lam: float
    error: float
    """Mean squared error after all steps, at the model's best noise; foretelling nothing has 1."""
    behind: float
    """By how much the error exceeds the least of all λ'."""
    se: float
    """Standard error of `behind`, paired by prompt."""
    distinct: float
    """Different texts picked, mean over prompts."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A choice of λ' and α, and what it rests on."""

    lam: float
    """The least λ' whose error is within one standard error of the best."""
    alpha: float
    """With it, ADAPTIVE SIFT takes `steps` steps on average over the held-out prompts."""
    steps: int
    """The first step after which the mean error is within one standard error of its least."""
    prompts: int
    """Held-out documents that this rests on."""
    table: tuple[LambdaResult, ...]


def calibrate(
    space: DataSpace,
    *,
    n: int = 50,
    k: int | None = None,
    lams: Sequence[float] = GRID,
    selector: Selector = sift,
    prompts: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """Choose λ' among `lams` and α for selecting `n` of `k` candidates in `space`.

    The same inputs give the same choice; nothing is stored. Costs `prompts` · len(`lams`)
    selections, and embedding the second half of every text picked: some thousand texts, which takes
    seconds with `lsa` and minutes with a network on a CPU.

    Args:
        space: Where to look, and whose documents are the prompts.
        n: Steps at which λ' is judged, and the most that α can allow.
        k: Candidates nearest the first half, the document itself left out; without, 200 or all.
        lams: λ' to choose among; a single one, to choose α for it.
        selector: What picks.
        prompts: Documents that are held out, one at a time.
        seed: Which ones.
        progress: Draw a bar on stderr.

    Raises:
        ValueError: If a number is not positive, `k` exceeds the documents, or fewer than 8 of these
            have two halves that share a term with the data space.
    """
    as_count(n, "n")
    lams = sorted(as_positive(lam, "lam") for lam in lams)
    retriever = Retriever(space, SelectionConfig(k=k), selector=selector)
    tasks = _tasks(space, as_count(prompts, "prompts"), retriever.k, retriever.metric, seed)
    if len(tasks) < FEWEST:
        raise ValueError(
            f"only {len(tasks)} documents of the data space have two halves that it can embed, but "
            f"{FEWEST} are needed to choose lam and alpha: give numbers instead of auto"
        )
    chosen = [[selector(t.query, t.vectors, n, lam=lam) for t in tasks] for lam in lams]
    told = _second_halves(space, tasks, chosen, progress)
    paths = [_paths(tasks, selections, told) for selections in chosen]
    best = _least([path[:, -1] for path in paths])
    trials = tuple(
        LambdaResult(
            lam,
            float(path[:, -1].mean()),
            *_behind(path[:, -1], paths[best][:, -1]),
            float(np.mean([len(s.counts()) for s in selections])),
        )
        for lam, path, selections in zip(lams, paths, chosen, strict=True)
    )
    at = next(i for i, trial in enumerate(trials) if trial.behind <= trial.se)
    steps = max(1, _enough(paths[at]))
    return Calibration(lams[at], _alpha(chosen[at], steps), steps, len(tasks), trials)


class _Task(NamedTuple):
    query: Float[Array, " d"]
    truth: Float[Array, " d"]
    rows: Int[Array, " k"]
    vectors: Float[Array, "k d"]


def _tasks(space: DataSpace, prompts: int, k: int, metric: Metric, seed: int) -> list[_Task]:
    order = np.random.default_rng(seed).permutation(space.rows)
    tasks: list[_Task] = []
    for start in range(0, len(order), prompts):
        own = order[start : start + prompts]
        texts = space.texts(own)
        queries = space.embedder.encode([_halves(text)[0] for text in texts])
        truths = space.embedder.encode([_halves(text)[1] for text in texts])
        good = np.flatnonzero(queries.any(axis=1) & truths.any(axis=1))[: prompts - len(tasks)]
        if len(good):
            found = space.search(queries[good], min(k + 1, len(space)), metric=metric)
            for i, near in zip(good, found, strict=True):
                kept = _others(near, int(own[i]), k, metric)
                tasks.append(_Task(queries[i], truths[i], near.rows[kept], near.vectors[kept]))
        if len(tasks) == prompts:
            break
    return tasks


def _others(near: Neighbors, own: int, k: int, metric: Metric) -> Bool[Array, " near"]:
    """At most `k` of the nearest, the document itself left out."""
    kept: Bool[Array, " near"] = near.rows != own
    if kept.sum() > k:
        kept[(near.scores if metric == "cosine" else np.abs(near.scores)).argmin()] = False
    return kept


def _halves(text: str) -> tuple[str, str]:
    middle = (len(text) + 1) // 2
    return text[:middle], text[middle:]


def _second_halves(
    space: DataSpace, tasks: list[_Task], chosen: list[list[Selection]], progress: bool
) -> dict[int, Float[Array, " d"]]:
    """Of every row that was picked for any prompt: what the linear model is told of it."""
    picked = [
        task.rows[selection.indices]
        for selections in chosen
        for task, selection in zip(tasks, selections, strict=True)
    ]
    rows = np.unique(np.concatenate(picked)).tolist()
    halves = [_halves(text)[1] for text in space.texts(rows)]
    told: list[Float[Array, " d"]] = []
    with bar("embedding for auto", len(rows), show=progress) as done:
        for start in range(0, len(rows), PIECE):
            part = space.embedder.encode(halves[start : start + PIECE])
            told += list(part.astype(np.float64))
            done(len(part))
    return dict(zip(rows, told, strict=True))


def _paths(
    tasks: list[_Task], selections: list[Selection], told: dict[int, Float[Array, " d"]]
) -> Float[Array, "prompts steps"]:
    """Squared error after 0, 1, … n picks, at the noise of least mean error after all of them."""
    paths = [
        np.stack(
            [_path(task, s.indices, told, noise) for task, s in zip(tasks, selections, strict=True)]
        )
        for noise in GRID
    ]
    return paths[_least([path[:, -1] for path in paths])]


def _path(
    task: _Task, picks: Int[Array, " n"], told: dict[int, Float[Array, " d"]], noise: float
) -> Float[Array, " steps"]:
    """One Cholesky factor serves all numbers of picks: K + μI = LLᵀ, and the prediction from the
    first s is Σ_{i≤s} (L⁻¹k)_i (L⁻¹Y)_i."""
    rows = task.vectors[picks].astype(np.float64)
    responses = np.stack([told[row] for row in task.rows[picks].tolist()])
    factor = np.linalg.cholesky(rows @ rows.T + noise * np.eye(len(rows)))
    cross = rows @ task.query.astype(np.float64)
    solved = np.linalg.solve(factor, np.column_stack([cross, responses]))
    foretold = np.cumsum(solved[:, :1] * solved[:, 1:], axis=0)
    truth = task.truth.astype(np.float64)
    errors = ((truth - foretold) ** 2).sum(axis=1)
    return np.concatenate([[truth @ truth], errors])


def _least(errors: list[Float[Array, " prompts"]]) -> int:
    return int(np.argmin([error.mean() for error in errors]))


def _behind(error: Float[Array, " prompts"], best: Float[Array, " prompts"]) -> tuple[float, float]:
    """The mean difference and its standard error, paired by prompt."""
    behind = error - best
    return float(behind.mean()), float(behind.std(ddof=1) / np.sqrt(len(behind)))


def _enough(path: Float[Array, "prompts steps"]) -> int:
    """The first step whose mean error is within one standard error of the least step's."""
    best = path[:, path.mean(axis=0).argmin()]
    for step, error in enumerate(path.T):
        behind, se = _behind(error, best)
        if behind <= se:
            return step
    raise AssertionError("the best step is within any distance of itself")


def _alpha(selections: list[Selection], steps: int) -> float:
    """The α with which the prompts take `steps` steps on average.

    A prompt goes on while m σ_m ≤ 1/α, so it takes as many steps as its running maximum of m σ_m
    has values up to 1/α: that is a quantile of all of them.
    """
    reach = [np.maximum.accumulate(np.arange(1, len(s) + 1) * s.sigma[1:]) for s in selections]
    line = np.sort(np.concatenate(reach))[steps * len(selections) - 1]
    return float((1 - 1e-9) / line)  # a step that lies on the line is taken
