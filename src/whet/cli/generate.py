"""Verbs that sharpen a model for a prompt: generate and score."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from whet.cli.options import (
    ADAPTATION,
    JSON,
    QUIET,
    SELECTION,
    SPACE,
    calibrated_options,
    read,
    show,
)
from whet.evaluate.config import EvalConfig


@click.command()
@SPACE
@click.argument("prompt")
@ADAPTATION
@SELECTION
@QUIET
@click.option("--max-tokens", default=128, show_default=True, help="Length of the answer.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is the likeliest answer.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sampling.")
@click.option("--compare", is_flag=True, help="Also tell what the base model says.")
@JSON
def generate(
    space: Path,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    compare: bool,
    quiet: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Sharpen the model on SPACE for PROMPT, continue it, put the weights back ("-": stdin).

    With -n 0 the base model answers.
    """
    prompt, engine = read(prompt), _engine(space, **rest)
    asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    base = engine.model.generate(prompt, **asked) if compare else None
    answer = engine.generate(prompt, **asked)
    _tell(answer, quiet or as_json)
    record, plain = {"prompt": prompt, **_record(answer)}, answer.text
    if base is not None:
        record, plain = record | {"base": base}, f"base model:\n{base}\n\nsharpened:\n{plain}"
    show(record, as_json, plain)


@click.command()
@SPACE
@click.argument("text")
@click.option("--prompt", help="What comes before TEXT [default: the first half of TEXT].")
@ADAPTATION
@SELECTION
@QUIET
@JSON
def score(
    space: Path, text: str, prompt: str | None, quiet: bool, as_json: bool, **rest: Any
) -> None:
    """Bits per byte of TEXT before and after sharpening on what comes before it ("-": stdin)."""
    from whet.evaluate.tasks import ScoringTask

    text = read(text)
    if prompt is None:
        (task,) = ScoringTask.of(text, EvalConfig())
        prompt, text = task.context, task.text
    answer = _engine(space, **rest).score(text, prompt=prompt)
    before, after = answer.base.bits_per_byte, answer.score.bits_per_byte
    record = {"base": before, "sharpened": after, **_record(answer)}
    plain = f"{before:.4f} bits per byte, sharpened {after:.4f} ({100 * after / before:.1f} %)"
    _tell(answer, quiet or as_json)
    show(record, as_json, plain)


def _engine(
    space: Path,
    *,
    model: str,
    mode: str,
    lr: float | None,
    rank: int | None,
    device: str | None,
    **rest: Any,
) -> Any:
    from whet.adapt.model import LanguageModel
    from whet.engine import Engine
    from whet.spaces import open_space

    loaded = LanguageModel.from_pretrained(model, device=device)
    opened = open_space(space)
    return Engine(
        opened,
        loaded,
        loaded.adapter_config(mode, lr=lr, r=rank),
        options=calibrated_options(opened, **rest),
    )


def _tell(answer: Any, quiet: bool) -> None:
    """What was learned, in a line on stderr."""
    if quiet:
        return
    steps = answer.trace.steps
    names = list(dict.fromkeys(step.id for step in steps))
    shown = ", ".join([*names[:3], *["…"] * (len(names) > 3)]) or "nothing"
    told = [f"{len(steps)} step" + ("s" if len(steps) != 1 else "")]
    if steps and steps[-1].sigma is not None:
        told.append(f"σ {steps[-1].sigma:.2f}")
    told.append(f"{sum(answer.seconds.values()):.1f} s")
    print(f"sharpened on {shown} ({', '.join(told)})", file=sys.stderr)


def _record(answer: Any) -> dict[str, Any]:
    trace = [asdict(step) for step in answer.trace]
    return {
        "text": answer.text,
        "trace": trace,
        "stop_reason": answer.trace.stop_reason,
        "seconds": answer.seconds,
    }
