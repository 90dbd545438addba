"""The pictures and the table of the README, from the committed runs of both protocols.

python -m studies.headline    # writes docs/headline-MODEL.svg, and tables between pages' markers
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from studies.plotting import COLORS, MUTED, canvas, label, save
from whet.evaluate.report.render import format_estimate, markdown
from whet.evaluate.report.summary import by_protocol, comparison_table
from whet.evaluate.report.table import report, summarize
from whet.evaluate.results import Run
from whet.maths.statistics import mean_estimate

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "results" / "study"
PROTOCOLS = ("paper", "held-out")
MODELS = {"smollm2": "SmolLM2-135M", "nano": "whet-nano"}
"""What names of folders begin with: `MODEL-PROTOCOL`, or the same and what the run is about."""
RIVALS = "-rivals"  # ends the names of runs of other methods, which may have fewer prompts
METHODS = ("nearest", "sift", "whet")
WHET = "#0072b2"
START, END = "<!-- headline -->\n", "<!-- end of headline -->"
Runs = dict[str, Run]
"""The run of each protocol."""


def picture(runs: Runs, path: Path) -> None:
    """Bits per byte against gradient steps, one panel per protocol."""
    with canvas(len(runs), 3.6, 2.9) as (figure, panels):
        for axes, (protocol, run) in zip(panels, runs.items(), strict=True):
            for method in METHODS:
                estimates = [mean_estimate(run.ratio(method, step)) for step in run.steps]
                color = WHET if method == "whet" else COLORS[method]
                values = [estimate.value for estimate in estimates]
                axes.plot(run.steps, values, marker="o", ms=3, color=color, label=label(method))
                low, high = [e.low for e in estimates], [e.high for e in estimates]
                axes.fill_between(run.steps, low, high, color=color, alpha=0.12, linewidth=0)
            axes.axhline(100, color=MUTED, lw=0.8)
            axes.annotate("base model", (run.steps[-1], 100), (0, 2), textcoords="offset points",
                          ha="right", va="bottom", color=MUTED, fontsize=8)  # fmt: skip
            axes.set_title(f"{protocol} protocol, {len(run)} prompts")
            axes.set(xlabel="gradient steps", xticks=[s for s in run.steps if s % 5 == 0])
        panels[0].set(ylabel="bits per byte, % of base")
        panels[0].legend(loc="lower left")
        save(figure, path)


def table(models: dict[str, Runs]) -> str:
    """One row per model and protocol: % of base with its interval, and the differences to NN."""
    lines = [
        "| model | protocol | prompts | NN | SIFT | whet | SIFT − NN | whet − NN |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, runs in models.items():
        for protocol, run in runs.items():
            values = {method: run.ratio(method, run.steps[-1]) for method in METHODS}
            cells = [format_estimate(mean_estimate(v), half=True) for v in values.values()]
            cells += [
                format_estimate(mean_estimate(values[method] - values["nearest"]), sign="+")
                for method in METHODS[1:]
            ]
            name = f"{MODELS[model]}, {run.steps[-1]} steps"
            lines.append(f"| {name} | {protocol} | {len(run)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def savings(models: dict[str, Runs]) -> str:
    """After how many steps SIFT and whet are where nearest neighbors are after all of theirs.

    By the mean over prompts, linear between the steps that were scored.
    """
    lines = [
        "| model | protocol | NN after all steps | SIFT is there after | whet is there after |",
        "|---|---|---|---|---|",
    ]
    for model, runs in models.items():
        for protocol, run in runs.items():
            means = {m: [run.ratio(m, s).mean() for s in run.steps] for m in METHODS}
            goal, cells = means["nearest"][-1], list[str]()
            for method in METHODS[1:]:
                reached = first_at(goal, run.steps, means[method])
                times = f"{run.steps[-1] / reached:.1f}" if reached else ""
                cells.append(f"{reached:.1f} steps: {times} times fewer" if reached else "never")
            name = f"{MODELS[model]}, {run.steps[-1]} steps"
            lines.append(f"| {name} | {protocol} | {goal:.1f} % | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def first_at(goal: float, steps: Sequence[int], values: Sequence[float]) -> float | None:
    """Where the line through `values` at `steps` first is at or below `goal`; None if nowhere."""
    points = list(zip(steps, values, strict=True))
    for (step, value), (next_step, next_value) in pairwise(points):
        if next_value <= goal < value:
            return step + (next_step - step) * (value - goal) / (value - next_value)
    return None


def results(models: dict[str, Runs], rivals: Runs) -> str:
    """The tables by set, and the one of all methods with whet-nano."""
    parts = [f"**Steps that are saved**\n\n{savings(models)}\n"]
    parts += [
        f"**{MODELS[model]}, {protocol} protocol**\n\n{markdown(report(run))}\n"
        for model, runs in models.items()
        for protocol, run in runs.items()
    ]
    prompts = len(next(iter(rivals.values())))
    summaries = {protocol: summarize(run) for protocol, run in rivals.items()}
    every = markdown(comparison_table(summaries))
    return "\n".join([*parts, f"**All methods with whet-nano, {prompts} prompts**\n\n{every}\n"])


def write(path: Path, tables: str) -> None:
    """Put `tables` between the markers of a page."""
    before, _, rest = path.read_text("utf-8").partition(START)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{START}{tables}{END}{after}", "utf-8")


def committed(model: str, *, rivals: bool = False) -> Runs:
    """The committed runs of each protocol, joined, with the prompts that all of them have."""
    folders = [f for name in PROTOCOLS for f in sorted(RUNS.glob(f"{model}-{name}*"))]
    return by_protocol([Run.open(f) for f in folders if rivals or not f.name.endswith(RIVALS)])


def headline() -> dict[str, Runs]:
    """The runs of README's table, by model."""
    return {model: committed(model) for model in MODELS}


def main() -> None:
    """Write the pictures and the tables."""
    models = headline()
    for model, runs in models.items():
        picture(runs, ROOT / "docs" / f"headline-{model}.svg")
    write(ROOT / "README.md", table(models))
    write(ROOT / "docs" / "results.md", results(models, committed("nano", rivals=True)))


if __name__ == "__main__":
    main()
