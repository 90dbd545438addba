"""How long does exact SIFT take, compared with activeft 0.1.1 and with one product per pick?

    python benchmarks/select_latency.py --json benchmarks/results/select_latency.json
    python benchmarks/select_latency.py --render benchmarks/results/select_latency.json

The lower bound is u times the median of one `X @ q` in the rows' type, where u is the number of
distinct picks. The picks of every fast form are compared with those of `NumpyGreedy` before it is
timed.
"""

import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from corpus_vectors import lsa_vectors
from select_table import insert, render
from threadpoolctl import threadpool_limits

import whet
from whet.select.numpy_backend import NumpyGreedy
from whet.select.sift import has_numba

N, LAM = 50, 0.01
ROOT = Path(__file__).parents[1]


def clustered(k: int, d: int, seed: int, dtype: str = "f4") -> np.ndarray:
    """Unit vectors around forty centers, like near-duplicate texts; the last one is the query."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, d), dtype="f4")
    rows = np.empty((k + 1, d), dtype)
    for low in range(0, k + 1, 2**16):
        part = rows[low : low + 2**16]
        noise = 0.7 * rng.standard_normal(part.shape, dtype="f4")
        wide = centres[rng.integers(40, size=len(part))] + noise
        part[:] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return rows


def seconds(work: Callable[[], Any]) -> float:
    """Mean time of as many calls as fit in 20 ms, or of one call if it takes longer."""
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < 0.02:
        work()
        calls += 1
    return (time.perf_counter() - start) / calls


def alternate(works: dict[str, Callable[[], Any]], runs: int, warm: int = 2) -> dict[str, Any]:
    """Time each in turn: median, least and greatest milliseconds, and ratios to the first."""
    for work in list(works.values()) * warm:
        work()
    turns = [{name: 1e3 * seconds(work) for name, work in works.items()} for _ in range(runs)]
    first = next(iter(works))
    return {
        "runs": runs,
        "ms": {name: spread([turn[name] for turn in turns]) for name in works},
        "ratio": {n: spread([turn[n] / turn[first] for turn in turns]) for n in works},
    }


def spread(values: list[float]) -> list[float]:
    return [float(f"{x:.4g}") for x in (statistics.median(values), min(values), max(values))]


def plain(prompt: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Picks of the NumPy backend."""
    backend = NumpyGreedy(
        rows, np.float64(prompt)[None], np.ones(len(rows), bool), lam=LAM, repeats=True
    )
    backend.advance(n)
    return backend.picks


def vtl(prompt: np.ndarray, rows: np.ndarray, n: int) -> Callable[[], np.ndarray]:
    """activeft's exact acquisition function by itself (its *core*)."""
    import torch
    from activeft.acquisition_functions.vtl import VTL

    target, data = torch.from_numpy(prompt[None]), torch.from_numpy(rows)
    core = VTL(target, noise_std=LAM**0.5, mini_batch_size=len(rows) + 1)
    return lambda: core.select_from_minibatch(n, None, data, None)[0].numpy()


def peer(k: int, runs: int) -> dict[str, Any]:
    """Time one query on one thread: whet, its NumPy backend, activeft's core and loader."""
    import faiss
    from activeft.sift import Retriever

    *rows, prompt = clustered(k, 1024, seed=k)
    rows = np.array(rows)
    index = faiss.IndexFlatIP(1024)
    index.add(rows)
    retriever = Retriever(index, llambda=LAM)
    core = vtl(prompt, rows, N)
    picks = whet.sift(prompt, rows, N, threads=1).indices
    assert (picks == plain(prompt, rows, N)).all()
    works: dict[str, Callable[[], Any]] = {
        "whet": lambda: whet.sift(prompt, rows, N, threads=1),
        "plain NumPy": lambda: plain(prompt, rows, N),
        "activeft core": core,
        "activeft loader": lambda: retriever.search(prompt[None], N=N, K=k),
    }
    result = alternate(works, runs)
    result |= floor(rows, prompt, len(set(picks.tolist())), result["ms"]["whet"][0])
    return result | {"same picks as activeft": int((core() == picks).sum())}


def floor(rows: np.ndarray, prompt: np.ndarray, u: int, ms: float) -> dict[str, Any]:
    product = statistics.median(seconds(lambda: rows @ prompt) for _ in range(51))
    return {"u": u, "floor_ms": 1e3 * u * product, "over_floor": ms / (1e3 * u * product)}


def large(runs: int, n: int) -> dict[str, Any]:
    """Time k = 10,000. activeft's core takes a minute for 50 picks, so it makes only a few."""
    rows, prompt = np.split(clustered(10_000, 1024, seed=3), [10_000])
    prompt = prompt[0]
    picks = whet.sift(prompt, rows, N, threads=1).indices
    assert (picks == plain(prompt, rows, N)).all()
    ms = [1e3 * seconds(lambda: whet.sift(prompt, rows, N, threads=1)) for _ in range(runs + 2)][2:]
    few = alternate(
        {
            "whet": lambda: whet.sift(prompt, rows, n, threads=1),
            "activeft core": vtl(prompt, rows, n),
        },
        runs=1,
        warm=0,
    )
    start, end = (1e3 * seconds(vtl(prompt, rows, m)) for m in (1, n))
    fifty = start + (end - start) / (n - 1) * (N - 1)
    return {
        "runs": runs,
        "ms": {"whet": spread(ms)},
        "at few picks": {"n": n, **few},
        "activeft core, extrapolated from": [1, n],
        "activeft core, extrapolated ms": fifty,
        "extrapolated ratio": fifty / statistics.median(ms),
    } | floor(rows, prompt, len(set(picks.tolist())), statistics.median(ms))


def batch(runs: int) -> dict[str, Any]:
    """Time 64 queries of k = 200."""
    sets = np.stack([clustered(200, 1024, seed=s) for s in range(64)])
    prompts, rows = sets[:, -1], np.ascontiguousarray(sets[:, :-1])
    alone = [plain(p, r, N) for p, r in zip(prompts, rows, strict=True)]
    got = whet.sift_batch(prompts, rows, N)
    assert all((a == g.indices).all() for a, g in zip(alone, got, strict=True))
    result = alternate(
        {
            "one thread": lambda: whet.sift_batch(prompts, rows, N, threads=1),
            "two threads": lambda: whet.sift_batch(prompts, rows, N, threads=2),
        },
        runs,
    )
    result["control"] = alternate(
        {"one thread": lambda: hashes(1), "two threads": lambda: hashes(2)}, runs
    )["ratio"]["two threads"]
    u = sum(len(set(a.tolist())) for a in alone)
    return result | floor(rows[0], prompts[0], u, result["ms"]["one thread"][0])


def hashes(threads: int) -> None:
    """Time two hashes without the interpreter, which shows what a second core is worth now."""
    block = bytes(2 * 10**7)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: hashlib.sha256(block).digest(), range(2)))


def retrieval(runs: int, size: int) -> dict[str, Any]:
    """Measure the share of selection in a retrieval: a flat index's search, and SIFT of 1000."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = clustered(size, 1024, seed=5)
    index = faiss.IndexFlatIP(1024)
    index.add(vectors[:-1])
    prompt = vectors[-1]
    [rows] = index.search_and_reconstruct(prompt[None], 1000)[2]
    result = alternate(
        {
            "search": lambda: index.search_and_reconstruct(prompt[None], 1000),
            "select": lambda: whet.sift(prompt, rows, N, threads=1),
        },
        runs,
    )
    ratio = result["ratio"]["select"]
    return result | {"size": size, "share": [r / (1 + r) for r in ratio]}


def mapped(runs: int, k: int, d: int = 256) -> dict[str, Any]:
    """Time a memory-mapped float16 file in a process of its own, which shows its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, clustered(k, d, seed=7, dtype="f2"))
        command = [sys.executable, __file__, "--mapped", str(path), "--runs", str(runs)]
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def mapped_alone(path: Path, runs: int) -> dict[str, Any]:
    file = np.load(path, mmap_mode="r")
    rows, prompt = file[:-1], np.array(file[-1])
    read = np.asarray(rows).view(np.int64)
    result = alternate(
        {
            "read once": lambda: np.bitwise_or.reduce(read, axis=None),
            "whet": lambda: whet.sift(prompt, rows, N),
            "whet, one thread": lambda: whet.sift(prompt, rows, N, threads=1),
        },
        runs,
        warm=1,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    picks = whet.sift(prompt, rows, N).indices
    few = np.unique(np.r_[picks, np.random.default_rng(0).integers(len(rows), size=20_000)])
    assert (
        few[whet.sift(prompt, rows[few], N).indices] == picks
    ).all()  # the same among fewer rows
    assert (few[plain(prompt, np.array(rows[few]), N)] == picks).all()
    u = len(set(picks.tolist()))
    over = [
        result["ms"][w][0] / u / result["ms"]["read once"][0] for w in ("whet", "whet, one thread")
    ]
    return result | {
        "k": len(rows),
        "d": rows.shape[1],
        "u": u,
        "peak_gib": peak,
        "over_reading": over,
    }


def lazy(queries: int) -> dict[str, Any]:
    """Measure how often gains rise on LSA vectors of the corpus, where the lazy queue is inexact."""
    sys.path.insert(0, str(ROOT))  # the studies are not an installed package
    from studies.theory.convergence import submodularity_violations

    vectors = lsa_vectors()
    differs, excess = 0, []
    rising: dict[str, list[float]] = {"0.001": [], "0.01": [], "0.1": [], "1": []}
    for s in np.random.default_rng(0).choice(len(vectors), queries, replace=False):
        near = np.argsort(-np.abs(vectors @ vectors[s]))[1:201]
        exact = whet.sift(vectors[s], vectors[near], N)
        queue = whet.sift_lazy(vectors[s], vectors[near], N)
        differs += list(exact.indices) != list(queue.indices)
        excess.append(queue.variance[-1] / exact.variance[-1] - 1)
        for lam, shares in rising.items():
            order = whet.sift(vectors[s], vectors[near], N, lam=float(lam)).indices
            shares.append(submodularity_violations(vectors[s], vectors[near], order, float(lam)))
    return {
        "prompts": queries,
        "differs": differs,
        "excess": spread(excess),
        "rising": {lam: spread(shares) for lam, shares in rising.items()},
    }


def corpus(runs: int) -> dict[str, Any]:
    """Time k = 200 and 1000 on the corpus's own LSA vectors."""
    vectors, result = lsa_vectors(), {}
    for k in (200, 1000):
        near = np.argsort(-np.abs(vectors @ vectors[0]))[1 : k + 1]
        prompt, rows = vectors[0], vectors[near]
        assert (whet.sift(prompt, rows, N).indices == plain(prompt, rows, N)).all()
        works = {
            "whet": lambda p=prompt, r=rows: whet.sift(p, r, N, threads=1),
            "activeft core": vtl(prompt, rows, N),
        }
        result[f"k={k}"] = alternate(works, runs)
    return result


def cold() -> dict[str, float]:
    """Time the first selection of a process: compiled, and from the cache on disk."""
    code = (
        "import time, numpy as np, whet; x = np.eye(200, 1024, dtype='f4');"
        "t = time.perf_counter(); whet.sift(x[0], x, 5); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"NUMBA_CACHE_DIR": cache}
        run = lambda: float(subprocess.check_output([sys.executable, "-c", code], env=env))  # noqa: E731
        return {"compiled": run(), "from cache": statistics.median(run() for _ in range(3))}


def machine() -> dict[str, Any]:
    cpu = next(
        (
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in x
        ),
        platform.processor(),
    )
    names = ("numpy", "numba", "torch", "faiss-cpu", "activeft")
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "commit": commit.strip(),
    }


def cases(quick: bool) -> dict[str, Callable[[], Any]]:
    runs = 3 if quick else 7
    table: dict[str, Callable[[], Any]] = {
        "k=200": lambda: peer(200, runs),
        "k=1000": lambda: peer(1000, runs),
        "64 prompts": lambda: batch(runs),
        "retrieval": lambda: retrieval(runs, 20_000 if quick else 200_000),
        "mapped": lambda: mapped(3 if quick else 5, 10**5 if quick else 10**6),
        "cold": cold,
    }
    if lsa_vectors() is not None:
        table |= {"corpus": lambda: corpus(runs), "lazy": lambda: lazy(5 if quick else 40)}
    if not quick:
        table["k=10000"] = lambda: large(runs, n=4)
        table["mapped, ten million"] = lambda: mapped(2, 10**7, d=64)
    return table


@click.command(help=__doc__)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the results here.")
@click.option("--quick", is_flag=True, help="Fewer runs, smaller sizes, no k=10,000.")
@click.option("--only", multiple=True, help="Cases to run, and to replace in the file.")
@click.option(
    "--render", "shown", type=click.Path(path_type=Path), help="Write a file into the README."
)
@click.option("--mapped", "path", type=click.Path(path_type=Path), hidden=True)
@click.option("--runs", type=int, hidden=True)
def main(
    out: Path | None,
    quick: bool,
    only: tuple[str, ...],
    shown: Path | None,
    path: Path | None,
    runs: int,
) -> None:
    if shown is not None:
        insert(render(json.loads(shown.read_text())), ROOT / "benchmarks/README.md")
        return
    if path is not None:
        click.echo(json.dumps(mapped_alone(path, runs)))
        return
    if not has_numba():
        raise click.ClickException('the numba backend needs numba: pip install "whet[fast]"')
    results: dict[str, Any] = (
        json.loads(out.read_text()) if only and out and out.exists() else {"machine": machine()}
    )
    import torch

    torch.set_num_threads(1)
    with threadpool_limits(1):
        for name, case in cases(quick).items():
            if not only or name in only:
                click.echo(name, err=True)
                results[name] = case()
                results["machine"] = machine()
                if out is not None:
                    out.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(render(results))


if __name__ == "__main__":
    main()
