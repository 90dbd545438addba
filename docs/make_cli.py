"""Write docs/cli.md from `--help`. With --check, fail if it is not current."""

import sys
from pathlib import Path

import click
from click.testing import CliRunner

from whet.cli import main

HEAD = """# The command line

Made by `make docs` from `whet --help`. Results go to stdout, progress and errors to stderr. Exit
code 2 is for usage errors, 1 for runtime errors. Completion:
`eval "$(_WHET_COMPLETE=bash_source whet)"` (or `zsh_source`, `fish_source`).
"""


def page() -> str:
    return "\n".join([HEAD, *sections(main, [])])


def sections(command: click.Command, words: list[str]) -> list[str]:
    """The help of `command`, then that of the verbs below it."""
    below = command.commands if isinstance(command, click.Group) else {}
    own = section(" ".join(["whet", *words]), words)
    return [own, *(page for verb in below for page in sections(below[verb], [*words, verb]))]


def section(title: str, words: list[str]) -> str:
    shown = CliRunner().invoke(main, [*words, "--help"], prog_name="whet", terminal_width=100)
    return f"## {title}\n\n```\n{shown.output.strip()}\n```\n"


if __name__ == "__main__":
    target = Path(__file__).with_name("cli.md")
    if "--check" in sys.argv:
        if target.read_text(encoding="utf-8") != page():
            sys.exit("docs/cli.md is not current: run `make docs`")
    else:
        target.write_text(page(), encoding="utf-8")
