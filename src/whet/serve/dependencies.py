"""FastAPI dependencies: authentication, authorization and client-disconnect handling."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from whet.serve.access.auth import ANONYMOUS, APIKey, APIKeyStore
from whet.serve.access.rate_limit import ClientUsage
from whet.serve.config import Limits
from whet.serve.errors import CLIENT_CLOSED_REQUEST, APIError
from whet.serve.state import AppState

T = TypeVar("T")
BEARER = HTTPBearer(auto_error=False, description="An API key made by `whet keys create`.")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The key of a request within its rate limits, and the server's state."""

    key: APIKey
    limits: Limits
    usage: ClientUsage
    state: AppState

    async def run_in_pool(self, function: Callable[..., T], *args: Any) -> T:
        """Run a long computation in a thread for this key: see `AppState.run_in_pool`."""
        return await self.state.run_in_pool(self.key, function, *args)

    def require_role(self, role: str) -> None:
        """Raises APIError, 403, if the key lacks `role`."""
        if role not in self.key.roles:
            raise APIError(403, f"this key lacks the role {role!r}", code="role_missing")

    def check_prompt(self, *texts: str) -> None:
        """Raises APIError: 403 without the role `read`, 413 for a text beyond the key's limit."""
        self.require_role("read")
        self.check_limit("prompt_chars", max(len(text) for text in texts))

    def check_limit(self, name: str, value: float, param: str | None = None) -> None:
        """Raises APIError, 413, if `value` exceeds the key's limit called `name`.

        Args:
            name: A field of `Limits`.
            value: What the request asks for.
            param: The field of the request, if it is not called `name`.
        """
        if value > (limit := getattr(self.limits, name)):
            param = param or name
            raise APIError(
                413, f"{param} is {value}: this key's limit is {limit}", param=param,
                code="limit_exceeded",
            )  # fmt: skip


async def get_context(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
) -> AsyncIterator[RequestContext]:
    """The context of a request, which counts as in flight until the response is sent."""
    state: AppState = request.app.state.server
    key = authenticate(state.keys, credentials.credentials if credentials else "")
    request.state.log = {"key": key.id}
    with state.rate_limiter.acquire(key) as usage:
        yield RequestContext(key, state.rate_limiter.limits(key), usage, state)


ContextDep = Annotated[RequestContext, Depends(get_context)]


async def cancel_on_disconnect(
    request: Request, work: Awaitable[T], cancel: Callable[[], object]
) -> T:
    """The result of `work`; calls `cancel` if the client disconnects first, or the server stops.

    Raises:
        APIError: 499 if the client has disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise APIError(CLIENT_CLOSED_REQUEST, "the client has disconnected")
        return task.result()
    finally:
        if not task.done():
            cancel()
        for pending in (task, disconnect):
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def authenticate(keys: APIKeyStore | None, token: str) -> APIKey:
    """The key of a bearer token; `ANONYMOUS` on a server without API keys.

    Raises:
        APIError: 401 if the token is not that of a valid key.
    """
    if keys is None:
        return ANONYMOUS
    key = keys.authenticate(token, datetime.datetime.now(datetime.UTC).date())
    if key is None:
        raise APIError(
            401, "no valid API key: send `Authorization: Bearer whet_…`", code="invalid_api_key"
        )
    return key
