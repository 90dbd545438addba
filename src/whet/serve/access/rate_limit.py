"""Per-key rate limiting: token buckets and a limit on concurrent requests.

The tokens of a request are known only when it has finished, so they are charged afterwards: a
bucket may go into debt, and a key in debt waits until the debt is paid.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whet.serve.access.auth import APIKey
from whet.serve.config import Limits
from whet.serve.errors import APIError


@dataclass(slots=True)
class TokenBucket:
    """Holds what a key may spend per minute, refilled evenly."""

    per_minute: float
    level: float
    updated: float
    """When the level was computed, in seconds of the limiter's clock."""

    def refill(self, now: float) -> None:
        """Add what has accrued since the last update."""
        elapsed = now - self.updated
        self.level = min(self.per_minute, self.level + elapsed * self.per_minute / 60)
        self.updated = now

    def wait_s(self, amount: float) -> float:
        """Seconds until the bucket holds `amount`."""
        if self.level >= amount:
            return 0.0
        return 60 * (amount - self.level) / self.per_minute if self.per_minute else 60.0


@dataclass(slots=True)
class ClientUsage:
    """What one key has left, and its requests in flight."""

    requests: TokenBucket
    tokens: TokenBucket
    in_flight: int = 0


class RateLimiter:
    """The usage of every key. To be used from one thread, the event loop's."""

    def __init__(self, default: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._default, self._clock = default, clock
        self._usage: dict[str, ClientUsage] = {}

    def limits(self, key: APIKey) -> Limits:
        """The limits of `key`."""
        return key.limits or self._default

    @contextmanager
    def acquire(self, key: APIKey) -> Iterator[ClientUsage]:
        """Count one request of `key` for as long as the block runs.

        Raises:
            APIError: 429 if a limit per minute is used up, or too many requests are in flight.
        """
        limits, usage = self.limits(key), self._refilled(key)
        if usage.in_flight >= limits.concurrent:
            raise APIError(
                429, f"this key has {usage.in_flight} requests in flight: its limit is "
                f"{limits.concurrent}", code="too_many_open", retry_after_s=1,
            )  # fmt: skip
        for bucket, amount, name in (
            (usage.requests, 1, "requests"),
            (usage.tokens, 0, "tokens"),
        ):
            if wait := bucket.wait_s(amount):
                raise APIError(
                    429, f"this key's limit is {bucket.per_minute:g} {name} per minute: retry in "
                    f"{wait:.0f} s", code="rate_limit_exceeded", retry_after_s=wait,
                )  # fmt: skip
        usage.requests.level -= 1
        usage.in_flight += 1
        try:
            yield usage
        finally:
            usage.in_flight -= 1

    def _refilled(self, key: APIKey) -> ClientUsage:
        now, limits = self._clock(), self.limits(key)
        if key.id not in self._usage:
            requests, tokens = float(limits.requests_per_minute), float(limits.tokens_per_minute)
            self._usage[key.id] = ClientUsage(
                TokenBucket(requests, requests, now), TokenBucket(tokens, tokens, now)
            )
        usage = self._usage[key.id]
        usage.requests.refill(now)
        usage.tokens.refill(now)
        return usage
