"""Options that several verbs take, and how every verb reads and prints."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from whet.adapt.config import ADAPTERS
from whet.select.registry import SELECTORS


def number_or_auto(value: Any) -> Any:
    return value if value == "auto" else click.FLOAT.convert(value, None, None)


Verb = Callable[..., Any]
AUTO: dict[str, Any] = {"type": number_or_auto, "metavar": "NUMBER|auto"}
PATH = click.Path(path_type=Path)
SPACE = click.argument("space", type=PATH)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
RAY = click.option("--ray", metavar="HOST:PORT|local", help="Ray cluster whose workers do it.")
QUIET = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def options(*decorators: Callable[[Verb], Verb]) -> Callable[[Verb], Verb]:
    def apply(verb: Verb) -> Verb:
        for decorator in reversed(decorators):
            verb = decorator(verb)
        return verb

    return apply


SELECTION = options(
    click.option(
        "-n",
        default=50,
        show_default=True,
        help="Texts to select, repeats included.",
    ),
    click.option(
        "-k", type=int, help="Candidates nearest the prompt [default: 200, or all there are]."
    ),
    click.option(
        "--lam", default=0.01, show_default=True, help="λ', the noise: small is diverse.", **AUTO
    ),
    click.option(
        "--selector", type=click.Choice(list(SELECTORS)), default="sift", show_default=True
    ),
    click.option("--stop-alpha", help="Stop before the first step with σ > 1 / (α n).", **AUTO),
    click.option(
        "--retriever",
        type=click.Choice(["dense", "bm25", "hybrid"]),
        default="dense",
        show_default=True,
        help="Who nominates them: vectors, the prompt's words, or both.",
    ),
    click.option("--where", help='Candidates\' filter, as `set == "github" and year > 2010`.'),
)
ADAPTATION = options(
    click.option("--model", default="whet-nano", show_default=True, help="Name, folder or hub id."),
    click.option("--mode", type=click.Choice(list(ADAPTERS)), default="full", show_default=True),
    click.option("--lr", type=float, help="Learning rate [default: the model's, or the mode's]."),
    click.option("--rank", type=int, help="Rank of LoRA [default: 32]."),
    click.option("--device", help="Where the model runs, as cpu or cuda [default: the model's]."),
)


def calibrated_options(space: Any, **selection: Any) -> Any:
    """Options with numbers for `auto`, which are told, so that the next call may name them."""
    from whet.select.config import SelectionConfig
    from whet.spaces import calibrated

    asked = SelectionConfig(**selection)
    found = calibrated(space, asked, progress=True)
    if asked.has_auto:
        alpha = "" if found.stop_alpha is None else f" --stop-alpha {found.stop_alpha:.3g}"
        print(f"chosen on the data space: --lam {found.lam:g}{alpha}", file=sys.stderr)
    return found


def read(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt


def line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:79] + "…"


def tell(*renderables: Any) -> None:
    """Print tables as wide as they are, for the terminal to wrap, and lines of text."""
    from rich.console import Console

    from whet.evaluate.report.render import WIDE

    console = Console(width=WIDE, highlight=False, markup=False)
    for each in renderables:
        console.print(each, soft_wrap=isinstance(each, str))


def show(record: dict[str, Any], as_json: bool, plain: str) -> None:
    from whet.space.jsonl import as_json as line_of

    print(line_of(record) if as_json else plain)
