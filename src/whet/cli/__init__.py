"""The command line: a command parses its options, calls one function, and prints the result.

Results go to stdout, progress and errors to stderr. Exit code 2 is for usage errors, 1 for runtime
errors.
"""

import io
import logging
import sys
from functools import partial
from typing import Any

import click

from whet._version import __version__
from whet.cli import adapter, chat, evaluate, generate, index, select, serve, space, tune
from whet.errors import MissingDependencyError, WhetError, missing_dependency
from whet.io import printable

RENAMED_COMMANDS = {
    "why": "`whet explain`",
    "key": "`whet keys create`",
    "reproduce": "`python -m studies`, in a checkout of whet's repository",
}


class UserError(click.ClickException):
    """An error as one line on stderr."""

    def __init__(self, message: str, *, usage: bool) -> None:
        super().__init__(printable(" ".join(message.split(" "))).replace("\n", " "))
        self.exit_code = 2 if usage else 1  # type: ignore[misc]  # click declares it as a constant


def _log_to_stderr(ctx: click.Context) -> None:
    """Print which model a data space's embedder is, while it is loaded.

    `whet index` prints the number of documents that could not be added itself.
    """
    logger, handler = logging.getLogger("whet.space.opening"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logger.setLevel(logging.INFO)
    silent = logging.getLogger("whet.space.build"), logging.NullHandler()
    for each, its_handler in ((logger, handler), silent):
        each.addHandler(its_handler)
        ctx.call_on_close(partial(each.removeHandler, its_handler))


def _escape_what_cannot_be_printed() -> None:
    """Print characters that the stream's encoding lacks as escapes, such as `\\u6f22`.

    A pipe on Windows has the encoding of the region, and a name of a file need not be valid UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class PrintableFormatter(logging.Formatter):
    """Formats a log record for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class ErrorHandlingGroup(click.Group):
    """Prints whet's errors as one line, and the commands in sections."""

    sections: dict[str, list[str]] = {}  # noqa: RUF012  # filled below, once

    def invoke(self, ctx: click.Context) -> Any:
        _log_to_stderr(ctx)
        _escape_what_cannot_be_printed()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:  # the reader has closed the pipe: click exits without a message
            raise
        except (WhetError, OSError, ValueError) as error:
            if ctx.params["debug"]:
                raise
            message = str(error)
            if isinstance(error, OSError) and error.filename and error.strerror:
                message = f"{error.filename}: {error.strerror}"  # without the number
            raise UserError(message, usage=isinstance(error, ValueError)) from error
        except ModuleNotFoundError as error:
            missing = missing_dependency(error)
            if ctx.params["debug"] or not isinstance(missing, MissingDependencyError):
                raise
            raise UserError(str(missing), usage=False) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in RENAMED_COMMANDS:
            raise click.UsageError(f"`whet {args[0]}` is now {RENAMED_COMMANDS[args[0]]}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - max(map(len, self.commands)) - 6
        for title, names in self.sections.items():
            rows = [(name, self.commands[name].get_short_help_str(width)) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=ErrorHandlingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="whet")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Fine-tune a language model at test time, for each prompt.

    \b
    whet index texts.jsonl my.whet          build a data space
    whet select my.whet "a prompt" -n 10    select the most informative documents
    whet generate my.whet "a prompt"        fine-tune on them, answer, restore the model
    """


@click.group()
def keys() -> None:
    """Manage the API keys of a server."""


keys.add_command(serve.key, "create")

COMMANDS: dict[str, list[click.Command]] = {
    "Data": [index.index, space.space, space.ray],
    "Selection": [select.select, select.explain],
    "Adaptation": [generate.generate, generate.score, chat.chat, tune.tune, adapter.adapter],
    "Evaluation": [evaluate.evaluate, evaluate.report, evaluate.demo],
    "Server": [serve.serve, keys],
}
for title, commands in COMMANDS.items():
    ErrorHandlingGroup.sections[title] = [str(command.name) for command in commands]
    for command in commands:
        main.add_command(command)
