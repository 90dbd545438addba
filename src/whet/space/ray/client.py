"""Connecting to a Ray cluster, and mapping a function over its workers.

Ray's sockets listen on all interfaces, and anyone who can talk to them can run code. whet therefore
requires token authentication (`RAY_AUTH_MODE=token`, which is off by default before Ray 2.61). The
token is read from `RAY_AUTH_TOKEN` or from `~/.ray/auth_token`, which `ray get-auth-token
--generate` writes.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whet.errors import WhetError, require

LOCAL = "local"
LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by the address of an interface
TASKS_PER_CPU = 2  # submitted at a time


def connect(address: str) -> Any:
    """Connect to the cluster at `address` and return the `ray` module.

    Args:
        address: HOST:PORT; or `local`, which starts a cluster on this machine alone that ends with
            the process.

    Raises:
        WhetError: If nothing answers there, or the token is wrong or missing.
        ValueError: If the address is invalid, or this process is connected to another cluster.
    """
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        raise WhetError(
            "ray was imported before token authentication was enabled: set RAY_AUTH_MODE=token "
            "before importing it"
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "ray")
    if ray.is_initialized():
        current = ray.get_runtime_context().gcs_address
        if address not in (LOCAL, current):
            raise ValueError(f"this process is connected to Ray at {current}, not at {address}")
        return ray
    _check_reachable(address)
    options = {"_node_ip_address": LOOPBACK, "include_dashboard": False}
    options = options if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WhetError(f"Ray at {address} refused the connection: {reason}") from error
    return ray


def _check_reachable(address: str) -> None:
    """Fail fast: Ray itself would retry for minutes."""
    if address == LOCAL:
        _check_loopback()
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


def _check_loopback(address: str = LOOPBACK) -> None:
    """Check that this machine has the address: Linux has all of 127.0.0.0/8, macOS only one."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise WhetError(
                f"this machine lacks the address {address}, to which whet binds a local Ray cluster: "
                f"add it (on macOS: `sudo ifconfig lo0 alias {address}`), or start a cluster yourself "
                "and pass its HOST:PORT"
            ) from error


def map_unordered(
    ray: Any, function: Callable[..., Any], shared: Any, tasks: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """Yield `function(shared, *task)` of every task as soon as it is done, in no particular order.

    Tasks are read as workers become free. A task whose worker dies is repeated; exceptions of the
    function are raised unchanged.

    Args:
        ray: The module that `connect` returned.
        function: A function of a module that the workers can import.
        shared: An argument that is sent to each machine once.
        tasks: The other arguments.
    """
    shared_ref = ray.put(shared)
    remote = ray.remote(max_retries=-1, num_cpus=1)(function)
    limit = TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: list[Any] = []
    for task in tasks:
        pending.append(remote.remote(shared_ref, *task))
        if len(pending) >= limit:
            yield _pop_first(ray, pending)
    while pending:
        yield _pop_first(ray, pending)


def _pop_first(ray: Any, pending: list[Any]) -> Any:
    """Wait for the first result and remove it from the list."""
    [ready], pending[:] = ray.wait(pending)
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
