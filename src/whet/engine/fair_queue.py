"""Fair sharing among clients: a waiting queue and a thread pool that no client can fill.

Source: stride scheduling (Waldspurger and Weihl, 1995). Each client has a virtual time, which
advances by 1 / weight whenever one of its items is taken; the next item is that of the client with
the least virtual time. So clients that always wait are served in turn, a client of weight 2 twice
as often, and what others have queued delays the first item of a client by one item at most.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Client(Generic[T]):
    number: int
    """Breaks ties: the client that came first."""
    time: float
    weight: int = 1
    items: deque[T] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """A queue that serves clients in turn, and each client's items in order. Not thread-safe.

    >>> queue = FairQueue()
    >>> for client, item in [("a", 1), ("a", 2), ("a", 3), ("b", 4)]:
    ...     queue.push(client, item)
    >>> [queue.pop() for _ in range(4)]
    [1, 4, 2, 3]
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client[T]] = {}
        self._numbers = count()
        self._time = 0.0  # of the client that was served last
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """All items, in no particular order."""
        return (item for client in self._clients.values() for item in client.items)

    def of(self, client: str) -> tuple[T, ...]:
        """The waiting items of `client`, in order."""
        known = self._clients.get(client)
        return tuple(known.items) if known else ()

    def push(self, client: str, item: T, weight: int = 1) -> None:
        """Append an item; a client that did not wait has no claim from before."""
        if client not in self._clients:
            self._clients[client] = _Client(next(self._numbers), self._time)
        known = self._clients[client]
        known.weight = weight
        known.items.append(item)
        self._size += 1

    def pop(self, is_ready: Callable[[T], bool] = lambda item: True) -> T | None:
        """Remove and return the next item that is ready; None if no item is ready.

        A client whose items are not ready is passed over, without losing its claim. O(clients).
        """
        for client in sorted(self._clients.values(), key=lambda c: (c.time, c.number)):
            item = next((item for item in client.items if is_ready(item)), None)
            if item is not None:
                self._remove(client, item)
                return item
        return None

    def clear(self) -> list[T]:
        """Remove and return all items."""
        items = list(self)
        self._clients.clear()
        self._size = 0
        return items

    def _remove(self, client: _Client[T], item: T) -> None:
        client.items.remove(item)
        self._size -= 1
        self._time = max(self._time, client.time)
        client.time += 1 / client.weight
        idle = [n for n, c in self._clients.items() if not c.items and c.time <= self._time]
        for name in idle:  # what it has used is forgotten only when others have used as much
            del self._clients[name]


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    client: str
    function: Callable[[], Any]
    future: Future[Any]


class FairPool:
    """A thread pool in which each client has at most a part of the threads. Thread-safe.

    The other threads are free for the short calls of other clients, however long the calls of one
    client take.
    """

    def __init__(
        self, threads: int, per_client: int, name: str, initializer: Callable[[], object]
    ) -> None:
        """`initializer` is called in each thread when it starts."""
        self._executor = ThreadPoolExecutor(threads, name, initializer)
        self._threads, self._per_client = threads, per_client
        self._waiting: FairQueue[_Call] = FairQueue()
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    def submit(self, client: str, function: Callable[[], T], *, weight: int = 1) -> "Future[T]":
        """Call `function` in a thread as soon as there is one for `client`."""
        call = _Call(client, function, Future())
        with self._lock:
            self._waiting.push(client, call, weight)
            self._start_calls()
        return call.future

    def shutdown(self) -> None:
        """Cancel the calls that wait, and wait for those that run."""
        with self._lock:
            waiting = self._waiting.clear()
        for call in waiting:
            call.future.cancel()
        self._executor.shutdown()

    def _start_calls(self) -> None:
        while sum(self._running.values()) < self._threads:
            call = self._waiting.pop(self._has_thread)
            if call is None:
                return
            self._running[call.client] = self._running.get(call.client, 0) + 1
            self._executor.submit(self._run, call)

    def _has_thread(self, call: _Call) -> bool:
        return self._running.get(call.client, 0) < self._per_client

    def _run(self, call: _Call) -> None:
        result, error = None, None
        started = call.future.set_running_or_notify_cancel()
        if started:
            try:
                result = call.function()
            except BaseException as raised:
                error = raised
        with (
            self._lock
        ):  # before the result, so that a client that waits for it finds a free thread
            self._running[call.client] -= 1
            if not self._running[call.client]:
                del self._running[call.client]
            self._start_calls()
        if not started:
            return
        if error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)
