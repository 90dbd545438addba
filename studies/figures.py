"""The paper's figures of quality, computed from runs. Source: SIFT, arXiv 2410.08020."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from studies import plotting
from studies.artifact import Artifact, Rows
from studies.metrics import (
    LAMBDAS,
    bits_and_bytes,
    check_methods,
    distinct_documents,
    lambda_of,
    learning_curve,
    macro_average,
    model_of,
    paired_difference,
    percent_of_base,
    percent_of_method,
    present,
    steps_of,
)
from studies.run_specs import CORE, NEAREST_PRODUCT
from whet.evaluate.report.table import SHORT
from whet.evaluate.results import Run, align_runs
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, bootstrap, mean_estimate

STEPS = "gradient steps"
PERCENT = "bits per byte, % of base"


def over_steps(
    run: Run, *, methods: dict[str, str], pair: tuple[str, str] | None = None
) -> Artifact:
    """Figures 1, 13, 14, 15 and 18: percent of base against gradient steps.

    Args:
        methods: Label of each method.
        pair: Two methods; the claim is about the first minus the second after the last step.
    """
    curves = {label: learning_curve(run, method) for method, label in methods.items()}
    rows: Rows = [(label, *points) for label, points in curves.items()]
    numbers = {label: points[-1] for label, points in curves.items()}
    if pair:
        numbers[f"{methods[pair[0]]} − {methods[pair[1]]}"] = paired_difference(run, *pair)
    colors = {label: plotting.COLORS[m] for m, label in methods.items() if m in plotting.COLORS}
    return Artifact(
        columns=("method", *(f"{step} steps" for step in run.steps)),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_over_steps, steps=run.steps, curves=curves, colors=colors),
        numbers=numbers,
    )


def _over_steps(axes: Any, steps: Any, curves: Any, colors: Any) -> None:
    plotting.reference_line(axes, 100, "base")
    plotting.lines(axes, steps, curves, colors)
    axes.set(xlabel=STEPS, ylabel=PERCENT)
    plotting.integer_ticks(axes)


def by_model_and_lambda(main: Run, small: Run) -> Artifact:
    """Figure 5: the core methods by model, and SIFT by λ'."""
    main, small = align_runs(main, small)
    runs = {model_of(run): run for run in (small, main)}
    values = {model: [percent_of_base(run, m) for m in CORE] for model, run in runs.items()}
    rows: Rows = [
        (model, SHORT[m], None, percent_of_base(run, m))
        for model, run in runs.items()
        for m in CORE[:-1]
    ]
    sweeps: dict[str, tuple[list[float], list[Estimate]]] = {}
    for model, run in runs.items():
        methods = present(run, LAMBDAS)
        sweeps[model] = (
            [lambda_of(m) for m in methods],
            [percent_of_base(run, m) for m in methods],
        )
        rows += [(model, "SIFT", lam, point) for lam, point in zip(*sweeps[model], strict=True)]
    numbers = {
        f"SIFT − NN, {model}": paired_difference(run, "sift", "nearest")
        for model, run in runs.items()
    }
    difference = mean_estimate(_sift_minus_nearest(main) - _sift_minus_nearest(small))
    return Artifact(
        columns=("model", "method", "λ'", PERCENT),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_by_model_and_lambda, values=values, sweeps=sweeps),
        panels=2,
        width=4.6,
        numbers=numbers | {"SIFT − NN, main − small": difference},
    )


def _sift_minus_nearest(run: Run) -> Float[Array, " n"]:
    difference: Float[Array, " n"] = run.ratio("sift") - run.ratio("nearest")
    return difference


def _by_model_and_lambda(axes: Any, values: Any, sweeps: Any) -> None:
    colors = dict(zip(values, (plotting.SKY, plotting.BLUE), strict=True))
    plotting.dots(axes[0], [SHORT[m] for m in CORE], values, colors)
    plotting.reference_line(axes[0], 100, horizontal=False)
    axes[0].set_xlabel(PERCENT)
    for model, (lambdas, points) in sweeps.items():
        axes[1].set_xscale("log")
        plotting.lines(axes[1], lambdas, {model: points}, colors)
    plotting.reference_line(axes[1], 100, "base")
    axes[1].set(xlabel="λ' of SIFT", ylabel=PERCENT)


def by_distinct_documents(run: Run) -> Artifact:
    """Figure 6: SIFT against NN and NN-F, by how many distinct documents SIFT selects.

    Few means at most a fifth of the steps, many means more than half of them.
    """
    check_methods(run, *CORE[1:])
    distinct, n = distinct_documents(run, "sift"), steps_of(run)
    few, many = f"at most {n // 5} distinct", f"more than {n // 2} distinct"
    masks = {
        "all prompts": distinct > 0,
        few: (distinct > 0) & (distinct <= n / 5),
        many: distinct > n / 2,
    }
    parts = {name: run.filter(mask) for name, mask in masks.items() if mask.any()}
    values = {
        f"of {SHORT[m]}": [percent_of_method(part, "sift", m) for part in parts.values()]
        for m in ("nearest", "nearest-repeated")
    }
    rows = [
        (name, len(part), *ratios)
        for (name, part), *ratios in zip(parts.items(), *values.values(), strict=True)
    ]
    numbers = {"distinct documents": mean_estimate(distinct)}
    if many in parts:
        numbers["SIFT − NN-F where many"] = paired_difference(
            parts[many], "sift", "nearest-repeated"
        )
    if few in parts:
        numbers["SIFT − NN where few"] = paired_difference(parts[few], "sift", "nearest")
    return Artifact(
        columns=("prompts", "n", "SIFT in % of NN", "SIFT in % of NN-F"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_by_distinct_documents, names=list(parts), values=values),
        numbers=numbers,
    )


def _by_distinct_documents(axes: Any, names: list[str], values: Any) -> None:
    plotting.dots(axes, names, values, {"of NN": plotting.INK, "of NN-F": plotting.MUTED})
    plotting.reference_line(axes, 100, horizontal=False)
    axes.set_xlabel("bits per byte of SIFT, %")


def base_context_or_training(main: Run, small: Run) -> Artifact:
    """Figure 7: bits per byte of the base model, in context and fine-tuned, by model."""
    main, small = align_runs(main, small)
    methods = {"base": None, "in context": "sift(use=context)", "fine-tuned": "sift"}
    runs = {model_of(run): run for run in (small, main)}
    values = {
        label: [macro_average(run, bits_and_bytes(run, method)) for run in runs.values()]
        for label, method in methods.items()
    }
    rows: Rows = [(model, *(values[label][i] for label in methods)) for i, model in enumerate(runs)]
    difference = macro_average(
        main, bits_and_bytes(main, "sift"), bits_and_bytes(main, methods["in context"])
    )
    return Artifact(
        columns=("model", *methods),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_base_context_or_training, names=list(runs), values=values),
        numbers={"fine-tuned − in context": difference},
    )


def _base_context_or_training(axes: Any, names: list[str], values: Any) -> None:
    colors = dict(zip(values, (plotting.MUTED, plotting.BLUE, plotting.RED), strict=True))
    plotting.bars(axes, names, values, colors, digits=3)
    axes.set_xlabel("bits per byte, sets of equal weight")


def by_data_share(whole: Run, third: Run, thirtieth: Run) -> Artifact:
    """Figure 10: SIFT in percent of NN with 3, 33 and 100 % of the data space."""
    runs = dict(zip(("3 %", "33 %", "100 %"), align_runs(thirtieth, third, whole), strict=True))
    ratios = [percent_of_method(run, "sift", "nearest") for run in runs.values()]
    rows: Rows = [
        (
            share,
            run.meta["space"]["documents"],
            percent_of_base(run, "nearest"),
            percent_of_base(run, "sift"),
            ratio,
        )
        for (share, run), ratio in zip(runs.items(), ratios, strict=True)
    ]
    least, most = runs["3 %"], runs["100 %"]
    change = mean_estimate(_sift_minus_nearest(most) - _sift_minus_nearest(least))
    return Artifact(
        columns=("share of the data", "documents", "NN", "SIFT", "SIFT in % of NN"),
        rows=tuple(rows),
        n=len(most),
        draw=partial(_by_data_share, names=list(runs), ratios=ratios),
        numbers={"SIFT − NN, 100 % − 3 %": change},
    )


def _by_data_share(axes: Any, names: list[str], ratios: list[Estimate]) -> None:
    plotting.lines(axes, range(len(names)), {"SIFT": ratios}, {"SIFT": plotting.RED})
    plotting.reference_line(axes, 100, "NN")
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="share of the data space", ylabel="bits per byte, % of NN's")


def effect_of_normalization(unit: Run, raw: Run) -> Artifact:
    """Figure 11: NN by inner product and SIFT, with normalized and with unnormalized embeddings.

    On unit vectors, NN by inner product is NN by cosine.
    """
    unit, raw = align_runs(unit, raw)
    methods = {"NN by inner product": ("nearest", NEAREST_PRODUCT), "SIFT": ("sift", "sift")}
    values = {
        "normalized": [percent_of_base(unit, method) for method, _ in methods.values()],
        "not normalized": [percent_of_base(raw, method) for _, method in methods.values()],
    }
    return Artifact(
        columns=("embeddings", "NN", "SIFT"),
        rows=tuple((name, *points) for name, points in values.items()),
        n=len(unit),
        draw=partial(_effect_of_normalization, values=values),
        numbers={
            f"normalized − not, {name}": mean_estimate(unit.ratio(one) - raw.ratio(other))
            for name, (one, other) in methods.items()
        },
        note=f"Embedder: {unit.meta['space']['embedder']}.",
    )


def _effect_of_normalization(axes: Any, values: Any) -> None:
    colors = dict(zip(values, (plotting.RED, plotting.MUTED), strict=True))
    plotting.dots(axes, ["NN", "SIFT"], values, colors)
    plotting.reference_line(axes, 100, horizontal=False)
    axes.set_xlabel(PERCENT)


def negative_cosines(run: Run) -> Artifact:
    """Insight 7: SIFT with and without candidates of negative cosine, on gradient embeddings."""
    positive = "sift(metric=cosine)"
    methods = {"nearest": "NN", "sift": "SIFT", positive: "SIFT, positive only"}
    curves = over_steps(run, methods=methods, pair=("sift", positive))
    negative = [np.mean(np.array(cosines) < 0) for cosines in run.prompts["cosines"].to_pylist()]
    share = mean_estimate(100 * np.array(negative))
    space = run.meta["space"]
    return Artifact(
        columns=curves.columns,
        rows=curves.rows,
        n=curves.n,
        draw=curves.draw,
        numbers={**curves.numbers, "candidates of negative cosine, %": share},
        note=f"Embedder: {space['embedder']}; {space['documents']:,} documents.",
    )


def curves_by_model(main: Run, small: Run) -> Artifact:
    """Figures 16 and 17: the core methods and SIFT's λ' against gradient steps, by model."""
    main, small = align_runs(main, small)
    methods = {m: plotting.label(m) for m in (*CORE, "sift(0.1)", "sift(10)")}
    curves = {
        model_of(run): {methods[m]: learning_curve(run, m) for m in present(run, list(methods))}
        for run in (small, main)
    }
    rows: Rows = [
        (model, label, *points)
        for model, by_label in curves.items()
        for label, points in by_label.items()
    ]
    colors = {label: plotting.COLORS[m] for m, label in methods.items()}
    return Artifact(
        columns=("model", "method", *(f"{step} steps" for step in main.steps)),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_curves_by_model, steps=main.steps, curves=curves, colors=colors),
        panels=2,
        width=5.0,
        numbers={
            f"{SHORT[m]}, main − small": mean_estimate(main.ratio(m) - small.ratio(m))
            for m in ("nearest-repeated", "sift")
        },
    )


def _curves_by_model(axes: Any, steps: Any, curves: Any, colors: dict[str, str]) -> None:
    for panel, (model, by_label) in zip(axes, curves.items(), strict=True):
        _over_steps(panel, steps, by_label, colors)
        panel.set_title(model)


def scaling_law(run: Run) -> Artifact:
    """Section 6's outlook: bits per byte as a power law of test-time compute.

    The law is percent of base after n steps ≈ a (1 + n)^−b, fitted by least squares in logarithms
    over the scored steps; the interval of b is over prompts.
    """
    methods = ("sift", "sift(0.1)", "nearest")
    steps = np.log1p(np.array(run.steps, float))
    exponents: dict[str, Estimate] = {}
    for method in methods:
        percents = np.stack([run.ratio(method, step) for step in run.steps], axis=1)
        exponents[plotting.label(method)] = bootstrap(
            percents, lambda rows: float(-np.polyfit(steps, np.log(rows.mean(axis=0)), 1)[0])
        )
    curves = {plotting.label(m): learning_curve(run, m) for m in methods}
    rows: Rows = [(label, b, *curves[label]) for label, b in exponents.items()]
    return Artifact(
        columns=("method", "exponent b", *(f"{step} steps" for step in run.steps)),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_scaling_law, steps=run.steps, curves=curves, exponents=exponents),
        numbers={"exponent of SIFT": exponents["SIFT"]},
    )


def _scaling_law(axes: Any, steps: Any, curves: Any, exponents: Any) -> None:
    x = 1 + np.array(steps, float)
    axes.set(xscale="log", yscale="log", xlabel=f"1 + {STEPS}", ylabel=PERCENT)
    labels = []
    for name, points in curves.items():
        color = {"SIFT": plotting.RED, "NN": plotting.INK}.get(name, plotting.ORANGE)
        values = np.array([p.value for p in points])
        axes.plot(x, values, "o", ms=3.5, color=color)
        slope, level = np.polyfit(np.log(x), np.log(values), 1)
        axes.plot(x, np.exp(level + slope * np.log(x)), color=color, lw=1)
        labels.append((values[-1], f"{name}, b = {exponents[name].value:.3f}", color))
    plotting.label_ends(axes, x[-1], labels)
    plotting.plain_ticks(axes.xaxis)
    plotting.plain_ticks(axes.yaxis)
