"""Embedders by name: `lsa`, or a kind, a model and options, as in `hf:NAME@layer=6,pool=last`."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from whet.embed.lsa import Embedder

LOADABLE = ("st", "hf", "ntk", "influence")  # kinds that are loaded by name
KINDS = """lsa, st:NAME (sentence-transformers), hf:NAME (the hidden states of a Hugging Face \
model), ntk:NAME (the gradient at its head) or influence:NAME (the gradient at its layers)"""


def get_embedder(spec: str) -> Embedder | None:
    """The embedder that `spec` names; None for `lsa`, which is fitted on the space itself.

    Options follow the model's name: `@key=value,key=value`. Those of each kind are the keyword
    arguments of its class; see docs/embedders.md.

    Raises:
        ValueError: If there is no such kind of embedder, or it has no such option or value.
        ModelError: If the model cannot be loaded.
    """
    if spec == "lsa":
        return None
    kind, model, options = _parts(spec)
    if not model:
        raise ValueError(f"embedder is {spec!r}: expected {KINDS}")
    maker = _maker(kind, spec)
    made: Embedder = maker(model, **_options(options, maker, spec))
    return made


def base_spec(spec: str) -> str:
    """`spec` without its options; a folder by its whole path, as its embedder is called."""
    kind, model, _ = _parts(spec)
    return f"{kind}:{model}" if model else kind


def _parts(spec: str) -> tuple[str, str, str]:
    """Kind, model and options. A folder's whole path names it from wherever it is opened later."""
    kind, _, rest = spec.partition(":")
    model, _, options = rest.rpartition("@") if "=" in rest.rpartition("@")[2] else (rest, "", "")
    bundled = (Path(__file__).parents[1] / "assets" / model).is_dir()
    if model and not bundled and Path(model).is_dir():
        model = str(Path(model).resolve())
    return kind, model, options


def _maker(kind: str, spec: str) -> Callable[..., Any]:
    if kind == "st":
        from whet.embed.lsa import SentenceEncoder

        return SentenceEncoder
    if kind == "hf":
        from whet.embed.hidden_states import HiddenStates

        return HiddenStates
    if kind in ("ntk", "influence"):
        from whet.embed.gradients import LossGradients

        return partial(LossGradients, kind="ntk" if kind == "ntk" else "influence")
    raise ValueError(f"embedder is {spec!r}: expected {KINDS}")


def _options(written: str, maker: Callable[..., Any], spec: str) -> dict[str, Any]:
    known = [name for name in inspect.signature(maker).parameters if name in READ]
    options = {}
    for part in filter(None, written.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(
                f"embedder {spec!r} has no option {key!r}: expected {', '.join(known)}"
            )
        try:
            options[key] = READ[key](value)
        except ValueError as error:
            raise ValueError(f"embedder {spec!r}: {key} is {value!r}: {error}") from error
    return options


def _truth(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("expected true or false")
    return value == "true"


READ: dict[str, Callable[[str], Any]] = {
    "layer": int,
    "pool": str,
    "targets": lambda value: tuple(value.split("+")),
    "dimension": int,
    "seed": int,
    "dtype": str,
    "context": int,
    "normalize": _truth,
}
