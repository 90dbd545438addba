"""Verbs of the server: serve, and keys for it."""

import datetime
import sys
from pathlib import Path
from typing import Any

import click

from whet.cli.options import PATH


@click.command()
@click.argument("space", type=PATH, required=False)
@click.option("--config", "path", type=PATH, help="Configuration in TOML: see docs/serving.md.")
@click.option("--model", help="Name, folder or hub id [default: whet-nano].")
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option("--port", type=int, help="Port to listen on, 0 for any [default: 8000].")
@click.option("--keys", type=PATH, help="File of keys, made by `whet key`.")
@click.option("--check", is_flag=True, help="Try everything once, say what was found, and end.")
def serve(space: Path | None, path: Path | None, check: bool, **given: Any) -> None:
    """Serve sharpened answers from SPACE over OpenAI's API, and a page for people at /.

    Without keys only this machine may ask. SIGTERM ends it when all that was asked is answered.
    """
    if space is None and path is None:
        raise ValueError("name SPACE, or --config FILE")
    from whet.errors import require

    require("fastapi", "serve")
    from whet.serve.config import Config

    config = Config.read(path, spaces=space and {space.stem: space}, **given)
    if check:
        from whet.serve.preflight import check as checked

        for line in checked(config):
            print(line)
        return
    from whet.serve.main import run

    run(config)


@click.command()
@click.argument("file", type=PATH)
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="use, write or operate [default: use].")
@click.option("--label", "labels", multiple=True, help="Documents it may read; * for all of them.")
@click.option("--days", type=click.IntRange(1), help="Days until it expires [default: never].")
def key(
    file: Path, name: str, roles: tuple[str, ...], labels: tuple[str, ...], days: int | None
) -> None:
    """Make an API key called NAME, add it to FILE by its hash, and print it: once."""
    from whet.serve.auth import new_key

    today = datetime.datetime.now(datetime.UTC).date()
    expires = None if days is None else today + datetime.timedelta(days=days)
    print(new_key(file, name=name, roles=roles or ("use",), labels=labels, expires=expires))
    if not labels:
        print("no --label: it reads public documents alone", file=sys.stderr)
