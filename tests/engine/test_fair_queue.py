"""No client can keep others waiting: fair queue and thread pool."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.engine.fair_queue import FairPool, FairQueue

weights = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(weights, st.integers(1, 120))
def test_clients_that_always_wait_get_their_share_by_weight(weights, taken):
    queue, counts = FairQueue(), [0] * len(weights)
    for client, weight in enumerate(weights):
        for _ in range(taken):
            queue.push(str(client), client, weight)
    for pops in range(1, taken + 1):
        counts[queue.pop()] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - pops * weight / sum(weights)) < len(weights)
            # nobody is served again before all others had as much for their weight
            assert all(
                (count - 1) / weight <= other / theirs + 1e-9
                for other, theirs in zip(counts, weights, strict=True)
            )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
def test_pops_equal_those_of_a_plain_simulation(actions):
    queue, waiting, used, now, first = FairQueue(), {}, {}, 0.0, {}
    for number, (is_push, client) in enumerate(actions):
        if is_push:
            queue.push(str(client), (client, number))
            if not waiting.get(client) and used.get(client, 0.0) <= now:
                used[client], first[client] = now, number  # comes anew, without a claim
            waiting.setdefault(client, []).append((client, number))
            continue
        busy = [c for c in waiting if waiting[c]]
        expected = None
        if busy:
            chosen = min(busy, key=lambda c: (used[c], first[c]))
            expected, now = waiting[chosen].pop(0), max(now, used[chosen])
            used[chosen] += 1.0
        assert queue.pop() == expected
    assert len(queue) == sum(map(len, waiting.values())) == len(list(queue))


def test_items_that_are_not_ready_delay_only_their_own_client():
    queue = FairQueue()
    for item in (1, 2):
        queue.push("slow", item)
    queue.push("quick", 3)
    assert queue.pop(lambda item: item == 3) == 3
    assert queue.pop(lambda item: False) is None
    assert [queue.pop(), queue.pop(), queue.pop()] == [1, 2, None]


def test_endless_calls_of_one_client_leave_threads_for_another():
    release = threading.Event()
    pool = FairPool(4, 2, "test", lambda: None)
    endless = [pool.submit("a", release.wait) for _ in range(10)]
    assert pool.submit("b", lambda: "quick").result(10) == "quick"
    assert not any(future.done() for future in endless)
    with pytest.raises(ZeroDivisionError):
        pool.submit("b", lambda: 1 // 0).result(10)
    cancelled = endless.pop()
    assert cancelled.cancel()
    release.set()
    assert all(future.result(10) for future in endless)
    pool.shutdown()
