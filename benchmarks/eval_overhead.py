"""How much time does the evaluation add to the engine, and how many prompts per minute does it do?

    python benchmarks/eval_overhead.py --json benchmarks/results/eval_overhead.json

The data space and the prompts are those of `whet demo`. For every prompt in turn, an `Engine` runs
each method (select, train, score after the same steps), and then the evaluator runs all of them and
stores the results, as in `whet eval`. The scores of both must be equal. Prints the median, minimum
and maximum over prompts of the ratio evaluation ÷ engine.
"""

import json
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path

import click
import torch

from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.engine import Engine, Request
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Prompt
from whet.evaluate.demo import LONGEST, choose, modules, parts, source
from whet.evaluate.evaluator import Evaluator
from whet.evaluate.provenance import provenance
from whet.evaluate.run_storage import append
from whet.evaluate.tasks import ScoringTask
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

METHODS = ("nearest", "sift")


@click.command(help=__doc__)
@click.option("--model", default="whet-nano", show_default=True)
@click.option("--prompts", "count", default=5, show_default=True)
@click.option("-n", default=20, show_default=True)
@click.option(
    "--json", "target", type=click.Path(path_type=Path), help="Also write the numbers as JSON."
)
def main(model: str, count: int, n: int, target: Path | None) -> None:
    config = EvalConfig(model=model, methods=METHODS, selection=SelectionConfig(n=n))
    with tempfile.TemporaryDirectory() as folder:
        space, documents = library(Path(folder) / "space", count + 1)
        pairs = measure(space, documents, config, Path(folder))
    ratios = [evaluation / engine for engine, evaluation in pairs]
    minute = 60 / statistics.mean(evaluation for _, evaluation in pairs)
    print(f"evaluation ÷ engine: {statistics.median(ratios):.3f} "
          f"({min(ratios):.3f}–{max(ratios):.3f}), n={len(pairs)} prompts")  # fmt: skip
    print(f"{minute:.1f} prompts per minute, {len(METHODS)} methods × {n} steps each")
    if target:
        record = {
            "model": model, "documents": len(space), "steps": n, "methods": METHODS,
            "eval_steps": config.steps, "threads": torch.get_num_threads(), "seconds": pairs,
            "ratio": statistics.median(ratios), "prompts_per_minute": minute,
        }  # fmt: skip
        target.write_text(json.dumps(record | provenance(), indent=1) + "\n")


def library(folder: Path, held_out: int) -> tuple[DataSpace, list[Document]]:
    """Build a data space of the standard library without some files; return these as prompts."""
    root = Path(sysconfig.get_path("stdlib"))
    prompts = choose(root, held_out)
    others = (path for path in modules(root) if path not in prompts)
    space = DataSpace.build(
        (part for path in others for part in parts(path, root)), folder, chunks="whole"
    )
    return space, [Document(path.name, source(path)[:LONGEST], {}) for path in prompts]


def measure(
    space: DataSpace, documents: list[Document], config: EvalConfig, folder: Path
) -> list[tuple[float, float]]:
    """Time the engine and the evaluation for every prompt except the first, which warms up."""
    model = LanguageModel.from_pretrained(config.model)
    evaluator = Evaluator(space, model, config)
    engines = {
        method.name: Engine(space, model, selection=method.selection)
        for method in config.method_configs
    }
    pairs = []
    for document in documents:
        [task] = ScoringTask.of(document.text, config)
        request = Request(prompt=task.query, text=task.text, eval_steps=config.steps)
        start = time.perf_counter()
        outputs = {name: engine.submit(request).result() for name, engine in engines.items()}
        middle = time.perf_counter()
        record = evaluator.record(Prompt(document, "library"))
        append(folder, record)
        pairs.append((middle - start, time.perf_counter() - middle))
        rows = record["rows"]
        for name, step, bits in zip(rows["method"], rows["step"], rows["bits"], strict=True):
            assert bits is None or bits == outputs[name].scores[step].bits, (name, step)
    for engine in engines.values():
        engine.close()
    return pairs[1:]


if __name__ == "__main__":
    main()
