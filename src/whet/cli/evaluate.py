"""`whet eval`, `whet report` and `whet demo`: measure on prompts of your own, print the results."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from whet.cli.options import JSON, PATH, QUIET, RAY, Command, Space, print_tables
from whet.cli.tune import use_tuned
from whet.io import atomic_write, printable, translate_disk_errors

DROP_LEAKS = click.option(
    "--drop-leaks", is_flag=True, help="Leave out prompts that are in the data space, or nearly so."
)


@click.command(name="eval", cls=Command)
@click.argument("space", metavar="SPACE|FILE.toml", type=Space())
@click.option("--prompts", help="Documents to score: a source, as for `whet index`.")
@click.option("--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--per-set", type=click.IntRange(1),
              help="Number of documents per set, from its beginning [default: all].")  # fmt: skip
@click.option("--protocol", type=click.Choice(["paper", "held-out"]),
              help="Score the text that was the query (paper), or its second half after a query "
              "for the first (held-out).")  # fmt: skip
@click.option("--model", help="Bundled model, smollm2, folder, .gguf file, ollama:NAME, or Hugging "
              "Face id [default: whet-nano].")  # fmt: skip
@click.option("--task", type=click.Choice(["text", "lines", "qa"]),
              help="Score documents (text), complete lines of code (lines), or answer questions "
              "(qa).  [default: text]")  # fmt: skip
@click.option("--workers", default=1, show_default=True, help="Processes, of one thread each.")
@RAY
@click.option("--config", type=PATH, help="TOML file with data and options: see docs/protocol.md.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Set one option of the configuration, such as n=20 or "
              "'methods=[\"nearest\", \"whet\"]'; repeatable.")  # fmt: skip
@DROP_LEAKS
@JSON
@QUIET
def evaluate(
    space: Path | str, prompts: str | None, out: Path, per_set: int | None,
    protocol: str | None, model: str | None, task: str | None, workers: int, ray: str | None,
    config: Path | None, overrides: tuple[str, ...], drop_leaks: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Score every method on every prompt.

    Scores are in bits per byte; --task adds how well generated answers match. An interrupted run
    resumes.

    A FILE.toml names the data space and the prompts: see examples/.
    """
    from whet.evaluate.dataset import Experiment
    from whet.evaluate.results import Run
    from whet.evaluate.runner import WorkerPool, evaluate

    options = {"protocol": protocol, "model": model, "task": task}
    given = (f"{name}={json.dumps(value)}" for name, value in options.items() if value)
    overrides = (*given, *overrides)
    if isinstance(space, Path) and space.suffix == ".toml":
        experiment = Experiment.read(space, overrides)
    else:
        experiment = Experiment.read(config, [*overrides, f"data.space={json.dumps(str(space))}"])
        experiment = _with_tuned(space, experiment, overrides, quiet)
    data = replace(
        experiment.data,
        prompts=prompts or experiment.data.prompts,
        per_set=per_set or experiment.data.per_set,
    )
    if not data.space or not (data.prompts or data.held_out):
        raise click.UsageError("pass SPACE and --prompts, or a FILE.toml whose [data] names both")
    with WorkerPool(workers) as pool:
        evaluate(data, out, experiment.config, workers=pool, ray=ray, progress=not quiet)
    run = Run.open(out)
    _print_report(run.without_contaminated() if drop_leaks else run, None, as_json)


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option("--step", type=int, help="Number of gradient steps [default: the last scored].")
@click.option("--plot", type=PATH, help="Also draw the curves (.png, .svg).")
@click.option("--html", type=PATH, help="Also write one page with the picks of each prompt.")
@click.option("--space", type=Space(), metavar="SPACE", help="With --html: show texts from SPACE.")
@click.option("--view", type=click.Choice(["table", "uncertainty", "cost"]),
              default="table", show_default=True, help="What to print.")  # fmt: skip
@DROP_LEAKS
@JSON
def report(
    runs: tuple[Path, ...], step: int | None, plot: Path | None, html: Path | None,
    space: Path | str | None, view: str, drop_leaks: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the results of a run.

    The table shows bits per byte as % of the base model's, per set.

    Several runs that differ only in their methods are shown next to each other, on the prompts
    they share. Runs of the two protocols get one column each. Other views: what σ predicts and
    when to stop (uncertainty), seconds and tokens (cost).
    """
    if space and not html:
        raise click.UsageError("--space requires --html FILE")
    from whet.evaluate.report.summary import by_protocol
    from whet.evaluate.report.views import VIEWS
    from whet.evaluate.results import Run

    opened = [Run.open(run) for run in runs]
    opened = [run.without_contaminated() for run in opened] if drop_leaks else opened
    protocols = by_protocol(opened)
    if len(protocols) > 1:
        if plot or html or view != "table":
            raise click.UsageError(
                f"the runs are of {len(protocols)} protocols ({', '.join(protocols)}): pass those "
                "of one to --plot, --html and --view"
            )
        _print_comparison(protocols, step, as_json)
        return
    [run] = protocols.values()
    if plot:
        from whet.evaluate.report.render import curves

        with translate_disk_errors(plot):
            curves(run, plot)
        print(f"wrote {plot}", file=sys.stderr)
    if html:
        _write_page(run, step, html, space)
    if view == "table":
        _print_report(run, step, as_json)
        return
    sheets = list(VIEWS[view](run, step))
    if as_json:
        print(json.dumps({sheet.title: sheet.record for sheet in sheets}))
    else:
        print_tables(*(part for sheet in sheets for part in (sheet.title, sheet.table())))


@click.command(cls=Command)
@click.option("--out", default="runs/demo", show_default=True, type=PATH, help="Folder to write.")
@click.option("--model", default="whet-nano", show_default=True,
              help="Bundled model, smollm2, folder, .gguf file, ollama:NAME, or Hugging Face "
              "id.")  # fmt: skip
@click.option("--files", default=12, show_default=True, help="Number of held-out files.")
@click.option("-n", "--n", "n", default=20, show_default=True, help="Gradient steps per file.")
@click.option("--protocol", type=click.Choice(["paper", "held-out"]), default="paper",
              show_default=True, help="What asks and what is scored: the whole prompt, as in the "
              "paper, or the first half of it asks and the second is scored.")  # fmt: skip
@JSON
@QUIET
def demo(
    out: Path, model: str, files: int, n: int, protocol: str, as_json: bool, quiet: bool
) -> None:
    """Compare SIFT and whet with nearest neighbors in four minutes.

    The documents are the source files of Python's standard library.
    """
    from whet.evaluate.demo import demo, show_picks

    run = demo(out, model=model, files=files, n=n, protocol=protocol, progress=not quiet)
    print(f"wrote {run.folder / 'curves.png'}", file=sys.stderr)
    if not as_json:
        print(printable(show_picks(run)))
    _print_report(run, None, as_json)


def _with_tuned(space: Path | str, experiment: Any, overrides: tuple[str, ...], quiet: bool) -> Any:
    """The experiment with what `whet tune` chose, for settings that it leaves at their defaults."""
    from whet.engine.tuned import is_tuned

    if not is_tuned(space):  # the model need not be loaded
        return experiment
    from whet.evaluate.config import EvalConfig, flat_values
    from whet.evaluate.runner import load_model

    config, usual = experiment.config, flat_values(EvalConfig())
    given = {name for name, value in flat_values(config).items() if value != usual[name]}
    given |= {line.partition("=")[0].strip().rpartition(".")[2] for line in overrides}
    options = use_tuned(space, load_model(config), quiet=quiet, given=given)
    return replace(experiment, config=config.with_settings(**options)) if options else experiment


def _print_report(run: Any, step: int | None, as_json: bool) -> None:
    from whet.evaluate.report.render import caption, table
    from whet.evaluate.report.summary import summary_caption, summary_table
    from whet.evaluate.report.table import report

    if run.config.task != "text":
        _print_answers(run, as_json)
        return
    results = report(run, step)
    if as_json:
        print(json.dumps(results.record()))
        return
    print_tables(table(results), caption(results))
    print_tables(summary_table(results.summary), summary_caption())


def _print_answers(run: Any, as_json: bool) -> None:
    from whet.evaluate.report.answers import AnswerResults

    results = AnswerResults.of(run)
    if as_json:
        print(json.dumps(results.record() | {"meta": run.meta}))
        return
    print_tables(*results.tables(), results.caption())


def _print_comparison(protocols: dict[str, Any], step: int | None, as_json: bool) -> None:
    from whet.evaluate.report.render import caption, table
    from whet.evaluate.report.summary import comparison_table
    from whet.evaluate.report.table import report

    results = {name: report(run, step) for name, run in protocols.items()}
    if as_json:
        print(json.dumps({"protocols": {name: each.record() for name, each in results.items()}}))
        return
    print_tables(comparison_table({name: each.summary for name, each in results.items()}))
    for name, each in results.items():
        print_tables(f"Protocol {name}", table(each), caption(each))


def _write_page(run: Any, step: int | None, html: Path, space: Path | str | None) -> None:
    from whet.evaluate.report.html import page
    from whet.space.space import DataSpace

    text = page(run, step, space=DataSpace.open(space) if space else None)
    with translate_disk_errors(html), atomic_write(html) as new:
        new.write_text(text, "utf-8")
    print(f"wrote {html}", file=sys.stderr)
