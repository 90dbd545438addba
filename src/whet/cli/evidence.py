"""Verbs that measure: eval, report and the demo."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from whet.cli.shared import JSON, PATH, QUIET

DROP_LEAKS = click.option(
    "--drop-leaks", is_flag=True, help="Leave out prompts that are in the data space, or nearly."
)


@click.command(name="eval")
@click.argument("space", metavar="SPACE|FILE.toml", type=PATH)
@click.option("--prompts", help="Documents to score: as SOURCE of `whet index`.")
@click.option("--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--per-set", type=click.IntRange(1), help="First documents a set [default: all].")
@click.option("--workers", default=1, show_default=True, help="Processes, of one thread each.")
@click.option("--config", type=PATH, help="Data and switches in TOML: see docs/protocol.md.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One switch.")
@DROP_LEAKS
@JSON
@QUIET
def evaluate(
    space: Path, prompts: str | None, out: Path, per_set: int | None, workers: int,
    config: Path | None, overrides: tuple[str, ...], drop_leaks: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Every method on every prompt, in bits per byte; a run cut short goes on where it stopped.

    A FILE.toml names the data space and the prompts itself: see examples/.
    """
    from whet.evaluate.data import Config
    from whet.evaluate.run import evaluate

    if space.suffix == ".toml":
        made = Config.read(space, overrides)
    else:
        made = Config.read(config, [*overrides, f"data.space={json.dumps(str(space))}"])
    data = replace(
        made.data,
        prompts=prompts or made.data.prompts,
        per_set=per_set or made.data.per_set,
    )
    if not data.space or not data.prompts:
        raise click.UsageError("name SPACE and --prompts, or a FILE.toml whose [data] does")
    evaluate(data, out, made.switches, workers=workers, progress=not quiet)
    _report(out, None, as_json, drop_leaks)


@click.command()
@click.argument("run", type=PATH)
@click.option("--step", type=int, help="Gradient steps [default: the last scored].")
@click.option("--plot", type=PATH, help="Also draw the curves (.png, .svg).")
@DROP_LEAKS
@JSON
def report(run: Path, step: int | None, plot: Path | None, drop_leaks: bool, as_json: bool) -> None:
    """The table of a run: bits per byte in % of the base model's, set by set."""
    if plot:
        from whet.evaluate.render import curves
        from whet.evaluate.runs import Run

        curves(Run.open(run), plot)
        print(f"wrote {plot}", file=sys.stderr)
    _report(run, step, as_json, drop_leaks)


@click.command()
@click.option("--out", default="runs/demo", show_default=True, type=PATH)
@click.option("--model", default="whet-nano", show_default=True, help="Name, folder or hub id.")
@click.option("--files", default=12, show_default=True, help="Held-out files of the library.")
@click.option("-n", default=20, show_default=True, help="Gradient steps a file.")
@JSON
@QUIET
def demo(out: Path, model: str, files: int, n: int, as_json: bool, quiet: bool) -> None:
    """The paper's claim on Python's standard library as found on this machine, in three minutes."""
    from whet.evaluate.demo import demo, show_picks

    demo(out, model=model, files=files, n=n, progress=not quiet)
    print(f"wrote {out / 'curves.png'}", file=sys.stderr)
    if not as_json:
        print(show_picks(out))
    _report(out / "run", None, as_json)


def _report(folder: Path, step: int | None, as_json: bool, drop_leaks: bool = False) -> None:
    from whet.evaluate.render import caption, table
    from whet.evaluate.report import report
    from whet.evaluate.runs import Run

    run = Run.open(folder)
    made = report(run.without_leaks() if drop_leaks else run, step)
    if as_json:
        print(json.dumps(made.record()))
        return
    console = Console(width=200 if not sys.stdout.isatty() else None, highlight=False)
    console.print(table(made))
    console.print(escape(caption(made)), soft_wrap=True)
