"""Which learning rate and which λ' are best for a model on the valid split?

    python benchmarks/tune.py SPACE valid.jsonl.gz --lr 2e-4 --lr 5e-4 --json
    benchmarks/results/tune.json

Evaluates one run for each rate in --out; an interrupted run resumes. Prints percent of base by rate
and method with half of the 90 % interval, and the paired difference to nearest.
"""

import json
from pathlib import Path
from typing import Any

import click
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from whet.adapt.config import AdapterOptions
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import EvalData
from whet.evaluate.results import Run
from whet.evaluate.runner import evaluate
from whet.maths.statistics import mean_estimate
from whet.select.config import SelectionConfig

METHODS = ("nearest", "sift(0.001)", "sift(0.01)", "sift(0.1)", "sift(1)")


@click.command(help=__doc__)
@click.argument("space", type=click.Path(exists=True, path_type=Path))
@click.argument("valid", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="whet-nano", show_default=True)
@click.option("--adapter", default="full", show_default=True)
@click.option("--lr", "rates", type=float, multiple=True, required=True)
@click.option("--method", "methods", multiple=True, default=METHODS, show_default=True)
@click.option("-n", default=20, show_default=True)
@click.option("--per-set", default=1, show_default=True)
@click.option("--out", default="runs/tune", type=click.Path(path_type=Path), show_default=True)
@click.option(
    "--json", "target", type=click.Path(path_type=Path), help="Also write the numbers as JSON."
)
def main(
    space: Path, valid: Path, model: str, adapter: Any, rates: tuple[float, ...],
    methods: tuple[str, ...], n: int, per_set: int, out: Path, target: Path | None,
) -> None:  # fmt: skip
    lines, meta = [], {}
    for rate in rates:
        config = EvalConfig(
            model=model,
            methods=methods,
            eval_steps=(0, n),
            selection=SelectionConfig(n=n),
            adapter=AdapterOptions(name=adapter, lr=rate),
        )
        folder = out / f"{Path(model).name}-{space.stem}-{adapter}-{rate:g}-{'+'.join(methods)}"
        evaluate(EvalData(space=str(space), prompts=str(valid), per_set=per_set), folder, config)
        run = Run.open(folder)
        meta = run.meta
        for method in methods:
            share = mean_estimate(run.ratio(method))
            line = {"lr": rate, "method": method, "n": len(run), "percent_of_base": share.value}
            line |= {"half": share.half}
            if "nearest" in methods:
                paired = mean_estimate(run.ratio(method) - run.ratio("nearest"))
                line |= {"minus_nearest": paired.value, "low": paired.low, "high": paired.high}
            lines.append(line)
    show(lines)
    if target:
        record = {"space": meta["space"], "model": model, "adapter": adapter, "steps": n}
        record |= {key: meta[key] for key in ("prompts", "versions", "machine", "commit")}
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(record | {"rows": lines}, indent=1) + "\n")


def show(lines: list[dict[str, float]]) -> None:
    table = Table(box=MARKDOWN)
    for heading in ("lr", "method", "n", "% of base", "minus nearest"):
        table.add_column(heading, no_wrap=True)
    for line in lines:
        paired = ""
        if "low" in line:
            paired = f"{line['minus_nearest']:+.1f} [{line['low']:+.1f}, {line['high']:+.1f}]"
        share = f"{line['percent_of_base']:.1f} ± {line['half']:.1f}"
        table.add_row(f"{line['lr']:g}", str(line["method"]), str(line["n"]), share, paired)
    Console().print(table)


if __name__ == "__main__":
    main()
