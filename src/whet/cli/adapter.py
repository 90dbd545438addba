"""`whet adapter`: convert a saved LoRA adapter, or hand it over to another engine."""

from pathlib import Path

import click

from whet.cli.options import PATH, Command
from whet.errors import require

ADAPTER = click.argument("adapter", type=PATH)


@click.group()
def adapter() -> None:
    """Use a saved LoRA adapter in another engine."""


@adapter.command(cls=Command)
@ADAPTER
@click.argument("out", type=PATH)
@click.option("--to", type=click.Choice(["gguf"]), default="gguf", show_default=True,
              expose_value=False, help="Format: gguf, for llama.cpp and Ollama.")  # fmt: skip
@click.option("--model", help="Model of ADAPTER, for its configuration [default: its own name].")
def export(adapter: Path, out: Path, model: str | None) -> None:
    """Convert ADAPTER, a folder in PEFT's format, and write it to OUT."""
    require("torch", "adapt")
    from whet.adapt.adapters import Adapter
    from whet.integrations.llama_cpp import save_gguf

    save_gguf(Adapter.from_pretrained(adapter), out, model=model)
    print(out)


@adapter.command(cls=Command, short_help="Have the engine at URL load ADAPTER.")
@ADAPTER
@click.argument("url")
@click.option("--engine", type=click.Choice(["vllm", "sglang"]), required=True,
              help="What listens at URL.")  # fmt: skip
@click.option("--name", help="How requests name the adapter [default: name of the folder].")
@click.option("--api-key", envvar="WHET_ENGINE_API_KEY", help="The engine's own API key.")
def load(adapter: Path, url: str, engine: str, name: str | None, api_key: str | None) -> None:
    """Have the engine at URL load ADAPTER, a folder in PEFT's format that it can read.

    Prints the name by which requests use it. ADAPTER stays where it is.
    """
    require("torch", "adapt")
    from whet.integrations.lora_engines import load_into_engine

    print(load_into_engine(adapter, url, engine, name=name, api_key=api_key))
