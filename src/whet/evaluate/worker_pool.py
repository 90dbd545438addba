"""WorkerPool that evaluate prompts, kept from one run to the next."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from whet.errors import RunFolderError
from whet.maths.arrays import as_count


class WorkerPool:
    """`count` of them, begun when they are first needed: to begin one takes seconds."""

    def __init__(self, count: int) -> None:
        self.count = as_count(count, "workers")
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def each(
        self, function: Callable[..., Any], common: Any, items: Iterable[Any]
    ) -> Iterator[Any]:
        """`function(common, item)` of every item, as they are done, in no order.

        Raises:
            RunFolderError: If a process dies, after what the others had done; new ones begin next time.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"))
        futures, broken = list[Future[Any]](), None
        try:
            try:
                for item in items:
                    futures.append(self._pool.submit(function, common, item))
            except BrokenProcessPool as error:  # one died since the last time
                broken = error
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool as error:  # of every item that was not done yet
                    broken = error
        finally:
            for future in futures:
                future.cancel()
        if broken:
            self._close()
            raise RunFolderError(
                "a worker process died, as for want of memory: what was done is kept; run the "
                "same command again, with fewer --workers"
            ) from broken

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
