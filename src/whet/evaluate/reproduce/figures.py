"""The paper's figures of selection as views of runs. Source: SIFT, arXiv 2410.08020."""

from functools import partial
from typing import Any

import numpy as np

from whet.evaluate.report.table import SHORT
from whet.evaluate.reproduce import style
from whet.evaluate.reproduce.measures import (
    LAMBDAS,
    aligned,
    apart,
    assert_holds,
    bits_per_byte,
    curve,
    distinct,
    noise,
    over_sets,
    present,
    relative,
    share,
)
from whet.evaluate.reproduce.shown import Rows, Shown
from whet.evaluate.results import Run
from whet.maths.statistics import Estimate, bootstrap, mean_estimate

STEPS = "gradient steps"
PERCENT = "bits per byte, % of base"
CORE = ("uncertainty", "nearest", "nearest-repeated", "sift")


def over_steps(
    run: Run,
    *,
    methods: dict[str, str],
    pair: tuple[str, str] | None = None,
    title: str = "",
) -> Shown:
    """Figures 1, 13, 14, 15 and 18: % of base against steps; `methods` maps each to its name.

    With a `pair`, the first minus the second after the last step is what the claim rests on.
    """
    curves = {name: curve(run, method) for method, name in methods.items()}
    rows: Rows = [(name, *points) for name, points in curves.items()]
    numbers = {name: points[-1] for name, points in curves.items()}
    if pair:
        numbers[f"{methods[pair[0]]} − {methods[pair[1]]}"] = apart(run, *pair)
    colours = {name: style.COLOURS[m] for m, name in methods.items() if m in style.COLOURS}
    return Shown(
        columns=("method", *(f"{step} steps" for step in run.steps)),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_over_steps, steps=run.steps, curves=curves, colours=colours, title=title),
        numbers=numbers,
    )


def _over_steps(axes: Any, steps: Any, curves: Any, colours: Any, title: str) -> None:
    style.reference(axes, 100, "base")
    style.lines(axes, steps, curves, colours)
    axes.set(xlabel=STEPS, ylabel=PERCENT)
    axes.set_title(title)
    style.whole(axes)


def models(main: Run, small: Run) -> Shown:
    """Figure 5: the core methods by model, and SIFT by λ'."""
    main, small = aligned(main, small)
    runs = {run.meta["switches"]["model"]: run for run in (small, main)}
    names = [SHORT[m] for m in CORE]
    shares = {name: [share(run, m) for m in CORE] for name, run in runs.items()}
    sweeps = {
        name: (present(run, LAMBDAS), [share(run, m) for m in present(run, LAMBDAS)])
        for name, run in runs.items()
    }
    rows: Rows = [
        (name, SHORT[m], None, share(run, m)) for name, run in runs.items() for m in CORE[:-1]
    ]
    for name, (methods, values) in sweeps.items():
        rows += [(name, "SIFT", noise(m), v) for m, v in zip(methods, values, strict=True)]
    gaps = {name: apart(run, "sift", "nearest") for name, run in runs.items()}
    difference = mean_estimate(_gap(main) - _gap(small))
    return Shown(
        columns=("model", "method", "λ'", PERCENT),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_models, names=names, shares=shares, sweeps=sweeps),
        panels=2,
        width=4.6,
        numbers={f"SIFT − NN, {name}": gap for name, gap in gaps.items()}
        | {"SIFT − NN, main − small": difference},
    )


def _gap(run: Run) -> Any:
    return run.ratio("sift") - run.ratio("nearest")


def _models(axes: Any, names: list[str], shares: Any, sweeps: Any) -> None:
    colours = dict(zip(shares, (style.SKY, style.BLUE), strict=True))
    style.dots(axes[0], names, shares, colours)
    style.reference(axes[0], 100, across=False)
    axes[0].set_xlabel(PERCENT)
    for name, (methods, values) in sweeps.items():
        axes[1].set_xscale("log")
        style.lines(axes[1], [noise(m) for m in methods], {name: values}, colours)
    style.reference(axes[1], 100, "base")
    axes[1].set(xlabel="λ' of SIFT", ylabel=PERCENT)


def unique_points(run: Run) -> Shown:
    """Figure 6: SIFT against NN and NN-F, over all prompts and by how many texts SIFT tells apart.

    Few: at most a fifth of the steps; many: more than half.
    """
    assert_holds(run, *CORE[1:])
    different, n = distinct(run, "sift"), run.meta["switches"]["n"]
    masks = {
        "all prompts": different > 0,
        f"at most {n // 5} different": (different > 0) & (different <= n / 5),
        f"more than {n // 2} different": different > n / 2,
    }
    kept = {name: run.keep(mask) for name, mask in masks.items() if mask.any()}
    values = {
        "of NN": [relative(part, "sift", "nearest") for part in kept.values()],
        "of NN-F": [relative(part, "sift", "nearest-repeated") for part in kept.values()],
    }
    rows: Rows = [(name, len(part)) for name, part in kept.items()]
    many = list(masks)[2]
    numbers = {"different texts": mean_estimate(different)}
    if many in kept:
        numbers["SIFT − NN-F where many"] = apart(kept[many], "sift", "nearest-repeated")
    if (few := list(masks)[1]) in kept:
        numbers["SIFT − NN where few"] = apart(kept[few], "sift", "nearest")
    return Shown(
        columns=("prompts", "n", "SIFT in % of NN", "SIFT in % of NN-F"),
        rows=tuple(
            (*row, a, b) for row, a, b in zip(rows, *values.values(), strict=True)
        ),
        n=len(run),
        draw=partial(_unique, names=list(kept), values=values),
        numbers=numbers,
    )  # fmt: skip


def _unique(axes: Any, names: list[str], values: Any) -> None:
    style.dots(axes, names, values, {"of NN": style.INK, "of NN-F": style.MUTED})
    style.reference(axes, 100, across=False)
    axes.set_xlabel("bits per byte of SIFT, %")


def steps_or_context(main: Run, small: Run) -> Shown:
    """Figure 7: base, in context and sharpened, bits per byte by model."""
    main, small = aligned(main, small)
    kinds = {"base": None, "in context": "sift(use=context)", "sharpened": "sift"}
    runs = {run.meta["switches"]["model"]: run for run in (small, main)}
    values = {
        kind: [over_sets(run, bits_per_byte(run, method)) for run in runs.values()]
        for kind, method in kinds.items()
    }
    rows: Rows = [(name, *(values[kind][i] for kind in kinds)) for i, name in enumerate(runs)]
    gap = over_sets(main, bits_per_byte(main, "sift"), bits_per_byte(main, kinds["in context"]))
    return Shown(
        columns=("model", *kinds),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_steps_or_context, names=list(runs), values=values),
        numbers={"sharpened − in context": gap},
    )


def _steps_or_context(axes: Any, names: list[str], values: Any) -> None:
    colours = {"base": style.MUTED, "in context": style.BLUE, "sharpened": style.RED}
    style.bars(axes, names, values, colours, digits=3)
    axes.set_xlabel("bits per byte, sets of equal weight")


def data_size(whole: Run, third: Run, thirtieth: Run) -> Shown:
    """Figure 10: SIFT in % of NN from 3, 33 and 100 % of the data space."""
    runs = dict(zip(("3 %", "33 %", "100 %"), aligned(thirtieth, third, whole), strict=True))
    shares = {
        SHORT[m]: [share(run, m) for run in runs.values()] for m in ("nearest", "sift")
    }  # fmt: skip
    ratios = [relative(run, "sift", "nearest") for run in runs.values()]
    rows: Rows = [
        (name, run.meta["space"]["documents"], shares["NN"][i], shares["SIFT"][i], ratios[i])
        for i, (name, run) in enumerate(runs.items())
    ]
    small, large = runs["3 %"], runs["100 %"]
    grows = mean_estimate(_gap(large) - _gap(small))
    return Shown(
        columns=("of the data", "documents", "NN", "SIFT", "SIFT in % of NN"),
        rows=tuple(rows),
        n=len(large),
        draw=partial(_data_size, names=list(runs), ratios=ratios),
        numbers={"SIFT − NN, 100 % − 3 %": grows},
    )


def _data_size(axes: Any, names: list[str], ratios: list[Estimate]) -> None:
    style.lines(axes, range(len(names)), {"SIFT": ratios}, {"SIFT": style.RED})
    style.reference(axes, 100, "NN")
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="share of the data space", ylabel="bits per byte, % of NN's")


def lengths(unit: Run, raw: Run) -> Shown:
    """Figure 11: NN and SIFT with normalised embeddings and without."""
    unit, raw = aligned(unit, raw)
    names = {"normalised": unit, "as they are": raw}
    values = {
        name: [share(run, m) for m in ("nearest", "sift")] for name, run in names.items()
    }  # fmt: skip
    rows: Rows = [(name, *values[name]) for name in names]
    paired = {
        SHORT[m]: mean_estimate(unit.ratio(m) - raw.ratio(m)) for m in ("nearest", "sift")
    }  # fmt: skip
    return Shown(
        columns=("embeddings", "NN", "SIFT"),
        rows=tuple(rows),
        n=len(unit),
        draw=partial(_lengths, values=values),
        numbers={f"normalised − not, {name}": value for name, value in paired.items()},
        note=f"Embedder {unit.meta['space']['embedder']}.",
    )


def _lengths(axes: Any, values: Any) -> None:
    style.dots(axes, ["NN", "SIFT"], values, {"normalised": style.RED, "as they are": style.MUTED})
    style.reference(axes, 100, across=False)
    axes.set_xlabel(PERCENT)


def negative(run: Run) -> Shown:
    """Insight 7: SIFT with and without the candidates of negative cosine, in a gradient space."""
    methods = {"nearest": "NN", "sift": "SIFT", "sift(sign=positive)": "SIFT, positive only"}
    below = np.array([np.mean(np.array(c) < 0) for c in run.prompts["cosines"].to_pylist()])
    base = over_steps(run, methods=methods, pair=("sift", "sift(sign=positive)"))
    return Shown(
        columns=base.columns,
        rows=base.rows,
        n=base.n,
        draw=base.draw,
        numbers={
            **base.numbers,
            "candidates of negative cosine, %": mean_estimate(100 * below),
        },
        note=f"Embedder {run.meta['space']['embedder']}, {run.meta['space']['documents']:,} texts.",
    )


def larger_learns_faster(main: Run, small: Run) -> Shown:
    """Figures 16 and 17: the core methods and SIFT's λ' against steps, by model."""
    main, small = aligned(main, small)
    runs = {run.meta["switches"]["model"]: run for run in (small, main)}
    methods = {m: SHORT[m] for m in CORE} | {
        m: f"SIFT({noise(m):g})" for m in ("sift(0.1)", "sift(10)")
    }
    curves = {
        model: {name: curve(run, m) for m, name in methods.items() if m in run.methods}
        for model, run in runs.items()
    }
    rows: Rows = [
        (model, name, *points) for model, own in curves.items() for name, points in own.items()
    ]  # fmt: skip
    overfits = mean_estimate(main.ratio("nearest-repeated") - small.ratio("nearest-repeated"))
    colours = {name: style.COLOURS[m] for m, name in methods.items()}
    return Shown(
        columns=("model", "method", *(f"{step} steps" for step in main.steps)),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_by_model, steps=main.steps, curves=curves, colours=colours),
        panels=2,
        width=5.0,
        numbers={
            "NN-F, main − small": overfits,
            "SIFT, main − small": mean_estimate(main.ratio("sift") - small.ratio("sift")),
        },
    )


def _by_model(axes: Any, steps: Any, curves: Any, colours: dict[str, str]) -> None:
    for own, (model, lines) in zip(axes, curves.items(), strict=True):
        style.reference(own, 100, "base")
        style.lines(own, steps, lines, colours)
        own.set(xlabel=STEPS, ylabel=PERCENT)
        own.set_title(model)
        style.whole(own)


def scaling(run: Run) -> Shown:
    """Section 6's outlook: a power law of bits per byte in test-time compute.

    % of base after n steps ≈ a (1 + n)^−b: least squares in logarithms over the scored steps; the
    interval of b is over prompts.
    """
    methods = ("sift", "sift(0.1)", "nearest")
    steps = np.log1p(np.array(run.steps, float))
    fits: dict[str, Estimate] = {}
    for method in methods:
        shares = np.stack([run.ratio(method, step) for step in run.steps], axis=1)
        fits[style.label(method)] = bootstrap(
            shares, lambda rows: float(-np.polyfit(steps, np.log(rows.mean(axis=0)), 1)[0])
        )
    curves = {style.label(m): curve(run, m) for m in methods}
    rows: Rows = [(name, fit, *curves[name]) for name, fit in fits.items()]
    return Shown(
        columns=("method", "exponent b", *(f"{step} steps" for step in run.steps)),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_scaling, steps=run.steps, curves=curves, fits=fits),
        numbers={"exponent of SIFT": fits["SIFT"]},
    )


def _scaling(axes: Any, steps: Any, curves: Any, fits: Any) -> None:
    x = 1 + np.array(steps, float)
    axes.set(xscale="log", yscale="log", xlabel="1 + gradient steps", ylabel=PERCENT)
    for name, points in curves.items():
        shade = {"SIFT": style.RED, "NN": style.INK}.get(name, style.ORANGE)
        values = np.array([p.value for p in points])
        axes.plot(x, values, "o", ms=3.5, color=shade)
        slope, level = np.polyfit(np.log(x), np.log(values), 1)
        axes.plot(x, np.exp(level + slope * np.log(x)), color=shade, lw=1)
    ends = [
        (c[-1].value, f"{name}, b = {fits[name].value:.3f}",
         {"SIFT": style.RED, "NN": style.INK}.get(name, style.ORANGE))
        for name, c in curves.items()
    ]  # fmt: skip
    style.name_ends(axes, x[-1], ends)
    style.plain_ticks(axes.xaxis)
    style.plain_ticks(axes.yaxis)
