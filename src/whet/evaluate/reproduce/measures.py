"""Numbers that several views share: means over prompts or sets, and differences by prompt."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float
from scipy.stats import rankdata

from whet.errors import RunFolderError
from whet.evaluate.results import Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, bootstrap, mean_estimate, resampled

LAMBDAS = ("sift(1e-08)", "sift(0.0001)", "sift", "sift(0.1)", "sift(1)", "sift(10)")


def noise(method: str) -> float:
    """λ' of a method of `LAMBDAS`; plain SIFT's is the paper's."""
    return 0.01 if method == "sift" else float(method.partition("(")[2].removesuffix(")"))


def present(run: Run, methods: Sequence[str]) -> list[str]:
    """Those of `methods` that the run has, in their order."""
    return [method for method in methods if method in run.methods]


def assert_holds(run: Run, *methods: str) -> None:
    """Refuse a run that lacks what a view needs.

    Raises:
        RunFolderError: If a method is not in the run.
    """
    for method in methods:
        run.bits(method)


def share(run: Run, method: str, step: int | None = None) -> Estimate:
    """Mean over prompts of bits per byte in % of the base model's."""
    return mean_estimate(run.ratio(method, step))


def apart(run: Run, method: str, other: str, step: int | None = None) -> Estimate:
    """`method` minus `other`, the mean of the differences by prompt, points of %."""
    return mean_estimate(run.ratio(method, step) - run.ratio(other, step))


def relative(run: Run, method: str, other: str) -> Estimate:
    """What a method reaches, mean % of base, in % of what `other` does.

    Not a mean of ratios: a prompt that `other` brings near 0 would weigh as much as many.
    """
    own, base = run.ratio(method), run.ratio(other)
    return resampled(len(run), lambda rows: 100 * own[rows].mean(1) / base[rows].mean(1))


def curve(run: Run, method: str) -> list[Estimate]:
    """`share` after every scored step."""
    return [share(run, method, step) for step in run.steps]


def bits_per_byte(run: Run, method: str | None) -> Float[Array, "n 2"]:
    """Bits and bytes of every prompt after the last step; of the base model if None."""
    bits = run.column("base_bits") if method is None else run.bits(method)
    return np.stack([bits, run.column("bytes").astype(np.float64)], axis=1)


def over_sets(run: Run, *sides: Float[Array, "n 2"]) -> Estimate:
    """Bits per byte, byte-weighted within a set, sets of equal weight; of two sides the difference.

    The interval is over prompts, drawn within their sets unless one of these has a single prompt.
    """
    groups = np.unique(run.column("set").astype(str), return_inverse=True)[1].astype(np.float64)

    def statistic(rows: Float[Array, "n c"]) -> float:
        own = rows[:, -1]
        means = [
            np.mean([rows[own == g, i].sum() / rows[own == g, i + 1].sum() for g in np.unique(own)])
            for i in range(0, rows.shape[1] - 1, 2)
        ]
        return float(means[0] - means[1]) if len(means) == 2 else float(means[0])

    within = groups if np.unique(groups, return_counts=True)[1].min() > 1 else None
    return bootstrap(np.column_stack([*sides, groups]), statistic, groups=within)


def aligned(*runs: Run) -> list[Run]:
    """The runs with the prompts that all have, in the order of the first.

    Raises:
        RunFolderError: If they share none.
    """
    names = runs[0].prompts["prompt"].to_pylist()
    for run in runs[1:]:
        own = set(run.prompts["prompt"].to_pylist())
        names = [name for name in names if name in own]
    if not names:
        raise RunFolderError(
            f"{', '.join(str(r.folder) for r in runs)} share no prompt: finish them"
        )
    return [_ordered(run, names) for run in runs]


def _ordered(run: Run, names: list[str]) -> Run:
    order = pc.index_in(pa.array(names), value_set=run.prompts["prompt"].combine_chunks())
    prompts = run.prompts.take(order)
    own = pc.is_in(run.table["prompt"].cast(pa.string()), value_set=pa.array(names))
    return replace(run, prompts=prompts, table=run.table.filter(own))


def distinct(run: Run, method: str) -> Float[Array, " n"]:
    """How many different documents a method picked for each prompt."""
    return np.array(
        [len(set(run.picks(name, method))) for name in run.prompts["prompt"].to_pylist()], float
    )


def sets(run: Run) -> dict[str, Run]:
    """The run of each set by itself, by name."""
    column = run.column("set")
    return {name: run.keep(column == name) for name in sorted(set(column.tolist()))}


def parts(run: Run) -> dict[str, Run]:
    """The run of each set, and where there are several the whole after them."""
    own = sets(run)
    return own | {"all, by prompt": run} if len(own) > 1 else own


def spearman(x: Float[Array, " n"], y: Float[Array, " n"]) -> float:
    """Rank correlation; 0 where either side is constant."""
    ranks = np.stack([rankdata(x), rankdata(y)])
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(ranks, axis=1).all() else 0.0
