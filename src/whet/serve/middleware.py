"""What happens to every request before its route: an id, a bounded body, a log line, a count.

Plain ASGI: a body is read whole, within a size and a time, before any work begins; what is sent
after it is streamed as it comes.
"""

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whet.serve.errors import APIError
from whet.serve.metrics import Metrics

UNSENT = 499
"""The status of an answer that never began: the client has gone."""
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
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
log = logging.getLogger("whet.serve")


class Door:
    """The outermost layer of a server."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, body_bytes: int, body_s: float) -> None:
        self.app, self.metrics = app, metrics
        self.body_bytes, self.body_s = body_bytes, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), UNSENT
        state = scope.setdefault("state", {})
        state["id"] = _request_id(scope)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", state["id"].encode()), *HEADERS]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        self.metrics.open.inc()
        try:
            try:
                body = await asyncio.wait_for(self._body(scope, receive), self.body_s)
            except TimeoutError:
                raise APIError(
                    408, f"the body took longer than {self.body_s:g} s to arrive"
                ) from None
            if body is not None:
                await self.app(scope, _after(body, receive), answer)
        except APIError as refused:
            await refused.response()(scope, receive, answer)
        except Exception:  # not foreseen: told in the log alone
            log.exception("failed", extra={"request": state["id"]})
            if status != UNSENT:
                raise
            await APIError(500, "the server failed: see its log").response()(scope, receive, answer)
        finally:
            self.metrics.open.dec()
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.answered(route, status, seconds)
            record = {"request": state["id"], "method": scope["method"], "route": route}
            record |= {"status": status, "ms": round(1000 * seconds, 1)}
            log.info("answered", extra=record | state.get("told", {}))

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client has gone."""
        too_large = APIError(413, f"the body is larger than {self.body_bytes} bytes")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > self.body_bytes:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.body_bytes:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)


def _request_id(scope: Scope) -> str:
    """The client's own id where it has a harmless form, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _after(body: bytes, receive: Receive) -> Receive:
    """`receive` as the route sees it: the body at once, then whatever comes."""
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
