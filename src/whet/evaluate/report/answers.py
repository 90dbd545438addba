"""The results of a task with an answer: metrics of every method, with paired differences.

A difference is to the base model or to the first method that puts passages into the context (the
retrieval-augmented baseline), paired by prompt. Intervals are resampled over documents, because
lines of one file are not independent.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.table import Table

from whet.errors import RunFolderError
from whet.evaluate.answers.kinds import KINDS
from whet.evaluate.answers.lines import file_of
from whet.evaluate.config import EvalConfig, MethodConfig
from whet.evaluate.report.render import format_estimate, text_table
from whet.evaluate.report.table import MIN_N
from whet.evaluate.results import REQUEST, Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, resampled

BITS = "bits_per_byte"
TITLES = {
    "exact_match": "exact match, %",
    "edit_similarity": "edit similarity, %",
    "f1": "F1, %",
    BITS: "bits per byte of the answer, % of the base model's (lower is better)",
}


@dataclass(frozen=True, slots=True)
class MethodLine:
    """One method in the table of one metric."""

    method: str
    value: Estimate
    """Mean over prompts, as a percentage."""
    minus_base: Estimate | None
    """Paired difference to the base model, in percentage points; None for itself."""
    minus_context: Estimate | None
    """The same to the first method with passages in the context."""
    seconds: float
    """Median wall time of a request."""

    def verdict(self, metric: str) -> str:
        """What the intervals say, if there are enough documents: better, worse, or neither."""
        pairs = (("base", self.minus_base), ("context", self.minus_context))
        words = (_compared(difference, name, metric) for name, difference in pairs if difference)
        return ", ".join(filter(None, words))


@dataclass(frozen=True, eq=False)
class AnswerResults:
    """Metrics of every method on every prompt, of one run or of several."""

    config: EvalConfig
    values: dict[str, Float[Array, "m n"]]
    """By metric: those of the task, and bits per byte as % of the base model's."""
    seconds: Float[Array, "m timed"]
    """Of the requests, or of those that were timed while nothing else ran."""
    sets: tuple[str, ...]
    documents: tuple[str, ...]
    """The document of every prompt, such as the file of a line."""
    failed: int = 0

    @classmethod
    def of(cls, run: Run) -> "AnswerResults":
        """The results of a run.

        Raises:
            RunFolderError: If its task has no answer.
        """
        if run.config.task not in KINDS:
            raise RunFolderError(f"{run.folder} is of task text: expected one with an answer")
        names, methods = KINDS[run.config.task].metrics, run.methods
        values = {n: 100 * np.stack([run.metric(n, m) for m in methods]) for n in names}
        values[BITS] = np.stack([run.ratio(method) for method in methods])
        seconds = np.stack([run.seconds(method, phases=REQUEST) for method in methods])
        prompts = run.prompts["prompt"].to_pylist()
        documents = map(file_of, prompts) if run.config.task == "lines" else prompts
        sets = tuple(run.column("set").tolist())
        return cls(run.config, values, seconds, sets, tuple(documents), len(run.errors))

    @classmethod
    def pooled(cls, results: Sequence["AnswerResults"], sets: Sequence[str]) -> "AnswerResults":
        """Results of several data spaces as one, in which each is a set of its own.

        Raises:
            ValueError: If they differ in task or methods.
        """
        first = results[0]
        for each in results[1:]:
            one, other = first.config, each.config
            if (one.task, one.method_names) != (other.task, other.method_names):
                raise ValueError(
                    f"runs have tasks and methods {(one.task, one.method_names)} and "
                    f"{(other.task, other.method_names)}: expected the same"
                )
        return cls(
            first.config,
            {n: np.concatenate([r.values[n] for r in results], axis=1) for n in first.values},
            np.concatenate([r.seconds for r in results], axis=1),
            tuple(s for r, s in zip(results, sets, strict=True) for _ in r.sets),
            tuple(f"{s}/{d}" for r, s in zip(results, sets, strict=True) for d in r.documents),
            sum(r.failed for r in results),
        )

    def of_set(self, name: str) -> "AnswerResults":
        """The results of the prompts of one set."""
        chosen = np.array([each == name for each in self.sets])
        documents = tuple(d for d, c in zip(self.documents, chosen, strict=True) if c)
        values = {metric: each[:, chosen] for metric, each in self.values.items()}
        seconds, sets = self.seconds[:, chosen], (name,) * len(documents)
        return AnswerResults(self.config, values, seconds, sets, documents)

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.sets)

    def lines(self, metric: str) -> list[MethodLine]:
        """The table of one metric."""
        configs, values = self.config.method_configs, self.values[metric]
        base = next((i for i, m in enumerate(configs) if _is_base(m)), None)
        context = next((i for i, m in enumerate(configs) if m.use == "context"), None)
        return [
            MethodLine(
                method.name,
                self.estimate(values[i]),
                None if base in (None, i) else self.estimate(values[i] - values[base]),
                None if context in (None, i) else self.estimate(values[i] - values[context]),
                float(np.median(self.seconds[i])),
            )
            for i, method in enumerate(configs)
        ]

    def estimate(self, values: Float[Array, " n"]) -> Estimate:
        """The mean with its 90 % bootstrap interval over documents, whatever their sets."""
        names, document = self._clusters
        count = len(names)
        sums = np.bincount(document, values, count)
        sizes = np.bincount(document, minlength=count).astype(np.float64)

        def mean(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
            means: Float[Array, " r"] = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
            return means

        return resampled(count, mean)

    def record(self) -> dict[str, Any]:
        """The tables as JSON values."""
        tables = {
            metric: [
                asdict(line) | {"verdict": line.verdict(metric)} for line in self.lines(metric)
            ]
            for metric in self.values
        }
        return {
            "task": self.config.task, "n": self.n, "documents": len(self._clusters[0]),
            "failed": self.failed, "metrics": tables,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """One table per metric, as text."""
        return [self.table(metric) for metric in self.values]

    def table(self, metric: str) -> Table:
        """The table of one metric: one row per method."""
        rows = [
            [
                line.method,
                format_estimate(line.value),
                "" if line.minus_base is None else format_estimate(line.minus_base, sign="+"),
                "" if line.minus_context is None else format_estimate(line.minus_context, sign="+"),
                f"{line.seconds:.1f}",
                line.verdict(metric),
            ]
            for line in self.lines(metric)
        ]
        headings = [TITLES[metric], "mean", "− base", "− context", "seconds", "verdict"]
        return text_table(headings, rows)

    def caption(self) -> str:
        """One paragraph that explains the tables."""
        failed = f" {self.failed} prompts failed and are left out." if self.failed else ""
        return (
            f"{self.n} prompts of {len(self._clusters[0])} documents. Means with 90 % bootstrap "
            "intervals over documents; − base and − context: paired differences to the base model "
            "and to the first method with passages in the context; seconds: median wall time of "
            f"selecting, training and generating. Fewer than {MIN_N} documents: no verdict.{failed}"
        )

    @cached_property
    def _clusters(self) -> tuple[Array, Array]:
        """The distinct documents, and which of them every prompt is of."""
        keys = [f"{s}\0{d}" for s, d in zip(self.sets, self.documents, strict=True)]
        names, document = np.unique(keys, return_inverse=True)
        return names, document


def _is_base(method: MethodConfig) -> bool:
    return method.train_on == "nothing" and method.samples == 1


def _compared(difference: Estimate, name: str, metric: str) -> str:
    """The verdict on one difference; empty for too few documents."""
    if difference.n < MIN_N:
        return ""
    sign = -1 if metric == BITS else 1
    low, high = sorted((sign * difference.low, sign * difference.high))
    if low > 0:
        return f"better than {name}"
    return f"worse than {name}" if high < 0 else f"no difference to {name} shown"
