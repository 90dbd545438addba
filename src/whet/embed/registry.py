"""Embedders by specification: `lsa`, or kind, model and options: `hf:NAME@layer=6,pool=last`."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from whet.embed.embedder import Embedder
from whet.embed.model_files import PACKAGED, resolve

LOADABLE = ("st", "hf", "ntk", "influence", "openai")  # kinds that are loaded by name
KINDS = """lsa, minilm, st:NAME (sentence-transformers), hf:NAME (the hidden states of a Hugging Face \
model), ntk:NAME (the gradient at its head), influence:NAME (the gradient at its layers) or \
openai:URL#MODEL (a server)"""
NOT_STORED = ("device", "trust_remote_code")
"""Options that belong to this machine and its user: specifications in data spaces lack them."""


def get_embedder(spec: str, *, local_files_only: bool = False) -> Embedder | None:
    """Load the embedder `spec`; None for `lsa`, which is fitted on the data space itself.

    Options follow the model's name: `@key=value,key=value`. They are the keyword arguments of the
    embedder's class; see docs/embedders.md.

    >>> get_embedder("lsa") is None
    True

    Args:
        spec: The specification.
        local_files_only: Never download a model.

    Raises:
        ValueError: If there is no such kind of embedder, option or value.
        ModelError: If the model cannot be loaded.
    """
    if spec == "lsa":
        return None
    kind, model, options = _split(spec)
    if not model:
        raise ValueError(f"embedder is {spec!r}: expected {KINDS}")
    factory = _factory(kind, spec)
    if kind == "openai":
        return factory(model, **_parse_options(options, factory, spec))  # type: ignore[no-any-return]
    embedder: Embedder = factory(
        model, local_files_only=local_files_only, **_parse_options(options, factory, spec)
    )
    return embedder


def is_hub_id(spec: str) -> bool:
    """Whether `spec` names a model of the Hugging Face hub, not a folder or a bundled model.

    >>> is_hub_id("hf:gpt2@layer=6"), is_hub_id("hf:whet-pico"), is_hub_id("lsa")
    (True, False, False)
    """
    _, model, _ = _split(spec)
    bundled, model = (Path(__file__).parents[1] / "assets" / model).is_dir(), resolve(model)
    absolute = Path(model).is_absolute() or PureWindowsPath(model).is_absolute()
    return bool(model) and not (spec.startswith("openai:") or bundled or absolute)


def base_spec(spec: str) -> str:
    """`spec` without its options, and a folder as an absolute path.

    >>> base_spec("hf:gpt2@layer=6,pool=last")
    'hf:gpt2'
    """
    kind, model, _ = _split(spec)
    return f"{kind}:{model}" if model else kind


def _split(spec: str) -> tuple[str, str, str]:
    """Kind, model and options; a folder becomes absolute, to be found from anywhere later."""
    name, _, options = spec.partition("@")
    if name in PACKAGED and (spec == name or "=" in options):
        spec = f"st:{spec}"
    kind, _, rest = spec.partition(":")
    model, _, options = rest.rpartition("@") if "=" in rest.rpartition("@")[2] else (rest, "", "")
    bundled = (Path(__file__).parents[1] / "assets" / model).is_dir()
    bundled = bundled or model in PACKAGED
    if model and not bundled and Path(model).is_dir():
        model = str(Path(model).resolve())
    return kind, model, options


def _factory(kind: str, spec: str) -> Callable[..., Any]:
    if kind == "st":
        from whet.embed.sentence import SentenceEncoder

        return SentenceEncoder
    if kind == "hf":
        from whet.embed.hidden_states import HiddenStates

        return HiddenStates
    if kind in ("ntk", "influence"):
        from whet.embed.gradients import LossGradients

        return partial(LossGradients, kind="ntk" if kind == "ntk" else "influence")
    if kind == "openai":
        from whet.embed.remote import RemoteEmbedder

        return RemoteEmbedder
    raise ValueError(f"embedder is {spec!r}: expected {KINDS}")


def stored_options(spec: str) -> list[str]:
    """Names of the options of `spec` that a data space must not set by itself.

    >>> stored_options("hf:gpt2@layer=6,trust_remote_code=true")
    ['trust_remote_code']
    """
    names = [option.partition("=")[0] for option in _split(spec)[2].split(",")]
    return [name for name in names if name in NOT_STORED]


def _parse_options(written: str, factory: Callable[..., Any], spec: str) -> dict[str, Any]:
    known = [name for name in inspect.signature(factory).parameters if name in PARSERS]
    options = {}
    for assignment in filter(None, written.split(",")):
        key, _, value = assignment.partition("=")
        if key not in known:
            raise ValueError(
                f"embedder {spec!r} has no option {key!r}: expected {', '.join(known)}"
            )
        try:
            options[key] = PARSERS[key](unquote(value))
        except ValueError as error:
            raise ValueError(f"embedder {spec!r}: {key} is {value!r}: {error}") from error
    return options


def _parse_bool(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("expected true or false")
    return value == "true"


PARSERS: dict[str, Callable[[str], Any]] = {
    "layer": int,
    "pool": str,
    "targets": lambda value: tuple(value.split("+")),
    "dimension": int,
    "seed": int,
    "dtype": str,
    "context": int,
    "query_prompt": str,
    "passage_prompt": str,
    "truncate_dim": int,
    "normalize": _parse_bool,
    "device": str,
    "trust_remote_code": _parse_bool,
}
