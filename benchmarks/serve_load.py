"""What does the server cost: throughput, overhead, the base model's p99 during adaptation, memory.

    python benchmarks/serve_load.py SPACE PROMPTS.jsonl.gz --piece throughput --json FILE

SPACE is a data space of the corpus's `space`, embedded by lsa. PROMPTS is its `valid`, of which the
first halves (at most 600 characters) of the first 32 documents are the prompts. Each request takes
8 steps of LoRA (rank 16) on whet-nano, or on `--model`, without cached adapters. The server is
another process;
`overhead` compares it with the engine in this one. Each piece adds its rows to the JSON file and
takes less than five minutes on two cores.
"""

import http.client
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from whet.adapt.config import AdapterOptions
from whet.adapt.decoding.sampling import TextPiece
from whet.data.documents import Document, read_documents
from whet.engine import Request, SamplingParams, TrainStep
from whet.select.config import SelectionConfig
from whet.serve.config import ServeConfig
from whet.serve.main import build_engines
from whet.space.retrieve import retrieve
from whet.space.space import DataSpace

STEPS, TOKENS, LONG, PROMPTS, RANK = 8, 16, 128, 32, 16
NAME = "model"  # for clients
MODEL = {"model": "whet-nano"}  # as `--model` says


class Server:
    """`whet serve` in another process."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid

    def request(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        method: str = "",
        expect_error: bool = False,
    ) -> bytes:
        """Send a request and return the body of the response."""
        with closing(self._send(path, body, method)) as connection:
            response = connection.getresponse()
            content = response.read()
        expected = 400 <= response.status < 500 if expect_error else response.status == 200
        assert expected, content
        return content

    def disconnect(self, path: str, body: dict[str, Any]) -> None:
        """Send a request and disconnect: when its stream begins, or immediately."""
        with closing(self._send(path, body)) as connection:
            if body["stream"]:
                connection.getresponse().readline()

    def complete(
        self, prompt: str, *, base: bool = False, tokens: int = TOKENS, **adapt: Any
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body["model"] = f"{NAME}@base" if base else NAME
        if not base:
            body["adapt"] = {"n": STEPS, "cache": "off"} | adapt
        completion: dict[str, Any] = json.loads(self.request("/v1/completions", body))
        return completion

    def resources(self) -> dict[str, float]:
        """Return the memory, threads and open files of the server."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return {
            "resident_mib": int(status.split("VmRSS:")[1].split()[0]) / 1024,
            "threads": int(status.split("Threads:")[1].split()[0]),
            "files": len(os.listdir(f"/proc/{self.pid}/fd")),
        }

    def total(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = self.request("/metrics").decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def wait_until_idle(self) -> None:
        while self.total("whet_requests_in_flight"):
            pass

    def _send(
        self, path: str, body: dict[str, Any] | None, method: str = ""
    ) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        text = None if body is None else json.dumps(body)
        headers = {"content-type": "application/json"}
        connection.request(method or ("POST" if body else "GET"), path, text, headers)
        return connection


@contextmanager
def serving(space: Path, **options: Any) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "whet.toml"
        settings = {"port": 0, "max_queue_size": 256, "name": NAME} | MODEL | options
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        limited = ("requests_per_minute", "tokens_per_minute", "concurrent", "deadline_s")
        limits = [f"{name} = {10**9}" for name in limited]
        path = json.dumps(str(space.resolve()))
        tables = ["[spaces]", f"docs = {path}", "[adapter]", f"r = {RANK}", "[limits]", *limits]
        file.write_text("\n".join([*lines, *tables]))

        command = [sys.executable, "-m", "whet", "serve", "--config", str(file)]
        environment = os.environ | {"MALLOC_ARENA_MAX": "1"}  # as in deploy/whet.service
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            try:
                lines_of_log = map(json.loads, process.stderr)  # warnings may come first
                url = next(line["url"] for line in lines_of_log if "url" in line)
                threading.Thread(target=process.stderr.read, daemon=True).start()
                server = Server(int(url.rpartition(":")[2]), process.pid)
                server.request("/health")
                yield server
            finally:
                process.terminate()


def _config(space: Path) -> ServeConfig:
    return ServeConfig(spaces={"docs": space}, adapter=AdapterOptions(r=RANK), **MODEL)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def complete_all(server: Server, prompts: list[str], at_once: int, **options: Any) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(partial(server.complete, **options), prompts))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def throughput(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    return at_once(space, prompts, runs)


def answers(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    """Measure the same with long completions, by the adapted and by the base model."""
    return {
        name: at_once(space, prompts, runs, base=base, tokens=LONG)
        for name, base in (("adapted", False), ("base", True))
    }


def at_once(space: Path, prompts: list[str], runs: int, **options: Any) -> dict[str, Any]:
    """Measure requests per second, one at a time and sixteen at once."""
    with serving(space, slots=16) as server:
        complete_all(server, prompts[:4], 2, **options)
        pairs = [
            (
                seconds(lambda: complete_all(server, prompts, 1, **options)),
                seconds(lambda: complete_all(server, prompts, 16, **options)),
            )
            for _ in range(runs)
        ]
    return {
        "throughput_16_over_1": spread([alone / together for alone, together in pairs]),
        "requests_per_s_alone": spread([len(prompts) / alone for alone, _ in pairs]),
        "requests_per_s_16": spread([len(prompts) / together for _, together in pairs]),
    }


def overhead(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    """Compare HTTP requests with the engine in this process, alternating which is first."""
    data_space = DataSpace.open(space)
    config = _config(space)
    engine, selection = build_engines(config)["lora"], replace(config.selection, n=STEPS)
    greedy = SamplingParams(max_tokens=TOKENS)

    def direct(prompt: str) -> None:
        engine.submit(
            Request(prompt, space=data_space, selection=selection, sampling=greedy)
        ).result()

    with serving(space) as server, engine:
        functions = [server.complete, direct]
        shares = []
        for _ in range(runs + 1):
            spent = dict.fromkeys(functions, 0.0)
            for prompt in prompts[:12]:
                for function in functions:
                    spent[function] += seconds(partial(function, prompt))
                functions.reverse()
            shares.append(spent[server.complete] / spent[direct] - 1)
    return {"overhead_share": spread(shares[1:])}


def base(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    """Time the base model, one request at a time, alone and next to four adapting requests."""
    alone: list[float] = []
    contended: list[float] = []
    with serving(space) as server, ThreadPoolExecutor(4) as pool:

        def measure() -> list[float]:
            repeated = (prompts[i % len(prompts)] for i in range(128))
            return [seconds(partial(server.complete, prompt, base=True)) for prompt in repeated]

        def adapt(done: threading.Event, start: int) -> None:
            i = start
            while not done.is_set():
                server.complete(prompts[i % len(prompts)])
                i += 1

        measure()  # warm up
        for _ in range(runs):
            alone += measure()
            done = threading.Event()
            others = [pool.submit(adapt, done, 8 * i) for i in range(4)]
            contended += measure()
            done.set()
            for other in others:
                other.result()
    return {
        "base_p99_ratio": p99(contended) / p99(alone),
        "base_p99_s_alone": p99(alone),
        "base_p99_s_contended": p99(contended),
        "base_median_s_alone": statistics.median(alone),
        "base_median_s_contended": statistics.median(contended),
        "base_requests": len(contended),
    }


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def first(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    """Time from the last step to the first piece of text, over a forward pass of the prompt."""
    engine = build_engines(_config(space))["lora"]
    data_space, ratios = DataSpace.open(space), []
    with engine:
        for prompt in prompts[: 4 * runs]:
            retrieval = retrieve(data_space, prompt, SelectionConfig(n=2, k=200))
            steps: list[float] = []
            pieces: list[float] = []

            def note(event: Any, steps: list[float] = steps, pieces: list[float] = pieces) -> None:
                if isinstance(event, TrainStep):
                    steps.append(time.perf_counter())
                elif isinstance(event, TextPiece):
                    pieces.append(time.perf_counter())

            request = Request(
                prompt=prompt, documents=retrieval.documents, sampling=SamplingParams(max_tokens=4)
            )
            engine.submit(request, note).result()
            forward = [seconds(lambda p=prompt: engine.model.score(p)) for _ in range(3)]  # type: ignore[misc]
            if pieces:  # a model may end at once
                ratios.append((pieces[0] - steps[-1]) / statistics.median(forward))
    return {"first_token_over_forward": spread(ratios)}


def soak(space: Path, prompts: list[str], runs: int) -> dict[str, Any]:
    """Send `runs` thousand small requests of all kinds, four at once, to a new data space.

    Memory, threads and open files are recorded after each tenth; the first tenth fills caches.
    """
    texts = [text[at : at + 80] for text in prompts for at in range(0, len(text) - 79, 80)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.whet"
        DataSpace.build((Document(str(i), text, {}) for i, text in enumerate(texts)), path)
        with (
            serving(path, cache_mib=8, body_timeout_s=3600.0) as server,
            ThreadPoolExecutor(4) as pool,
        ):
            tenths: list[dict[str, float]] = []
            for tenth in range(10):
                numbers = range(100 * runs * tenth, 100 * runs * (tenth + 1))
                list(pool.map(lambda i: send_one(server, texts, i), numbers))
                tenths.append(
                    server.resources() | {"requests": server.total("whet_requests_total")}
                )
                print(json.dumps(tenths[-1]), file=sys.stderr, flush=True)
            server.wait_until_idle()
            for adapter in json.loads(server.request("/v1/adapters"))["data"]:
                server.request(f"/v1/adapters/{adapter['id']}", method="DELETE")
            left = {
                name: server.total(f"whet_{name}")
                for name in ("requests_in_flight", "cached_adapters", "cached_adapter_bytes")
            }
            complete_all(server, prompts, 16)  # every slot still works
    first, later = tenths[0], [tenth["resident_mib"] for tenth in tenths[1:]]
    return {
        "requests": tenths[-1]["requests"],
        "growth_share": later[-1] / first["resident_mib"] - 1,
        "widest_share": max(abs(mib / first["resident_mib"] - 1) for mib in later),
        "left": left,
        "tenths": tenths,
    }


def send_one(server: Server, texts: list[str], i: int) -> None:
    """Send the request number `i`, or two that belong together; `i` determines its kind."""
    prompt = texts[7919 * i % len(texts)][: 20 + i % 60]
    body = {"model": NAME, "prompt": prompt, "max_tokens": 2, "adapt": {"n": 1 + i % 3}}
    match i % 10:
        case 0 | 1:
            server.request("/v1/completions", body)
        case 2:
            server.request("/v1/completions", body | {"model": f"{NAME}@base"})
        case 3:  # the client disconnects, before the response or during it
            long = body | {"max_tokens": 64, "stream": bool(i % 20 == 3), "adapt": {"n": 3}}
            server.disconnect("/v1/completions", long)
        case 4:
            invalid = {"model": "another"}, {"prompt": prompt * 999}, {"n": 17}, {"stop": 1}
            server.request("/v1/completions", body | invalid[i // 10 % 4], expect_error=True)
        case 5:
            new = {"model": NAME, "prompt": prompt, "adapt": {"n": 1, "cache": "refresh"}}
            adapter = json.loads(server.request("/v1/adapters", new))
            server.request(f"/v1/adapters/{adapter['id']}", method="DELETE")
        case 6:
            chat = {"messages": [{"role": "user", "content": prompt}], "model": NAME}
            deadline = {"adapt": {"n": 4, "deadline_s": i % 50 / 1000}}
            server.request("/v1/chat/completions", chat | deadline | {"max_tokens": 2})
        case 7:
            server.request("/v1/score", {"model": NAME, "prompt": prompt, "text": texts[0]})
        case 8 if i % 1000 == 8:
            new = {"id": f"new {i}", "text": f"{prompt} {i}"}
            server.request("/v1/data_spaces/docs/documents", {"documents": [new]})
            server.request("/v1/data_spaces/docs/documents/delete", {"ids": [new["id"]]})
        case 8:
            server.request("/v1/search", {"prompt": prompt, "k": 5})
        case 9:
            server.request("/v1/select", {"prompt": prompt, "n": 5})


PIECES = {f.__name__: f for f in (throughput, answers, overhead, base, first, soak)}


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("--piece", type=click.Choice(list(PIECES)), required=True)
@click.option("--model", default=MODEL["model"], show_default=True)
@click.option("--requests", default=PROMPTS, show_default=True, help="Prompts to use.")
@click.option("--runs", default=3, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(
    space: Path, prompts: Path, piece: str, model: str, requests: int, runs: int, file: Path | None
) -> None:
    MODEL["model"] = model
    texts = [document.text for document, _ in zip(read_documents(prompts), range(requests))]  # noqa: B905
    halves = [text[: min(len(text) // 2, 600)] for text in texts]
    numbers = PIECES[piece](space, halves, runs)
    print(json.dumps(numbers, indent=1))
    if file is not None:
        results = json.loads(file.read_text()) if file.exists() else {}
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "commit": commit}
        file.write_text(
            json.dumps(results | {_row(piece, model): numbers | machine}, indent=1) + "\n"
        )


def _row(piece: str, model: str) -> str:
    return piece if model == "whet-nano" else f"{piece}, {Path(model).name}"


if __name__ == "__main__":
    main()
