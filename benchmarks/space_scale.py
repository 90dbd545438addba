"""Measure data spaces of millions of rows, on one machine and on Ray nodes; for docs/scale.md.

    python benchmarks/space_scale.py build SPACE --rows 1000000        (repeat to add more)
    python benchmarks/space_scale.py query SPACE
    python benchmarks/space_scale.py nodes SPACE

Half of the rows are near LSA vectors of the corpus that WHET_CORPUS names (of a synthetic one
otherwise); the other half are in 2,000 clusters whose sizes follow Zipf's law, and a tenth of these
are negated. All commands add their figures to one JSON file. Nothing is embedded: `whet index`
prints the rate of embedding.
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
    """Add rows in one write; a segment has about a million."""
    new = (
        None
        if space.exists()
        else Manifest(embedder="synthetic", fingerprint="synthetic", dimension=D)
    )
    base_vectors()  # read before the clock starts
    start, size_before = time.perf_counter(), total_size(space)
    with DiskWriter(space, new=new) as writer:
        first = writer.manifest.next
        writer.commit(lambda: synthetic_rows(first, rows), next=first + rows)
    seconds = time.perf_counter() - start
    write_result(target, f"build {rows:,} after {first:,}", {
        "rows": rows, "seconds": seconds, "rows_per_second": rows / seconds,
        "bytes_per_row": (total_size(space) - size_before) / rows,
        "bytes": file_sizes(space), "peak_rss_gb": peak_gb(),
    })  # fmt: skip


@command
@click.option("--prompts", default=20, show_default=True)
def query(space: Path, prompts: int, target: Path) -> None:
    """Time and recall of searches for 1,000 rows with their vectors, by probe fraction."""
    start = time.perf_counter()
    store = DiskReader.open(space)
    opened = time.perf_counter() - start
    rng = np.random.default_rng(1)
    ids = np.sort(rng.choice(store.ids(), prompts, replace=False))
    queries = near(store.vectors(ids).astype(np.float32), rng)
    exact = [timed(lambda q=query: store.search(q[None], K, exact=True)) for query in queries]
    result: dict[str, Any] = {
        "rows": store.count(), "segments": len(store.segments), "open_ms": 1e3 * opened,
        "exact_ms": median_ms([s for s, _ in exact]), "probe_fractions": {},
    }  # fmt: skip
    for probe_fraction in (None, 0.25, 0.125, 0.0625):
        for query in queries:
            store.search(query[None], K, probe_fraction=probe_fraction)
        searches = [
            timed(lambda q=query, f=probe_fraction: store.search(q[None], K, probe_fraction=f))
            for query in queries
        ]
        recalls = [len(np.intersect1d(results.ids, expected.ids)) / K
                   for (_, results), (_, expected) in zip(searches, exact, strict=True)]  # fmt: skip
        result["probe_fractions"]["default" if probe_fraction is None else probe_fraction] = {
            "ms": median_ms([s for s, _ in searches]), "recall": float(np.mean(recalls)),
        }  # fmt: skip
    result["default_probe_fractions"] = [
        s.index_stats.probe_fraction for s in store.segments if s.index_stats
    ]
    write_result(target, f"query {store.count():,}", result | {"peak_rss_gb": peak_gb()})


@command
@click.option("--prompts", default=20, show_default=True)
def nodes(space: Path, prompts: int, target: Path) -> None:
    """Run the same searches on two Ray nodes of this machine, in turn with local ones."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}
    import ray
    from ray.cluster_utils import Cluster

    from whet.space.ray.cluster import open_reader, serve

    cluster, size = Cluster(), {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster.add_node(node_ip_address="127.0.0.2", include_dashboard=False, **size)
    cluster.add_node(node_ip_address="127.0.0.3", **size)
    local, service = DiskReader.open(space), serve(space, cluster.address)
    remote = open_reader(service.address)
    rng = np.random.default_rng(2)
    ids = np.sort(rng.choice(local.ids(), prompts, replace=False))
    queries = near(local.vectors(ids).astype(np.float32), rng)
    shared, local_s, remote_s = [], [], []
    for _ in range(6):
        for query in queries:
            seconds, expected = timed(lambda q=query: local.search(q[None], K))
            local_s.append(seconds)
            seconds, results = timed(lambda q=query: remote.search(q[None], K))
            remote_s.append(seconds)
            shared.append(len(np.intersect1d(expected.ids, results.ids)) / K)
    warmed = 2 * prompts  # the first two rounds warm up
    added = [b - a for a, b in zip(local_s[warmed:], remote_s[warmed:], strict=True)]
    exact = [local.search(q[None], K, exact=True).ids for q in queries[:5]]
    equal = [bool((remote.search(q[None], K, exact=True).ids == ids).all())
             for q, ids in zip(queries[:5], exact, strict=True)]  # fmt: skip
    write_result(target, f"nodes {local.count():,}", {
        "rows": local.count(), "local_ms": median_ms(local_s[warmed:]), "ray_ms":
        median_ms(remote_s[warmed:]), "added_ms": median_ms(added), "shared_ids": float(np.mean(shared)),
        "exact_ids_equal": all(equal), "prompts": prompts, "rounds": 4,
    })  # fmt: skip
    ray.shutdown()
    cluster.shutdown()


def synthetic_rows(first: int, count: int) -> Iterator[Batch]:
    """Synthetic rows by ascending id, the same in every run."""
    for start in range(first, first + count, PIECE):
        n = min(PIECE, first + count - start)
        rng = np.random.default_rng(start)
        rows = np.concatenate([near(base_vectors()[rng.integers(len(base_vectors()), size=n // 2)], rng),
                               clusters(n - n // 2, rng)])  # fmt: skip
        ids = np.arange(start, start + n)
        texts = [f"{i} " + "x" * 200 for i in ids]
        metas = [json.dumps({"i": int(i), "set": "abcdefgh"[i % 8]}) for i in ids]
        table = pa.RecordBatch.from_pydict(
            {"id": [f"d{i}" for i in ids], "text": texts, "meta": metas}, schema=SCHEMA
        )
        yield Batch(ids, table, to_float16(rows))


@cache
def base_vectors() -> Any:
    """LSA vectors of the corpus, or synthetic clusters if there is no corpus."""
    vectors = lsa_vectors(dimensions=D)
    return clusters(6000, np.random.default_rng(0)) if vectors is None else vectors


def near(rows: Any, rng: np.random.Generator) -> Any:
    """Unit rows near the given ones: noise of half their length is added."""
    noise = rng.standard_normal(rows.shape, dtype=np.float32) * (0.5 / np.sqrt(D))
    return (rows + noise) / np.linalg.norm(rows + noise, axis=1, keepdims=True)


def clusters(n: int, rng: np.random.Generator) -> Any:
    """Unit rows of 2,000 clusters whose sizes follow Zipf's law; a tenth of the rows are negated."""
    centers = np.random.default_rng(7).standard_normal((2000, D), dtype=np.float32)
    sizes = 1 / np.arange(1, 2001)
    chosen = centers[rng.choice(2000, n, p=sizes / sizes.sum())]
    rows = chosen + 0.7 * rng.standard_normal((n, D), dtype=np.float32)
    rows *= np.where(rng.random((n, 1)) < 0.1, -1, 1).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def timed(work: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def median_ms(seconds: list[float]) -> list[float]:
    """Median, minimum and maximum."""
    ms = [1e3 * s for s in seconds]
    return [round(f(ms), 2) for f in (statistics.median, min, max)]


def file_sizes(space: Path) -> dict[str, int]:
    """Bytes of the segments' files, by name."""
    sizes: dict[str, int] = {}
    for file in space.glob("segments/*/*"):
        sizes[file.name] = sizes.get(file.name, 0) + file.stat().st_size
    return sizes


def total_size(space: Path) -> int:
    return sum(file_sizes(space).values())


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_result(target: Path, name: str, result: dict[str, Any]) -> None:
    """Print a result, and add it to the JSON file."""
    click.echo(f"{name}: {json.dumps(result)}")
    results = json.loads(target.read_text()) if target.exists() else {}
    results |= {"machine": provenance(), name: result}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
