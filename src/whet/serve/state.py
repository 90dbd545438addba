"""The state of a server: engines, data spaces, API keys, cached adapters and metrics."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from whet.adapt.chat.template import Message, encode_template
from whet.adapt.model import LanguageModel
from whet.engine import Engine, Request, SamplingParams, set_niceness
from whet.engine.fair_queue import FairPool
from whet.serve.access.auth import ANONYMOUS, APIKey, APIKeyStore
from whet.serve.access.rate_limit import RateLimiter
from whet.serve.adapter_cache import AdapterCache
from whet.serve.adapter_folder import AdapterFolder
from whet.serve.config import ServeConfig
from whet.serve.errors import APIError
from whet.serve.generation.grammars import Grammars
from whet.serve.generation.logprobs import TokenBytes
from whet.serve.generation.tools import ToolFormat, tool_format
from whet.serve.metrics import Metrics
from whet.serve.spaces.registry import SpaceRegistry
from whet.serve.spaces.retrieval import warm_up

T = TypeVar("T")
BASE = "base"
"""Name of the engine that does not adapt the model, and suffix of the base model's name."""
THREADS, THREADS_PER_KEY = 8, 4
"""Threads for selection, search and embedding, and how many of them one key can have."""
log = logging.getLogger("whet.serve")


class AppState:
    """The state of one application."""

    def __init__(
        self, engines: Mapping[str, Engine], config: ServeConfig, keys: APIKeyStore | None = None
    ) -> None:
        """Open the data spaces.

        Args:
            engines: One for each of `config.adapters`, and one called `BASE` for the base model;
                none has a data space.
            config: How to serve.
            keys: The API keys; None to give every client full access.

        Raises:
            SpaceError: If a data space cannot be opened.
        """
        self.engines, self.config, self.keys = engines, config, keys
        self.model: LanguageModel = engines[config.adapters[0]].model
        self.grammars = Grammars(self.model)
        self.name = config.served_name
        self.metrics = Metrics()
        self.rate_limiter = RateLimiter(config.limits)
        folder = config.adapter_folder
        self._adapter_folder = None if folder is None else AdapterFolder(folder)
        self.adapters = AdapterCache(
            config.cache_mib * 2**20, 1 if keys is None else len(keys), self._on_removed_adapter
        )
        self.spaces = SpaceRegistry(
            config.spaces, self._on_new_version, config.selection, self._on_unavailable
        )
        self.fingerprint = self.model.fingerprint
        self.started = int(time.time())
        self.in_flight = 0
        self._in_flight_by_key: Counter[str] = Counter()
        self._mean_s = 1.0
        self._tasks: set[asyncio.Task[None]] = set()
        lower_priority = partial(set_niceness, config.background_niceness)
        self._pool = FairPool(THREADS, THREADS_PER_KEY, "whet-serve", lower_priority)
        self._reloader = ThreadPoolExecutor(1, "whet-reload", lower_priority)
        self._writer = ThreadPoolExecutor(1, "whet-write", lower_priority)
        self._add_gauges()

    async def run_in_pool(self, key: APIKey, function: Callable[..., T], *args: Any) -> T:
        """Run `function` in one of the threads for `key`, of which each key has at most a part.

        For long computations; short ones would wait behind those of their key and belong into
        `asyncio.to_thread`.
        """
        call = self._pool.submit(key.id, partial(function, *args), weight=key.weight)
        return await asyncio.wrap_future(call)

    async def run_write(self, function: Callable[..., T], *args: Any) -> T:
        """Run a `function` that writes, one after another."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *args)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        prefix: str = "",
    ) -> list[int]:
        """Token ids of a chat, and of `prefix`, with which the answer begins.

        See `whet.LanguageModel.encode_chat`.
        """

        def encode() -> list[int]:
            ids = self.model.encode_chat(messages, tools)
            return ids + encode_template(self.model.chat_tokenizer, prefix) if prefix else ids

        return await asyncio.to_thread(encode)

    def tool_format(self) -> ToolFormat:
        """How the model writes function calls.

        Raises:
            APIError: 400 if its chat template does not show that.
        """
        templates = self.model.chat_tokenizer
        if not templates.chat_template:
            raise APIError(400, "tools: the model has no chat template", param="tools")
        try:
            return tool_format(templates.get_chat_template(tools=[{}]))
        except ValueError as error:
            raise APIError(400, str(error), param="tools") from error

    async def token_bytes(self) -> TokenBytes:
        """A function that gives the bytes of a token of the model."""
        compiler = await asyncio.to_thread(lambda: self.grammars.compiler)
        return compiler.token_bytes

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the event loop; keeps the task alive until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def is_full(self) -> bool:
        """Whether the next request would be rejected."""
        return self.in_flight >= self.config.slots + self.config.max_queue_size

    def has_place(self, key: APIKey) -> bool:
        """Whether a request of `key` would be admitted.

        In a full queue, a key still has its equal share of the places: others cannot fill those.
        """
        places = self.config.slots + self.config.max_queue_size
        share = places // max(1, len(self.keys or ()))
        return not self.is_full or self._in_flight_by_key[key.id] < share < places

    @contextmanager
    def admit(self, key: APIKey) -> Iterator[None]:
        """Count one request as in flight while the block runs.

        Raises:
            APIError: 429 if the queue is full.
        """
        if not self.has_place(key):
            self.metrics.rejected.labels("queue_full").inc()
            raise APIError(
                429, f"queue is full ({self.in_flight} requests in flight): retry later",
                code="queue_full", retry_after_s=self._mean_s * self.in_flight / self.config.slots,
            )  # fmt: skip
        self.in_flight += 1
        self._in_flight_by_key[key.id] += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._in_flight_by_key[key.id] -= 1
            self._mean_s += 0.1 * (time.perf_counter() - start - self._mean_s)

    async def warm_up(self) -> None:
        """Compile the selection and allocate the slots, so that the first request is fast."""
        for name in self.config.spaces:
            space = self.spaces.latest(name)
            await self.run_in_pool(ANONYMOUS, warm_up, self.engines[BASE], space)
        for engine in self.engines.values():
            request = Request(prompt="", adapt=False, sampling=SamplingParams(max_tokens=1))
            await asyncio.wrap_future(engine.submit(request).future)

    async def watch_spaces(self) -> None:
        """Reload data spaces that have a newer version, until cancelled."""
        while True:
            await asyncio.sleep(self.config.reload_interval_s)
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._reloader, self.spaces.refresh)
            except Exception:  # reloading must go on, or deleted documents would stay readable
                log.exception("data spaces not reloaded")

    async def close(self) -> None:
        """Reject new requests; return when all running ones have finished."""
        for engine in self.engines.values():
            await asyncio.to_thread(engine.close)
        self._writer.shutdown()
        self._reloader.shutdown()
        self._pool.shutdown()
        if self._adapter_folder is not None:
            self._adapter_folder.clear()

    def _add_gauges(self) -> None:
        add_gauge = self.metrics.add_gauge
        add_gauge("whet_requests_in_flight", "Requests waiting or running", lambda: self.in_flight)
        add_gauge("whet_cached_adapters", "Cached adapters", lambda: len(self.adapters))
        add_gauge(
            "whet_cached_adapter_bytes", "Memory of cached adapters",
            lambda: self.adapters.num_bytes,
        )  # fmt: skip

    async def export_adapter(self, owner: str, name: str | None) -> None:
        """Write a cached adapter to the folder for other engines, if there is one."""
        folder = self._adapter_folder
        if folder is None or name is None:
            return
        if (cached := self.adapters.get(owner, name)) is not None:
            await asyncio.to_thread(folder.write, cached)
            if self.adapters.get(owner, name) is None:  # deleted meanwhile
                folder.remove(name)

    def _on_removed_adapter(self, name: str) -> None:
        if self._adapter_folder is not None:
            self._adapter_folder.remove(name)

    def _on_new_version(self, name: str) -> None:
        """Evict adapters that were trained on a document that no longer exists."""
        self.metrics.space_reloads.labels(name).inc()
        rows = set(self.spaces.latest(name).rows.tolist())
        self.adapters.evict_stale(name, self.spaces.build_id(name), rows)

    def _on_unavailable(self, name: str) -> None:
        """Evict the adapters of a data space whose deletions are unknown."""
        self.adapters.evict_stale(name, "", set())
