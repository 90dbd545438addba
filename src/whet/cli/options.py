"""Options that several commands share, and how every command reads its input and prints.

The options of a configuration are made from its dataclass: names, types, defaults and help texts
exist once, in `SelectionConfig`, `AdapterOptions`, `TrainingConfig` and `OptimizerConfig`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from whet.adapt.config import AdapterOptions, OptimizerConfig, TrainingConfig, UseOption
from whet.config import ConfigField, config_fields
from whet.io import printable
from whet.select.config import SelectionConfig
from whet.select.own import is_own
from whet.select.registry import SELECTORS

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]
C = TypeVar("C")

ADDRESSES = ("ray:", "milvus:")
FLAT_NAMES = {(AdapterOptions, "name"): "adapter", (OptimizerConfig, "name"): "optimizer"}
"""Options whose name alone would not say of what they are the name."""

RENAMED_OPTIONS = {
    "--alpha": "--stop-alpha",
    "--candidates": "--retriever (vectors is now dense)",
    "--sign": "--metric",
    "--mode": "--adapter",
    "--method": "--adapter",
    "--rank": "--r",
    "--public": "--public-label",
    "--texts": "--space",
    "--most": "--max-prompts",
    "--keys": "--api-keys",
}
REMOVED_OPTIONS = {
    name: "compare methods and numbers of steps with `whet report`"
    for name in ("--advise", "--worth")
}


class Space(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A data space: the path of a folder, or the address of one that Ray or Milvus serves."""

    name = "path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        return value if str(value).startswith(ADDRESSES) else Path(value)


class NumberOrWord(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A number, or one of a few words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.name = "|".join(["number", *words])

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value in self.words:
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is not a valid number or {' or '.join(self.words)}", param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name.replace("number", "NUMBER")


class SelectorName(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2
    """One of whet's selectors, or a Python function as `module:function`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value if is_own(str(value)) else super().convert(value, param, ctx))


class Words(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """Words separated by commas."""

    name = "word,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(str(value).split(","))


class GroupedOption(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *names: Any, group: str = "Options", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group


class Command(click.Command):
    """A command whose help lists its options by group, and which names the new name of old ones."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            if name in RENAMED_OPTIONS:
                raise click.UsageError(f"{name} is now {RENAMED_OPTIONS[name]}", ctx) from error
            if name in REMOVED_OPTIONS:
                message = f"{name} was removed: {REMOVED_OPTIONS[name]}"
                raise click.UsageError(message, ctx) from error
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        params = self.get_params(ctx)
        for param in sorted(params, key=lambda param: isinstance(param, GroupedOption)):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def config_options(
    kind: type, title: str, *, skip: tuple[str, ...] = (), **types: Any
) -> Decorator:
    """Options for the fields of the dataclass `kind`, listed under `title`; see `take_config`.

    Args:
        skip: Fields without an option.
        types: click types of fields whose annotation does not say which values are valid.
    """

    def decorate(function: Function) -> Function:
        for field in reversed(config_fields(kind)):
            if field.name not in skip:
                function = _option(kind, field, title, types.get(field.name))(function)
        return function

    return decorate


def take_config(kind: type[C], values: dict[str, Any]) -> C:
    """The configuration `kind` from the `values` of its options, which are removed from there."""
    taken = {}
    for field in config_fields(kind):  # type: ignore[arg-type]  # a class is hashable
        name = FLAT_NAMES.get((kind, field.name), field.name)
        if name in values:
            taken[field.name] = values.pop(name)
    return kind(**taken)


def _option(kind: type, field: ConfigField, title: str, type_: Any) -> Decorator:
    name = FLAT_NAMES.get((kind, field.name), field.name)
    declared = [f"--{name.replace('_', '-')}", name]
    if name in ("n", "k"):
        declared.insert(0, f"-{name}")
    flag = field.type is bool
    return click.option(
        *declared,
        cls=GroupedOption,
        group=title,
        type=None if flag else type_ or _click_type(field),
        is_flag=flag,
        default=field.default,
        show_default=not (flag or field.default is None or field.default == ()),
        metavar="FILTER" if name == "where" else None,
        help=field.help,
    )


def _click_type(field: ConfigField) -> Any:
    members = get_args(field.type) if get_origin(field.type) is not Literal else ()
    if float in members and field.choices:
        return NumberOrWord(field.choices)
    if field.choices:
        return click.Choice(field.choices)
    if get_origin(field.type) is tuple:
        return Words()
    return field.type if field.type in (int, float) else click.STRING


def options(*decorators: Decorator) -> Decorator:
    """All of `decorators`, in order."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


PATH = click.Path(path_type=Path)
SPACE = click.argument("space", type=Space())
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
RAY = click.option("--ray", metavar="HOST:PORT|local", help="Run on the workers of a Ray cluster.")
QUIET = click.option("--quiet", is_flag=True, help="Do not show progress.")
WHERE = click.option(
    "--where", metavar="FILTER", help='Only documents that pass, such as `set == "github"`.'
)
SELECTION = config_options(SelectionConfig, "Selection", selector=SelectorName(list(SELECTORS)))
SELECTION_WITHOUT_N = config_options(
    SelectionConfig, "Selection", skip=("n",), selector=SelectorName(list(SELECTORS))
)
USE = click.option(
    "--use",
    type=click.Choice(get_args(UseOption)),
    default="auto",
    show_default=True,
    help="Take gradient steps on the documents, put them into the model's context, or both. auto is "
    "context for a chat with a model that has a chat template, otherwise steps.",
)
MODEL = options(
    click.option(
        "--model",
        default="whet-nano",
        show_default=True,
        help="Bundled model, smollm2, folder, .gguf file, ollama:NAME, or Hugging Face id.",
    ),
    click.option("--device", help="Device of the model, such as cpu or cuda [default: a GPU if "
                 "there is one]."),
    click.option("--max-length", type=int, help="Tokens that the model reads at once [default: as "
                 "many as it accepts]; required for models without a limit, such as Mamba."),
)  # fmt: skip
ADAPTATION = options(
    MODEL,
    config_options(AdapterOptions, "Adapter"),
    config_options(TrainingConfig, "Training", skip=("persist_optimizer", "seed")),
    config_options(OptimizerConfig, "Optimizer"),
    click.option("--seed", default=0, show_default=True, help="Seed of everything random."),
)  # fmt: skip


def resolve_selection(space: Any, config: SelectionConfig) -> SelectionConfig:
    """`config` with numbers for `auto`; they are printed, so that they can be passed next time."""
    if not config.has_auto:
        return config
    from whet.space.tuning import resolve

    resolved = resolve(space, config, progress=True)
    stop = "" if resolved.stop_alpha is None else f" --stop-alpha {resolved.stop_alpha:.3g}"
    print(f"chosen on the data space: --lam {resolved.lam:g}{stop}", file=sys.stderr)
    return replace(config, lam=resolved.lam, stop_alpha=resolved.stop_alpha)


def read_text(argument: str) -> str:
    """The text of an argument, or of stdin for "-"."""
    return sys.stdin.read() if argument == "-" else argument


def shorten(text: str) -> str:
    """`text` in one line of at most 80 characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:79] + "…"


def print_tables(*renderables: Any) -> None:
    """Print rich tables in their full width, and strings line by line."""
    from rich.console import Console

    from whet.evaluate.report.render import WIDE

    console = Console(width=WIDE, highlight=False, markup=False, color_system=None, file=StringIO())
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))
    print(printable(console.file.getvalue()), end="")  # type: ignore[attr-defined]


def emit(record: dict[str, Any], as_json: bool, plain: str) -> None:
    """Print the result of a command: `record` with --json, otherwise `plain`."""
    from whet.io import as_json as to_json

    print(to_json(record) if as_json else printable(plain))
