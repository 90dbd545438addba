"""`whet serve --check`: everything that a server needs, tried once before it is needed."""

import stat
import time
from collections.abc import Iterator

from whet.engine import Request, SamplingParams
from whet.serve.auth import Keys
from whet.serve.config import Config, is_loopback
from whet.serve.main import engines_of
from whet.serve.retrieval import tried
from whet.serve.space_registry import View
from whet.space.space import DataSpace


def check(config: Config) -> Iterator[str]:
    """A line for each thing that is as it must be: address, keys, data spaces, model, an answer.

    Raises:
        WhetError: For the first thing that is not.
        ValueError: If that is the configuration.
    """
    reach = "this machine alone" if is_loopback(config.host) else "others"
    yield f"address {config.host}:{config.port}, reached by {reach}"
    yield _keys(config)
    spaces = {name: DataSpace.open(place) for name, place in config.spaces.items()}
    for name, space in spaces.items():
        yield f"space {name}: {len(space):,} documents, {space.embedder.name}, {_labels(space)}"
    for method, engine in engines_of(config).items():
        with engine:
            for name, space in spaces.items():
                start = time.perf_counter()
                found = tried(View(name, space)).documents
                query = Request(prompt="", documents=found, sampling=SamplingParams(max_tokens=1))
                engine.submit(query).result()
                spent = time.perf_counter() - start
                steps = "two steps" if found else "no step"
                yield f"model {config.model}: {steps} of {method} on {name} in {spent:.2f} s"


def _keys(config: Config) -> str:
    if config.keys is None:
        return "keys: none, whoever reaches the server may do everything"
    keys = Keys.read(config.keys, config.limits)
    if config.keys.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        raise ValueError(f"{config.keys} can be read by others: run `chmod 600 {config.keys}`")
    return f"keys: {len(keys)} in {config.keys}"


def _labels(space: DataSpace) -> str:
    labels = space.manifest.labels
    if labels is None:
        return "no labels: for keys with label * alone"
    public = "nothing public" if labels.public is None else f"{labels.public!r} is public"
    return f"labels in field {labels.field!r}, {public}"
