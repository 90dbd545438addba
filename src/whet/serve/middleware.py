"""Middleware of every request: a request id, a bounded body, security headers, a log line, metrics.

Plain ASGI: the body is read completely, within a size and a time, before the route runs; whatever
comes after the body is passed on as it arrives.
"""

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whet.serve.errors import CLIENT_CLOSED_REQUEST, APIError
from whet.serve.metrics import Metrics

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("whet.serve")


class RequestMiddleware:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int, body_timeout_s: float
    ) -> None:
        self.app, self.metrics = app, metrics
        self.max_body_bytes, self.body_timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_CLOSED_REQUEST
        state = scope.setdefault("state", {})
        state["id"] = _request_id(scope)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", state["id"].encode()), *HEADERS]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        self.metrics.http_in_progress.inc()
        try:
            await self._call_app(scope, receive, send_with_headers)
        except APIError as error:
            await error.response()(scope, receive, send_with_headers)
        except Exception:  # unexpected: details go to the log only
            log.exception("request failed", extra={"request": state["id"]})
            if status != CLIENT_CLOSED_REQUEST:
                raise
            internal = APIError(500, "internal server error: see the server's log")
            await internal.response()(scope, receive, send_with_headers)
        finally:
            self.metrics.http_in_progress.dec()
            self._record(scope, status, time.perf_counter() - start)

    async def _call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(self._read_body(scope, receive), self.body_timeout_s)
        except TimeoutError:
            raise APIError(
                408, f"the body took longer than {self.body_timeout_s:g} s to arrive"
            ) from None
        if body is not None:
            await self.app(scope, _replay_body(body, receive), send)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The complete body; None if the client has disconnected."""
        too_large = APIError(413, f"the body is larger than {self.max_body_bytes} bytes")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self.max_body_bytes:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_body_bytes:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.record_request(route, status, seconds)
        record = {"request": state["id"], "method": scope["method"], "route": route}
        record |= {"status": status, "seconds": round(seconds, 4)}
        log.info("request finished", extra=record | state.get("log", {}))


def _request_id(scope: Scope) -> str:
    """The client's own id if it has a safe form, otherwise a new one."""
    client_id = dict(scope["headers"]).get(b"x-request-id", b"")
    return client_id.decode() if _ID.fullmatch(client_id) else f"req_{uuid.uuid4().hex}"


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that yields the complete body first, and then whatever arrives."""
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
