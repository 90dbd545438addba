"""A Ray cluster's workers: how to reach them, and work spread over them.

Ray's sockets listen on every interface and whoever may speak to them may run code. So a token is
asked of everybody (`RAY_AUTH_MODE=token`, which Ray before 2.61 leaves off): the one in
`RAY_AUTH_TOKEN`, or in `~/.ray/auth_token`, where `ray get-auth-token --generate` puts it.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whet.errors import WhetError, require

LOCAL = "local"
LOOPBACK = "127.0.0.2"  # Ray turns 127.0.0.1 into the address of an interface
AHEAD = 2  # pieces of work given to a cluster for each of its processors


def connect(address: str) -> Any:
    """The `ray` module, connected to the cluster at `address` (HOST:PORT).

    `local` starts a cluster of this machine alone, which ends with the process.

    Raises:
        WhetError: If nothing answers there, or the token is wrong or missing.
        ValueError: If this process is connected to another cluster, or it is no address.
    """
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        raise WhetError(
            "ray was imported without a token, which it takes note of then: set RAY_AUTH_MODE=token"
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "ray")
    if ray.is_initialized():
        have = ray.get_runtime_context().gcs_address
        if address not in (LOCAL, have):
            raise ValueError(f"this process is connected to Ray at {have}, not at {address}")
        return ray
    _assert_answers(address)
    here = {"_node_ip_address": LOOPBACK, "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **here)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WhetError(f"Ray at {address} refuses: {reason}") from error
    return ray


def _assert_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    if address == LOCAL:
        return
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"the address of a Ray cluster is {address!r}: expected HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise WhetError(
            f"no Ray cluster answers at {address} ({error}): start one with "
            "`RAY_AUTH_MODE=token ray start --head`"
        ) from error


def map_unordered(
    ray: Any, function: Callable[..., Any], common: Any, pieces: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """`function(common, *piece)` of every piece, as they are done, in no order.

    The pieces are taken as workers become free. One whose worker dies is done again; an error of
    the function is raised as it is.

    Args:
        ray: As `connect` returns it.
        function: Of a module that the workers have.
        common: Sent to each machine once.
        pieces: The rest of the arguments.
    """
    shared = ray.put(common)
    work = ray.remote(max_retries=-1, num_cpus=1)(function)
    most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for piece in pieces:
        waiting.append(work.remote(shared, *piece))
        if len(waiting) >= most:
            yield _first(ray, waiting)
    while waiting:
        yield _first(ray, waiting)


def _first(ray: Any, waiting: list[Any]) -> Any:
    """The result of what is done first, which is taken off the list."""
    [ready], waiting[:] = ray.wait(waiting)
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
