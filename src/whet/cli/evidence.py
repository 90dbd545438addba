"""Verbs that measure: eval, report and the demo."""

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from whet.cli.shared import JSON, PATH, QUIET, SPACE
from whet.evaluate.protocol import Switches


@click.command(name="eval")
@SPACE
@click.option("--prompts", required=True, type=PATH, help="Documents to score.")
@click.option("--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--per-set", type=click.IntRange(1), help="First documents a set [default: all].")
@click.option("--workers", default=1, show_default=True, help="Processes, of one thread each.")
@click.option("--config", type=PATH, help="Switches in TOML: see docs/protocol.md.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One switch.")
@JSON
@QUIET
def evaluate(
    space: Path, prompts: Path, out: Path, per_set: int | None, workers: int, config: Path | None,
    overrides: tuple[str, ...], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Every method on every prompt, in bits per byte; a run cut short goes on where it stopped."""
    from whet.evaluate.run import evaluate

    switches = Switches.read(config, overrides)
    evaluate(space, prompts, out, switches, per_set=per_set, workers=workers, progress=not quiet)
    _report(out, None, as_json)


@click.command()
@click.argument("run", type=PATH)
@click.option("--step", type=int, help="Gradient steps [default: the last scored].")
@click.option("--plot", type=PATH, help="Also draw the curves (.png, .svg).")
@JSON
def report(run: Path, step: int | None, plot: Path | None, as_json: bool) -> None:
    """The table of a run: bits per byte in % of the base model's, set by set."""
    if plot:
        from whet.evaluate.render import curves
        from whet.evaluate.run import finished

        curves(finished(run), plot)
        print(f"wrote {plot}", file=sys.stderr)
    _report(run, step, as_json)


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


def _report(run: Path, step: int | None, as_json: bool) -> None:
    from whet.evaluate.render import caption, table
    from whet.evaluate.report import report

    made = report(run, step)
    if as_json:
        print(json.dumps(made.record()))
        return
    console = Console(width=200 if not sys.stdout.isatty() else None, highlight=False)
    console.print(table(made))
    console.print(escape(caption(made)), soft_wrap=True)
