"""How often and how much each key asks: token buckets, and a count of what is open.

Tokens are known only once an answer is whole, so they are paid afterwards: a bucket may go into
debt, and whoever is in debt waits until it is paid.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whet.serve.auth import Key, Limits
from whet.serve.errors import APIError


@dataclass(slots=True)
class Bucket:
    """Holds a minute's worth, filled evenly."""

    per_minute: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def wait_s(self, need: float) -> float:
        """Seconds until it holds `need`."""
        if self.level >= need:
            return 0.0
        return 60 * (need - self.level) / self.per_minute if self.per_minute else 60.0


@dataclass(slots=True)
class Account:
    requests: Bucket
    tokens: Bucket
    open: int = 0


class Meter:
    """The accounts of a server's keys. Used from one thread, the event loop's."""

    def __init__(self, default: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._default, self._clock = default, clock
        self._accounts: dict[str, Account] = {}

    def limits(self, key: Key) -> Limits:
        return key.limits or self._default

    @contextmanager
    def admitted(self, key: Key) -> Iterator[Account]:
        """One request of `key`.

        Raises:
            APIError: 429 if its minute is used up, or it has too many requests open.
        """
        limits, account = self.limits(key), self._account(key)
        if account.open >= limits.concurrent:
            raise APIError(
                429, f"{account.open} requests of this key are open: it may have "
                f"{limits.concurrent}", code="too_many_open", retry_after_s=1,
            )  # fmt: skip
        for bucket, need, name in (
            (account.requests, 1, "requests"),
            (account.tokens, 0, "tokens"),
        ):
            if wait := bucket.wait_s(need):
                raise APIError(
                    429, f"this key may use {bucket.per_minute:g} {name} a minute: ask again in "
                    f"{wait:.0f} s", code="rate_limit_exceeded", retry_after_s=wait,
                )  # fmt: skip
        account.requests.level -= 1
        account.open += 1
        try:
            yield account
        finally:
            account.open -= 1

    def _account(self, key: Key) -> Account:
        now, limits = self._clock(), self.limits(key)
        if key.id not in self._accounts:
            requests, tokens = float(limits.requests_per_minute), float(limits.tokens_per_minute)
            self._accounts[key.id] = Account(
                Bucket(requests, requests, now), Bucket(tokens, tokens, now)
            )
        account = self._accounts[key.id]
        account.requests.fill(now)
        account.tokens.fill(now)
        return account
