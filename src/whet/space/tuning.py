"""Choose λ' and α by predicting held-out documents; needs no language model.

Ours; the reasoning and the measurements are in docs/concepts.md, "Choosing λ' and α automatically".
Each held-out document is cut in halves. SIFT selects for the first half, without the document
itself. A linear model that sees, for each pick, the embedding of its second half predicts that of
the document's second half. This is the paper's surrogate (arXiv 2410.08020, Section 3; K.5 for squared
error) with a response that is real.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from whet.embed.embedder import encode_queries
from whet.io import progress_bar
from whet.maths.arrays import Array, as_count, as_positive, as_seed
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.select.selection import Selection, Selector
from whet.space.retrieve import Retriever, resolve_lam
from whet.space.space import DataSpace
from whet.space.store.protocol import Metric, Neighbors

GRID = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of λ', and of the linear model's noise
MIN_PROMPTS = 8  # fewer do not give a usable standard error
BATCH = 256  # texts that are embedded between two updates of the progress bar


@dataclass(frozen=True, slots=True)
class LambdaResult:
    """Prediction error of one λ'."""

    lam: float
    error: float
    """Mean squared error after all steps, at the model's best noise; 1 without any prediction."""
    excess_error: float
    """Difference from the smallest error of all λ'."""
    standard_error: float
    """Standard error of `excess_error`, paired by prompt."""
    distinct: float
    """Number of different documents selected, averaged over prompts."""


@dataclass(frozen=True, slots=True)
class TunedSelection:
    """The chosen λ' and α, and the measurements behind the choice."""

    lam: float
    """The smallest λ' whose error is within one standard error of the best."""
    stop_alpha: float
    """With this α, adaptive stopping takes `steps` steps on average over the held-out prompts."""
    steps: int
    """The first step after which the mean error is within one standard error of its minimum."""
    prompts: int
    """Number of held-out documents."""
    results: tuple[LambdaResult, ...]
    """One per λ', ascending."""


def resolve(
    space: DataSpace, config: SelectionConfig, *, prompts: int = 256, progress: bool = False
) -> ResolvedSelection:
    """The configuration with numbers in place of words: `auto` is chosen by `tune_selection`.

    The result is not cached; keep it to select for several prompts.

    Raises:
        ValueError: If too few documents of the data space can be held out for `auto`.
    """
    if not config.has_auto:
        return resolve_lam(space, config)
    if config.lam == "embedder":
        config = replace(config, lam=space.kernel.lam)
    tuned = tune_selection(
        space,
        config,
        lams=GRID if config.lam == "auto" else [float(config.lam)],
        prompts=prompts,
        progress=progress,
    )
    alpha = tuned.stop_alpha if config.stop_alpha == "auto" else config.stop_alpha
    return ResolvedSelection.of(config, lam=tuned.lam, stop_alpha=alpha)


def tune_selection(
    space: DataSpace,
    config: SelectionConfig | None = None,
    *,
    lams: Sequence[float] = GRID,
    selector: Selector | None = None,
    prompts: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> TunedSelection:
    """Choose λ' among `lams`, and α, for selecting documents of `space`.

    The same inputs give the same choice. Costs `prompts` · len(`lams`) selections, and embedding
    the second half of every document selected: some thousand texts, which takes seconds with `lsa`
    and minutes with a network on a CPU.

    Args:
        space: Where to select, and whose documents are the prompts.
        config: How to select; its `lam` and `stop_alpha` are ignored. `n` is the number of steps at
            which λ' is judged and the largest number that α can allow.
        lams: Values of λ' to choose among; a single one, to choose α for it.
        selector: A function that selects, instead of the one that `config` names.
        prompts: Number of documents to hold out, one at a time.
        seed: Seed of the draw of these documents.
        progress: Draw a progress bar on stderr.

    Returns:
        The choice, with the error of every λ'.

    Raises:
        ValueError: If a number is not positive, `k` exceeds the documents, or fewer than 8 of these
            have two halves that share a term with the data space.
    """
    config = replace(config or SelectionConfig(), lam=1.0, stop_alpha=None)
    n, lams = as_count(config.n, "n"), sorted(as_positive(lam, "lam") for lam in lams)
    if config.where is not None:
        space, config = space.filter(config.where), replace(config, where=None)
    retriever = Retriever(space, config, selector=selector)
    held_out = _held_out(space, as_count(prompts, "prompts"), retriever.k, retriever.metric, seed)
    if len(held_out) < MIN_PROMPTS:
        raise ValueError(
            f"only {len(held_out)} documents of the data space have two halves that it can embed, "
            f"but {MIN_PROMPTS} are needed to choose lam and alpha: give numbers instead of auto"
        )
    selections = [
        [retriever.selector(h.query, h.vectors, n, lam=lam) for h in held_out] for lam in lams
    ]
    responses = _second_halves(space, held_out, selections, progress)
    errors = [_errors(held_out, of_lam, responses) for of_lam in selections]
    best = _least([error[:, -1] for error in errors])
    results = tuple(
        LambdaResult(
            lam,
            float(error[:, -1].mean()),
            *_excess(error[:, -1], errors[best][:, -1]),
            float(np.mean([len(s.counts()) for s in of_lam])),
        )
        for lam, error, of_lam in zip(lams, errors, selections, strict=True)
    )
    chosen = next(i for i, r in enumerate(results) if r.excess_error <= r.standard_error)
    steps = max(1, _sufficient_steps(errors[chosen]))
    alpha = alpha_for_steps(selections[chosen], steps)
    return TunedSelection(lams[chosen], alpha, steps, len(held_out), results)


def alpha_for_steps(selections: Sequence[Selection], steps: int) -> float:
    """The α with which adaptive stopping takes `steps` steps on average over `selections`.

    A prompt continues while m σ_m ≤ 1/α, so it takes as many steps as its running maximum of m σ_m
    has values up to 1/α: that is a quantile of all these values.
    """
    maxima = [np.maximum.accumulate(np.arange(1, len(s) + 1) * s.sigma[1:]) for s in selections]
    threshold = np.sort(np.concatenate(maxima))[steps * len(selections) - 1]
    return float((1 - 1e-9) / threshold)  # a step exactly at the threshold is taken


class _HeldOut(NamedTuple):
    """A held-out document: embeddings of its halves, and the candidates for its first half."""

    query: Float[Array, " d"]
    response: Float[Array, " d"]
    rows: Int[Array, " k"]
    vectors: Float[Array, "k d"]


def _held_out(space: DataSpace, prompts: int, k: int, metric: Metric, seed: int) -> list[_HeldOut]:
    order = np.random.default_rng(as_seed(seed)).permutation(space.rows)
    held_out: list[_HeldOut] = []
    for start in range(0, len(order), prompts):
        rows = order[start : start + prompts]
        halves = [_halves(text) for text in space.texts(rows)]
        queries = encode_queries(space.embedder, [left for left, _ in halves])
        responses = space.embedder.encode([right for _, right in halves])
        usable = np.flatnonzero(queries.any(axis=1) & responses.any(axis=1))
        usable = usable[: prompts - len(held_out)]
        if len(usable):
            found = space.search(queries[usable], min(k + 1, len(space)), metric=metric)
            for i, near in zip(usable, found, strict=True):
                others = _without(near, int(rows[i]), k, metric)
                held_out.append(
                    _HeldOut(queries[i], responses[i], near.rows[others], near.vectors[others])
                )
        if len(held_out) == prompts:
            break
    return held_out


def _without(near: Neighbors, row: int, k: int, metric: Metric) -> Bool[Array, " near"]:
    """Mask of at most `k` of the neighbors, without the document in `row`."""
    others: Bool[Array, " near"] = near.rows != row
    if others.sum() > k:
        others[(near.scores if metric == "cosine" else np.abs(near.scores)).argmin()] = False
    return others


def _halves(text: str) -> tuple[str, str]:
    middle = (len(text) + 1) // 2
    return text[:middle], text[middle:]


def _second_halves(
    space: DataSpace, held_out: list[_HeldOut], selections: list[list[Selection]], progress: bool
) -> dict[int, Float[Array, " d"]]:
    """Embedding of the second half of every document that was selected for any prompt, by row."""
    picked = [
        h.rows[selection.indices]
        for of_lam in selections
        for h, selection in zip(held_out, of_lam, strict=True)
    ]
    rows = np.unique(np.concatenate(picked)).tolist()
    halves = [_halves(text)[1] for text in space.texts(rows)]
    vectors: list[Float[Array, " d"]] = []
    with progress_bar("embedding for auto", len(rows), show=progress) as advance:
        for start in range(0, len(rows), BATCH):
            batch = space.embedder.encode(halves[start : start + BATCH])
            vectors += list(batch.astype(np.float64))
            advance(len(batch))
    return dict(zip(rows, vectors, strict=True))


def _errors(
    held_out: list[_HeldOut],
    selections: list[Selection],
    responses: dict[int, Float[Array, " d"]],
) -> Float[Array, "prompts steps"]:
    """Squared error after 0, 1, … n picks, at the noise with the least mean error after all."""
    pairs = list(zip(held_out, selections, strict=True))
    errors = [
        np.stack([_errors_of_prompt(h, s.indices, responses, noise) for h, s in pairs])
        for noise in GRID
    ]
    return errors[_least([error[:, -1] for error in errors])]


def _errors_of_prompt(
    held_out: _HeldOut,
    picks: Int[Array, " n"],
    responses: dict[int, Float[Array, " d"]],
    noise: float,
) -> Float[Array, " steps"]:
    """One Cholesky factor serves every number of picks: K + μI = LLᵀ, and the prediction from the
    first s picks is Σ_{i≤s} (L⁻¹k)_i (L⁻¹Y)_i."""
    vectors = held_out.vectors[picks].astype(np.float64)
    observed = np.stack([responses[row] for row in held_out.rows[picks].tolist()])
    factor = np.linalg.cholesky(vectors @ vectors.T + noise * np.eye(len(vectors)))
    cross = vectors @ held_out.query.astype(np.float64)
    solved = np.linalg.solve(factor, np.column_stack([cross, observed]))
    predicted = np.cumsum(solved[:, :1] * solved[:, 1:], axis=0)
    response = held_out.response.astype(np.float64)
    errors = ((response - predicted) ** 2).sum(axis=1)
    return np.concatenate([[response @ response], errors])


def _least(errors: list[Float[Array, " prompts"]]) -> int:
    return int(np.argmin([error.mean() for error in errors]))


def _excess(error: Float[Array, " prompts"], best: Float[Array, " prompts"]) -> tuple[float, float]:
    """Mean difference from `best` and its standard error, paired by prompt."""
    difference = error - best
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def _sufficient_steps(errors: Float[Array, "prompts steps"]) -> int:
    """The first step whose mean error is within one standard error of the best step's."""
    best = errors[:, errors.mean(axis=0).argmin()]
    for step, error in enumerate(errors.T):
        excess, standard_error = _excess(error, best)
        if excess <= standard_error:
            return step
    raise AssertionError("the best step is within any distance of itself")
