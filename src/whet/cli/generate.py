"""`whet generate` and `whet score`: fine-tune a model for a prompt, then use it."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import click

from whet.adapt.config import AdapterOptions, OptimizerConfig, TrainingConfig, UseOption
from whet.cli.options import (
    ADAPTATION,
    JSON,
    QUIET,
    SELECTION,
    SPACE,
    USE,
    Command,
    emit,
    read_text,
    resolve_selection,
    take_config,
)
from whet.cli.tune import given_options, use_tuned, with_options
from whet.errors import NoMatchError, require
from whet.io import printable, progress_bar
from whet.select.config import SelectionConfig

NO_MATCH: Final = "no_match"
EMPTY = (
    "the answer is empty: the model ended the text at once; whet chat asks questions through the "
    "model's chat template"
)


@click.command(cls=Command, short_help="Fine-tune on documents of SPACE, then continue PROMPT.")
@SPACE
@click.argument("prompt")
@click.option("--max-tokens", default=128, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", default=0.0, show_default=True,
              help="Sampling temperature; 0 takes the most likely token.")  # fmt: skip
@click.option("--compare", is_flag=True, help="Also print the base model's answer.")
@USE
@JSON
@QUIET
@ADAPTATION
@SELECTION
def generate(
    space: Path | str, prompt: str, max_tokens: int, temperature: float, compare: bool, use: UseOption,
    quiet: bool, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Fine-tune on documents of SPACE, or put them into the context, then continue PROMPT.

    The documents are selected for PROMPT; "-" is read from stdin. With -n 0 the base model answers.
    """
    prompt = read_text(prompt)
    require("torch", "adapt")
    from whet.adapt.decoding.sampling import SamplingParams

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": values["seed"]}
    engine = new_engine(space, values, quiet)
    base = engine.model.generate(prompt, **sampling) if compare else None
    output = _run(engine, quiet, prompt=prompt, use=use, sampling=SamplingParams(**sampling))
    report(output, quiet or as_json)
    if not (quiet or as_json or output.text.strip()) and output.finish_reason == "stop":
        print(EMPTY, file=sys.stderr)
    record, plain = {"prompt": prompt, **_record(output)}, output.text
    if base is not None:
        record, plain = record | {"base": base}, f"base model:\n{base}\n\nadapted model:\n{plain}"
    emit(record, as_json, plain)


@click.command(cls=Command)
@SPACE
@click.argument("text")
@click.option("--prompt", help="What is before TEXT [default: TEXT is cut in half].")
@USE
@JSON
@QUIET
@ADAPTATION
@SELECTION
def score(
    space: Path | str, text: str, prompt: str | None, use: UseOption, quiet: bool, as_json: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Score TEXT before and after fine-tuning on what is before it.

    With --use, documents are also, or only, put into the model's context. Scores are in bits per
    byte. A TEXT of "-" is read from stdin.
    """
    from whet.evaluate.config import EvalConfig
    from whet.evaluate.tasks import ScoringTask

    text = read_text(text)
    if prompt is None:
        (task,) = ScoringTask.of(text, EvalConfig())
        prompt, text = task.context, task.text
    output = _run(new_engine(space, values, quiet), quiet, prompt=prompt, text=text, use=use)
    before, after = output.base.bits_per_byte, output.score.bits_per_byte
    report(output, quiet or as_json)
    plain = f"{before:.4f} bits per byte, after adaptation {after:.4f}"
    plain += f" ({100 * after / before:.1f} %)"
    emit({"base": before, "adapted": after, **_record(output)}, as_json, plain)


def new_engine(space: Path | str, values: dict[str, Any], quiet: bool) -> Any:
    """The engine that the options `values` configure."""
    adapter = take_config(AdapterOptions, values)
    training = take_config(TrainingConfig, values)
    optimizer = take_config(OptimizerConfig, values)
    selection = take_config(SelectionConfig, values)
    require("torch", "adapt")
    from whet.adapt.config import STEPS, suited_steps
    from whet.adapt.model import LanguageModel
    from whet.engine import Engine
    from whet.space.long_texts import count_long_texts
    from whet.space.space import DataSpace

    model = LanguageModel.from_pretrained(
        values["model"], device=values["device"], max_length=values["max_length"]
    )
    opened = DataSpace.open(space)
    tuned = use_tuned(space, model, quiet=quiet)
    adapter, selection = with_options(adapter, tuned), with_options(selection, tuned)
    if selection.n == STEPS and "n" not in {*tuned, *given_options()}:
        selection = replace(selection, n=suited_steps(model.hf_model))
    if not quiet and (line := str(count_long_texts(opened, model))):
        print(printable(line), file=sys.stderr)
    return Engine(
        opened,
        model,
        model.adapter_config(adapter.name, **adapter.options),
        selection=resolve_selection(opened, selection),
        training=training,
        optimizer=optimizer,
    )


def _run(engine: Any, quiet: bool, **options: Any) -> Any:
    """The output of a request; the base model answers where no document is near the prompt.

    The steps are shown on a terminal.
    """
    from whet.adapt.session import AdaptationTrace
    from whet.engine import Request

    request = Request(**options)
    try:
        with _progress(quiet) as show:
            return engine.submit(request, show).result()
    except NoMatchError:
        output = engine.submit(replace(request, adapt=False)).result()
        return replace(output, trace=AdaptationTrace((), NO_MATCH))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Any], None]]:
    """A bar of the steps with the bits per token before each, on a terminal; erased at the end."""
    from whet.adapt.session import TrainStep
    from whet.space.retrieve import Retrieval

    show = sys.stderr.isatty() and not quiet
    with progress_bar("adapting", None, show=show, transient=True) as advance:

        def on_event(event: Any) -> None:
            if isinstance(event, Retrieval):
                advance(0, total=len(event))
            elif isinstance(event, TrainStep):
                advance(1, f"{event.loss / math.log(2):.2f} bits per token")

        yield on_event


def report(output: Any, quiet: bool) -> None:
    """Print a line on stderr: what the answer rests on, and whether the steps helped."""
    if quiet:
        return
    reason, line = output.trace.stop_reason, str(output.evidence)
    if reason == NO_MATCH:
        line = "base model: no document is near the prompt"
    elif reason == "deadline":
        line += "; no time for more steps"
    print(printable(line), file=sys.stderr)


def _record(output: Any) -> dict[str, Any]:
    return {
        "text": output.text,
        "trace": [asdict(step) for step in output.trace],
        "stop_reason": output.trace.stop_reason,
        "evidence": asdict(output.evidence),
        "seconds": output.seconds,
    }
