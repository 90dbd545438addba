"""The paper's tables as views of runs. Source: SIFT, arXiv 2410.08020; table by table below."""

from functools import partial
from typing import Any

import numpy as np

from whet.evaluate.report.table import RIVALS, SHORT, report
from whet.evaluate.reproduce import style
from whet.evaluate.reproduce.measures import (
    LAMBDAS,
    aligned,
    apart,
    assert_holds,
    bits_per_byte,
    noise,
    over_sets,
    parts,
    present,
    relative,
    sets,
    share,
)
from whet.evaluate.reproduce.shown import Rows, Shown
from whet.evaluate.results import Run
from whet.evaluate.uncertainty import KINDS, correlations
from whet.maths.statistics import Estimate

HARD = ("dm_math", "github", "arxiv", "freelaw")  # Insight 10's sets, as the stand-ins are called
TALL, ROW = 1.2, 0.42  # inches of a picture with a row a set
ENCYCLOPAEDIA = "wikipedia"


def by_set(run: Run) -> Shown:
    """Tables 1 and 4: US, NN, NN-F and SIFT in % of base, set by set."""
    assert_holds(run, *RIVALS, "sift")
    lines = report(run).lines
    methods = [*RIVALS, "sift"]
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
    names = [line.name for line in lines]
    values = {SHORT[m]: [line.methods[m] for line in lines] for m in methods}
    over = next((line for line in lines if line.name == "all, by prompt"), lines[0])
    return Shown(
        columns=("set", "n", "base", *(SHORT[m] for m in methods), "Δ", "SIFT − NN"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(
            _dots, names=names, values=values, colours={SHORT[m]: style.COLOURS[m] for m in methods}
        ),
        width=7.2,
        height=TALL + ROW * len(rows),
        numbers={"SIFT − NN": over.paired["sift"], "SIFT": over.methods["sift"]},
    )


def _dots(axes: Any, names: list[str], values: Any, colours: Any) -> None:
    style.dots(axes, names, values, colours)
    style.reference(axes, 100, "base", across=False)
    axes.set_xlabel("bits per byte, % of base")


def absolute(main: Run, small: Run) -> Shown:
    """Table 2: bits per byte of base models and of the same models sharpened."""
    main, small = aligned(main, small)
    kinds = [(run, method) for run in (small, main) for method in (None, "sift")]
    rows: Rows = []
    reached: dict[str, Estimate] = {}
    for run, method in kinds:
        name = run.meta["switches"]["model"] + (" + SIFT" if method else "")
        others = run.column("set") != ENCYCLOPAEDIA
        apart_from = run.keep(others) if others.any() and not others.all() else None
        without = None if apart_from is None else over_sets(
            apart_from, bits_per_byte(apart_from, method)
        )  # fmt: skip
        reached[name] = over_sets(run, bits_per_byte(run, method))
        rows.append((name, reached[name], without))
    difference = over_sets(main, bits_per_byte(small, "sift"), bits_per_byte(main, None))
    return Shown(
        columns=("model", "bits per byte", "without Wikipedia"),
        rows=tuple(rows),
        n=len(main),
        draw=partial(_absolute, names=list(reached), values=list(reached.values())),
        numbers={"small + SIFT − main base": difference},
    )


def _absolute(axes: Any, names: list[str], values: list[Estimate]) -> None:
    colours = [style.MUTED if i % 2 == 0 else style.RED for i in range(len(names))]
    style.bars(axes, names, {"": values}, {"": style.MUTED}, digits=3)
    for bar, shade in zip(axes.patches, colours, strict=True):
        bar.set_color(shade)
    axes.set_xlabel("bits per byte")


def in_context(run: Run, *, tuned: str = "sift") -> Shown:
    """Tables 6 to 8: the same texts in front of the prompt, or stepped on, set by set."""
    context = "sift(use=context)"
    assert_holds(run, context, tuned)
    methods = present(run, [context, tuned, "sift(use=both)"])
    own = parts(run)
    rows: Rows = [
        (name, len(part), *(share(part, m) for m in methods), apart(part, tuned, context))
        for name, part in own.items()
    ]
    names = {context: "in context", tuned: "steps", "sift(use=both)": "both"}
    numbers = {"steps − in context": apart(run, tuned, context)}
    hard = np.isin(run.column("set").astype(str), HARD)
    if hard.any():
        numbers["steps − in context, hard sets"] = apart(run.keep(hard), tuned, context)
    values = {names[m]: [share(part, m) for part in own.values()] for m in methods}
    return Shown(
        columns=("set", "n", *(names[m] for m in methods), "steps − in context"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(
            _dots,
            names=list(own),
            values=values,
            colours={"in context": style.BLUE, "steps": style.RED, "both": style.PURPLE},
        ),
        width=7.2,
        height=TALL + ROW * len(rows),
        numbers=numbers,
    )


def noises(run: Run) -> Shown:
    """Table 11: SIFT(λ') in % of base for every λ', set by set."""
    methods = LAMBDAS
    assert_holds(run, *methods, "nearest")
    own = parts(run)
    rows: Rows = [
        (name, len(part), *(share(part, m) for m in methods), share(part, "nearest"))
        for name, part in own.items()
    ]
    differences = {m: apart(run, m, "nearest") for m in methods}
    worst = max(differences, key=lambda m: differences[m].value)
    best = min(differences, key=lambda m: differences[m].value)
    per_set = [[relative(part, m, "nearest").value for m in methods] for part in sets(run).values()]
    return Shown(
        columns=("set", "n", *(f"λ'={noise(m):g}" for m in methods), "NN"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(
            _noises,
            x=[noise(m) for m in methods],
            mean=[relative(run, m, "nearest") for m in methods],
            per_set=per_set,
        ),
        numbers={"worst λ' − NN": differences[worst], "best λ' − NN": differences[best]},
        note=f"Worst over all prompts: λ' = {noise(worst):g}; best: {noise(best):g}.",
    )


def _noises(axes: Any, x: list[float], mean: list[Estimate], per_set: list[list[float]]) -> None:
    for values in per_set:
        axes.plot(x, values, color=style.MUTED, lw=0.8, alpha=0.5)
    axes.set_xscale("log")
    style.lines(axes, x, {"all prompts": mean}, {"all prompts": style.RED})
    style.reference(axes, 100, "NN")
    axes.set(xlabel="λ'", ylabel="bits per byte, % of NN's")
    axes.set_title("thin lines: one set each")


def predictive(run: Run) -> Shown:
    """Table 12: how σ, and σ scaled by the base model's loss, go with bits per byte and gain."""
    assert_holds(run, "sift")
    found = correlations(run, "sift")
    cells = {(c.predictor, c.target, c.kind): c.estimate for c in found}
    pairs = list(dict.fromkeys((c.predictor, c.target) for c in found))
    rows: Rows = [(p, t, *(cells[p, t, kind] for kind in KINDS)) for p, t in pairs]
    values = {kind: [cells[p, t, kind] for p, t in pairs] for kind in KINDS}
    return Shown(
        columns=("predictor", "of", *KINDS),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_predictive, names=[f"{p}: {t}" for p, t in pairs], values=values),
        width=7.2,
        height=TALL + ROW * len(rows),
        numbers={
            "σ with bits per byte": cells["σ", "bits per byte", "Pearson"],
            "σ̂ with bits per byte": cells["σ̂ of the text", "bits per byte", "Pearson"],
            "σ with gain": cells["σ", "gain", "Spearman"],
        },
        note=f"After {run.steps[-1]} steps.",
    )


def _predictive(axes: Any, names: list[str], values: Any) -> None:
    style.dots(axes, names, values, dict(zip(KINDS, style.SERIES, strict=False)))
    style.reference(axes, 0, across=False)
    axes.set_xlabel("correlation over prompts")
