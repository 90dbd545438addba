"""What a server holds: engines, data spaces, keys, kept adapters, counts. One an app."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from whet.adapt.adapters import fingerprint
from whet.adapt.model import LanguageModel
from whet.engine import Engine, Request, SamplingParams, set_niceness
from whet.errors import WhetError
from whet.serve.adapter_cache import Adapters
from whet.serve.auth import ANYONE, Keys
from whet.serve.chat_template import templates_of
from whet.serve.config import Config
from whet.serve.errors import APIError
from whet.serve.metrics import Metrics
from whet.serve.rate_limit import Meter
from whet.serve.retrieval import tried
from whet.serve.space_registry import Catalogue

T = TypeVar("T")
log = logging.getLogger("whet.serve")


class Server:
    """The state of one app."""

    def __init__(
        self, engines: Mapping[str, Engine], config: Config, keys: Keys | None = None
    ) -> None:
        """Opens the data spaces.

        Args:
            engines: One for each of `config.methods`, and one called `base` for the model as it
                is; none with a data space of its own.
            config: How to serve.
            keys: Who may ask; None for anyone.

        Raises:
            SpaceError: If a data space cannot be opened.
        """
        self.engines, self.config, self.keys = engines, config, keys
        self.model: LanguageModel = engines[config.methods[0]].model
        self.templates = templates_of(self.model.tokenizer)
        self.name = config.served_name
        self.metrics = Metrics()
        self.meter = Meter(config.limits)
        self.adapters = Adapters(config.cache_mib * 2**20)
        self.catalogue = Catalogue(config.spaces, self._renewed)
        self.revision = fingerprint(self.model)
        self.started = int(time.time())
        self.open = 0
        self._mean_s = 1.0
        yielding = partial(set_niceness, config.niceness)
        self._pool = ThreadPoolExecutor(2, "whet-serve", yielding)
        self._writer = ThreadPoolExecutor(1, "whet-write", yielding)
        self.metrics.watch("whet_asks_open", "Prompts waiting or in work", lambda: self.open)
        self.metrics.watch("whet_adapters", "Kept adapters", lambda: len(self.adapters))
        self.metrics.watch("whet_adapter_bytes", "Their bytes", lambda: self.adapters.bytes)

    async def off_loop(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` gives, computed in one of two threads so that others are heard meanwhile.

        For what takes long: what is short would wait behind it, and belongs to `asyncio.to_thread`.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    async def writing(self, work: Callable[..., T], *given: Any) -> T:
        """The same for what writes, which may take long, and takes turns in any case."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *given)

    @property
    def full(self) -> bool:
        """Whether one more prompt would be refused."""
        return self.open >= self.config.slots + self.config.queue

    @contextmanager
    def room(self) -> Iterator[None]:
        """A place for one prompt, waiting or in work.

        Raises:
            APIError: 429 if there is none.
        """
        if self.full:
            self.metrics.refused.labels("queue_full").inc()
            raise APIError(
                429, f"{self.open} prompts are waiting or in work: ask again later",
                code="queue_full", retry_after_s=self._mean_s * self.open / self.config.slots,
            )  # fmt: skip
        self.open += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self.open -= 1
            self._mean_s += 0.1 * (time.perf_counter() - start - self._mean_s)

    async def warm_up(self) -> None:
        """Compile the selection and make the slots, so that the first request does not wait."""
        for name in self.config.spaces:
            await self.off_loop(tried, self.catalogue.view(name, ANYONE))
        for engine in self.engines.values():
            query = Request(prompt="", adapt=False, sampling=SamplingParams(max_tokens=1))
            await asyncio.wrap_future(engine.submit(query).future)

    async def look_for_versions(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.config.refresh_s)
            try:
                await self.off_loop(self.catalogue.refresh)
            except WhetError as error:  # it may be in the making: the version at hand serves on
                log.warning("data space not renewed", extra={"reason": str(error)})

    async def close(self) -> None:
        """Take nothing more; returns when all that was taken is answered."""
        for engine in self.engines.values():
            await asyncio.to_thread(engine.close)
        self._writer.shutdown()
        self._pool.shutdown()

    def _renewed(self, name: str) -> None:
        """A data space has a newer version: no adapter may outlive a document it learned from."""
        self.metrics.versions.labels(name).inc()
        rows = set(self.catalogue.whole(name).rows.tolist())
        self.adapters.keep_only(name, self.catalogue.built(name), rows)
