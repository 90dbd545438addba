"""Who is asking, what they may do, and whether they are still there."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from whet.serve.auth import ANYONE, Key, Limits
from whet.serve.errors import APIError
from whet.serve.rate_limit import Account
from whet.serve.state import Server

T = TypeVar("T")
BEARER = HTTPBearer(auto_error=False, description="A key made by `whet key`.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request that was admitted."""

    key: Key
    limits: Limits
    account: Account
    server: Server

    def must(self, role: str) -> None:
        """Raises APIError, 403, if the key lacks `role`."""
        if role not in self.key.roles:
            raise APIError(403, f"this key has no role {role!r}", code="role_missing")

    def may_ask(self, *texts: str) -> None:
        """Raises APIError: 403 without role `use`, 413 for a text beyond the key's limit."""
        self.must("use")
        self.bounded("prompt_chars", max(len(text) for text in texts))

    def bounded(self, name: str, asked: int) -> int:
        """`asked`, if the key's limit of that name allows it. Raises APIError, 413."""
        if asked > (most := getattr(self.limits, name)):
            raise APIError(
                413, f"{name} is {asked}: this key may ask for {most}", param=name,
                code="limit_exceeded",
            )  # fmt: skip
        return asked


async def calling(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
) -> AsyncIterator[Caller]:
    """The caller, admitted for as long as the request is open."""
    server: Server = request.app.state.server
    key = _key(server, credentials)
    request.state.told = {"key": key.id}
    with server.meter.admitted(key) as account:
        yield Caller(key, server.meter.limits(key), account, server)


def _key(server: Server, credentials: HTTPAuthorizationCredentials | None) -> Key:
    if server.keys is None:
        return ANYONE
    token = credentials.credentials if credentials else ""
    key = server.keys.find(token, datetime.datetime.now(datetime.UTC).date())
    if key is None:
        raise APIError(
            401, "no valid key: send `Authorization: Bearer whet_…`", code="invalid_api_key"
        )
    return key


async def unless_gone(request: Request, work: Awaitable[T], cancel: Callable[[], object]) -> T:
    """What `work` gives; if the client goes first, or the server ends, `cancel()` is called.

    Raises:
        APIError: 499, which nobody reads, if the client has gone.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise APIError(499, "the client has gone")
        return task.result()
    finally:
        if not task.done():
            cancel()
        for pending in (task, left):
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


Calling = Annotated[Caller, Depends(calling)]
