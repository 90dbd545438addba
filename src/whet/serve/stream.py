"""A request in work, seen from the event loop: events come out of it, the answer last."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from whet.serve.events import Answered, Event


class Asking:
    """Begins to work when it is made. Iterate it, or await its `answer`; not both."""

    def __init__(self, work: Callable[["Asking"], Awaitable[Answered]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._first: Event | Exception | None = None
        self._stop: Callable[[], None] | None = None
        self._cancelled = False
        self._task = self._loop.create_task(self._run(work))

    def tell(self, event: Event) -> None:
        """An event happened; from any thread."""
        with suppress(RuntimeError):  # the loop has gone, and whoever listened
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def stops_by(self, stop: Callable[[], None]) -> None:
        """From now on `cancel` calls `stop`, after which the work ends by itself."""
        self._stop = stop
        if self._cancelled:
            stop()

    def cancel(self) -> None:
        """Nobody waits for the answer any longer. Does nothing once it is there."""
        self._cancelled = True
        if self._stop is not None:
            self._stop()

    async def begun(self) -> None:
        """Returns when the first event is there; raises what went wrong before it."""
        if self._first is None:
            self._first = await self._events.get()
        if isinstance(self._first, Exception):
            raise self._first

    async def answer(self) -> Answered:
        """The answer; raises what went wrong."""
        async for event in self:
            if isinstance(event, Answered):
                return event
        raise AssertionError("an asking ends with its answer or an error")

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event, self._first = self._first or await self._events.get(), None
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Answered):
                return

    async def _run(self, work: Callable[["Asking"], Awaitable[Answered]]) -> None:
        try:
            self._events.put_nowait(await work(self))
        except Exception as error:  # whoever listens is told, and raises it
            self._events.put_nowait(error)
        finally:
            self._stop = None  # it leads to the work, which leads here: else freed but later
