"""Commands of the server: `whet serve`, and `whet keys create` for its API keys."""

import datetime
import sys
from pathlib import Path
from typing import Any

import click

from whet.cli.options import PATH, Command


@click.command(cls=Command, short_help="Serve adapted answers through OpenAI's API.")
@click.argument("space", type=PATH, required=False)
@click.option("--config", "path", type=PATH, help="Configuration in TOML: see docs/serving.md.")
@click.option(
    "--model",
    help="Bundled model, smollm2, folder, .gguf file, ollama:NAME, or Hugging Face id "
    "[default: whet-nano].",
)
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option("--port", type=int, help="Port to listen on, 0 for any free port [default: 8000].")
@click.option("--log-format", type=click.Choice(["auto", "json", "text"]),
              help="Form of log lines; auto is text on a terminal, otherwise json "
              "[default: auto].")  # fmt: skip
@click.option("--api-keys", type=PATH, help="File of API keys, made by `whet keys create`.")
@click.option(
    "--check", is_flag=True, help="Validate the configuration with one test request, then exit."
)
def serve(space: Path | None, path: Path | None, check: bool, **overrides: Any) -> None:
    """Serve answers adapted on SPACE through OpenAI's API, and a web page at /.

    Without API keys the server listens on localhost only. On SIGTERM it finishes the running
    requests, then exits.
    """
    if space is None and path is None:
        raise ValueError("no data space: expected SPACE or --config FILE")
    from whet.errors import require

    require("fastapi", "serve")
    from whet.serve.config import ServeConfig, given_settings

    config = ServeConfig.read(path, spaces=space and {space.stem: space}, **overrides)
    from whet.serve import main

    given = given_settings(path)
    if check:
        for line in main.check(config, given):
            print(line)
    else:
        main.run(config, given)


@click.command(short_help="Create an API key called NAME and print it.")
@click.argument("file", type=PATH)
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="read, write or metrics [default: read].")
@click.option("--label", "labels", multiple=True, help="Label it may read; * for all documents.")
@click.option("--days", type=click.IntRange(1), help="Days until it expires [default: never].")
def key(
    file: Path, name: str, roles: tuple[str, ...], labels: tuple[str, ...], days: int | None
) -> None:
    """Create an API key called NAME, add its hash to FILE, and print the key.

    The key is stored nowhere else, so it cannot be printed again.
    """
    from whet.serve.access.auth import create_key

    today = datetime.datetime.now(datetime.UTC).date()
    expires = None if days is None else today + datetime.timedelta(days=days)
    print(create_key(file, name=name, roles=roles or ("read",), labels=labels, expires=expires))
    if not labels:
        print("no --label: this key reads public documents only", file=sys.stderr)
