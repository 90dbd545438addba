"""Serving a data space from actors on a Ray cluster, and opening a served one by its address.

A shard has one or more actors, its replicas, on machines that mount the folder at the same path.
Clients find a server actor by its name and learn from it where the shards are.
"""

from pathlib import Path
from typing import Any

from whet.errors import SpaceError
from whet.maths.arrays import as_count
from whet.space.ray.client import connect
from whet.space.ray.reader import NAMESPACE, RayReader, SpaceDescriptor
from whet.space.ray.shard import Shard
from whet.space.store.manifest import read_manifest
from whet.space.store.reader import DiskReader

SCHEME = "ray:"
TIMEOUT_S = 60.0
KEPT_VERSIONS = 4  # latest versions that a server keeps open for their readers


class Server:
    """The actor that clients find by name.

    It keeps the segments of the latest versions open, so that compacting does not remove them.
    """

    def __init__(self, path: Path, actor_names: list[list[str]]) -> None:
        self._path, self._actor_names = path, actor_names
        self._versions: list[tuple[DiskReader, SpaceDescriptor]] = []

    def describe(self) -> SpaceDescriptor:
        """Describe the latest version."""
        if not self._versions or self._versions[-1][1].manifest != read_manifest(self._path):
            reader = DiskReader.open(self._path)
            descriptor = SpaceDescriptor.create(reader, self._actor_names)
            self._versions.append((reader, descriptor))
            del self._versions[:-KEPT_VERSIONS]
        return self._versions[-1][1]


class ServedSpace:
    """The actors of a served data space; they run until `close` or the end of this process."""

    def __init__(self, address: str, ray: Any, actors: list[Any]) -> None:
        """Use `serve` instead."""
        self.address = address
        """Address for `DataSpace.open`."""
        self._ray, self._actors = ray, actors

    def close(self) -> None:
        """Stop the actors."""
        for actor in self._actors:
            self._ray.kill(actor)


def serve(
    path: str | Path,
    address: str,
    *,
    shards: int | None = None,
    replicas: int = 1,
    name: str | None = None,
) -> ServedSpace:
    """Start actors that serve the data space at `path`; clients open its latest version.

    Args:
        path: A folder that every machine of the cluster mounts at this path.
        address: HOST:PORT of a Ray cluster, or `local`.
        shards: Number of shards; by default one per machine.
        replicas: Actors per shard, on different machines as far as possible.
        name: Name under which it is found; by default the folder's name.

    Raises:
        SpaceError: If the data space cannot be opened, or the name is in use.
        WhetError: If the cluster does not answer.
    """
    path = Path(path).resolve()
    DiskReader.open(path).close()
    as_count(replicas, "replicas")
    ray = connect(address)
    nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
    count, name = as_count(shards or len(nodes), "shards"), name or path.name
    names = [[f"{name}/{shard}/{replica}" for replica in range(replicas)] for shard in range(count)]
    try:
        server = _start_actor(
            ray, Server, name, ray.get_runtime_context().get_node_id(), path, names
        )
        actors = [
            _start_actor(ray, Shard, actor_name, nodes[(shard + replica) % len(nodes)])
            for shard, actor_names in enumerate(names)
            for replica, actor_name in enumerate(actor_names)
        ]
    except ValueError as error:
        raise SpaceError(f"{name!r} is served at {address} already: choose another name") from error
    cluster_address = ray.get_runtime_context().gcs_address
    return ServedSpace(f"{SCHEME}{cluster_address}/{name}", ray, [server, *actors])


def _start_actor(ray: Any, actor_class: type, name: str, node: str, *args: Any) -> Any:
    """Start an actor on a machine, or on another one if that is lost; it restarts when it dies."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    options = {
        "name": name,
        "namespace": NAMESPACE,
        "scheduling_strategy": Affinity(node, soft=True),
    }
    remote = ray.remote(num_cpus=0, max_restarts=-1)(actor_class)
    return remote.options(**options).remote(*args)


def open_reader(address: str, *, partial: bool = False, timeout_s: float = TIMEOUT_S) -> RayReader:
    """Open the data space served at `ray:HOST:PORT/NAME`, from a machine of that cluster.

    Args:
        address: The address that `serve` returned.
        partial: Answer from the shards that respond; `shards_ok` of `shards` counts them.
        timeout_s: Time in which a shard must respond.

    Raises:
        SpaceError: If nothing is served under that name, or its server does not respond.
        WhetError: If the cluster does not answer.
    """
    cluster, _, name = address.removeprefix(SCHEME).partition("/")
    ray = connect(cluster)
    try:
        server = ray.get_actor(name, namespace=NAMESPACE)
        descriptor: SpaceDescriptor = ray.get(server.describe.remote(), timeout=timeout_s)
        return RayReader.connect(descriptor, ray, partial=partial, timeout_s=timeout_s)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise SpaceError(f"{address} does not respond: {type(error).__name__}") from error
    except ValueError as error:
        raise SpaceError(
            f"no data space {name!r} is served at {cluster}: start it with `whet ray serve SPACE "
            f"--ray {cluster}`"
        ) from error
