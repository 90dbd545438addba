"""What prompts and a data space look like before any model is asked: the views that need no run.

Source: SIFT, arXiv 2410.08020, Figures 4, 9, 12 and 21, Table 3, Appendices C and I.1.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from whet.errors import SourceError
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Prompts
from whet.evaluate.reproduce import style
from whet.evaluate.reproduce.measures import sets, share, spearman
from whet.evaluate.reproduce.shown import Rows, Shown
from whet.evaluate.results import Run
from whet.evaluate.tasks import ScoringTask
from whet.maths.arrays import Array
from whet.maths.convergence import rising_gains
from whet.maths.irreducible import irreducible_variance
from whet.maths.statistics import Estimate, bootstrap, mean_estimate
from whet.select.sift import sift
from whet.space.space import DataSpace

PICKS = 50
LAMBDAS = (1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0, 100.0)
SHARES = (0.01, 0.03, 0.1, 0.33, 1.0)
SIZES = (100, 200, 500, 1000, 2000)
FARTHEST = 100_000  # cosines of a prompt that are looked at
REPEATS = 5  # of a timing, whose median counts


@dataclass(frozen=True, eq=False)
class Ground:
    """The queries of a study's prompts, embedded, and the data space they are asked in."""

    space: DataSpace
    queries: Float[Array, "n d"]
    k: int = 200
    set_field: str = "set"
    """Field of a document's `meta` that names its set."""

    @classmethod
    def of(cls, space: DataSpace, prompts: Prompts, set_field: str) -> "Ground":
        """Embeds the first half of every prompt; leaves out those that share nothing with it.

        Raises:
            SourceError: If none is left.
        """
        split = EvalConfig()
        texts = [p.document.text for p in prompts.prompts if len(p.document.text) > 1]
        rows = space.embedder.encode([ScoringTask.of(text, split)[-1].query for text in texts])
        if not rows.any():
            raise SourceError("no prompt shares a term with the data space")
        name = set_field.removeprefix("meta.")
        return cls(space, rows[rows.any(axis=1)], min(200, len(space)), name)

    def candidates(self, k: int | None = None) -> list[Float[Array, "k d"]]:
        """Of every prompt, the vectors of the nearest by |cosine|."""
        found = self.space.search(self.queries, k or self.k)
        return [near.vectors.astype(np.float64) for near in found]


def trade_off(ground: Ground) -> Shown:
    """Table 3: which way λ, the step size and the noise move the diversity of the selection."""
    counts = _diversity(ground)
    lam = np.tile(np.log(LAMBDAS), (len(counts), 1))
    moves = bootstrap(
        np.stack([lam, counts], axis=2),
        lambda rows: spearman(rows[..., 0].ravel(), rows[..., 1].ravel()),
    )
    back = Estimate(-moves.value, -moves.high, -moves.low, moves.n)
    rows = (
        ("regularisation λ", "λ", "↓", moves),
        ("step size η", "1/η", "↑", back),
        ("noise ρ", "ρ²", "↓", moves),
    )
    return Shown(
        columns=("parameter", "relation", "the paper", "rank correlation with different picks"),
        rows=rows,
        n=len(counts),
        draw=partial(_counts, counts=counts),
        numbers={"λ with different picks": moves},
        note=f"{PICKS} picks of {ground.k} candidates.",
    )


def _diversity(ground: Ground) -> Float[Array, "n lams"]:
    chosen = zip(ground.queries, ground.candidates(), strict=True)
    return np.array(
        [[float(len(sift(q, rows, PICKS, lam=lam).counts())) for lam in LAMBDAS]
         for q, rows in chosen]
    )  # fmt: skip


def _counts(axes: Any, counts: Float[Array, "n lams"]) -> None:
    axes.set_xscale("log")
    style.lines(axes, LAMBDAS, {"SIFT": [mean_estimate(c) for c in counts.T]}, {"SIFT": style.RED})
    axes.set(xlabel="λ'", ylabel=f"different texts in {PICKS} picks", ylim=(0, PICKS * 1.04))


def selection(ground: Ground) -> Shown:
    """Figure 9: λ' against diversity; σ_∞ against the space's size; gains along the picks."""
    counts = _diversity(ground)
    left = _irreducible(ground)
    pairs = list(zip(ground.queries, ground.candidates(), strict=True))
    picked = [sift(q, rows, PICKS) for q, rows in pairs]
    gains = np.stack([s.gains / s.variance[0] for s in picked])
    falls = np.mean(np.diff(gains, axis=1) <= 1e-9 * gains[:, :-1] + 1e-12, axis=1)
    risen = [
        rising_gains(q.astype(np.float64), rows, s.indices, 0.01)
        for (q, rows), s in zip(pairs, picked, strict=True)
    ]
    rows: Rows = [("λ' = " + f"{lam:g}", "different texts", mean_estimate(c))
            for lam, c in zip(LAMBDAS, counts.T, strict=True)]  # fmt: skip
    rows += [(f"{100 * s:g} % of the space", "σ_∞", mean_estimate(v)) for s, v in left.items()]
    rows += [
        ("along the picks", "gains that fall, %", mean_estimate(100 * falls)),
        ("all candidates", "gains that rise, %", mean_estimate(100 * np.array(risen))),
    ]
    shares = list(left)
    return Shown(
        columns=("of", "what", "mean"),
        rows=tuple(rows),
        n=len(pairs),
        draw=partial(_selection, counts=counts, left=left, gains=gains),
        panels=3,
        width=4.2,
        numbers={
            "σ_∞, whole − least share": mean_estimate(left[shares[-1]] - left[shares[0]]),
            "gains that fall along the picks, %": mean_estimate(100 * falls),
            "gains of any candidate that rise, %": mean_estimate(100 * np.array(risen)),
        },
        note=(
            f"σ_∞ given the {ground.k} nearest of a share of the space; Assumption C.1 says that "
            "no gain of any candidate rises."
        ),
    )


def _irreducible(ground: Ground) -> dict[float, Float[Array, " n"]]:
    """σ_∞ of every prompt by the share of the space, of which the `k` nearest count.

    A share is of all documents, drawn by row at random but nested: among the nearest K of the
    whole, those of the share are its nearest.
    """
    total, rng = len(ground.space), np.random.default_rng(0)
    draws = dict(zip(ground.space.rows.tolist(), rng.random(total).tolist(), strict=True))
    left: dict[float, list[float]] = {part: [] for part in SHARES}
    for query in ground.queries:  # one at a time: this is every vector of the space
        [near] = ground.space.search(query[None], min(total, FARTHEST))
        drawn, own = np.array([draws[row] for row in near.rows.tolist()]), query.astype(np.float64)
        for part, sigmas in left.items():
            kept = np.flatnonzero(drawn < part)
            kept = kept[np.argsort(-np.abs(near.scores[kept]), kind="stable")][: ground.k]
            rows = near.vectors[np.sort(kept)].astype(np.float64)
            sigmas.append(float(np.sqrt(irreducible_variance(own, rows) / (own @ own))))
    return {part: np.array(sigmas) for part, sigmas in left.items()}


def _selection(axes: Any, counts: Array, left: dict[float, Array], gains: Array) -> None:
    _counts(axes[0], counts)
    axes[0].set_title("relevance or diversity")
    axes[1].set_xscale("log")
    x = [100 * share for share in left]
    style.lines(axes[1], x, {"σ_∞": [mean_estimate(v) for v in left.values()]})
    axes[1].set(xlabel="share of the data space, %", ylabel="irreducible uncertainty σ_∞")
    axes[1].set_title("what the data can tell")
    steps = np.arange(1, gains.shape[1] + 1)
    for path in gains[:10]:
        axes[2].plot(steps, path, color=style.MUTED, lw=0.6, alpha=0.5)
    axes[2].plot(steps, gains.mean(axis=0), color=style.RED)
    axes[2].set(xlabel="pick", ylabel="marginal gain, share of σ²_0", yscale="log", xscale="log")
    axes[2].set_title("diminishing returns")


def cosines(ground: Ground) -> Shown:
    """Figure 21: the cosines of prompts with all texts, and with their candidates."""
    most = min(len(ground.space), FARTHEST)
    whole = [ground.space.search(query[None], most)[0].scores for query in ground.queries]
    near = [s[np.argsort(-np.abs(s), kind="stable")][: ground.k] for s in whole]
    rows: Rows = [
        (name, len(np.concatenate(own)), mean_estimate([s.mean() for s in own]),
         float(np.concatenate(own).min()), mean_estimate([100 * np.mean(s < 0) for s in own]))
        for name, own in {"all texts": whole, "candidates": near}.items()
    ]  # fmt: skip
    return Shown(
        columns=("of", "cosines", "mean", "least", "negative, %"),
        rows=tuple(rows),
        n=len(whole),
        draw=partial(_cosines, whole=np.concatenate(whole), near=np.concatenate(near)),
        numbers={"negative candidates, %": mean_estimate([100 * np.mean(s < 0) for s in near])},
        note=f"Embedder {ground.space.embedder.name}; candidates: {ground.k} nearest by |cosine|.",
    )


def _cosines(axes: Any, whole: Array, near: Array) -> None:
    edges = np.linspace(-1, 1, 81)
    for values, shade, name in ((whole, style.MUTED, "all texts"), (near, style.RED, "candidates")):
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, color=shade, fill=True, alpha=0.35, lw=0)
        axes.stairs(density, edges, color=shade, lw=1.2)
        at = int(density.argmax())
        axes.annotate(name, (edges[at + 1], density[at]), xytext=(4, -2), color=shade,
                      textcoords="offset points")  # fmt: skip
    style.reference(axes, 0, across=False)
    axes.set(xlabel="cosine to the prompt", ylabel="density", xlim=(-0.6, 1))


def overhead(ground: Ground) -> Shown:
    """Figure 4: seconds of search and SIFT over those of the search, which is all NN needs."""
    sizes = [size for size in SIZES if size <= len(ground.space)] or [len(ground.space)]
    ratios: dict[int, Estimate] = {}
    rows: Rows = []
    for size in sizes:
        times = np.array([_seconds(ground, query, size) for query in ground.queries])
        ratios[size] = mean_estimate(times.sum(axis=1) / times[:, 0])
        rows.append((size, *(mean_estimate(1000 * column) for column in times.T), ratios[size]))
    whole = ratios.get(1000, ratios[sizes[-1]])
    return Shown(
        columns=("candidates", "search, ms", "SIFT, ms", "both ÷ search"),
        rows=tuple(rows),
        n=len(ground.queries),
        draw=partial(_overhead, sizes=sizes, ratios=ratios),
        numbers={"overhead": whole},
        note=(
            f"{PICKS} picks; a space of {len(ground.space):,} texts in this process, so the search "
            "is faster than the paper's 180 servers (1.35 s) and the ratio larger."
        ),
    )


def _seconds(ground: Ground, query: Float[Array, " d"], size: int) -> list[float]:
    """Medians of search and SIFT."""
    [near] = ground.space.search(query[None], size)

    def timed(work: Any) -> float:
        work()
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    return [
        timed(lambda: ground.space.search(query[None], size)),
        timed(lambda: sift(query, near.vectors, PICKS)),
    ]


def _overhead(axes: Any, sizes: list[int], ratios: dict[int, Estimate]) -> None:
    axes.set_xscale("log")
    top = max(ratio.high for ratio in ratios.values())
    axes.set(xlabel="candidates", ylabel="seconds, SIFT ÷ NN", ylim=(0.9, 1.05 * top))
    style.lines(axes, sizes, {"SIFT ÷ NN": list(ratios.values())})
    style.reference(axes, 1, "no overhead")
    style.plain_ticks(axes.xaxis)


def corpus(ground: Ground) -> Shown:
    """Appendix I.1: documents and bytes of the data space by set."""
    sizes = _bytes_by_set(ground)
    total = sum(sum(own) for own in sizes.values())
    by_size = sorted(sizes, key=lambda name: -sum(sizes[name]))
    shares = {name: 100 * sum(sizes[name]) / total for name in by_size}
    rows: Rows = [
        (
            name,
            len(sizes[name]),
            sum(sizes[name]) / 2**20,
            shares[name],
            mean_estimate(sizes[name]),
        )
        for name in by_size
    ]
    return Shown(
        columns=("set", "documents", "MiB", "% of bytes", "bytes a document"),
        rows=tuple(rows),
        n=len(ground.space),
        draw=partial(_corpus, names=by_size, shares=list(shares.values())),
    )


def _bytes_by_set(ground: Ground) -> dict[str, list[int]]:
    sizes: dict[str, list[int]] = {}
    space, rows = ground.space, ground.space.rows
    for start in range(0, len(rows), 1024):
        for document in space.documents(rows[start : start + 1024]):
            name = str(document.meta.get(ground.set_field, "all"))
            sizes.setdefault(name, []).append(len(document.text.encode()))
    return sizes


def _corpus(axes: Any, names: list[str], shares: list[float]) -> None:
    axes.barh(names, shares, color=style.BLUE, height=0.7)
    for i, share_ in enumerate(shares):
        axes.annotate(f"{share_:.1f}", (share_, i), xytext=(4, 0), va="center", fontsize=8,
                      textcoords="offset points")  # fmt: skip
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the data space's bytes")


def boundary(run: Run, ground: Ground) -> Shown:
    """Figure 12: what SIFT gains on a set against the set's share of the data space."""
    sizes = _bytes_by_set(ground)
    total = sum(sum(own) for own in sizes.values())
    parts = {name: part for name, part in sets(run).items() if name in sizes}
    shares = {name: 100 * sum(sizes[name]) / total for name in parts}
    reached = {name: share(part, "sift") for name, part in parts.items()}
    rows: Rows = [(name, reached[name].n, shares[name], reached[name]) for name in parts]
    pairs = np.array([[shares[name], reached[name].value] for name in parts]).reshape(-1, 2)
    numbers = {}
    if len(parts) > 2:
        numbers["share with % of base"] = bootstrap(
            pairs, lambda rows: spearman(rows[:, 0], rows[:, 1])
        )
    return Shown(
        columns=("set", "n", "% of the space's bytes", "% of base"),
        rows=tuple(rows),
        n=len(parts),
        draw=partial(_boundary, shares=shares, reached=reached),
        width=6.4,
        numbers=numbers,
        note="The interval of the rank correlation is over sets.",
    )


def _boundary(axes: Any, shares: dict[str, float], reached: dict[str, Estimate]) -> None:
    names = list(shares)
    points = [reached[name] for name in names]
    x = [shares[name] for name in names]
    axes.errorbar(x, [p.value for p in points], yerr=style.ends(points), fmt="o", ms=4,
                  color=style.BLUE, elinewidth=0.8)  # fmt: skip
    for name, at, point in zip(names, x, points, strict=True):
        axes.annotate(name, (at, point.value), xytext=(5, 3), textcoords="offset points",
                      fontsize=7.5, color=style.RED if name == "github" else style.INK)  # fmt: skip
    axes.set_xscale("log")
    style.plain_ticks(axes.xaxis)
    axes.set(xlabel="set's share of the data space's bytes, %", ylabel="bits per byte, % of base")
