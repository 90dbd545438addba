"""Rate limits per key."""

import pytest

from whet.serve.access.auth import APIKey
from whet.serve.access.rate_limit import RateLimiter
from whet.serve.config import Limits
from whet.serve.errors import APIError


def test_requests_per_minute_are_refilled():
    now = [0.0]
    limiter = RateLimiter(Limits(requests_per_minute=2), clock=lambda: now[0])
    key = APIKey(id="a")

    def ask():
        with limiter.acquire(key):
            pass

    ask()
    ask()
    with pytest.raises(APIError) as caught:
        ask()
    assert caught.value.status == 429 and caught.value.retry_after_s == pytest.approx(30)
    now[0] = 30.0
    ask()


def test_tokens_are_charged_afterwards():
    now = [0.0]
    limiter = RateLimiter(Limits(tokens_per_minute=60), clock=lambda: now[0])
    with limiter.acquire(APIKey(id="a")) as account:
        account.tokens.level -= 100
    with pytest.raises(APIError), limiter.acquire(APIKey(id="a")):
        pass
    with limiter.acquire(APIKey(id="b")):  # another's debt is not theirs
        now[0] = 41.0
    with limiter.acquire(APIKey(id="a")):
        pass


def test_concurrent_requests_are_limited():
    limiter = RateLimiter(Limits(concurrent=1))
    with limiter.acquire(APIKey(id="a")), pytest.raises(APIError), limiter.acquire(APIKey(id="a")):
        pass
    with limiter.acquire(APIKey(id="a")):
        pass
