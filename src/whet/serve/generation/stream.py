"""Async stream of a request's events, ending with its result."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pydantic import BaseModel

from whet.adapt.decoding.logprobs import TokenLogprob
from whet.adapt.decoding.sampling import GeneratedText, TextPiece
from whet.adapt.model import Score
from whet.serve.schemas.adapt import AdaptInfo, SelectedText, Usage

FIRST_BYTE_S = 0.5
"""How long a stream waits for an error that would have a status of its own, in seconds."""


class SelectionEvent(BaseModel):
    """The documents that the model will be adapted on."""

    selection: list[SelectedText]
    sigma: list[float]
    """Standard deviation before the first pick and after each, relative to the prior's."""


class StepEvent(BaseModel):
    """A gradient step was taken."""

    done: int
    total: int
    loss: float
    """Loss before the step, in nats per token of its document."""
    bits_per_byte: float
    """The loss in bits per byte of the document."""
    seconds: float
    """Time since the request arrived."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of a generated text."""

    piece: TextPiece
    prompt_tokens: int
    """Number of tokens of the prompt."""

    @property
    def text(self) -> str:
        """The text."""
        return str(self.piece)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedEvent:
    """The result of the request."""

    texts: tuple[GeneratedText, ...]
    """The generated texts; none for a score."""
    prompt_logprobs: tuple[TokenLogprob, ...]
    """Those of the prompt's tokens, if the request asks for them."""
    usage: Usage
    adapt: AdaptInfo
    scores: tuple[Score, Score] | None
    """Scores of the text to score under the base model and the adapted model."""


Event = SelectionEvent | StepEvent | TextDelta | CompletedEvent


async def merged(
    streams: Sequence["EventStream"], comment_s: float
) -> AsyncGenerator[tuple[int, Event | str], None]:
    """The events of several requests as they happen, each with the number of its stream.

    Comments, as of `EventStream.with_comments`, are those of one stream at a time. Raises the first
    error of any of them.
    """
    events: asyncio.Queue[tuple[int, Event | str] | Exception | None] = asyncio.Queue()
    unfinished = set(range(len(streams)))

    async def forward(number: int, stream: EventStream) -> None:
        try:
            async for event in stream.with_comments(comment_s):
                if not isinstance(event, str) or number == min(unfinished):
                    events.put_nowait((number, event))
        except Exception as error:
            events.put_nowait(error)
        unfinished.discard(number)
        events.put_nowait(None)

    tasks = [asyncio.create_task(forward(*item)) for item in enumerate(streams)]
    running = len(tasks)
    try:
        while running:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()


class EventStream:
    """The events of one request: iterate over it, or await its `result`, but not both.

    The producer refers to the stream, never the stream to its producer outside `on_cancel`: a
    reference cycle would keep the adapter of every request until a garbage collection.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._first: Event | Exception | None = None
        self._on_cancel: Callable[[], None] | None = None
        self._cancelled = False

    def publish(self, event: Event | Exception) -> None:
        """Add an event; a `CompletedEvent` or an exception is the last. Safe from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nothing reads the stream any longer
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `cancel` calls `callback`; at once if it was called before."""
        self._on_cancel = callback
        if self._cancelled:
            callback()
        try:
            yield
        finally:
            self._on_cancel = None

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel the request; does nothing once it has finished."""
        self._cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()

    async def wait_started(self, timeout_s: float) -> None:
        """Return at the first event, or after `timeout_s`; raise an error that comes before it."""
        if self._first is None:
            with suppress(TimeoutError):
                self._first = await asyncio.wait_for(self._events.get(), timeout_s)
        if isinstance(self._first, Exception):
            raise self._first

    async def result(self) -> CompletedEvent:
        """The last event; raises the error if the request failed."""
        async for event in self:
            if isinstance(event, CompletedEvent):
                return event
        raise AssertionError("a stream ends with its result or an error")

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event, self._first = self._first or await self._events.get(), None
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, CompletedEvent):
                return

    async def with_comments(self, interval_s: float) -> AsyncGenerator[Event | str, None]:
        """The events and, every `interval_s`, a comment of server-sent events on the progress.

        A comment is a line that clients skip. It shows proxies and clients that the connection is
        alive while the model is adapted, which may take longer than they wait for a byte.
        """
        doing = "selecting"
        next_comment = self._loop.time() + interval_s
        events = aiter(self)
        event = asyncio.ensure_future(anext(events))
        try:
            while True:
                await asyncio.wait({event}, timeout=max(0, next_comment - self._loop.time()))
                if self._loop.time() >= next_comment:
                    next_comment = self._loop.time() + interval_s
                    yield f": {doing}\n\n"
                if not event.done():
                    continue
                match current := event.result():
                    case SelectionEvent(selection=picked):
                        doing = f"adapting 0/{sum(document.count for document in picked)}"
                    case StepEvent(done=done, total=total):
                        doing = f"adapting {done}/{total}"
                    case TextDelta():
                        doing = "generating"
                yield current
                if isinstance(current, CompletedEvent):
                    return
                event = asyncio.ensure_future(anext(events))
        finally:
            event.cancel()
