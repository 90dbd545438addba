"""Metrics that several artifacts share: means over prompts or sets, and paired differences."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from whet.evaluate.results import Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, bootstrap, mean_estimate, resampled

LAMBDAS = ("sift(1e-08)", "sift(0.0001)", "sift", "sift(0.1)", "sift(1)", "sift(10)")
DEFAULT_LAMBDA = 0.01  # of the paper
ALL = "all, by prompt"
PILE_DOCUMENTS = {
    "web": 532, "stackexchange": 303, "pubmed_abstracts": 301, "github": 184, "wikipedia": 175,
    "uspto": 114, "pmc": 60, "freelaw": 52, "arxiv": 24, "dm_math": 20, "nih_grants": 18,
    "hackernews": 16, "enron": 10,
}  # fmt: skip
"""Documents of each set in 1 % of the Pile's test set, by the sets' sizes: our estimate. The mean
over documents with these weights reproduces the last row of the paper's Table 1."""


def lambda_of(method: str) -> float:
    """Return λ' of a method in `LAMBDAS`; `sift` uses the paper's."""
    return DEFAULT_LAMBDA if method == "sift" else float(method.partition("(")[2].rstrip(")"))


def model_of(run: Run) -> str:
    """Return the name of the model that a run evaluated."""
    return run.config.model


def steps_of(run: Run) -> int:
    """Return the number of gradient steps per prompt."""
    return run.config.selection.n


def present(run: Run, methods: Sequence[str]) -> list[str]:
    """Return the methods that the run contains, in the order of `methods`."""
    return [method for method in methods if method in run.methods]


def check_methods(run: Run, *methods: str) -> None:
    """Check that a run contains the methods that an artifact needs.

    Raises:
        RunFolderError: If a method is not in the run.
    """
    for method in methods:
        run.bits(method)


def percent_of_base(run: Run, method: str, step: int | None = None) -> Estimate:
    """Mean over prompts of bits per byte, in percent of the base model's."""
    return mean_estimate(run.ratio(method, step))


def paired_difference(run: Run, method: str, other: str, step: int | None = None) -> Estimate:
    """Mean over prompts of `method` minus `other`, in percentage points of the base model."""
    return mean_estimate(run.ratio(method, step) - run.ratio(other, step))


def percent_of_method(run: Run, method: str, other: str) -> Estimate:
    """Mean percent of base of `method`, in percent of that of `other`.

    This is a ratio of means. In a mean of ratios, a prompt on which `other` gets close to 0 would
    count as much as many other prompts.
    """
    numerator, denominator = run.ratio(method), run.ratio(other)
    return resampled(
        len(run), lambda rows: 100 * numerator[rows].mean(1) / denominator[rows].mean(1)
    )


def learning_curve(run: Run, method: str) -> list[Estimate]:
    """Return `percent_of_base` after every scored step."""
    return [percent_of_base(run, method, step) for step in run.steps]


def bits_and_bytes(run: Run, method: str | None) -> Float[Array, "n 2"]:
    """Bits and bytes of every prompt after the last step; of the base model if `method` is None."""
    bits = run.column("base_bits") if method is None else run.bits(method)
    return np.stack([bits, run.column("bytes").astype(np.float64)], axis=1)


def macro_average(run: Run, *sides: Float[Array, "n 2"]) -> Estimate:
    """Bits per byte averaged over sets with equal weight; within a set, bytes have equal weight.

    With two sides, the estimate is their difference. The interval is over prompts, resampled within
    each set unless a set has only one prompt.

    Args:
        sides: One or two results of `bits_and_bytes` for `run`.
    """
    labels = np.unique(run.column("set").astype(str), return_inverse=True)[1].astype(np.float64)

    def statistic(rows: Float[Array, "n c"]) -> float:
        sets = rows[:, -1]
        means = [
            np.mean(
                [rows[sets == s, i].sum() / rows[sets == s, i + 1].sum() for s in np.unique(sets)]
            )
            for i in range(0, rows.shape[1] - 1, 2)
        ]
        return float(means[0] - means[1]) if len(means) == 2 else float(means[0])

    groups = labels if np.unique(labels, return_counts=True)[1].min() > 1 else None
    return bootstrap(np.column_stack([*sides, labels]), statistic, groups=groups)


def over_pile(run: Run, side: Float[Array, "n 2"]) -> Estimate:
    """Bits per byte of documents in the proportions of the Pile: see `PILE_DOCUMENTS`.

    The interval is over prompts, resampled within each set unless a set has only one prompt.

    Args:
        side: A result of `bits_and_bytes` for `run`.
    """
    sets, labels, counts = np.unique(
        run.column("set").astype(str), return_inverse=True, return_counts=True
    )
    documents = np.array([PILE_DOCUMENTS[name] for name in sets], np.float64)
    weights = (documents / counts)[labels]

    def ratio(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        sums = (side[draws] * weights[draws][..., None]).sum(axis=1)
        quotient: Float[Array, " r"] = sums[:, 0] / sums[:, 1]
        return quotient

    groups = labels.astype(np.float64) if counts.min() > 1 else None
    return resampled(len(side), ratio, groups=groups)


def distinct_documents(run: Run, method: str) -> Float[Array, " n"]:
    """Return how many distinct documents a method selected for each prompt."""
    return np.array(
        [len(set(run.picks(name, method))) for name in run.prompts["prompt"].to_pylist()], float
    )


def split_by_set(run: Run) -> dict[str, Run]:
    """Return the part of the run that belongs to each set, by name."""
    column = run.column("set")
    return {name: run.filter(column == name) for name in sorted(set(column.tolist()))}


def sets_and_all(run: Run) -> dict[str, Run]:
    """Return the part of each set, followed by the whole run if there are several sets."""
    parts = split_by_set(run)
    return parts | {ALL: run} if len(parts) > 1 else parts


def spearman(x: Float[Array, " n"], y: Float[Array, " n"]) -> float:
    """Rank correlation; 0 if either side is constant."""
    ranks = np.stack([rankdata(x), rankdata(y)])
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(ranks, axis=1).all() else 0.0
