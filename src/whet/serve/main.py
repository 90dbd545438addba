"""A server from its configuration: load, listen, and end when told to."""

import logging
import socket

import uvicorn
from fastapi import FastAPI

from whet.adapt.config import AdapterConfig, LoRA
from whet.adapt.model import LanguageModel
from whet.engine import Engine
from whet.serve.app import create_app
from whet.serve.asks import BASE
from whet.serve.auth import Keys
from whet.serve.config import Config
from whet.serve.json_logging import log_to_stderr

log = logging.getLogger("whet.serve")


def engines_of(config: Config) -> dict[str, Engine]:
    """An engine for each method and one for the model as it is, which training gives way to.

    They share the weights, but for full training, which moves them.

    Raises:
        ModelError: If the model cannot be loaded.
        ValueError: If a method or one of its options is none.
    """
    model = LanguageModel.from_pretrained(config.model)
    model.network.requires_grad_(False)  # engines that run at once would each put it back
    adaptations: dict[str, AdapterConfig] = {
        method: model.adapter_config(
            method, lr=config.lr, r=config.rank if method == "lora" else None
        )
        for method in config.methods
    }
    adaptations[BASE] = LoRA(r=1)  # never trained, so it adds nothing
    room = config.slots + config.queue
    return {
        method: Engine(
            None,
            LanguageModel.from_pretrained(config.model)
            if method == "full"
            else model.share_weights(),
            adaptation,
            slots=config.slots,
            waiting=room,
            niceness=0 if method == BASE else config.niceness,
        )
        for method, adaptation in adaptations.items()
    }


def app_of(config: Config) -> FastAPI:
    """The application that `config` describes."""
    keys = None if config.keys is None else Keys.read(config.keys, config.limits)
    return create_app(engines_of(config), config, keys)


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; what was taken is answered first, within `drain_s`."""
    log_to_stderr()
    app = app_of(config)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=round(config.drain_s),
        )
    )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.create_server((config.host, config.port), family=family, backlog=2048) as listener:
        host, port = listener.getsockname()[:2]
        told = {"url": f"http://{host}:{port}", "model": app.state.server.name}
        log.info("listening", extra=told | {"spaces": sorted(config.spaces)})
        server.run(sockets=[listener])
