"""Middleware of every request: a request id, access, a bounded body, security headers, log, metrics.

Plain ASGI. The headers are checked first: host, origin, content type and API key. Then the body is
read completely, within a size, a time and the memory for all bodies together, before the route
runs; whatever comes after the body is passed on as it arrives.
"""

import asyncio
import logging
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whet.serve.access.auth import bearer_token
from whet.serve.access.browser_guard import BrowserGuard, has_body
from whet.serve.dependencies import authenticate
from whet.serve.errors import CLIENT_CLOSED_REQUEST, APIError
from whet.serve.schemas.client import HEADER
from whet.serve.state import AppState

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
EXPOSED = ("x-request-id", "retry-after", HEADER)
"""Headers of responses that pages of allowed origins can read."""
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("whet.serve")


class BodyMemory:
    """The memory that the bodies of all requests use together. For one thread, the event loop's."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is in bytes."""
        self.capacity, self.used = capacity, 0

    @contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that makes the reservation of one request `size` bytes large.

        It raises APIError, 429, if there is no memory for them. On leaving, the memory is free.
        """
        reserved = 0

        def reserve_up_to(size: int) -> None:
            nonlocal reserved
            more = max(0, size - reserved)
            if self.used + more > self.capacity:
                raise APIError(
                    429, "the server is reading too many large bodies at once: retry later",
                    code="bodies_full", retry_after_s=1,
                )  # fmt: skip
            self.used += more
            reserved += more

        try:
            yield reserve_up_to
        finally:
            self.used -= reserved


class RequestMiddleware:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, state: AppState) -> None:
        self.metrics, self._keys = state.metrics, state.keys
        origins = state.config.allowed_origins
        self._allowed_origins = [origin.lower().rstrip("/") for origin in origins]
        self.app = self._with_cors(app)
        self._guard = BrowserGuard(state.config, has_keys=state.keys is not None)
        self._memory = BodyMemory(state.config.max_bodies_mib * 2**20)
        self.max_body_bytes = state.config.max_body_kib * 1024
        self.body_timeout_s = state.config.body_timeout_s

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
            await self._respond(error, scope, receive, send_with_headers)
        except RecursionError:  # of what walks through the body, such as a template or a schema
            deep = APIError(400, "body is nested too deeply: expected at most some 100 levels")
            await self._respond(deep, scope, receive, send_with_headers)
        except Exception:  # unexpected: details go to the log only
            log.exception("request failed", extra={"request": state["id"]})
            if status != CLIENT_CLOSED_REQUEST:
                raise
            internal = APIError(500, "internal server error: see the server's log")
            await self._respond(internal, scope, receive, send_with_headers)
        finally:
            self.metrics.http_in_progress.dec()
            self._record(scope, status, time.perf_counter() - start)

    def _with_cors(self, app: ASGIApp) -> ASGIApp:
        """`app` with CORS headers for the allowed origins, whose pages can then read its answers.

        Any request header is allowed: OpenAI's client for JavaScript sends a dozen of its own.
        """
        if not self._allowed_origins:
            return app
        return CORSMiddleware(
            app, allow_origins=self._allowed_origins, allow_methods=("*",), allow_headers=("*",),
            expose_headers=EXPOSED,
        )  # fmt: skip

    async def _respond(self, error: APIError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error that pages of an allowed origin can read, too."""
        response: ASGIApp = error.response()
        if scope["method"] != "OPTIONS":  # a preflight request is permitted by the app only
            response = self._with_cors(response)
        await response(scope, receive, send)

    async def _call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard.check(scope)
        if _needs_key(scope):
            authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            authenticate(self._keys, bearer_token(authorization))
        with self._memory.reserve() as reserve:
            body = await self._read_in_time(scope, receive, reserve)
            if body is None:
                return
            body = self._decompressed(scope, body)
            reserve(len(body))
            as_get = scope if scope["method"] != "HEAD" else {**scope, "method": "GET"}
            await self.app(as_get, _replay_body(body, receive), send)  # uvicorn omits HEAD's body
            scope["route"] = as_get.get("route")

    def _decompressed(self, scope: Scope, body: bytes) -> bytes:
        """The body without gzip's compression, within the limit of a body.

        Raises:
            APIError: 400 for data that is not gzip's, 413 if it is too large, 415 for another
                encoding.
        """
        encoding = dict(scope["headers"]).get(b"content-encoding", b"").strip().lower()
        if encoding in (b"", b"identity") or not body:
            return body
        if encoding not in (b"gzip", b"x-gzip"):
            raise APIError(
                415, f"content-encoding is {encoding.decode('latin-1')!r}: expected gzip, or none",
                code="unsupported_media_type",
            )  # fmt: skip
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            decompressed = decompressor.decompress(body, self.max_body_bytes + 1)
        except zlib.error as error:
            raise APIError(400, f"the body is not valid gzip: {error}") from error
        if len(decompressed) > self.max_body_bytes:
            raise self._too_large()
        if not decompressor.eof or decompressor.unused_data:
            raise APIError(400, "the body is not one complete gzip stream: send all of it")
        return decompressed

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is larger than {self.max_body_bytes} bytes")

    async def _read_in_time(
        self, scope: Scope, receive: Receive, reserve: Callable[[int], None]
    ) -> bytes | None:
        try:
            return await asyncio.wait_for(
                self._read_body(scope, receive, reserve), self.body_timeout_s
            )
        except TimeoutError:
            raise APIError(
                408, f"the body took longer than {self.body_timeout_s:g} s to arrive"
            ) from None

    async def _read_body(
        self, scope: Scope, receive: Receive, reserve: Callable[[int], None]
    ) -> bytes | None:
        """The complete body, or None if the client has disconnected.

        The declared length is reserved at once: otherwise many large bodies could each get a part
        of the memory, and all be rejected.
        """
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self.max_body_bytes:
            raise self._too_large()
        reserve(int(declared) if declared.isdigit() else 0)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            if len(body) + len(piece) > self.max_body_bytes:
                raise self._too_large()
            reserve(len(body) + len(piece))
            body += piece
            if not message.get("more_body", False):
                return bytes(body)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.record_request(route, status, seconds)
        record = {"request": state["id"], "method": scope["method"], "route": route}
        record |= {"status": status, "seconds": round(seconds, 4)}
        log.info("request finished", extra=record | state.get("log", {}))


def _needs_key(scope: Scope) -> bool:
    """Whether a request is answered only with an API key: all but reading what is public."""
    if has_body(scope) or scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        return True
    method, path = str(scope["method"]), str(scope["path"])
    private = path.startswith("/v1/") or path == "/metrics"
    return private and method != "OPTIONS"  # browsers ask for permission without a key


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
