"""The methods of a run over all prompts as a table, and of several runs with a column per protocol.

Definitions: docs/protocol.md, "Reports".
"""

from collections.abc import Mapping, Sequence

from rich.table import Table

from whet.errors import RunFolderError
from whet.evaluate.config import EvalConfig
from whet.evaluate.provenance import same_space
from whet.evaluate.report.render import format_estimate, short, text_table
from whet.evaluate.report.table import MIN_N, TRIMMED, Center, MethodSummary
from whet.evaluate.results import Run, align_runs, join


def summary_table(summaries: Sequence[MethodSummary]) -> Table:
    """One row per method: three averages of % of base and of the difference to nearest."""
    headings = ["method", "% of base", "median", "trimmed", "− NN", "median", "trimmed", "sets"]
    rows = []
    for each in summaries:
        row = [short(each.method), *_cells(each.percent, "")]
        if each.minus_nearest is not None:
            row += [*_cells(each.minus_nearest, "+"), f"{each.better_sets} : {each.worse_sets}"]
        rows.append([*row, *[""] * (len(headings) - len(row))])
    return text_table(headings, rows, "All prompts")


def summary_caption() -> str:
    """One paragraph that explains `summary_table`."""
    return (
        f"trimmed: mean without the lowest and the highest {100 * TRIMMED:.0f} % of the prompts. "
        f"sets: sets on which the method is better : worse than NN, of those with {MIN_N} or more "
        "prompts; the interval of the difference excludes 0."
    )


def by_protocol(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs joined by protocol, with the prompts that all of them have, in the same order.

    Raises:
        RunFolderError: If runs of one protocol cannot be joined, the runs are of different data
            spaces or prompts, or have no prompt in common.
    """
    groups = dict[str, list[Run]]()
    for run in runs:
        groups.setdefault(protocol_name(run.config), []).append(run)
    for run in runs[1:]:
        for name in ("space", "prompts"):
            first, other = runs[0].meta[name], run.meta[name]
            if not (same_space(first, other) if name == "space" else first == other):
                raise RunFolderError(
                    f"{runs[0].folder} has {name} {first!r}, but {run.folder} has {other!r}: "
                    "only runs on the same data can be compared"
                )
    return dict(zip(groups, align_runs(*map(join, groups.values())), strict=True))


def protocol_name(config: EvalConfig) -> str:
    """The protocol of a run, or the settings by which it differs from both.

    >>> protocol_name(EvalConfig.from_table({"protocol": "paper", "long_texts": "first"}))
    'whole, long_texts first'
    """
    if config.protocol:
        return config.protocol
    context = "" if config.left_context or config.leakage == "whole" else ", no left context"
    return f"{config.leakage}{context}, long_texts {config.training.long_texts}"


def comparison_table(summaries: Mapping[str, Sequence[MethodSummary]]) -> Table:
    """One row per method; for each protocol, the mean of % of base and its difference to nearest.

    Args:
        summaries: The summaries of each protocol; a method that one of them lacks has empty cells.
    """
    headings = ["method"]
    for name in summaries:
        headings += [f"{name}, % of base", "− NN", "median"]
    methods = dict.fromkeys(each.method for group in summaries.values() for each in group)
    rows = []
    for method in methods:
        row = [short(method)]
        for group in summaries.values():
            row += _comparison_cells(next((s for s in group if s.method == method), None))
        rows.append(row)
    return text_table(headings, rows)


def _comparison_cells(each: MethodSummary | None) -> list[str]:
    if each is None:
        return ["", "", ""]
    percent = format_estimate(each.percent.mean, half=True)
    if each.minus_nearest is None:
        return [percent, "", ""]
    difference = each.minus_nearest
    median = format_estimate(difference.median, sign="+", interval=False)
    return [percent, format_estimate(difference.mean, sign="+"), median]


def _cells(center: Center, sign: str) -> list[str]:
    mean = format_estimate(center.mean, sign=sign, half=not sign)
    others = (center.median, center.trimmed)
    return [mean, *(format_estimate(e, sign=sign, interval=False) for e in others)]
