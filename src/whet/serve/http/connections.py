"""Bounded connections: how many are open, and how long the head of a request may take.

A connection waits from its start, and from the end of each response, until the head of the next
request is complete. Nothing is known about a client that waits, so its connection is the first to
be closed when there are too many.
"""

import asyncio
from types import ModuleType
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from whet.serve.config import ServeConfig

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows has no limit of open files
    resource = None

BACKLOG = 128
"""Connections that the event loop accepts at once, before it can close any of them."""
MAX_HEAD_BYTES = 16 * 1024
"""Largest head of a request."""


def build_server(app: Any, config: ServeConfig) -> Server:
    """A uvicorn server for `app` with the bounds of `config` on its connections."""
    most = config.max_connections
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
    if files > 0:  # -1 is no limit
        most = max(1, min(most, files // 2))
    bounds = {"max_connections": most, "head_timeout_s": config.head_timeout_s}
    protocol = type("Protocol", (BoundedProtocol,), {"waiting": {}, **bounds})
    return Server(
        Config(
            app, http=protocol, ws="none", log_config=None, access_log=False, server_header=False,
            backlog=BACKLOG, h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=config.keep_alive_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=round(config.shutdown_timeout_s),
        )
    )  # fmt: skip


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with bounds that are class attributes, see `build_server`."""

    max_connections: int
    head_timeout_s: float
    waiting: dict["BoundedProtocol", None]
    """The connections of the server that wait for a request, the longest wait first."""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        self._start_timer()
        if len(self.connections) > self.max_connections:
            next(iter(self.waiting)).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_busy():
            self._stop_waiting()
        elif self._head_timer is None and not self.transport.is_closing():
            self._start_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_busy() or self.transport.is_closing():  # the next request was there already
            return
        self._wait()
        if self.conn.trailing_data[0] or self.conn.our_state is not self.conn.their_state:
            self._start_timer()  # a part of the next head, or the rest of a body is on its way

    def abort(self) -> None:
        """Close the connection at once."""
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.abort()

    def _is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self.waiting.pop(self, None)
        self.waiting[self] = None

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.abort)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
