"""Command line of the studies: `python -m studies table1`, run from the root of a checkout."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from whet.cli import UserError
from whet.errors import WhetError

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "insights.md", ROOT / "benchmarks" / "results" / "insights.json"
PATH = click.Path(path_type=Path)
WIDTH = 10_000  # columns, so that the terminal wraps a table and none of it is cut


class Command(click.Command):
    """A command that prints whet's errors as one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (WhetError, OSError, ValueError) as error:
            raise UserError(str(error), usage=isinstance(error, ValueError)) from error


def _list(ctx: click.Context, _: Any, requested: bool) -> None:
    if not requested:
        return
    from studies.registry import REGISTRY

    for name, spec in REGISTRY.items():
        needs = ", ".join([*spec.runs, *(["the data space"] if spec.queries else [])])
        print(f"{name:<11} {spec.title}  [{needs}]")
    ctx.exit()


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.argument("space", metavar="[SPACE|FILE.toml]", type=PATH, required=False)
@click.option("--prompts", help="Documents to score, as SOURCE of `whet index`.")
@click.option("--study", "folder", type=PATH,
              help="Folder of the runs and artifacts [default: runs/study].")  # fmt: skip
@click.option("--per-set", type=click.IntRange(1), help="Prompts per set [default: 20].")
@click.option("-n", type=click.IntRange(1), help="Gradient steps per prompt [default: 50].")
@click.option("--model", help="Main model [default: whet-nano].")
@click.option("--small", default="whet-pico", show_default=True, help="Small model.")
@click.option("--workers", default=1, show_default=True, help="Processes, with one thread each.")
@click.option("--quick", is_flag=True, help="Use about 12 prompts and 10 steps.")
@click.option("--quiet", is_flag=True, help="Show no progress on stderr.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list,
              help="List all artifacts with the runs they need, then exit.")  # fmt: skip
def main(
    name: str, space: Path | None, prompts: str | None, folder: Path | None, per_set: int | None,
    n: int | None, model: str | None, small: str, workers: int, quick: bool, quiet: bool,
) -> None:  # fmt: skip
    """Build tables and figures of the paper; evaluate the runs they need if they are missing.

    NAME is an artifact, several artifacts separated by commas (fig1,fig4), or `all`. Each one is
    printed as a table and written as PNG, SVG and JSON to STUDY/artifacts. The data are those of
    SPACE and --prompts, or of FILE.toml as for `whet eval`, or else the source code of Python's
    standard library.

    `python -m studies insights` writes docs/insights.md from the committed results; with --study,
    it first updates these results with the artifacts of that study.
    """
    if name == "insights":
        write_insights(folder)
        return
    from studies.registry import parse_names
    from studies.study import QUICK_STEPS, Study, find_data
    from whet.evaluate.dataset import Experiment
    from whet.evaluate.runner import WorkerPool

    names, experiment = parse_names(name), Experiment()
    if space is not None and space.suffix == ".toml":
        experiment = Experiment.read(space)
    elif (space is None) != (prompts is None):
        raise click.UsageError("pass both SPACE and --prompts, or neither")
    folder = folder or Path("runs/study")
    steps = n or (QUICK_STEPS if quick else experiment.config.selection.n)
    with WorkerPool(workers) as pool:
        study = Study(
            folder=folder,
            data=find_data(
                folder, experiment.data, space, prompts, per_set, quick, progress=not quiet
            ),
            config=experiment.config.with_settings(n=steps, **({"model": model} if model else {})),
            small_model=small,
            pool=pool,
            progress=not quiet,
        )
        _build(names, study)


def _build(names: list[str], study: Any) -> None:
    """Build and print each artifact; if there are several, skip those that fail."""
    from rich.console import Console

    from studies.build import build

    console, failed = Console(width=WIDTH, highlight=False, markup=False), []
    for name in names:
        try:
            built = build(name, study, study.folder / "artifacts")
        except (WhetError, ValueError) as error:  # such as an embedder that is not installed
            if len(names) == 1:
                raise
            failed.append(name)
            print(f"{name} is skipped: {error}", file=sys.stderr)
            continue
        console.print(built.artifact.table(built.title))
        console.print(built.caption, soft_wrap=True)
        print("wrote", ", ".join(str(path) for path in built.paths), file=sys.stderr)
    if failed:
        raise WhetError(
            f"{len(failed)} of {len(names)} artifacts could not be built ({', '.join(failed)}): "
            "the lines above give the reasons; build these again by name"
        )


def write_insights(folder: Path | None) -> None:
    """Write docs/insights.md; first update its results from the study in `folder`, if any."""
    from studies.claims import collect, page

    results = json.loads(RESULTS.read_text("utf-8"))
    if folder:
        results = collect(folder / "artifacts", results)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(page(results), "utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main(prog_name="python -m studies")
