"""What compute buys: σ as a guide to it, seconds by method. Source: SIFT, Section 6."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whet.evaluate.costs import Cost, costs
from whet.evaluate.reproduce import style
from whet.evaluate.reproduce.measures import apart, assert_holds, present
from whet.evaluate.reproduce.shown import Rows, Shown
from whet.evaluate.results import PHASES, Run
from whet.evaluate.uncertainty import ALPHAS, calibration, correlation, stopped_at, stops
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, mean_estimate, resampled

PLANE = ("sift", "sift(0.1)", "nearest", "hull", "hull(reuse=2)", "mmr", "random", "uncertainty")
DENSE = 400  # points from which a density is drawn instead of them


def reliability(run: Run) -> Shown:
    """Figure 8: σ̂ against bits per byte, its reliability, and % of base by adaptive steps."""
    base = run.column("base_bits") / run.column("bytes")
    steps = run.steps[1:]
    predicted = np.concatenate([run.sigma("sift", step) * base for step in steps])
    after = np.concatenate([run.bits("sift", step) / run.column("bytes") for step in steps])
    found = calibration(run, "sift")
    taken, shares = stopped(run)
    groups = {int(n): mean_estimate(shares[taken == n]) for n in np.unique(taken)}
    rows: Rows = [("reliability", b.n, b.predicted, b.bits_per_byte, None) for b in found.bins]
    rows += [("adaptive", e.n, float(n), None, e) for n, e in groups.items()]
    last = run.sigma("sift") * base
    return Shown(
        columns=("part", "n", "σ̂, or steps taken", "bits per byte", "% of base"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(
            _reliability, predicted=predicted, after=after, found=found, groups=groups
        ),
        panels=3,
        width=4.2,
        numbers={
            "σ̂ with bits per byte": correlation(
                last, run.bits("sift") / run.column("bytes"), "Pearson"
            ),
        },
        note=f"Left: the {len(steps)} scored steps of every prompt; line: least squares.",
    )  # fmt: skip


def stopped(run: Run) -> tuple[Array, Array]:
    """Steps that adaptive SIFT takes by any α of a grid, and the % of base reached, all prompts.

    Counted to the last scored step before the stop, as `stops` does.
    """
    rows = np.tile(np.arange(len(run)), len(ALPHAS))
    at = np.concatenate([stopped_at(run, "sift", alpha) for alpha in ALPHAS])
    rows, at = np.unique(np.stack([rows, at]), axis=1)  # a prompt counts once where it stops
    percent = np.stack([run.ratio("sift", step) for step in run.steps], axis=1)
    return np.array(run.steps)[at], percent[rows, at]


def _reliability(axes: Any, predicted: Array, after: Array, found: Any, groups: Any) -> None:
    density, bins, adaptive = axes
    if len(predicted) >= DENSE:
        density.hexbin(predicted, after, gridsize=40, bins="log", cmap="Oranges", linewidths=0)
    else:
        density.scatter(predicted, after, s=9, color=style.RED, alpha=0.5, lw=0)
    density.set(xlabel="σ̂ = σ × base bits per byte", ylabel="bits per byte")
    density.set_title("every prompt and step")
    bins.plot([b.predicted for b in found.bins], [b.bits_per_byte for b in found.bins], "o-",
              color=style.INK, ms=4)  # fmt: skip
    line = np.array([found.bins[0].predicted, found.bins[-1].predicted])
    bins.plot(line, found.intercept + found.slope * line, color=style.RED, lw=1)
    bins.set(xlabel="σ̂, bins of equal size", ylabel="bits per byte")
    bins.set_title(f"reliability, slope {found.slope:.2f}")
    x, points = list(groups), list(groups.values())
    adaptive.errorbar(x, [p.value for p in points], yerr=style.ends(points), fmt="o-", ms=4,
                      color=style.RED, ecolor=style.RED, elinewidth=1)  # fmt: skip
    style.reference(adaptive, 100, "base")
    adaptive.set(xlabel="steps taken before adaptive stopping", ylabel="bits per byte, % of base")
    adaptive.set_title("compute-proportional")


def proportional(run: Run) -> Shown:
    """Figure 26, as Section 6 tells of it: mean steps and % of base of every stopping rule."""
    found = stops(run, "sift")
    rows: Rows = [(stop.rule, stop.steps, stop.percent, stop.regret) for stop in found]
    kinds = {
        "oracle": [s for s in found if s.rule == "oracle"],
        "adaptive": sorted((s for s in found if s.rule.startswith("α")), key=lambda s: s.steps),
        "fixed": [s for s in found if s.rule.endswith(" steps")],
    }
    least = min(kinds["adaptive"], key=lambda s: s.regret.value)
    return Shown(
        columns=("rule", "steps", "% of base", "regret over the oracle"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_proportional, kinds=kinds),
        numbers={"regret of the best α": least.regret, "adaptive − fixed": over_fixed(run)},
        note=(
            "`adaptive − fixed`: at equal mean steps, the mean over α, in points; its interval is "
            "over prompts."
        ),
    )


def over_fixed(run: Run) -> Estimate:
    """% of base of adaptive SIFT minus that of as many steps for all, the mean over α.

    Between scored steps the curve is a line in log(1 + steps): it is far from one in the steps.
    """
    steps = np.array(run.steps, np.float64)
    at_steps = np.log1p(steps)
    percent = np.stack([run.ratio("sift", step) for step in run.steps], axis=1)
    places = [stopped_at(run, "sift", alpha) for alpha in ALPHAS]

    def gaps(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        fixed = percent[draws].mean(axis=1)
        made = np.zeros(len(draws))
        for at in places:
            taken = steps[at[draws]].mean(axis=1)
            pairs = zip(np.log1p(taken), fixed, strict=True)
            even = [np.interp(s, at_steps, line) for s, line in pairs]
            made += percent[draws, at[draws]].mean(axis=1) - even
        return made / len(places)

    return resampled(len(run), gaps)


def _proportional(axes: Any, kinds: Any) -> None:
    shades = {"fixed": style.INK, "adaptive": style.RED, "oracle": style.GREEN}
    for kind, own in kinds.items():
        x, y = [stop.steps for stop in own], [stop.percent.value for stop in own]
        axes.plot(x, y, "o-", color=shades[kind], ms=4)
        at = 0 if kind == "oracle" else len(own) // 2
        axes.annotate(
            kind, (x[at], y[at]), xytext=(5, 9 if kind == "adaptive" else -13),
            textcoords="offset points", color=shades[kind],
        )  # fmt: skip
    axes.set(xlabel="gradient steps, mean over prompts", ylabel="bits per byte, % of base")


def plane(run: Run) -> Shown:
    """HullFT's plane (arXiv 2605.30337): quality against all seconds but those of scoring."""
    assert_holds(run, "sift", "hull", "nearest")
    made = costs(run)
    methods = present(run, PLANE)
    points = {style.label(m): [p for p in made.of(m) if p.step] for m in methods}
    rows: Rows = [
        (name, p.step, p.total, p.percent) for name, own in points.items() for p in own
    ]  # fmt: skip
    numbers = {f"seconds of {name}": own[-1].total for name, own in points.items()}
    numbers["SIFT − hull"] = apart(run, "sift", "hull")
    return Shown(
        columns=("method", "steps", "seconds", "% of base"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_plane, points=points),
        width=6.4,
        numbers=numbers,
    )


def _plane(axes: Any, points: dict[str, list[Cost]]) -> None:
    axes.set_xscale("log")
    ends = []
    for name, own in points.items():
        shade = style.COLOURS[own[0].method]
        axes.plot([p.total.value for p in own], [p.percent.value for p in own], "o-", ms=3.5,
                  color=shade)  # fmt: skip
        ends.append((own[-1].percent.value, name, shade))
    style.reference(axes, 100, "base")
    right = max(p.total.value for own in points.values() for p in own)
    style.name_ends(axes, right, ends)
    axes.set(xlabel="seconds a prompt: embed, search, select, train", ylabel="% of base")
    style.plain_ticks(axes.xaxis)


def inference(run: Run) -> Shown:
    """Appendix I.3: seconds of a prompt by phase, and in multiples of scoring it once."""
    assert_holds(run, "sift")
    made = costs(run)
    once = float(run.column("base_s").mean())
    last = [p for p in made.points if p.step == run.steps[-1]]
    phases = [phase.removesuffix("_s") for phase in PHASES[:-1]]
    rows: Rows = [
        (style.label(p.method), p.tokens, *(p.seconds[phase] for phase in phases), p.total,
         p.total.value / once)
        for p in last
    ]  # fmt: skip
    used, scoring = run.seconds("sift"), run.column("base_s")
    ratio = resampled(len(run), lambda rows: used[rows].sum(1) / scoring[rows].sum(1))
    chosen = run.seconds("sift", phases=("embed_s", "search_s", "select_s"))
    return Shown(
        columns=("method", "tokens", *phases, "seconds", "× one scoring"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_inference, last=last, phases=phases),
        width=6.4,
        numbers={
            "SIFT, × one scoring": ratio,
            "retrieval, % of the seconds": mean_estimate(100 * chosen / run.seconds("sift")),
        },
        note=f"Peak memory of a process: {made.peak_mib:,.0f} MiB. One scoring: {once:.2f} s.",
    )


def _inference(axes: Any, last: list[Cost], phases: list[str]) -> None:
    names, left = [style.label(p.method) for p in last], np.zeros(len(last))
    for phase, shade in zip(phases, (style.SKY, style.BLUE, style.ORANGE, style.RED), strict=True):
        own = np.array([p.seconds[phase] for p in last])
        axes.barh(names, own, left=left, color=shade, label=phase, height=0.7)
        left += own
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds a prompt")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)
