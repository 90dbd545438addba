"""Verbs that measure: eval, report and the demo."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from whet.cli.options import JSON, PATH, QUIET, RAY, read, show, tell

WORTH = click.option(
    "--worth", default=0.0, show_default=True, help="Bits per byte that a second must save."
)
DROP_LEAKS = click.option(
    "--drop-leaks", is_flag=True, help="Leave out prompts that are in the data space, or nearly."
)


@click.command(name="eval")
@click.argument("space", metavar="SPACE|FILE.toml", type=PATH)
@click.option("--prompts", help="Documents to score: as SOURCE of `whet index`.")
@click.option("--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--per-set", type=click.IntRange(1), help="First documents a set [default: all].")
@click.option("--workers", default=1, show_default=True, help="WorkerPool, of one thread each.")
@RAY
@click.option("--config", type=PATH, help="Data and switches in TOML: see docs/protocol.md.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One switch.")
@click.option("--advise", metavar="PROMPT", help="Tell what PROMPT is worth, by the run in --out.")
@WORTH
@DROP_LEAKS
@JSON
@QUIET
def evaluate(
    space: Path, prompts: str | None, out: Path, per_set: int | None, workers: int,
    ray: str | None, config: Path | None, overrides: tuple[str, ...], advise: str | None,
    worth: float, drop_leaks: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Every method on every prompt, in bits per byte; a run cut short goes on where it stopped.

    A FILE.toml names the data space and the prompts itself: see examples/. With --advise, nothing
    is evaluated: the run tells how many steps, of which method, are worth it for one prompt.
    """
    from whet.evaluate.dataset import Config
    from whet.evaluate.results import Run
    from whet.evaluate.runner import evaluate
    from whet.evaluate.worker_pool import WorkerPool

    if space.suffix == ".toml":
        made = Config.read(space, overrides)
    else:
        made = Config.read(config, [*overrides, f"data.space={json.dumps(str(space))}"])
    data = replace(
        made.data,
        prompts=prompts or made.data.prompts,
        per_set=per_set or made.data.per_set,
    )
    if data.space and advise is not None:
        _advise(data.space, out, read(advise), worth, drop_leaks, as_json)
        return
    if not data.space or not data.prompts:
        raise click.UsageError("name SPACE and --prompts, or a FILE.toml whose [data] does")
    with WorkerPool(workers) as processes:
        evaluate(data, out, made.switches, processes=processes, ray=ray, progress=not quiet)
    run = Run.open(out)
    _report(run.without_leaks() if drop_leaks else run, None, as_json)


@click.command()
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option("--step", type=int, help="Gradient steps [default: the last scored].")
@click.option("--plot", type=PATH, help="Also draw the curves (.png, .svg).")
@click.option("--html", type=PATH, help="Also write it as one page, with the picks of each prompt.")
@click.option("--texts", type=PATH, metavar="SPACE", help="With --html: show the texts, of SPACE.")
@click.option("--view", type=click.Choice(["table", "uncertainty", "cost", "advice"]),
    default="table", show_default=True, help="What to tell of it.")  # fmt: skip
@WORTH
@DROP_LEAKS
@JSON
def report(
    runs: tuple[Path, ...], step: int | None, plot: Path | None, html: Path | None,
    texts: Path | None, view: str, worth: float, drop_leaks: bool, as_json: bool,
) -> None:  # fmt: skip
    """The table of a run: bits per byte in % of the base model's, set by set.

    Several runs that differ in their methods alone stand side by side, on the prompts of all.
    Other views: what σ knows and when to stop, seconds and tokens, when sharpening is worth it.
    """
    if texts and not html:
        raise click.UsageError("--texts is of the page: name it with --html FILE")
    if step is not None and view == "advice":
        raise click.UsageError("--step is not for --view advice, which weighs all scored steps")
    from whet.evaluate.report.views import VIEWS
    from whet.evaluate.reproduce.study import join
    from whet.evaluate.results import Run

    opened = join([Run.open(run) for run in runs])
    opened = opened.without_leaks() if drop_leaks else opened
    if plot:
        from whet.evaluate.report.render import curves

        curves(opened, plot)
        print(f"wrote {plot}", file=sys.stderr)
    if html:
        _page(opened, step, html, texts)
    if view == "table":
        _report(opened, step, as_json)
        return
    sheets = list(VIEWS[view](opened, step, worth))
    if as_json:
        print(json.dumps({sheet.title: sheet.record for sheet in sheets}))
    else:
        tell(*(sheet.table() for sheet in sheets))


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
    from whet.evaluate.results import Run

    demo(out, model=model, files=files, n=n, progress=not quiet)
    print(f"wrote {out / 'curves.png'}", file=sys.stderr)
    if not as_json:
        print(show_picks(out))
    _report(Run.open(out / "run"), None, as_json)


def _report(run: Any, step: int | None, as_json: bool) -> None:
    from whet.evaluate.report.render import caption, table
    from whet.evaluate.report.table import report

    made = report(run, step)
    if as_json:
        print(json.dumps(made.record()))
        return
    tell(table(made), caption(made))


def _page(run: Any, step: int | None, html: Path, texts: Path | None) -> None:
    from whet.evaluate.report.html import page
    from whet.spaces import open_space

    html.write_text(page(run, step, space=open_space(texts) if texts else None), encoding="utf-8")
    print(f"wrote {html}", file=sys.stderr)


def _advise(
    space: str, folder: Path, prompt: str, worth: float, drop_leaks: bool, as_json: bool
) -> None:
    from whet.adapt.loading import DTYPES
    from whet.adapt.model import LanguageModel
    from whet.evaluate.policy import Advisor
    from whet.evaluate.results import Run
    from whet.spaces import open_space

    run = Run.open(folder)
    run = run.without_leaks() if drop_leaks else run
    asked = run.meta["switches"]
    dtype = DTYPES[asked.get("dtype", "fp32")]
    model = LanguageModel.from_pretrained(asked["model"], device=asked.get("device"), dtype=dtype)
    plan = Advisor(run, worth).plan(open_space(space), model, prompt)
    plain = (
        f"{plan.steps} steps of {plan.method}: {plan.saved:.4f} bits per byte less in "
        f"{plan.seconds:.2f} s, {plan.saved / plan.seconds:.4f} a second"
        if plan.steps
        else "no step: none is worth its seconds"
    )
    show(asdict(plan), as_json, plain)
