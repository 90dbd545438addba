"""Figures of retrieval and selection alone, which need no language model.

Source: SIFT, arXiv 2410.08020, Figures 4, 9, 12 and 21, Table 3, Appendices C and I.1.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from studies import plotting
from studies.artifact import Artifact, Rows
from studies.metrics import percent_of_base, spearman, split_by_set
from studies.theory.convergence import submodularity_violations
from whet.errors import SourceError
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Prompts
from whet.evaluate.results import Run
from whet.evaluate.tasks import ScoringTask
from whet.maths.arrays import Array
from whet.maths.posterior import irreducible_variance
from whet.maths.statistics import Estimate, bootstrap, mean_estimate
from whet.select.sift import sift
from whet.space.space import DataSpace

PICKS = 50
LAMBDAS = (1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0, 100.0)
SHARES = (0.01, 0.03, 0.1, 0.33, 1.0)
SIZES = (100, 200, 500, 1000, 2000)
MAX_COSINES = 100_000  # cosines per prompt that are examined
REPEATS = 5  # runs of a timing, of which the median counts


@dataclass(frozen=True, eq=False)
class QuerySet:
    """The embedded queries of a study's prompts, and the data space that they search."""

    space: DataSpace
    queries: Float[Array, "n d"]
    k: int = 200
    """Number of candidates per query."""
    set_field: str = "set"
    """Field of a document's `meta` that names its set."""

    @classmethod
    def embed(cls, space: DataSpace, prompts: Prompts, set_field: str) -> "QuerySet":
        """Embed the first half of every prompt; omit prompts whose embedding is zero.

        Raises:
            SourceError: If every embedding is zero.
        """
        config = EvalConfig()
        texts = [p.document.text for p in prompts.prompts if len(p.document.text) > 1]
        rows = space.embedder.encode([ScoringTask.of(text, config)[-1].query for text in texts])
        if not rows.any():
            raise SourceError("no prompt has a term in common with the data space")
        name = set_field.removeprefix("meta.")
        return cls(space, rows[rows.any(axis=1)], min(200, len(space)), name)

    def candidates(self) -> list[Float[Array, "k d"]]:
        """Return the vectors of the `k` documents nearest to each query by |cosine|."""
        results = self.space.search(self.queries, self.k)
        return [neighbors.vectors.astype(np.float64) for neighbors in results]


def diversity_trends(queries: QuerySet) -> Artifact:
    """Table 3: how λ, the step size and the noise change the diversity of a selection."""
    counts = _distinct_by_lambda(queries)
    lambdas = np.tile(np.log(LAMBDAS), (len(counts), 1))
    falling = bootstrap(
        np.stack([lambdas, counts], axis=2),
        lambda rows: spearman(rows[..., 0].ravel(), rows[..., 1].ravel()),
    )
    rising = Estimate(-falling.value, -falling.high, -falling.low, falling.n)
    return Artifact(
        columns=("parameter", "relation", "paper", "rank correlation with distinct picks"),
        rows=(
            ("regularization λ", "λ", "↓", falling),
            ("step size η", "1/η", "↑", rising),
            ("noise ρ", "ρ²", "↓", falling),
        ),
        n=len(counts),
        draw=partial(_distinct_curve, counts=counts),
        numbers={"λ with distinct picks": falling},
        note=f"{PICKS} picks from {queries.k} candidates.",
    )


def _distinct_by_lambda(queries: QuerySet) -> Float[Array, "n lambdas"]:
    pairs = zip(queries.queries, queries.candidates(), strict=True)
    return np.array(
        [
            [float(len(sift(query, rows, PICKS, lam=lam).counts())) for lam in LAMBDAS]
            for query, rows in pairs
        ]
    )


def _distinct_curve(axes: Any, counts: Float[Array, "n lambdas"]) -> None:
    axes.set_xscale("log")
    curve = [mean_estimate(column) for column in counts.T]
    plotting.lines(axes, LAMBDAS, {"SIFT": curve}, {"SIFT": plotting.RED})
    axes.set(xlabel="λ'", ylabel=f"distinct documents in {PICKS} picks", ylim=(0, PICKS * 1.04))


def selection_behavior(queries: QuerySet) -> Artifact:
    """Figure 9: λ' against diversity, σ_∞ against data size, and gains along the picks."""
    counts = _distinct_by_lambda(queries)
    sigmas = irreducible_std_by_share(queries)
    pairs = list(zip(queries.queries, queries.candidates(), strict=True))
    selections = [sift(query, rows, PICKS) for query, rows in pairs]
    gains = np.stack([s.gains / s.variance[0] for s in selections])
    falls = np.mean(np.diff(gains, axis=1) <= 1e-9 * gains[:, :-1] + 1e-12, axis=1)
    falling = mean_estimate(100 * falls)
    violations = [
        submodularity_violations(query.astype(np.float64), rows, s.indices, 0.01)
        for (query, rows), s in zip(pairs, selections, strict=True)
    ]
    rising = mean_estimate(100 * np.array(violations))
    rows: Rows = [
        (f"λ' = {lam:g}", "distinct documents", mean_estimate(column))
        for lam, column in zip(LAMBDAS, counts.T, strict=True)
    ]
    rows += [(f"{100 * s:g} % of the space", "σ_∞", mean_estimate(v)) for s, v in sigmas.items()]
    rows += [
        ("along the picks", "gains that fall, %", falling),
        ("all candidates", "gains that rise, %", rising),
    ]
    return Artifact(
        columns=("case", "quantity", "mean"),
        rows=tuple(rows),
        n=len(pairs),
        draw=partial(_selection_behavior, counts=counts, sigmas=sigmas, gains=gains),
        panels=3,
        width=4.2,
        numbers={
            "σ_∞, whole − smallest share": mean_estimate(sigmas[SHARES[-1]] - sigmas[SHARES[0]]),
            "gains that fall along the picks, %": falling,
            "gains of any candidate that rise, %": rising,
        },
        note=(
            f"σ_∞ is given the {queries.k} nearest documents of a share of the data space. "
            "Assumption C.1 states that no candidate's gain rises."
        ),
    )


def irreducible_std_by_share(queries: QuerySet) -> dict[float, Float[Array, " n"]]:
    """Return σ_∞/σ_0 of every query given the `k` nearest documents, for each share of the space.

    Shares are random and nested subsets of the documents. The nearest documents of a share are
    found among the nearest of the whole data space, of which at most `MAX_COSINES` are examined.
    """
    total, rng = len(queries.space), np.random.default_rng(0)
    draws = dict(zip(queries.space.rows.tolist(), rng.random(total).tolist(), strict=True))
    by_share: dict[float, list[float]] = {share: [] for share in SHARES}
    for query in queries.queries:  # one at a time: a result holds all vectors of the data space
        [neighbors] = queries.space.search(query[None], min(total, MAX_COSINES))
        drawn = np.array([draws[row] for row in neighbors.rows.tolist()])
        wide = query.astype(np.float64)
        for share, sigmas in by_share.items():
            inside = np.flatnonzero(drawn < share)
            order = np.argsort(-np.abs(neighbors.scores[inside]), kind="stable")
            nearest = np.sort(inside[order][: queries.k])
            vectors = neighbors.vectors[nearest].astype(np.float64)
            sigmas.append(float(np.sqrt(irreducible_variance(wide, vectors) / (wide @ wide))))
    return {share: np.array(sigmas) for share, sigmas in by_share.items()}


def _selection_behavior(axes: Any, counts: Array, sigmas: dict[float, Array], gains: Array) -> None:
    _distinct_curve(axes[0], counts)
    axes[0].set_title("relevance or diversity")
    axes[1].set_xscale("log")
    percents = [100 * share for share in sigmas]
    plotting.lines(axes[1], percents, {"σ_∞": [mean_estimate(v) for v in sigmas.values()]})
    axes[1].set(xlabel="share of the data space, %", ylabel="irreducible uncertainty σ_∞")
    axes[1].set_title("limit of the data")
    steps = np.arange(1, gains.shape[1] + 1)
    for path in gains[:10]:
        axes[2].plot(steps, path, color=plotting.MUTED, lw=0.6, alpha=0.5)
    axes[2].plot(steps, gains.mean(axis=0), color=plotting.RED)
    axes[2].set(xlabel="pick", ylabel="marginal gain, share of σ²_0", yscale="log", xscale="log")
    axes[2].set_title("diminishing returns")


def cosine_histograms(queries: QuerySet) -> Artifact:
    """Figure 21: the cosines of prompts with all documents, and with their candidates."""
    count = min(len(queries.space), MAX_COSINES)
    scores = [queries.space.search(query[None], count)[0].scores for query in queries.queries]
    nearest = [s[np.argsort(-np.abs(s), kind="stable")][: queries.k] for s in scores]
    rows: Rows = []
    for name, arrays in {"all documents": scores, "candidates": nearest}.items():
        joined = np.concatenate(arrays)
        negative = mean_estimate([100 * np.mean(array < 0) for array in arrays])
        mean = mean_estimate([array.mean() for array in arrays])
        rows.append((name, len(joined), mean, float(joined.min()), negative))
    return Artifact(
        columns=("documents", "cosines", "mean", "minimum", "negative, %"),
        rows=tuple(rows),
        n=len(scores),
        draw=partial(
            _cosine_histograms, scores=np.concatenate(scores), nearest=np.concatenate(nearest)
        ),
        numbers={"negative candidates, %": negative},
        note=(
            f"Embedder: {queries.space.embedder.name}. Candidates are the {queries.k} nearest by "
            "|cosine|."
        ),
    )


def _cosine_histograms(axes: Any, scores: Array, nearest: Array) -> None:
    edges = np.linspace(-1, 1, 81)
    series = ((scores, plotting.MUTED, "all documents"), (nearest, plotting.RED, "candidates"))
    for values, color, name in series:
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, color=color, fill=True, alpha=0.35, lw=0)
        axes.stairs(density, edges, color=color, lw=1.2)
        at = int(density.argmax())
        axes.annotate(
            name, (edges[at + 1], density[at]), xytext=(4, -2), color=color,
            textcoords="offset points",
        )  # fmt: skip
    plotting.reference_line(axes, 0, horizontal=False)
    axes.set(xlabel="cosine with the prompt", ylabel="density", xlim=(-0.6, 1))


def selection_overhead(queries: QuerySet) -> Artifact:
    """Figure 4: seconds of search and SIFT relative to the search alone, which is all NN needs."""
    sizes = [size for size in SIZES if size <= len(queries.space)] or [len(queries.space)]
    ratios: dict[int, Estimate] = {}
    rows: Rows = []
    for size in sizes:
        times = np.array([_search_and_sift_s(queries, query, size) for query in queries.queries])
        ratios[size] = mean_estimate(times.sum(axis=1) / times[:, 0])
        rows.append((size, *(mean_estimate(1000 * column) for column in times.T), ratios[size]))
    return Artifact(
        columns=("candidates", "search, ms", "SIFT, ms", "both ÷ search"),
        rows=tuple(rows),
        n=len(queries.queries),
        draw=partial(_selection_overhead, sizes=sizes, ratios=ratios),
        numbers={"overhead": ratios.get(1000, ratios[sizes[-1]])},
        note=(
            f"{PICKS} picks. The data space of {len(queries.space):,} documents is in this "
            "process, so the search is faster than with the paper's 180 servers (1.35 s) and the "
            "ratio is larger."
        ),
    )


def _search_and_sift_s(queries: QuerySet, query: Float[Array, " d"], size: int) -> list[float]:
    """Return the median seconds of a search and of SIFT on its results."""
    [neighbors] = queries.space.search(query[None], size)
    return [
        _median_s(lambda: queries.space.search(query[None], size)),
        _median_s(lambda: sift(query, neighbors.vectors, PICKS)),
    ]


def _median_s(function: Callable[[], Any]) -> float:
    function()  # warm caches
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _selection_overhead(axes: Any, sizes: list[int], ratios: dict[int, Estimate]) -> None:
    axes.set_xscale("log")
    top = max(ratio.high for ratio in ratios.values())
    axes.set(xlabel="candidates", ylabel="seconds, SIFT ÷ NN", ylim=(0.9, 1.05 * top))
    plotting.lines(axes, sizes, {"SIFT ÷ NN": list(ratios.values())})
    plotting.reference_line(axes, 1, "no overhead")
    plotting.plain_ticks(axes.xaxis)


def documents_by_set(queries: QuerySet) -> Artifact:
    """Appendix I.1: documents and bytes of the data space by set."""
    sizes = _bytes_by_set(queries)
    shares = _share_of_bytes(sizes)
    names = sorted(shares, key=lambda name: -shares[name])
    rows: Rows = [
        (
            name,
            len(sizes[name]),
            sum(sizes[name]) / 2**20,
            shares[name],
            mean_estimate(sizes[name]),
        )
        for name in names
    ]
    return Artifact(
        columns=("set", "documents", "MiB", "% of bytes", "bytes per document"),
        rows=tuple(rows),
        n=len(queries.space),
        draw=partial(_documents_by_set, shares={name: shares[name] for name in names}),
    )


def _bytes_by_set(queries: QuerySet) -> dict[str, list[int]]:
    sizes: dict[str, list[int]] = {}
    space, rows = queries.space, queries.space.rows
    for start in range(0, len(rows), 1024):
        for document in space.documents(rows[start : start + 1024]):
            name = str(document.meta.get(queries.set_field, "all"))
            sizes.setdefault(name, []).append(len(document.text.encode()))
    return sizes


def _share_of_bytes(sizes: dict[str, list[int]]) -> dict[str, float]:
    total = sum(map(sum, sizes.values()))
    return {name: 100 * sum(lengths) / total for name, lengths in sizes.items()}


def _documents_by_set(axes: Any, shares: dict[str, float]) -> None:
    axes.barh(list(shares), list(shares.values()), color=plotting.BLUE, height=0.7)
    for i, share in enumerate(shares.values()):
        axes.annotate(
            f"{share:.1f}", (share, i), xytext=(4, 0), va="center", fontsize=8,
            textcoords="offset points",
        )  # fmt: skip
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the data space's bytes")


def gain_by_share(run: Run, queries: QuerySet) -> Artifact:
    """Figure 12: SIFT's gain on a set against the set's share of the data space."""
    by_set = _share_of_bytes(_bytes_by_set(queries))
    parts = {name: part for name, part in split_by_set(run).items() if name in by_set}
    shares = {name: by_set[name] for name in parts}
    percents = {name: percent_of_base(part, "sift") for name, part in parts.items()}
    numbers = {}
    if len(parts) > 2:
        pairs = np.array([[shares[name], percents[name].value] for name in parts])
        numbers["share with % of base"] = bootstrap(
            pairs, lambda rows: spearman(rows[:, 0], rows[:, 1])
        )
    return Artifact(
        columns=("set", "n", "% of the space's bytes", "% of base"),
        rows=tuple((name, percents[name].n, shares[name], percents[name]) for name in parts),
        n=len(parts),
        draw=partial(_gain_by_share, shares=shares, percents=percents),
        width=6.4,
        numbers=numbers,
        note="The interval of the rank correlation is over sets.",
    )


def _gain_by_share(axes: Any, shares: dict[str, float], percents: dict[str, Estimate]) -> None:
    x, points = list(shares.values()), list(percents.values())
    axes.errorbar(
        x, [p.value for p in points], yerr=plotting.error_bars(points), fmt="o", ms=4,
        color=plotting.BLUE, elinewidth=0.8,
    )  # fmt: skip
    for name, at, point in zip(shares, x, points, strict=True):
        axes.annotate(
            name, (at, point.value), xytext=(5, 3), textcoords="offset points", fontsize=7.5,
            color=plotting.RED if name == "github" else plotting.INK,
        )  # fmt: skip
    axes.set_xscale("log")
    plotting.plain_ticks(axes.xaxis)
    axes.set(xlabel="set's share of the data space's bytes, %", ylabel="bits per byte, % of base")
