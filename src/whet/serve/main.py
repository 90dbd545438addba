"""Run a server from its configuration, or check the configuration as `whet serve --check` does."""

import logging
import socket
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from whet.errors import require

require("fastapi", "serve")

from fastapi import FastAPI

from whet.adapt.config import STEPS, AdapterConfig, LoRA, suited_steps
from whet.adapt.model import LanguageModel
from whet.adapt.tuners.state_cache import CacheLimits
from whet.engine import Engine, Request, SamplingParams
from whet.engine.tuned import tuned_defaults
from whet.serve.access.auth import APIKeyStore
from whet.serve.app import create_app
from whet.serve.config import ServeConfig, is_loopback
from whet.serve.http.connections import build_server
from whet.serve.metrics import log_to_stderr
from whet.serve.spaces.retrieval import warm_up
from whet.serve.state import BASE
from whet.space.long_texts import count_long_texts
from whet.space.opening import is_folder
from whet.space.space import DataSpace

log = logging.getLogger("whet.serve")


def build_engines(config: ServeConfig, model: LanguageModel | None = None) -> dict[str, Engine]:
    """An engine for each adapter, and one called `BASE` for the base model, which goes first.

    They share the weights of `model`, by default loaded here, except for full fine-tuning, which
    changes them.

    Raises:
        ModelError: If the model cannot be loaded.
        ValueError: If an adapter has an invalid option.
    """
    model = model or _load_model(config)
    model.hf_model.requires_grad_(False)  # engines that run at once would each restore it
    adapters: dict[str, AdapterConfig] = {
        name: model.adapter_config(name, **config.adapter_options(name)) for name in config.adapters
    }
    adapters[BASE] = LoRA(r=1)  # never trained, so it has no effect
    first = next(iter(config.spaces.values()), None)
    mib = config.state_cache_mib if first is not None and is_folder(first) else 0
    limits = CacheLimits.in_space(Path(first or ""), mib)
    return {
        name: Engine(
            None,
            _load_model(config) if name == "full" else model.share_weights(),
            adapter,
            optimizer=config.optimizer,
            training=config.training,
            slots=1 if name == "full" else config.slots,
            max_queue_size=2 * (config.slots + config.max_queue_size),  # `AppState` limits it
            background_niceness=0 if name == BASE else config.background_niceness,
            cache_limits=limits,
        )
        for name, adapter in adapters.items()
    }


def _load_model(config: ServeConfig) -> LanguageModel:
    return LanguageModel.from_pretrained(config.model, max_length=config.max_length)


def with_suited_steps(
    config: ServeConfig, model: LanguageModel, given: Collection[str] = ()
) -> ServeConfig:
    """`config` with the number of steps that suits the model, if the file contains none."""
    if "n" in given or config.selection.n != STEPS:
        return config
    return replace(config, selection=replace(config.selection, n=suited_steps(model.hf_model)))


def with_tuned(
    config: ServeConfig, model: LanguageModel, given: Collection[str] = ()
) -> tuple[ServeConfig, str]:
    """`config` with what `whet tune` chose for its data space, and the line that reports it.

    Only for a server of one data space, because its settings are those of all. Full fine-tuning is
    used only if the configuration names it.

    Args:
        config: The configuration.
        model: The server's model.
        given: Flat names of the settings that the configuration file contains.
    """
    if len(config.spaces) > 1:
        return config, ""
    [space] = config.spaces.values()
    tuned = tuned_defaults(space, model, given)
    options = dict(tuned.options)
    if options.get("adapter") == "full":  # it could run one request at a time only
        options = {name: value for name, value in options.items() if name == "lam"}
    if adapter := options.pop("adapter", None):
        config = replace(config, adapters=(adapter,))
    if "n" in options:
        options["n"] = min(options["n"], config.limits.n)
    selection = {name: options.pop(name) for name in ("n", "lam") if name in options}
    return replace(
        config,
        selection=replace(config.selection, **selection),
        adapter=replace(config.adapter, **options),
    ), tuned.line


def build_app(config: ServeConfig, given: Collection[str] = ()) -> FastAPI:
    """The application that `config` describes; `given` is as for `with_tuned`."""
    model = _load_model(config)
    config, line = with_tuned(with_suited_steps(config, model, given), model, given)
    if line:
        log.info("tuned settings", extra={"reason": line})
    keys = None if config.api_keys is None else APIKeyStore.read(config.api_keys, config.limits)
    return create_app(build_engines(config, model), config, keys)


def run(config: ServeConfig, given: Collection[str] = ()) -> None:
    """Serve until SIGTERM or SIGINT; running requests may then take `shutdown_timeout_s`."""
    log_to_stderr(config.log_format)
    app = build_app(config, given)
    config = app.state.server.config
    for name in config.spaces:
        if line := str(
            count_long_texts(app.state.server.spaces.latest(name), app.state.server.model)
        ):
            log.warning("long texts", extra={"space": name, "reason": line})
    server = build_server(app, config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.create_server((config.host, config.port), family=family) as listener:
        host, port = listener.getsockname()[:2]
        record = {"url": f"http://{host}:{port}", "model": app.state.server.name}
        log.info("listening", extra=record | {"spaces": sorted(config.spaces)})
        server.run(sockets=[listener])


def check(config: ServeConfig, given: Collection[str] = ()) -> Iterator[str]:
    """Check address, API keys, data spaces and model; yields a line for each that is valid.

    Raises:
        WhetError: For the first problem.
        ValueError: If the configuration or the key file is invalid.
    """
    clients = "this machine only" if is_loopback(config.host) else "other machines too"
    yield f"address {config.host}:{config.port}: reachable from {clients}"
    yield _check_keys(config)
    spaces = {name: DataSpace.open(folder) for name, folder in config.spaces.items()}
    for name, space in spaces.items():
        yield f"space {name}: {len(space):,} documents, {space.embedder.name}, {_labels(space)}"
    model = _load_model(config)
    config, line = with_tuned(with_suited_steps(config, model, given), model, given)
    if line:
        yield line
    for adapter, engine in build_engines(config, model).items():
        if adapter == BASE:
            lines = (str(count_long_texts(space, engine.model)) for space in spaces.values())
            yield from filter(None, lines)
        with engine:
            for name, space in spaces.items():
                start = time.perf_counter()
                retrieval = warm_up(engine, space)
                request = Request(
                    prompt="",
                    retrieval=retrieval,
                    adapt=retrieval is not None,
                    sampling=SamplingParams(max_tokens=1),
                )
                output = engine.submit(request).result()
                seconds = time.perf_counter() - start
                steps = f"{len(output.trace)} steps of {adapter} on {name}"
                yield f"model {config.model}: {steps} in {seconds:.2f} s"


def _check_keys(config: ServeConfig) -> str:
    if config.api_keys is None:
        return "API keys: none, so every client has full access"
    keys = APIKeyStore.read(config.api_keys, config.limits)
    if config.api_keys.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        raise ValueError(
            f"{config.api_keys} is readable by other users: run `chmod 600 {config.api_keys}`"
        )
    return f"API keys: {len(keys)} in {config.api_keys}"


def _labels(space: DataSpace) -> str:
    labels = space.manifest.labels
    if labels is None:
        return "no labels: readable only by keys with the label *"
    public = "no public label" if labels.public is None else f"{labels.public!r} is public"
    return f"labels in field {labels.field!r}, {public}"
