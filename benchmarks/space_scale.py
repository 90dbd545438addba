"""What do a space of millions of rows, and shards of one, cost? For docs/scale.md.

    python benchmarks/space_scale.py build SPACE --rows 1000000        (again adds as many)
    python benchmarks/space_scale.py query SPACE
    python benchmarks/space_scale.py nodes SPACE

Half of the rows lie about real LSA vectors (the corpus that WHET_CORPUS names; else made), half in
2,000 clusters of Zipf's sizes, a tenth of these turned to their opposites. All commands add what
they find to one JSON file. Nothing is embedded: `whet index` tells that rate.
"""

import json
import os
import resource
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
from corpus_vectors import lsa_vectors

from whet.evaluate.provenance import provenance
from whet.space.store.manifest import Manifest
from whet.space.store.protocol import SCHEMA
from whet.space.store.reader import DiskReader
from whet.space.store.sealing import Batch
from whet.space.store.segments.vectors import to_float16
from whet.space.store.writer import DiskWriter

D, PIECE, K = 256, 20_000, 1000
RESULTS = Path(__file__).parent / "results" / "space_scale.json"
ARGUMENTS = [
    click.argument("space", type=click.Path(path_type=Path)),
    click.option("--json", "target", default=RESULTS, type=click.Path(path_type=Path)),
]


def command(function: Any) -> Any:
    for decorate in reversed([main.command(), *ARGUMENTS]):
        function = decorate(function)
    return function


@click.group(help=__doc__)
def main() -> None:
    pass


@command
@click.option("--rows", default=1_000_000, show_default=True)
def build(space: Path, rows: int, target: Path) -> None:
    """Add rows, as one write: about a segment a million."""
    new = None if space.exists() else Manifest(embedder="made", fingerprint="made", dimension=D)
    real()  # read before the clock starts
    start, before = time.perf_counter(), bytes_of(space)
    with DiskWriter(space, new=new) as writer:
        first = writer.manifest.next
        writer.commit(lambda: made(first, rows), next=first + rows)
    taken = time.perf_counter() - start
    kept(target, f"build {rows:,} after {first:,}", {
        "rows": rows, "seconds": taken, "rows_per_second": rows / taken,
        "bytes_per_row": (bytes_of(space) - before) / rows,
        "bytes": {kind: size for kind, size in sizes(space).items()}, "peak_rss_gb": peak(),
    })  # fmt: skip


@command
@click.option("--prompts", default=20, show_default=True)
def query(space: Path, prompts: int, target: Path) -> None:
    """Time and recall of a search for 1,000 rows with their vectors, by probe_fraction."""
    start = time.perf_counter()
    store = DiskReader.open(space)
    opened = time.perf_counter() - start
    rng = np.random.default_rng(1)
    ids = np.sort(rng.choice(store.ids(), prompts, replace=False))
    aims = about(store.vectors(ids).astype(np.float32), rng)
    exact = [timed(lambda a=aim: store.search(a[None], K, exact=True)) for aim in aims]
    found: dict[str, Any] = {
        "rows": store.count(), "segments": len(store.segments), "open_ms": 1e3 * opened,
        "exact_ms": median_ms([s for s, _ in exact]), "efforts": {},
    }  # fmt: skip
    for probe_fraction in (None, 0.25, 0.125, 0.0625):
        for aim in aims:
            store.search(aim[None], K, probe_fraction=probe_fraction)
        tried = [
            timed(lambda a=aim, e=probe_fraction: store.search(a[None], K, probe_fraction=e))
            for aim in aims
        ]
        recalls = [len(np.intersect1d(one.ids, best.ids)) / K
                   for (_, one), (_, best) in zip(tried, exact, strict=True)]  # fmt: skip
        found["efforts"]["default" if probe_fraction is None else probe_fraction] = {
            "ms": median_ms([s for s, _ in tried]), "recall": float(np.mean(recalls)),
        }  # fmt: skip
    found["default_efforts"] = [
        s.index_stats.probe_fraction for s in store.segments if s.index_stats
    ]
    kept(target, f"query {store.count():,}", found | {"peak_rss_gb": peak()})


@command
@click.option("--prompts", default=20, show_default=True)
def nodes(space: Path, prompts: int, target: Path) -> None:
    """The same search by two Ray nodes on this machine, a shard each, in turn with a local one."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}
    import ray
    from ray.cluster_utils import Cluster

    from whet.space.ray.cluster import open_reader, serve

    cluster, size = Cluster(), {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster.add_node(node_ip_address="127.0.0.2", include_dashboard=False, **size)
    cluster.add_node(node_ip_address="127.0.0.3", **size)
    local, served = DiskReader.open(space), serve(space, cluster.address)
    far = open_reader(served.address)
    rng = np.random.default_rng(2)
    ids = np.sort(rng.choice(local.ids(), prompts, replace=False))
    aims = about(local.vectors(ids).astype(np.float32), rng)
    same, near_s, far_s = [], [], []
    for _ in range(6):
        for aim in aims:
            one, near = timed(lambda a=aim: local.search(a[None], K))
            two, other = timed(lambda a=aim: far.search(a[None], K))
            near_s.append(one)
            far_s.append(two)
            same.append(len(np.intersect1d(near.ids, other.ids)) / K)
    rest = 2 * prompts  # the first two rounds warm up
    added = [b - a for a, b in zip(near_s[rest:], far_s[rest:], strict=True)]
    exact = [local.search(a[None], K, exact=True).ids for a in aims[:5]]
    alike = [bool((far.search(a[None], K, exact=True).ids == e).all())
             for a, e in zip(aims[:5], exact, strict=True)]  # fmt: skip
    kept(target, f"nodes {local.count():,}", {
        "rows": local.count(), "local_ms": median_ms(near_s[rest:]), "ray_ms":
        median_ms(far_s[rest:]), "added_ms": median_ms(added), "shared_ids": float(np.mean(same)),
        "exact_ids_equal": all(alike), "prompts": prompts, "rounds": 4,
    })  # fmt: skip
    ray.shutdown()
    cluster.shutdown()


def made(first: int, count: int) -> Iterator[Batch]:
    """Rows by ascending id, the same each time."""
    for start in range(first, first + count, PIECE):
        n = min(PIECE, first + count - start)
        rng = np.random.default_rng(start)
        rows = np.concatenate([about(real()[rng.integers(len(real()), size=n // 2)], rng),
                               clusters(n - n // 2, rng)])  # fmt: skip
        ids = np.arange(start, start + n)
        texts = [f"{i} " + "x" * 200 for i in ids]
        metas = [json.dumps({"i": int(i), "set": "abcdefgh"[i % 8]}) for i in ids]
        table = pa.RecordBatch.from_pydict(
            {"id": [f"d{i}" for i in ids], "text": texts, "meta": metas}, schema=SCHEMA
        )
        yield Batch(ids, table, to_float16(rows))


@cache
def real() -> Any:
    found = lsa_vectors(dimensions=D)
    return clusters(6000, np.random.default_rng(0)) if found is None else found


def about(rows: Any, rng: np.random.Generator) -> Any:
    """Unit rows near others: noise of as much as half their length."""
    noise = rng.standard_normal(rows.shape, dtype=np.float32) * (0.5 / np.sqrt(D))
    return (rows + noise) / np.linalg.norm(rows + noise, axis=1, keepdims=True)


def clusters(n: int, rng: np.random.Generator) -> Any:
    centres = np.random.default_rng(7).standard_normal((2000, D), dtype=np.float32)
    sizes = 1 / np.arange(1, 2001)
    chosen = centres[rng.choice(2000, n, p=sizes / sizes.sum())]
    rows = chosen + 0.7 * rng.standard_normal((n, D), dtype=np.float32)
    rows *= np.where(rng.random((n, 1)) < 0.1, -1, 1).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def timed(work: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def median_ms(seconds: list[float]) -> list[float]:
    """Median, least and greatest."""
    ms = [1e3 * s for s in seconds]
    return [round(f(ms), 2) for f in (statistics.median, min, max)]


def sizes(space: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in space.glob("segments/*/*"):
        found[file.name] = found.get(file.name, 0) + file.stat().st_size
    return found


def bytes_of(space: Path) -> int:
    return sum(sizes(space).values())


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def kept(target: Path, name: str, found: dict[str, Any]) -> None:
    click.echo(f"{name}: {json.dumps(found)}")
    have = json.loads(target.read_text()) if target.exists() else {}
    have |= {"machine": provenance(), name: found}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(have, indent=1) + "\n")


if __name__ == "__main__":
    main()
