"""The paper's tables. Source: SIFT, arXiv 2410.08020; each function names its tables."""

from functools import partial
from typing import Any

import numpy as np

from studies import plotting
from studies.artifact import Artifact, Rows
from studies.metrics import (
    ALL,
    LAMBDAS,
    PILE_DOCUMENTS,
    bits_and_bytes,
    check_methods,
    lambda_of,
    macro_average,
    model_of,
    over_pile,
    paired_difference,
    percent_of_base,
    percent_of_method,
    present,
    sets_and_all,
    split_by_set,
)
from studies.run_specs import CONTEXT
from whet.evaluate.report.table import BASELINES, MIN_N, SHORT, report
from whet.evaluate.report.uncertainty import (
    BASE_ALONE,
    KINDS,
    correlations,
    pearson_difference,
    predictors,
)
from whet.evaluate.results import Run, align_runs
from whet.maths.statistics import Estimate

HARD_SETS = ("dm_math", "github", "arxiv", "freelaw")  # of Insight 10, or our stand-ins for them
HEIGHT, ROW_HEIGHT = 1.2, 0.42  # inches of a figure with one row per set
ENCYCLOPEDIA = "wikipedia"


def by_set(run: Run) -> Artifact:
    """Tables 1 and 4: US, NN, NN-F and SIFT in percent of base, set by set."""
    check_methods(run, *BASELINES, "sift")
    lines = report(run).lines
    methods = [*BASELINES, "sift"]
    rows: Rows = [
        (
            line.name,
            line.methods["sift"].n,
            line.base,
            *(line.methods[m] for m in methods),
            line.delta,
            line.paired["sift"],
        )
        for line in lines
    ]
    values = {SHORT[m]: [line.methods[m] for line in lines] for m in methods}
    colors = {SHORT[m]: plotting.COLORS[m] for m in methods}
    overall = next((line for line in lines if line.name == ALL), lines[0])
    numbers = {"SIFT − NN": overall.paired["sift"], "SIFT": overall.methods["sift"]}
    return Artifact(
        columns=("set", "n", "base", *(SHORT[m] for m in methods), "Δ", "SIFT − NN"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_dots, names=[line.name for line in lines], values=values, colors=colors),
        width=7.2,
        height=HEIGHT + ROW_HEIGHT * len(rows),
        numbers=numbers | _worst_sets(run),
    )


def _worst_sets(run: Run) -> dict[str, Estimate]:
    """The sets on which SIFT is worst, for claims about all sets; each must have `MIN_N` prompts."""
    parts = [part for part in split_by_set(run).values() if len(part) >= MIN_N]
    if not parts:
        return {}
    best = [min(BASELINES, key=lambda m: percent_of_base(p, m).value) for p in parts]
    over_best = [
        paired_difference(part, "sift", method) for part, method in zip(parts, best, strict=True)
    ]
    over_nearest = [paired_difference(part, "sift", "nearest") for part in parts]
    percent = [percent_of_base(part, "sift") for part in parts]

    def worst(estimates: list[Estimate]) -> Estimate:
        return max(estimates, key=lambda estimate: estimate.value)

    return {
        "worst set, SIFT": worst(percent),
        "worst set, SIFT − NN": worst(over_nearest),
        "worst set, SIFT − best baseline": worst(over_best),
    }


def _dots(axes: Any, names: list[str], values: Any, colors: Any) -> None:
    plotting.dots(axes, names, values, colors)
    plotting.reference_line(axes, 100, "base", horizontal=False)
    axes.set_xlabel("bits per byte, % of base")


def by_model(main: Run, small: Run) -> Artifact:
    """Table 2: bits per byte of base models and of the same models fine-tuned with SIFT.

    The paper weighs sets by their share of the Pile; that column is empty if a set is not of it.
    """
    main, small = align_runs(main, small)
    rows: Rows = []
    averages: dict[str, Estimate] = {}
    weighted = PILE_DOCUMENTS.keys() >= set(main.column("set").tolist())
    for run in (small, main):
        others = run.column("set") != ENCYCLOPEDIA
        part = run.filter(others) if others.any() and not others.all() else None
        for method in (None, "sift"):
            name = model_of(run) + (" + SIFT" if method else "")
            averages[name] = macro_average(run, bits_and_bytes(run, method))
            without = macro_average(part, bits_and_bytes(part, method)) if part else None
            pile = over_pile(run, bits_and_bytes(run, method)) if weighted else None
            rows.append((name, averages[name], without, pile))
    difference = macro_average(main, bits_and_bytes(small, "sift"), bits_and_bytes(main, None))
    return Artifact(
        columns=("model", "bits per byte", "without Wikipedia", "Pile weights"),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_model_bars, names=list(averages), values=list(averages.values())),
        numbers={"small + SIFT − main base": difference},
    )


def _model_bars(axes: Any, names: list[str], values: list[Estimate]) -> None:
    colors = [plotting.MUTED if i % 2 == 0 else plotting.RED for i in range(len(names))]
    plotting.bars(axes, names, {"": values}, {"": plotting.MUTED}, digits=3)
    for bar, color in zip(axes.patches, colors, strict=True):
        bar.set_color(color)
    axes.set_xlabel("bits per byte")


def context_or_training(run: Run, *, trained: str = "sift") -> Artifact:
    """Tables 6 to 8: the same documents in the context or trained on, set by set."""
    context, both = "sift(use=context)", "sift(use=both)"
    check_methods(run, context, trained)
    names = {
        context: "in context", CONTEXT: "in the paper's order", trained: "steps", both: "both",
    }  # fmt: skip
    methods = present(run, list(names))
    parts = sets_and_all(run)
    rows: Rows = [
        (
            name,
            len(part),
            *(percent_of_base(part, m) for m in methods),
            paired_difference(part, trained, context),
        )
        for name, part in parts.items()
    ]
    numbers = {"steps − in context": paired_difference(run, trained, context)}
    if CONTEXT in methods:
        numbers["steps − in context, paper's order"] = paired_difference(run, trained, CONTEXT)
    hard = np.isin(run.column("set").astype(str), HARD_SETS)
    if hard.any():
        difference = paired_difference(run.filter(hard), trained, context)
        numbers["steps − in context, hard sets"] = difference
    values = {names[m]: [percent_of_base(part, m) for part in parts.values()] for m in methods}
    colors = dict(
        zip(
            names.values(),
            (plotting.BLUE, plotting.SKY, plotting.RED, plotting.PURPLE),
            strict=True,
        )
    )
    return Artifact(
        columns=("set", "n", *(names[m] for m in methods), "steps − in context"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_dots, names=list(parts), values=values, colors=colors),
        width=7.2,
        height=HEIGHT + ROW_HEIGHT * len(rows),
        numbers=numbers,
    )


def by_lambda(run: Run) -> Artifact:
    """Table 11: SIFT(λ') in percent of base for every λ', set by set."""
    check_methods(run, *LAMBDAS, "nearest")
    methods = (*LAMBDAS, "nearest")
    rows: Rows = [
        (name, len(part), *(percent_of_base(part, m) for m in methods))
        for name, part in sets_and_all(run).items()
    ]
    differences = {m: paired_difference(run, m, "nearest") for m in LAMBDAS}
    worst = max(differences, key=lambda m: differences[m].value)
    best = min(differences, key=lambda m: differences[m].value)
    curves = [
        [percent_of_method(part, m, "nearest").value for m in LAMBDAS]
        for part in split_by_set(run).values()
    ]
    return Artifact(
        columns=("set", "n", *(f"λ'={lambda_of(m):g}" for m in LAMBDAS), "NN"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(
            _lambda_curves,
            lambdas=[lambda_of(m) for m in LAMBDAS],
            mean=[percent_of_method(run, m, "nearest") for m in LAMBDAS],
            curves=curves,
        ),
        numbers={"worst λ' − NN": differences[worst], "best λ' − NN": differences[best]},
        note=(
            f"Over all prompts, the worst λ' is {lambda_of(worst):g} and the best is "
            f"{lambda_of(best):g}."
        ),
    )


def _lambda_curves(
    axes: Any, lambdas: list[float], mean: list[Estimate], curves: list[list[float]]
) -> None:
    for values in curves:
        axes.plot(lambdas, values, color=plotting.MUTED, lw=0.8, alpha=0.5)
    axes.set_xscale("log")
    plotting.lines(axes, lambdas, {"all prompts": mean}, {"all prompts": plotting.RED})
    plotting.reference_line(axes, 100, "NN")
    axes.set(xlabel="λ'", ylabel="bits per byte, % of NN's")
    axes.set_title("thin lines: one per set")


def uncertainty_correlations(run: Run) -> Artifact:
    """Table 12: correlations of σ, and of σ scaled by the base loss, with error and gain."""
    check_methods(run, "sift")
    results, values_of = correlations(run, "sift"), predictors(run, "sift")
    after = run.bits("sift") / run.column("bytes")
    cells = {(c.predictor, c.target, c.kind): c.estimate for c in results}
    pairs = list(dict.fromkeys((c.predictor, c.target) for c in results))
    rows: Rows = [(p, t, *(cells[p, t, kind] for kind in KINDS)) for p, t in pairs]
    values = {kind: [cells[p, t, kind] for p, t in pairs] for kind in KINDS}
    return Artifact(
        columns=("predictor", "target", *KINDS),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_correlation_dots, names=[f"{p}: {t}" for p, t in pairs], values=values),
        width=7.2,
        height=HEIGHT + ROW_HEIGHT * len(rows),
        numbers={
            "σ with bits per byte": cells["σ", "bits per byte", "Pearson"],
            "σ̂ with bits per byte": cells["σ̂ of the text", "bits per byte", "Pearson"],
            "σ with gain": cells["σ", "gain", "Spearman"],
            "base bits per byte with bits per byte": cells[BASE_ALONE, "bits per byte", "Pearson"],
            "σ̂ − base bits per byte": pearson_difference(
                values_of["σ̂ of the text"], values_of[BASE_ALONE], after
            ),
        },
        note=f"After {run.steps[-1]} steps.",
    )


def _correlation_dots(axes: Any, names: list[str], values: Any) -> None:
    plotting.dots(axes, names, values, dict(zip(KINDS, plotting.SERIES, strict=False)))
    plotting.reference_line(axes, 0, horizontal=False)
    axes.set_xlabel("correlation over prompts")
