"""What does serving cost: throughput, overhead, the base model's p99 beside sharpening, memory.

    python benchmarks/serve_load.py SPACE PROMPTS.jsonl.gz --piece throughput --json FILE

SPACE is an lsa space of the corpus's `space`, PROMPTS its `valid`: the first 32 documents, whose
first half (at most 600 characters) is the prompt. 8 steps of LoRA (rank 16) a request, whet-nano,
kept adapters off. The server is a process of its own; `overhead` compares with the engine in this
one. Each piece adds its rows to the JSON file, and takes less than five minutes on two cores.
"""

import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from whet.engine import Query, Sampling
from whet.serve.config import Config
from whet.serve.run import engines_of
from whet.space.documents import read_documents
from whet.spaces import Options, open_space, retrieve

STEPS, TOKENS, PROMPTS = 8, 16, 32


class Server:
    """`whet serve` in a process of its own."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid

    def ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        told = {"content-type": "application/json"}
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, told)
        answer = connection.getresponse()
        got = answer.read()
        connection.close()
        assert answer.status == 200, got
        return got

    def complete(self, prompt: str, *, base: bool = False, **adapt: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        body["model"] = "whet-nano@base" if base else "whet-nano"
        if not base:
            body["adapt"] = {"n": STEPS, "cache": "off"} | adapt
        answer: dict[str, Any] = json.loads(self.ask("/v1/completions", body))
        return answer

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def gauge(self, name: str) -> float:
        lines = self.ask("/metrics").decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))


@contextmanager
def serving(space: Path, **options: Any) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "whet.toml"
        told = {"port": 0, "queue": 256} | options
        lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
        many = 10**9
        limits = f"requests_per_minute = {many}\ntokens_per_minute = {many}\nconcurrent = 999"
        place = json.dumps(str(space.resolve()))
        file.write_text("\n".join([*lines, "[spaces]", f"docs = {place}", "[limits]", limits]))
        command = [sys.executable, "-m", "whet", "serve", "--config", str(file)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            first = json.loads(process.stderr.readline())
            threading.Thread(target=process.stderr.read, daemon=True).start()
            server = Server(int(first["url"].rpartition(":")[2]), process.pid)
            try:
                server.ask("/health")
                yield server
            finally:
                process.terminate()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def all_at(server: Server, prompts: list[str], at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(server.complete, prompts))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def throughput(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    with serving(space, slots=16) as server:
        all_at(server, prompts[:4], 2)
        pairs = [
            (
                seconds(lambda: all_at(server, prompts, 1)),
                seconds(lambda: all_at(server, prompts, 16)),
            )
            for _ in range(runs)
        ]
    return {
        "throughput_16_over_1": spread([alone / together for alone, together in pairs]),
        "requests_per_s_alone": spread([len(prompts) / alone for alone, _ in pairs]),
        "requests_per_s_16": spread([len(prompts) / together for _, together in pairs]),
    }


def overhead(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    opened = open_space(space)
    engine = engines_of(Config(spaces={"docs": space}))["lora"]

    def direct(prompt: str) -> None:
        found = retrieve(opened, prompt, Options(n=STEPS, k=200))
        asked = Query(
            prompt=prompt, documents=found.documents, sampling=Sampling(max_tokens=TOKENS)
        )
        engine.submit(asked).result()

    with serving(space) as server, engine:
        shares = []
        for turn in range(runs + 1):
            some = prompts[:12]
            served = sum(seconds(lambda p=p: server.complete(p)) for p in some)  # type: ignore[misc]
            alone = sum(seconds(lambda p=p: direct(p)) for p in some)  # type: ignore[misc]
            shares += [served / alone - 1] if turn else []
    return {"overhead_share": spread(shares)}


def base(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    with serving(space) as server:

        def p99() -> float:
            times = sorted(
                seconds(lambda i=i: server.complete(prompts[i % PROMPTS], base=True))  # type: ignore[misc]
                for i in range(60 * runs)
            )
            return times[int(0.99 * len(times))]

        p99()
        quiet, done = p99(), threading.Event()

        def sharpen(start: int) -> None:
            turn = start
            while not done.is_set():
                server.complete(prompts[turn % PROMPTS])
                turn += 1

        with ThreadPoolExecutor(4) as pool:
            for start in range(4):
                pool.submit(sharpen, start)
            loud = p99()
            done.set()
    return {"base_p99_s_alone": quiet, "base_p99_s_beside": loud, "base_p99_ratio": loud / quiet}


def first(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    """From the last step to the first piece of text, over one forward pass of the prompt."""
    engine = engines_of(Config(spaces={"docs": space}))["lora"]
    opened, shares = open_space(space), []
    with engine:
        for prompt in prompts[: 4 * runs]:
            found = retrieve(opened, prompt, Options(n=2, k=200))
            times: list[tuple[str, float]] = []

            def note(event: Any, times: list[tuple[str, float]] = times) -> None:
                times.append((type(event).__name__, time.perf_counter()))

            asked = Query(prompt=prompt, documents=found.documents, sampling=Sampling(max_tokens=4))
            engine.submit(asked, note).result()
            last = max(at for name, at in times if name == "Step")
            said = min((at for name, at in times if name == "str"), default=None)
            still = [seconds(lambda p=prompt: engine.model.score(p)) for _ in range(3)]  # type: ignore[misc]
            shares += [] if said is None else [(said - last) / statistics.median(still)]
    return {"first_token_over_forward": spread(shares)}


def soak(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    """`runs` hundred short requests, eight at once; memory after the first tenth and at the end."""
    count = 100 * runs
    with serving(space, cache_mib=16) as server:

        def short(i: int) -> None:
            prompt = prompts[i % PROMPTS][: 40 + i % 60]
            body = {"model": "whet-nano", "prompt": prompt, "max_tokens": 1, "adapt": {"n": 1}}
            server.ask("/v1/completions", body)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(short, range(count // 10)))
            early = server.resident_mib()
            list(pool.map(short, range(count // 10, count)))
        late, open_now = server.resident_mib(), server.gauge("whet_asks_open")
        kept = server.gauge("whet_adapter_bytes") / 2**20
    return {
        "soak_requests": count, "soak_mib_after_a_tenth": early, "soak_mib_at_end": late,
        "soak_growth_share": late / early - 1, "soak_asks_open": open_now, "soak_kept_mib": kept,
    }  # fmt: skip


PIECES = {f.__name__: f for f in (throughput, overhead, base, first, soak)}


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("--piece", type=click.Choice(list(PIECES)), required=True)
@click.option("--runs", default=3, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(space: Path, prompts: Path, piece: str, runs: int, file: Path | None) -> None:
    texts = [document.text for document, _ in zip(read_documents(prompts), range(PROMPTS))]  # noqa: B905
    asked = [text[: min(len(text) // 2, 600)] for text in texts]
    found = PIECES[piece](space, asked, runs)
    print(json.dumps(found, indent=1))
    if file is not None:
        known = json.loads(file.read_text()) if file.exists() else {}
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "commit": commit}
        file.write_text(json.dumps(known | {piece: found | machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
