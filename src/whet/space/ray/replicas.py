"""Asking shards that may die meanwhile: each has replicas, tried in turn until one answers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.data.filters import Filter
from whet.errors import SpaceError
from whet.space.ray.shard import Part

PAUSE_S = 0.05  # before the replicas of a shard are tried another time: a restart takes about 0.5 s


@dataclass(frozen=True, slots=True)
class Try:
    """A question on its way to one replica."""

    shard: int
    number: int
    """How many tries of this shard were before."""
    refs: list[Any]
    """Of the parts of its answer."""
    until: float
    """When the next replica gets its turn, by the monotonic clock."""


@dataclass(slots=True)
class Answers:
    """By shard."""

    given: dict[int, Any] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    """Why there is none in time."""


class Replicas:
    """The actors of every shard of a version. Safe in threads."""

    def __init__(
        self, ray: Any, parts: Sequence[Part], hosts: Sequence[Sequence[Any]], timeout_s: float
    ) -> None:
        """Args:
        ray: As `client.connect` returns it.
        parts: A shard each.
        hosts: The actors of each.
        timeout_s: How long a shard has for an answer, all its replicas together.
        """
        self._ray, self._hosts, self._timeout_s = ray, hosts, timeout_s
        self._parts = [ray.put(part) for part in parts]
        self._turn = 0

    def __len__(self) -> int:
        return len(self._parts)

    def ask(
        self, question: str, asked: Mapping[int, tuple[Any, ...]], bound: Filter | None,
        parts: int = 1, **named: Any,
    ) -> Answers:  # fmt: skip
        """Ask the shards of `asked`, all at once.

        A replica that dies or is silent for its share of the time makes way for the next, and after
        the last the first is asked again, as it is started anew.

        Args:
            question: See `shard.QUESTIONS`.
            asked: Its arguments, by shard.
            bound: What a row must pass.
            parts: If above 1, the answer is a list of so many, sent one by one.
            named: Further arguments, the same for all.

        Raises:
            ValueError, IndexError: As the question's.
        """
        self._turn += 1
        answers, tries = Answers(), {}
        end = time.monotonic() + self._timeout_s

        def send(shard: int, number: int) -> None:
            hosts = self._hosts[shard]
            host = hosts[(self._turn + number) % len(hosts)]
            part = self._parts[shard]
            sent = host.ask.options(num_returns=parts).remote(
                part, bound, question, *asked[shard], **named
            )
            refs = sent if parts > 1 else [sent]
            share = self._timeout_s / len(hosts)
            tries[refs[0]] = Try(shard, number, refs, min(end, time.monotonic() + share))

        def again(one: Try, reason: str, *, most: float = float("inf")) -> None:
            if time.monotonic() >= end or one.number + 1 >= most:
                answers.lost[one.shard] = reason
                return
            if one.number + 1 >= len(self._hosts[one.shard]):
                time.sleep(PAUSE_S)
            send(one.shard, one.number + 1)

        for shard in asked:
            send(shard, 0)
        while tries:
            left = max(0.0, min(one.until for one in tries.values()) - time.monotonic())
            ready, _ = self._ray.wait(list(tries), timeout=left)
            for ref in ready:
                one = tries.pop(ref)
                try:
                    answer = self._ray.get(one.refs)
                    answers.given[one.shard] = answer if parts > 1 else answer[0]
                except self._ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, SpaceError):
                        raise error.cause from None
                    again(one, str(error.cause), most=len(self._hosts[one.shard]))
                except self._ray.exceptions.RayError as error:
                    again(one, f"its actor failed ({type(error).__name__})")
            now = time.monotonic()
            for ref in [ref for ref, one in tries.items() if one.until <= now]:
                again(tries.pop(ref), f"it was silent for {self._timeout_s:g} s")
        return answers
