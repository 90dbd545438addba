"""The verb that makes the paper's tables and figures."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whet.cli.options import PATH, QUIET, tell
from whet.errors import WhetError

if TYPE_CHECKING:
    from whet.evaluate.reproduce.study import Study


def _list(ctx: click.Context, _: Any, asked: bool) -> None:
    if not asked:
        return
    from whet.evaluate.reproduce.catalogue import CATALOGUE

    for name, artefact in CATALOGUE.items():
        needs = ", ".join([*artefact.runs, *(["the data space"] if artefact.ground else [])])
        print(f"{name:<11} {artefact.title}  [{needs}]")
    ctx.exit()


@click.command()
@click.argument("name")
@click.argument("space", metavar="[SPACE|FILE.toml]", type=PATH, required=False)
@click.option("--prompts", help="Documents to score: as SOURCE of `whet index`.")
@click.option("--study", default="runs/study", show_default=True, type=PATH, help="Folder of runs.")
@click.option("--per-set", type=click.IntRange(1), help="First documents a set [default: 20].")
@click.option("-n", type=click.IntRange(1), help="Gradient steps a prompt [default: 50].")
@click.option("--model", help="The main model [default: whet-nano].")
@click.option("--small", default="whet-pico", show_default=True, help="The small model.")
@click.option("--workers", default=1, show_default=True, help="WorkerPool, of one thread each.")
@click.option("--quick", is_flag=True, help="About a dozen prompts and 10 steps.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list,
              help="Name every artefact and the runs that it is a view of.")  # fmt: skip
@QUIET
def reproduce(
    name: str, space: Path | None, prompts: str | None, study: Path, per_set: int | None,
    n: int | None, model: str | None, small: str, workers: int, quick: bool, quiet: bool,
) -> None:  # fmt: skip
    """Tables and figures of the paper by NAME (fig1,fig4), or all: views of runs, made if missing.

    Prints its table and writes PNG, SVG and JSON into the study's folder. Without SPACE and
    --prompts, the source of Python's standard library is the data. A FILE.toml as for `whet eval`
    names data and switches itself; the methods are the artefacts'.
    """
    from whet.evaluate.dataset import Config
    from whet.evaluate.reproduce.catalogue import named
    from whet.evaluate.reproduce.study import QUICK_STEPS, Study, data_of
    from whet.evaluate.worker_pool import WorkerPool

    names, config = named(name), Config()
    if space is not None and space.suffix == ".toml":
        config = Config.read(space)
    elif (space is None) != (prompts is None):
        raise click.UsageError("name both SPACE and --prompts, or neither")
    steps = n or (QUICK_STEPS if quick else config.switches.n)
    with WorkerPool(workers) as processes:
        own = Study(
            folder=study,
            data=data_of(study, config.data, space, prompts, per_set, quick, progress=not quiet),
            switches=replace(config.switches, model=model or config.switches.model, n=steps),
            small=small,
            processes=processes,
            progress=not quiet,
        )
        _make(names, own)


def _make(names: list[str], study: "Study") -> None:
    """Make and show each artefact; where there are several, go on after one that cannot be made."""
    from whet.evaluate.reproduce.make import make

    missing = []
    for each in names:
        try:
            made = make(each, study, study.folder / "artefacts")
        except (WhetError, ValueError) as error:  # such as an encoder that is not on this machine
            if len(names) == 1:
                raise
            missing.append(each)
            print(f"{each} is left out: {error}", file=sys.stderr)
            continue
        tell(made.shown.table(made.title), made.caption)
        print("wrote", ", ".join(str(path) for path in made.paths), file=sys.stderr)
    if missing:
        raise WhetError(
            f"{len(missing)} of {len(names)} artefacts could not be made ({', '.join(missing)}): "
            "the lines above say why; run the same command again for them alone"
        )
