"""The command line: a verb parses, calls one function, prints; results on stdout, all else not.

Exit code 2 is for a wrong call, 1 for a world that is not as it must be.
"""

import sys
from typing import Any

import click

import whet
from whet.cli import evaluate as evidence
from whet.cli import generate as answers
from whet.cli import index as texts
from whet.cli import reproduce
from whet.cli import serve as serving
from whet.cli import space as spaces
from whet.errors import WhetError, naming_extras


class OneLine(click.ClickException):
    """An error as its user sees it."""

    def __init__(self, message: str, usage: bool) -> None:
        super().__init__(message)
        self.exit_code = 2 if usage else 1  # type: ignore[misc]  # click declares it as a constant


class Verbs(click.Group):
    """Turns whet's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with naming_extras():
                made = super().invoke(ctx)
                sys.stdout.flush()
                return made
        except BrokenPipeError:  # whoever reads has enough: click ends without a word
            raise
        except (WhetError, OSError, ValueError) as error:
            if ctx.params["debug"]:
                raise
            raise OneLine(" ".join(str(error).split()), isinstance(error, ValueError)) from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(whet.__version__, prog_name="whet")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Sharpen a language model on every prompt.

    \b
    whet index texts.jsonl my.whet          make a data space
    whet select my.whet "a prompt" -n 10    the texts that tell most about its answer
    whet generate my.whet "a prompt"        sharpen on them, answer, put the weights back
    """


for verb in (
    texts.index,
    texts.select,
    texts.why,
    answers.generate,
    answers.score,
    evidence.evaluate,
    evidence.report,
    evidence.demo,
    reproduce.reproduce,
    spaces.space,
    serving.serve,
    serving.key,
):
    main.add_command(verb)
