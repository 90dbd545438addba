"""What compute buys: σ as a predictor of the error, stopping rules, and seconds by method.

Source: SIFT, arXiv 2410.08020, Section 6 and Appendix I.3.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from studies import plotting
from studies.artifact import Artifact, Rows
from studies.metrics import check_methods, paired_difference, percent_of_base, present
from whet.evaluate.report.costs import Cost, costs
from whet.evaluate.report.uncertainty import (
    ALPHAS,
    adaptive_steps,
    calibration,
    correlation,
    pooled_pearson,
    stopped_at,
    stops,
)
from whet.evaluate.results import PHASES, Run
from whet.maths.arrays import Array
from whet.maths.statistics import Estimate, mean_estimate, resampled

COMPARED = (
    "sift", "sift(0.1)", "nearest", "hull", "hull(gradient_reuse=2)", "mmr", "random",
    "uncertainty", "streaming",
)  # fmt: skip
ALPHA = 0.15  # of adaptive SIFT in Figure 8; the paper's value was not available
MIN_DENSITY = 400  # from this many points on, a density is drawn instead of the points


def uncertainty_reliability(run: Run) -> Artifact:
    """Figure 8: σ̂ against bits per byte, its reliability, and the gain of prompts still trained."""
    base = run.column("base_bits") / run.column("bytes")
    steps = run.steps[1:]
    sigma = np.stack([run.sigma("sift", step) for step in steps], axis=1)
    measured = np.stack([run.bits("sift", step) / run.column("bytes") for step in steps], axis=1)
    predicted = sigma * base[:, None]
    reliability = calibration(run, "sift")
    trained = still_trained(run, ALPHA)
    rows: Rows = [
        ("reliability", b.n, b.predicted, b.bits_per_byte, None, None) for b in reliability.bins
    ]
    rows += [
        ("still trained", e.n, float(step), None, e, percent_of_base(run, "sift", step))
        for step, e in trained.items()
    ]
    last = run.bits("sift") / run.column("bytes")
    numbers = {
        "σ̂ with bits per byte": correlation(run.sigma("sift") * base, last, "Pearson"),
        "σ with bits per byte, all steps": pooled_pearson(sigma, measured),
        "σ̂ with bits per byte, all steps": pooled_pearson(predicted, measured),
    }
    if steps[-1] in trained:
        at = adaptive_steps(run.trajectories("sift"), ALPHA) >= steps[-1]
        numbers["still trained − all"] = still_trained_minus_all(run, at)
    return Artifact(
        columns=("part", "n", "σ̂, or steps", "bits per byte", "% of base", "% of base of all"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(
            _uncertainty_reliability,
            predicted=predicted.ravel(),
            measured=measured.ravel(),
            reliability=reliability,
            trained=trained,
        ),
        panels=3,
        width=4.2,
        numbers=numbers,
        note=(
            f"The left panel has the {len(steps)} scored steps of every prompt; the line is a "
            "least-squares fit. The right panel has, at each step, the prompts that adaptive SIFT "
            f"with α = {ALPHA:g} still trains; `still trained − all` compares them with all "
            "prompts after the last step."
        ),
    )


def still_trained(run: Run, alpha: float) -> dict[int, Estimate]:
    """Percent of base at every scored step, of the prompts that adaptive SIFT still trains then."""
    taken = adaptive_steps(run.trajectories("sift"), alpha)
    return {
        step: mean_estimate(run.ratio("sift", step)[taken >= step])
        for step in run.steps
        if (taken >= step).any()
    }


def still_trained_minus_all(run: Run, mask: Array) -> Estimate:
    """Mean percent of base after the last step of the prompts in `mask`, minus that of all."""
    percent = run.ratio("sift")

    def difference(draws: Int[Array, "r n"]) -> Float[Array, " r"]:
        chosen = mask[draws]
        sums, counts = (percent[draws] * chosen).sum(axis=1), chosen.sum(axis=1)
        means = percent[draws].mean(axis=1)
        result: Float[Array, " r"] = np.where(counts > 0, sums / np.maximum(counts, 1) - means, 0)
        return result

    estimate = resampled(len(run), difference)
    return replace(estimate, n=int(mask.sum()))


def _uncertainty_reliability(
    axes: Any, predicted: Array, measured: Array, reliability: Any, trained: dict[int, Estimate]
) -> None:
    density, bins, adaptive = axes
    if len(predicted) >= MIN_DENSITY:
        density.hexbin(predicted, measured, gridsize=40, bins="log", cmap="Oranges", linewidths=0)
    else:
        density.scatter(predicted, measured, s=9, color=plotting.RED, alpha=0.5, lw=0)
    density.set(xlabel="σ̂ = σ × base bits per byte", ylabel="bits per byte")
    density.set_title("every prompt and step")
    x = np.array([b.predicted for b in reliability.bins])
    y = [b.bits_per_byte for b in reliability.bins]
    bins.plot(x, y, "o-", color=plotting.INK, ms=4)
    line = x[[0, -1]]
    bins.plot(line, reliability.intercept + reliability.slope * line, color=plotting.RED, lw=1)
    bins.set(xlabel="σ̂, bins of equal size", ylabel="bits per byte")
    bins.set_title(f"reliability, slope {reliability.slope:.2f}")
    points = list(trained.values())
    adaptive.errorbar(
        list(trained), [p.value for p in points], yerr=plotting.error_bars(points), fmt="o-", ms=4,
        color=plotting.RED, ecolor=plotting.RED, elinewidth=1,
    )  # fmt: skip
    for step, point in trained.items():
        adaptive.annotate(
            str(point.n), (step, point.value), xytext=(4, 5), textcoords="offset points"
        )
    plotting.reference_line(adaptive, 100, "base")
    adaptive.set(xlabel="gradient steps", ylabel="bits per byte, % of base")
    adaptive.set_title(f"prompts still trained, α = {ALPHA:g}")


def stopping_rules(run: Run) -> Artifact:
    """Figure 26, following Section 6: mean steps and percent of base of every stopping rule."""
    results = stops(run, "sift")
    rows: Rows = [(stop.rule, stop.steps, stop.percent, stop.regret) for stop in results]
    kinds = {
        "oracle": [s for s in results if s.rule == "oracle"],
        "adaptive": sorted((s for s in results if s.rule.startswith("α")), key=lambda s: s.steps),
        "fixed": [s for s in results if s.rule.endswith(" steps")],
    }
    best = min(kinds["adaptive"], key=lambda s: s.regret.value)
    return Artifact(
        columns=("rule", "steps", "% of base", "regret relative to the oracle"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_stopping_rules, kinds=kinds),
        numbers={
            "regret of the best α": best.regret,
            "adaptive − fixed": adaptive_minus_fixed(run),
        },
        note=(
            "`adaptive − fixed` compares equal mean steps and averages over α, in percentage "
            "points; its interval is over prompts."
        ),
    )


def adaptive_minus_fixed(run: Run) -> Estimate:
    """Percent of base of adaptive SIFT minus that of equally many steps for all, averaged over α.

    Between scored steps, the curve of fixed steps is interpolated linearly in log(1 + steps).
    """
    steps = np.array(run.steps, np.float64)
    log_steps = np.log1p(steps)
    percent = np.stack([run.ratio("sift", step) for step in run.steps], axis=1)
    positions = [stopped_at(run, "sift", alpha) for alpha in ALPHAS]

    def differences(samples: Int[Array, "r n"]) -> Float[Array, " r"]:
        curves = percent[samples].mean(axis=1)
        total = np.zeros(len(samples))
        for at in positions:
            mean_steps = steps[at[samples]].mean(axis=1)
            pairs = zip(np.log1p(mean_steps), curves, strict=True)
            fixed = [np.interp(step, log_steps, curve) for step, curve in pairs]
            total += percent[samples, at[samples]].mean(axis=1) - fixed
        return total / len(positions)

    return resampled(len(run), differences)


def _stopping_rules(axes: Any, kinds: Any) -> None:
    colors = {"fixed": plotting.INK, "adaptive": plotting.RED, "oracle": plotting.GREEN}
    for kind, results in kinds.items():
        x, y = [stop.steps for stop in results], [stop.percent.value for stop in results]
        axes.plot(x, y, "o-", color=colors[kind], ms=4)
        at = 0 if kind == "oracle" else len(results) // 2
        axes.annotate(
            kind, (x[at], y[at]), xytext=(5, 9 if kind == "adaptive" else -13),
            textcoords="offset points", color=colors[kind],
        )  # fmt: skip
    axes.set(xlabel="gradient steps, mean over prompts", ylabel="bits per byte, % of base")


def quality_against_seconds(run: Run) -> Artifact:
    """HullFT's plane (arXiv 2605.30337): quality against all seconds except those of scoring."""
    check_methods(run, "sift", "hull", "nearest")
    measured = costs(run)
    points = {
        plotting.label(method): [p for p in measured.of(method) if p.step]
        for method in present(run, COMPARED)
    }
    rows: Rows = [
        (name, p.step, p.total, p.percent) for name, series in points.items() for p in series
    ]
    numbers = {f"seconds of {name}": series[-1].total for name, series in points.items()}
    return Artifact(
        columns=("method", "steps", "seconds", "% of base"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_quality_against_seconds, points=points),
        width=6.4,
        numbers=numbers | {"SIFT − hull": paired_difference(run, "sift", "hull")},
    )


def _quality_against_seconds(axes: Any, points: dict[str, list[Cost]]) -> None:
    axes.set_xscale("log")
    labels = []
    for name, series in points.items():
        color = plotting.COLORS[series[0].method]
        x, y = [p.total.value for p in series], [p.percent.value for p in series]
        axes.plot(x, y, "o-", ms=3.5, color=color)
        labels.append((y[-1], name, color))
    plotting.reference_line(axes, 100, "base")
    right = max(p.total.value for series in points.values() for p in series)
    plotting.label_ends(axes, right, labels)
    axes.set(xlabel="seconds per prompt: embed, search, select, train", ylabel="% of base")
    plotting.plain_ticks(axes.xaxis)


def seconds_by_phase(run: Run) -> Artifact:
    """Appendix I.3: seconds per prompt by phase, and in multiples of scoring it once."""
    check_methods(run, "sift")
    measured = costs(run)
    once = float(run.column("base_s").mean())
    last = [p for p in measured.points if p.step == run.steps[-1]]
    phases = [phase.removesuffix("_s") for phase in PHASES[:-1]]
    rows: Rows = [
        (
            plotting.label(p.method),
            p.tokens,
            *(p.seconds[phase] for phase in phases),
            p.total,
            p.total.value / once,
        )
        for p in last
    ]
    total, scoring = run.seconds("sift"), run.column("base_s")
    ratio = resampled(len(run), lambda rows: total[rows].sum(1) / scoring[rows].sum(1))
    retrieval = run.seconds("sift", phases=("embed_s", "search_s", "select_s"))
    return Artifact(
        columns=("method", "tokens", *phases, "seconds", "× one scoring"),
        rows=tuple(rows),
        n=len(run),
        draw=partial(_seconds_by_phase, last=last, phases=phases),
        width=6.4,
        numbers={
            "SIFT, × one scoring": ratio,
            "retrieval, % of the seconds": mean_estimate(100 * retrieval / total),
        },
        note=(
            f"Peak memory of a process: {measured.peak_mib:,.0f} MiB. One scoring takes "
            f"{once:.2f} s."
        ),
    )


def _seconds_by_phase(axes: Any, last: list[Cost], phases: list[str]) -> None:
    names, left = [plotting.label(p.method) for p in last], np.zeros(len(last))
    colors = (plotting.SKY, plotting.BLUE, plotting.ORANGE, plotting.RED)
    for phase, color in zip(phases, colors, strict=True):
        widths = np.array([p.seconds[phase] for p in last])
        axes.barh(names, widths, left=left, color=color, label=phase, height=0.7)
        left += widths
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds per prompt")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)
