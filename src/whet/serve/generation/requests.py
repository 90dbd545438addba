"""Checks a request against what its key may do, and completes it with the server's settings."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whet.adapt.config import Use
from whet.engine import SamplingParams
from whet.engine.in_context import resolve_use
from whet.select.config import SelectionConfig
from whet.serve.adapter_cache import CachedAdapter
from whet.serve.dependencies import RequestContext
from whet.serve.errors import APIError
from whet.serve.schemas import SpaceParams
from whet.serve.schemas.adapt import AdaptParams
from whet.serve.spaces.registry import SpaceView
from whet.serve.state import BASE
from whet.space.space import DEFAULT_K


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedRequest:
    """A request for the engine that its key is allowed to make."""

    context: RequestContext
    prompt: str
    """Text that the model reads."""
    token_ids: tuple[int, ...] | None = None
    """Tokens that the model reads instead of `prompt`, such as those of a chat template."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """The conversation of which `token_ids` are the tokens; likewise `tools` and `answer_prefix`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    answer_prefix: str = ""
    text: str | None = None
    """Text to score; None to generate."""
    max_tokens: int | None = 1
    """Longest answer; None for as many tokens as the context and the key's limit allow, 0 to read
    the prompt only."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    params: AdaptParams
    query: str
    """Text to select documents for."""
    selection: SelectionConfig
    adapter: str
    """What is trained; `BASE` for the base model."""
    view: SpaceView | None
    """Where documents are selected; None without training."""
    cached: CachedAdapter | None
    """The adapter that the request names in `model`."""
    started: float
    """When the request was built, by `time.perf_counter`."""

    @property
    def use(self) -> Use:
        """What the documents are used for: a request that says what is trained asks for steps."""
        use, model = self.params.use, self.context.state.model
        is_chat = self.messages is not None and self.view is not None
        resolved = resolve_use(use, model, is_chat=is_chat)
        if use == "auto" and resolved == "context" and self.params.adapter is not None:
            return "both"
        return resolved

    @property
    def deadline_s(self) -> float:
        """Seconds that are left for selection and training."""
        allowed = self.params.deadline_s
        allowed = self.context.limits.deadline_s if allowed is None else allowed
        return max(0.0, allowed - (time.perf_counter() - self.started))


def build_request(
    context: RequestContext,
    model: str,
    prompt: str,
    params: AdaptParams | None,
    *,
    query: str | None = None,
    **values: Any,
) -> AdaptedRequest:
    """Check a request; `values` are further fields of `AdaptedRequest`.

    Raises:
        APIError: 403 for a key without the role `read`, 404 for a model, adapter or data space that
            the key cannot use, 413 for values beyond its limits, 400 for an adapter that the server
            does not train.
        ValueError: If the filter cannot be parsed.
    """
    state, params = context.state, params or AdaptParams()
    context.check_prompt(prompt or query or "", params.query or "", values.get("text") or "")
    cached, use_base = resolve_model(context, model)
    adapter = cached.adapter_name if cached else _adapter_name(context, params)
    if params.deadline_s is not None:
        context.check_limit("deadline_s", params.deadline_s, "adapt.deadline_s")
    if values.get("max_tokens") is not None:
        sampling = values.get("sampling") or SamplingParams()
        context.check_limit(
            "max_tokens", values["max_tokens"] * sampling.num_sequences,
            "max_tokens" if sampling.num_sequences == 1 else "max_tokens times n",
        )  # fmt: skip
    selection = selection_config(context, params)
    untrained = use_base or cached is not None or selection.n == 0
    return AdaptedRequest(
        context=context,
        prompt=prompt,
        params=params,
        query=params.query or query or prompt,
        selection=selection,
        adapter=BASE if untrained and cached is None else adapter,
        view=None
        if untrained
        else state.spaces.view(params.data_space, context.key, param="adapt.data_space"),
        cached=cached,
        started=time.perf_counter(),
        **values,
    )


def _adapter_name(context: RequestContext, params: AdaptParams) -> str:
    trained = context.state.config.adapters
    name = params.adapter or trained[0]
    if name not in trained:
        raise APIError(
            400, f"adapter is {name!r}: this server trains {', '.join(trained)}",
            param="adapt.adapter",
        )  # fmt: skip
    return name


def selection_config(context: RequestContext, params: SpaceParams) -> SelectionConfig:
    """The server's selection with the values that a request sets.

    The server's own `n` and `k` are lowered to the key's limits.

    Raises:
        APIError: 413 for a value beyond the key's limits.
        ValueError: If the filter cannot be parsed.
    """
    default, limits = context.state.config.selection, context.limits
    values = params.selection(default)
    for name in ("n", "k"):
        if getattr(params, name, None) is None:
            value = values[name]
            values[name] = None if value is None else min(value, getattr(limits, name))
        else:
            prefix = "adapt." if isinstance(params, AdaptParams) else ""
            context.check_limit(name, values[name], prefix + name)
    if values["k"] is None and limits.k < DEFAULT_K:
        values["k"] = limits.k
    if values["k"] is not None:
        values["k"] = max(1, values["k"])
    return SelectionConfig(**values)


def resolve_model(context: RequestContext, model: str) -> tuple[CachedAdapter | None, bool]:
    """The cached adapter that the name of a model contains, and whether it is the base model.

    Raises:
        APIError: 404 if it is not the name of a model that the key can use.
    """
    state = context.state
    name, _, suffix = model.partition("@")
    cached = state.adapters.get(context.key.id, suffix)
    if name != state.name or not (cached or suffix in ("", BASE)):
        raise APIError(
            404, f"model {model!r} does not exist for this key: expected {state.name!r}, "
            f"{state.name + '@' + BASE!r}, or another of /v1/models", param="model",
            code="model_not_found",
        )  # fmt: skip
    return cached, suffix == BASE
