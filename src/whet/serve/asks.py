"""What a request asks for, checked against what its key may have."""

import time
from dataclasses import dataclass, field
from typing import Any

from whet.engine import SamplingParams
from whet.select.config import SelectionConfig
from whet.serve.adapter_cache import Kept
from whet.serve.dependencies import Caller
from whet.serve.errors import APIError
from whet.serve.requests import Adapt, Choosing
from whet.serve.space_registry import View

BASE = "base"
"""After the @ of a model's name: as it is, not sharpened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for the engine."""

    caller: Caller
    prompt: str
    """What the model reads."""
    tokens: tuple[int, ...] | None = None
    """What it reads instead, where that is more than letters."""
    text: str | None = None
    """What is scored; none to go on from the prompt."""
    max_tokens: int | None = 1
    """Longest answer; none for what the context has room for."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    adapt: Adapt
    query: str
    """What documents are chosen for."""
    options: SelectionConfig
    method: str
    view: View | None
    """Where they are chosen; none if the model is to be as it is, or as `kept` has it."""
    kept: Kept | None
    """The adapter asked for by name."""
    began: float

    @property
    def deadline_s(self) -> float:
        """Seconds that are left for choosing and training."""
        limit, asked = self.caller.limits.deadline_ms, self.adapt.deadline_ms
        allowed = limit if asked is None else asked
        return max(0.0, allowed / 1000 - (time.perf_counter() - self.began))


def ask(
    caller: Caller,
    model: str,
    prompt: str,
    adapt: Adapt | None,
    *,
    query: str | None = None,
    **more: Any,
) -> Ask:
    """A request that may be worked on; `more` are fields of `Ask`.

    Raises:
        APIError: 403 for a key without role `use`, 404 for a model, an adapter or a data space that
            is not there for the key, 413 for more than its limits allow, 400 for a method that the
            server does not train.
        ValueError: If the filter cannot be read.
    """
    server, given = caller.server, adapt or Adapt()
    caller.may_ask(prompt or query or "", given.query or "", more.get("text") or "")
    kept, still = named(caller, model)
    method = kept.method if kept else given.method or server.config.methods[0]
    if method not in server.config.methods:
        raise APIError(
            400, f"method is {method!r}: this server trains {', '.join(server.config.methods)}",
            param="adapt.method",
        )  # fmt: skip
    if given.deadline_ms is not None:
        caller.bounded("deadline_ms", given.deadline_ms)
    if more.get("max_tokens") is not None:
        caller.bounded("max_tokens", more["max_tokens"])
    still = still or kept is not None or given.n == 0 or caller.limits.n == 0
    return Ask(
        caller=caller,
        prompt=prompt,
        adapt=given,
        query=given.query or query or prompt,
        options=options(caller, given),
        method=BASE if still and kept is None else method,
        view=None if still else server.catalogue.view(given.data_space, caller.key),
        kept=kept,
        began=time.perf_counter(),
        **more,
    )


def options(caller: Caller, given: Choosing) -> SelectionConfig:
    """How documents are chosen.

    Raises:
        APIError: 413 for more than the key's limits allow.
        ValueError: If the filter cannot be read.
    """
    config, limits = caller.server.config, caller.limits
    n = min(config.n, limits.n) if given.n is None else caller.bounded("n", given.n)
    k = min(config.k, limits.k) if given.k is None else caller.bounded("k", given.k)
    return SelectionConfig(
        selector=given.selector, n=max(1, n), k=max(1, k), lam=given.lam, stop_alpha=given.stop_alpha,
        where=given.where, retriever=given.retriever,
    )  # fmt: skip


def named(caller: Caller, model: str) -> tuple[Kept | None, bool]:
    """The adapter that a model's name ends with, and whether it asks for the model as it is.

    Raises:
        APIError: 404 if it is no model's name, or not for this key.
    """
    server = caller.server
    name, _, suffix = model.partition("@")
    kept = server.adapters.get(caller.key.id, suffix)
    if name != server.name or not (kept or suffix in ("", BASE)):
        raise APIError(
            404, f"there is no model {model!r} for this key: see /v1/models", param="model",
            code="model_not_found",
        )  # fmt: skip
    return kept, suffix == BASE
