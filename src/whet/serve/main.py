"""Run a server from its configuration: load the model, listen, and shut down on a signal."""

import logging
import socket

import uvicorn
from fastapi import FastAPI

from whet.adapt.config import AdapterConfig, LoRA
from whet.adapt.model import LanguageModel
from whet.engine import Engine
from whet.serve.app import create_app
from whet.serve.auth import APIKeyStore
from whet.serve.config import ServeConfig
from whet.serve.metrics import log_to_stderr
from whet.serve.state import BASE

log = logging.getLogger("whet.serve")


def build_engines(config: ServeConfig) -> dict[str, Engine]:
    """An engine for each adapter, and one called `BASE` for the base model, which goes first.

    They share the weights, except for full fine-tuning, which changes them.

    Raises:
        ModelError: If the model cannot be loaded.
        ValueError: If an adapter has an invalid option.
    """
    model = LanguageModel.from_pretrained(config.model)
    model.network.requires_grad_(False)  # engines that run at once would each restore it
    adapters: dict[str, AdapterConfig] = {
        name: model.adapter_config(name, **config.adapter_options(name)) for name in config.adapters
    }
    adapters[BASE] = LoRA(r=1)  # never trained, so it has no effect
    return {
        name: Engine(
            None,
            LanguageModel.from_pretrained(config.model)
            if name == "full"
            else model.share_weights(),
            adapter,
            optimizer=config.optimizer,
            training=config.training,
            slots=1 if name == "full" else config.slots,
            max_queue_size=config.slots + config.max_queue_size,
            background_niceness=0 if name == BASE else config.background_niceness,
        )
        for name, adapter in adapters.items()
    }


def build_app(config: ServeConfig) -> FastAPI:
    """The application that `config` describes."""
    keys = None if config.api_keys is None else APIKeyStore.read(config.api_keys, config.limits)
    return create_app(build_engines(config), config, keys)


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; running requests may then take `shutdown_timeout_s`."""
    log_to_stderr()
    app = build_app(config)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=round(config.shutdown_timeout_s),
        )
    )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.create_server((config.host, config.port), family=family, backlog=2048) as listener:
        host, port = listener.getsockname()[:2]
        record = {"url": f"http://{host}:{port}", "model": app.state.server.name}
        log.info("listening", extra=record | {"spaces": sorted(config.spaces)})
        server.run(sockets=[listener])
