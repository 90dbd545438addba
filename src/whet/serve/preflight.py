"""`whet serve --check`: validate a configuration, with a test request per adapter and space."""

import stat
import time
from collections.abc import Iterator

from whet.engine import Request, SamplingParams
from whet.serve.auth import APIKeyStore
from whet.serve.config import ServeConfig, is_loopback
from whet.serve.main import build_engines
from whet.serve.retrieval import warm_up
from whet.serve.space_registry import SpaceView
from whet.space.space import DataSpace


def check(config: ServeConfig) -> Iterator[str]:
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
    for adapter, engine in build_engines(config).items():
        with engine:
            for name, space in spaces.items():
                start = time.perf_counter()
                retrieval = warm_up(SpaceView(name, space))
                documents = retrieval.documents if retrieval else ()
                sampling = SamplingParams(max_tokens=1)
                engine.submit(Request(prompt="", documents=documents, sampling=sampling)).result()
                seconds = time.perf_counter() - start
                steps = f"{len(documents)} steps of {adapter} on {name}"
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
