"""Calls to shards whose actors may die: each shard has replicas that are tried in turn."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.data.filters import Filter
from whet.errors import SpaceError
from whet.space.ray.shard import ShardSpec

RETRY_PAUSE_S = 0.05  # before all replicas are tried again; restarting an actor takes about 0.5 s


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call to one replica that has not returned yet."""

    shard: int
    number: int
    """Number of earlier attempts for this shard."""
    refs: list[Any]
    """Ray references to the parts of the result."""
    deadline: float
    """When the next replica is tried, on the monotonic clock."""


@dataclass(slots=True)
class Responses:
    """Results and errors, by shard."""

    results: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """Why a shard did not respond in time."""


class Replicas:
    """The actors of all shards of one version. Thread-safe."""

    def __init__(
        self,
        ray: Any,
        specs: Sequence[ShardSpec],
        actors: Sequence[Sequence[Any]],
        timeout_s: float,
    ) -> None:
        """Create the client.

        Args:
            ray: The module that `client.connect` returned.
            specs: The shards.
            actors: The replicas of each shard.
            timeout_s: Time in which a shard must respond, all its replicas together.
        """
        self._ray, self._actors, self._timeout_s = ray, actors, timeout_s
        self._specs = [ray.put(spec) for spec in specs]
        self._turn = 0

    def __len__(self) -> int:
        return len(self._specs)

    def call(
        self,
        method: str,
        args: Mapping[int, tuple[Any, ...]],
        reader_filter: Filter | None,
        *,
        parts: int = 1,
        **kwargs: Any,
    ) -> Responses:
        """Call a method of several shards at the same time.

        If a replica dies, or does not respond within its share of the time, the next one is called;
        after the last one the first is called again, since actors restart.

        Args:
            method: One of `shard.METHODS`.
            args: Arguments for each shard that is called.
            reader_filter: Filter that rows must pass; `kwargs` may contain a further one.
            parts: If above 1, results are lists of this length whose items are sent separately.
            kwargs: Keyword arguments, the same for all shards.

        Raises:
            ValueError, IndexError: Whatever the method raises, except SpaceError.
        """
        self._turn += 1
        turn = self._turn

        def submit(shard: int, number: int) -> list[Any]:
            actors = self._actors[shard]
            actor = actors[(turn + number) % len(actors)]
            refs = actor.call.options(num_returns=parts).remote(
                self._specs[shard], reader_filter, method, *args[shard], **kwargs
            )
            return refs if parts > 1 else [refs]

        counts = [len(actors) for actors in self._actors]
        responses = _Call(self._ray, submit, counts, self._timeout_s).run(args)
        if parts == 1:
            responses.results = {shard: result[0] for shard, result in responses.results.items()}
        return responses


class _Call:
    """The attempts of one call of several shards."""

    def __init__(
        self,
        ray: Any,
        submit: Callable[[int, int], list[Any]],
        replicas: list[int],
        timeout_s: float,
    ) -> None:
        """Create the call.

        Args:
            ray: The module.
            submit: Makes an attempt, given a shard and the number of earlier attempts.
            replicas: Number of replicas of each shard.
            timeout_s: Time in which a shard must respond.
        """
        self._ray, self._submit, self._replicas = ray, submit, replicas
        self._timeout_s, self._end = timeout_s, time.monotonic() + timeout_s
        self._attempts: dict[Any, Attempt] = {}
        self._responses = Responses()

    def run(self, shards: Iterable[int]) -> Responses:
        """Call the shards until each has responded or failed; results are lists of parts."""
        for shard in shards:
            self._send(shard, 0)
        while self._attempts:
            deadline = min(attempt.deadline for attempt in self._attempts.values())
            remaining = max(0.0, deadline - time.monotonic())
            ready, _ = self._ray.wait(list(self._attempts), timeout=remaining)
            for ref in ready:
                self._receive(self._attempts.pop(ref))
            now = time.monotonic()
            for ref in [ref for ref, a in self._attempts.items() if a.deadline <= now]:
                self._retry(self._attempts.pop(ref), f"it was silent for {self._timeout_s:g} s")
        return self._responses

    def _send(self, shard: int, number: int) -> None:
        refs = self._submit(shard, number)
        share = self._timeout_s / self._replicas[shard]
        deadline = min(self._end, time.monotonic() + share)
        self._attempts[refs[0]] = Attempt(shard, number, refs, deadline)

    def _receive(self, attempt: Attempt) -> None:
        errors = self._ray.exceptions
        try:
            self._responses.results[attempt.shard] = self._ray.get(attempt.refs)
        except errors.RayTaskError as error:
            if not isinstance(error.cause, SpaceError):
                raise error.cause from None
            self._retry(attempt, str(error.cause), limit=self._replicas[attempt.shard])
        except errors.RayError as error:
            self._retry(attempt, f"its actor failed ({type(error).__name__})")

    def _retry(self, attempt: Attempt, reason: str, *, limit: float = float("inf")) -> None:
        if time.monotonic() >= self._end or attempt.number + 1 >= limit:
            self._responses.errors[attempt.shard] = reason
            return
        if attempt.number + 1 >= self._replicas[attempt.shard]:
            time.sleep(RETRY_PAUSE_S)
        self._send(attempt.shard, attempt.number + 1)
