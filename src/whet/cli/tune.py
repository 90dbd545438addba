"""`whet tune`, and the use of what it chose by the other commands."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from whet.cli.options import (
    FLAT_NAMES,
    JSON,
    MODEL,
    QUIET,
    SPACE,
    Command,
    config_options,
    emit,
    take_config,
)
from whet.errors import require
from whet.evaluate.tuning.config import TuneConfig
from whet.io import printable

C = TypeVar("C")


@click.command(cls=Command, short_help="Choose the settings of fine-tuning on SPACE.")
@SPACE
@JSON
@QUIET
@MODEL
@config_options(TuneConfig, "Tuning")
def tune(
    space: Path | str, model: str, device: str | None, max_length: int | None, quiet: bool,
    as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Choose how to fine-tune a model on SPACE, and measure what it gains.

    Tries adapters, learning rates, numbers of steps and λ' on held-out passages of SPACE, and
    stores the choice in SPACE. The other commands then use it for options that are not given. An
    interrupted run resumes.
    """
    config = take_config(TuneConfig, values)
    require("torch", "adapt")
    from whet.adapt.model import LanguageModel
    from whet.evaluate.tuning.tune import tune as choose
    from whet.space.space import DataSpace

    opened = DataSpace.open(space)
    loaded = LanguageModel.from_pretrained(model, device=device, max_length=max_length)
    try:
        report = choose(opened, loaded, config, progress=not quiet)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with the next trial", file=sys.stderr)
        raise
    record = asdict(report)
    record |= {"settings": record["settings"] | {"summary": report.settings.summary}}
    emit(record, as_json, "\n".join(_lines(report)))


def use_tuned(
    space: Path | str, model: Any, *, quiet: bool = False, given: Iterable[str] | None = None
) -> dict[str, Any]:
    """The values that `whet tune` chose for options that were not given; prints one line.

    `given` names the options that the user gave, by default those on the command line.
    """
    from whet.engine.tuned import tuned_defaults

    defaults = tuned_defaults(space, model, given_options() if given is None else set(given))
    if defaults.line and not quiet:
        print(printable(defaults.line), file=sys.stderr)
    return dict(defaults.options)


def given_options() -> set[str]:
    """Names of the options that the user gave on the command line."""
    context = click.get_current_context()
    return {
        name for name in context.params
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }  # fmt: skip


def with_options(config: C, options: dict[str, Any]) -> C:
    """A copy of a configuration with those of the `options`, by flat names, that it has."""
    names = {FLAT_NAMES.get((type(config), f.name), f.name): f.name for f in fields(config)}  # type: ignore[arg-type]
    values = {names[name]: value for name, value in options.items() if name in names}
    return replace(config, **values)  # type: ignore[type-var]


def _lines(report: Any) -> Iterable[str]:
    tuned = report.settings
    options = {"--" + name.replace("_", "-"): value for name, value in tuned.options.items()}
    shown = (f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in options.items())
    yield f"chosen    {' '.join(shown).replace('--n ', '-n ')}"
    for name, estimate in (("before", tuned.before), ("after", tuned.after)):
        yield (
            f"{name:<10}{estimate.value:.4f} bits per byte "
            f"(90 % interval {estimate.low:.4f} to {estimate.high:.4f}, n={estimate.n})"
        )
    if not tuned.fresh:
        yield "          on the passages of the search, so the gain is likely less"
    yield f"time      {tuned.seconds:.2f} s per request for selecting and training"
    yield f"verdict   {tuned.summary}"
    resumed = f", {report.resumed} of them from before" if report.resumed else ""
    ended = "all that were planned" if report.is_complete else "then the budget was used up"
    yield f"trials    {report.trials}{resumed}; {ended}"
    where = f"in {report.stored}" if report.stored else f"nowhere: {report.reason}"
    yield f"stored    {where}"
