"""The embedded store's segments as shards on Ray: a space too large for one machine.

A search is two questions, after the paper's client of many index servers (arXiv 2410.08020): each
shard gives ids and scores of its own nearest, then the shards of the winners give their vectors,
and no others travel. Shards run the code of the embedded store on the same files, so what they find
is the same.

A shard is one or more actors, its replicas, on machines that see the folder at the same path. One
that dies is started again and asked again; what does not answer in time is an error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from whet.data.filters import Filter, both, check_fields
from whet.embed.lsa import LSA
from whet.errors import SpaceError
from whet.maths.arrays import Array, as_count
from whet.space.ray.client import connect
from whet.space.ray.replicas import Answers, Replicas
from whet.space.ray.shard import Held, Part, Shard, parts
from whet.space.store.manifest import Manifest, read_manifest
from whet.space.store.protocol import COLUMNS, Metric, SearchResults
from whet.space.store.reader import DiskReader
from whet.space.store.vectors import top_k

SCHEME = "ray:"
NAMESPACE = "whet"
TIMEOUT_S = 60.0
INLINE = 64 * 2**10  # bytes; what has more than 100 kB takes Ray's way of objects, thrice as long
VERSIONS = 4  # that a server holds for their readers, the latest ones


class Cluster:
    """A version of a store whose segments are shards on Ray. Safe in threads."""

    def __init__(
        self,
        opening: "Opening",
        shards: Replicas,
        *,
        partial: bool = False,
        bound: Filter | None = None,
    ) -> None:
        """Use `find`.

        Args:
            opening: What its server told.
            shards: Who is asked.
            partial: Answer from the shards that do, instead of refusing.
            bound: See `restricted`.
        """
        self.opening, self.partial, self.manifest = opening, partial, opening.manifest
        self.dimension, self.version = self.manifest.dimension, self.manifest.version
        self.fingerprint = self.manifest.fingerprint
        self._shards, self._bound = shards, bound

    def filter(self, where: Filter) -> "Cluster":
        """See `Reader.filter`. Each shard applies the filter, before anything leaves it."""
        check_fields(where, self.fields)
        bound = both(self._bound, where)
        return Cluster(self.opening, self._shards, partial=self.partial, bound=bound)

    def lsa(self) -> LSA:
        """The data space's own embedder."""
        answers = self._ask("lsa", {0: ()})
        if answers.lost:
            raise SpaceError(f"shard 0 did not give the embedder: {answers.lost[0]}. Try again")
        return cast(LSA, answers.given[0])

    def close(self) -> None:
        """The shards belong to their server and go on."""

    def count(self, where: Filter | None = None) -> int:
        return sum(self._all("count", self._checked(where)))

    def ids(self, where: Filter | None = None) -> Int[Array, " n"]:
        """See `Reader.ids`."""
        return np.sort(np.concatenate(self._all("ids", self._checked(where))))

    @cached_property
    def fields(self) -> dict[str, set[str]]:
        """What can be filtered by: each field with the kinds of its values."""
        found: dict[str, set[str]] = {}
        for own in self._all("fields"):
            for field, kinds in own.items():
                found.setdefault(field, set()).update(kinds)
        return found

    def find(self, names: Sequence[str]) -> Int[Array, " n"]:
        """See `Reader.find`."""
        found: Array = np.max(self._all("find", list(names)), axis=0)
        return found

    def vectors(self, ids: Any) -> Float[Array, "n d"]:
        """See `Reader.vectors`."""
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        found = np.empty((len(wanted), self.dimension), np.float16)
        for held in self._held("vectors", wanted):
            found[held.places] = held.values
        return found

    def rows(self, ids: Any, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """See `Reader.rows`."""
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        held = self._held("rows", wanted, tuple(columns))
        order = np.argsort(np.concatenate([one.places for one in held]))
        table = pa.concat_tables([one.values for one in held])
        return table.take(pa.array(order))

    def search(
        self,
        queries: Any,
        k: int,
        *,
        metric: Metric = "abs_cosine",
        where: Filter | None = None,
        vectors: bool = True,
        exact: bool = False,
        probe_fraction: float | None = None,
    ) -> SearchResults:
        """See `Reader.search`. With indexes, each shard nominates as many as a lone store, so what
        is found is at least as near."""
        where = self._checked(where)
        answers = self._ask(
            "search", self._everybody(queries, k), metric=metric, where=where, vectors=False,
            exact=exact, probe_fraction=probe_fraction,
        )  # fmt: skip
        while True:
            self._tolerate(answers)
            ids, scores, owners = _merged(answers.given, k, metric)
            if not vectors:
                found = None
                break
            found, late = self._winners(ids, owners)
            if not late:
                break
            answers.lost |= late
            answers.given = {s: a for s, a in answers.given.items() if s not in late}
        exact = not answers.lost and all(one.exact for one in answers.given.values())
        ok, count = len(answers.given), len(self._shards)
        return SearchResults(ids, scores, found, self.version, exact, ok, count)

    def _winners(
        self, ids: Int[Array, "n k"], owners: Int[Array, "n k"]
    ) -> tuple[Float[Array, "n k d"], dict[int, str]]:
        """Their vectors, and the shards that did not give them."""
        own = {int(s): np.unique(ids[owners == s]) for s in np.unique(owners[owners >= 0])}
        most = max((len(wanted) for wanted in own.values()), default=0)
        count = math.ceil(most * 2 * self.dimension / INLINE) + 1
        asked = {shard: (wanted, count) for shard, wanted in own.items()}
        answers = self._ask("cut vectors", asked, parts=count)
        found = np.zeros((*ids.shape, self.dimension), np.float16)
        for shard, vectors in answers.given.items():
            won = owners == shard
            found[won] = np.concatenate(vectors)[np.searchsorted(own[shard], ids[won])]
        return found, answers.lost

    def _checked(self, where: Filter | None) -> Filter | None:
        if where is not None:
            check_fields(where, self.fields)
        return where

    def _held(self, question: str, wanted: Int[Array, " n"], *asked: Any) -> list[Held]:
        """What the shards have of `wanted`: all of it."""
        held: list[Held] = self._all(question, wanted, *asked)
        missing = np.setdiff1d(np.arange(len(wanted)), np.concatenate([h.places for h in held]))
        if len(missing):
            raise IndexError(f"row {wanted[missing[0]]} is not in the data space")
        return held

    def _all(self, question: str, *asked: Any) -> list[Any]:
        """The answer of every shard, or of those that answer where that is allowed."""
        answers = self._ask(question, self._everybody(*asked))
        self._tolerate(answers)
        return [answers.given[shard] for shard in sorted(answers.given)]

    def _everybody(self, *asked: Any) -> dict[int, tuple[Any, ...]]:
        return dict.fromkeys(range(len(self._shards)), asked)

    def _ask(self, question: str, asked: Mapping[int, tuple[Any, ...]], **named: Any) -> Answers:
        return self._shards.ask(question, asked, self._bound, **named)

    def _tolerate(self, answers: Answers) -> None:
        if answers.lost and not (self.partial and answers.given):
            shard, reason = min(answers.lost.items())
            raise SpaceError(
                f"{len(answers.lost)} of {len(self._shards)} shards did not answer, such as "
                f"{shard}: {reason}. Try again, or open it with partial for what the others hold"
            )


def _merged(
    answers: Mapping[int, SearchResults], k: int, metric: Metric
) -> tuple[Int[Array, "n k"], Float[Array, "n k"], Int[Array, "n k"]]:
    """Of each line the nearest of all shards: ids, scores, and whose they are (-1 in padding)."""
    order = sorted(answers)
    ids = np.concatenate([answers[shard].ids for shard in order], axis=1)
    scores = np.concatenate([answers[shard].scores for shard in order], axis=1)
    shards = np.repeat(order, [answers[shard].ids.shape[1] for shard in order])
    best = np.full((len(ids), k), -1, np.int64)
    owners, sizes = best.copy(), np.zeros((len(ids), k))
    for line in range(len(ids)):
        there = np.flatnonzero(ids[line] >= 0)
        kept = there[top_k(scores[line, there], ids[line, there], k, metric)]
        best[line, : len(kept)], sizes[line, : len(kept)] = ids[line, kept], scores[line, kept]
        owners[line, : len(kept)] = shards[kept]
    return best, sizes, owners


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """What a client needs to read a version of a served data space."""

    path: Path
    """As the machines of the cluster see it."""
    manifest: Manifest
    parts: list[Part]
    hosts: list[list[str]]
    """The names of each shard's actors."""

    @classmethod
    def of(cls, now: DiskReader, hosts: list[list[str]]) -> "Opening":
        """What is to be told of an opened version; the shards need its segments to stay."""
        return cls(now.path, now.manifest, parts(now, len(hosts)), hosts)

    def reader(self, ray: Any, *, partial: bool, timeout_s: float) -> Cluster:
        actors = [[ray.get_actor(n, namespace=NAMESPACE) for n in names] for names in self.hosts]
        return Cluster(self, Replicas(ray, self.parts, actors, timeout_s), partial=partial)


class Server:
    """The actor that clients find by name.

    It holds what the latest versions are made of, so that compacting does not sweep it away.
    """

    def __init__(self, path: Path, hosts: list[list[str]]) -> None:
        self._path, self._hosts = path, hosts
        self._held: list[tuple[DiskReader, Opening]] = []

    def opening(self) -> Opening:
        """Of the version that is there now."""
        if not self._held or self._held[-1][1].manifest != read_manifest(self._path):
            now = DiskReader.open(self._path)
            self._held.append((now, Opening.of(now, self._hosts)))
            del self._held[:-VERSIONS]
        return self._held[-1][1]


class Served:
    """A data space's shards on a cluster, there until closed or until this process ends."""

    def __init__(self, address: str, ray: Any, actors: list[Any]) -> None:
        """Use `serve`."""
        self.address = address
        """By which it is opened."""
        self._ray, self._actors = ray, actors

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)


def serve(
    path: str | Path,
    address: str,
    *,
    shards: int | None = None,
    replicas: int = 1,
    name: str | None = None,
) -> Served:
    """Start the shards of the data space at `path`.

    Who opens it gets the version that is there by then.

    Args:
        path: A folder that every machine of the cluster sees at this path.
        address: HOST:PORT of a Ray cluster, or `local`.
        shards: None for one a machine.
        replicas: Actors of each shard, on different machines as far as there are so many.
        name: By which it is found; None for the folder's name.

    Raises:
        SpaceError: If it cannot be opened, or the name is taken.
        WhetError: If there is no such cluster.
    """
    path = Path(path).resolve()
    DiskReader.open(path).close()
    as_count(replicas, "replicas")
    ray = connect(address)
    nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
    count, name = as_count(shards or len(nodes), "shards"), name or path.name
    hosts = [[f"{name}/{shard}/{turn}" for turn in range(replicas)] for shard in range(count)]
    try:
        server = _actor(ray, Server, name, ray.get_runtime_context().get_node_id(), path, hosts)
        actors = [
            _actor(ray, Shard, host, nodes[(shard + turn) % len(nodes)])
            for shard, names in enumerate(hosts)
            for turn, host in enumerate(names)
        ]
    except ValueError as error:
        raise SpaceError(f"{name!r} is served at {address} already: choose another name") from error
    found = f"{SCHEME}{ray.get_runtime_context().gcs_address}/{name}"
    return Served(found, ray, [server, *actors])


def _actor(ray: Any, kind: type, name: str, node: str, *made_of: Any) -> Any:
    """An actor on one machine, or on another once that one is lost; if it dies, it starts again."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    where = {"name": name, "namespace": NAMESPACE, "scheduling_strategy": Affinity(node, soft=True)}
    return ray.remote(num_cpus=0, max_restarts=-1)(kind).options(**where).remote(*made_of)


def find(address: str, *, partial: bool = False, timeout_s: float = TIMEOUT_S) -> Cluster:
    """The served data space at `ray:HOST:PORT/NAME`; this machine must be one of the cluster.

    Args:
        address: As `serve` gave it.
        partial: Answer from the shards that do; `shards_ok` of `shards` says how many.
        timeout_s: How long a shard has for an answer.

    Raises:
        SpaceError: If there is none, or its server does not answer.
        WhetError: If there is no such cluster.
    """
    where, _, name = address.removeprefix(SCHEME).partition("/")
    ray = connect(where)
    try:
        server = ray.get_actor(name, namespace=NAMESPACE)
        opening: Opening = ray.get(server.opening.remote(), timeout=timeout_s)
        return opening.reader(ray, partial=partial, timeout_s=timeout_s)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise SpaceError(f"{address} does not answer: {type(error).__name__}") from error
    except ValueError as error:
        raise SpaceError(
            f"no data space {name!r} is served at {where}: `whet space serve SPACE --ray {where}`"
        ) from error
