"""`whet serve` as a process: SIGTERM, kill -9, --check, and the examples of the documentation."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import serving

from whet.cli import main
from whet.data.documents import Document
from whet.space.space import DataSpace

ADD = "/v1/data_spaces/docs/documents"


def config(tmp_path, model):
    place = tmp_path / "docs.whet"
    bees = Document("bees", "Bees dance to tell where food is.", {})
    DataSpace.build([*serving.documents(), bees], place)
    file = tmp_path / "whet.toml"
    file.write_text(
        f'model = "{model}"\nname = "tiny"\nport = 0\n'
        '[selection]\nn = 16\nk = 8\n[spaces]\ndocs = "docs.whet"\n'
    )
    return file, place


@contextmanager
def process(file):
    """Run `whet serve` while the block runs; gives the process and a client."""
    command = [sys.executable, "-m", "whet", "serve", "--config", str(file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            response = json.loads(server.stderr.readline())
            while response["event"] != "listening":  # long texts, the number of threads
                response = json.loads(server.stderr.readline())
            client = serving.Client(int(response["url"].rpartition(":")[2]))
            assert client.get("/ready").status == 200  # it waits until the server is there
            yield server, client
        finally:
            server.kill()


def test_sigterm_finishes_running_requests(tmp_path, llama_folder):
    file, _ = config(tmp_path, llama_folder)
    payload = {"model": "tiny", "prompt": "honey", "max_tokens": 26, "stream": True}
    payload |= {"adapt": {"n": 40}}
    with process(file) as (server, client):
        connection = client.connect("POST", "/v1/completions", payload)
        answer = connection.getresponse()
        answer.read(1)
        server.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()
        response = [json.loads(line) for line in server.stderr]
        assert server.wait() in (0, -signal.SIGTERM)
    [line] = [item for item in response if item.get("route") == "/v1/completions"]
    assert line["status"] == 200 and line["request"] == answer.headers["x-request-id"]
    assert "honey" not in json.dumps(response)


@pytest.mark.parametrize("round", range(int(os.environ.get("WHET_KILLS", "1"))))
def test_kill_loses_no_acknowledged_document(tmp_path, llama_folder, round):
    file, place = config(tmp_path, llama_folder)
    acknowledged, batches = [], 0
    with process(file) as (server, client):
        threading.Timer(0.3 + 0.13 * round, server.kill).start()
        try:
            while True:
                documents = [
                    {"id": f"{batches}:{i}", "text": f"honey {batches} {i}"} for i in range(7)
                ]
                batches += 1
                if client.post(ADD, {"documents": documents}).status == 200:
                    acknowledged.append(batches - 1)
        except OSError:
            pass  # it is gone
    space = DataSpace.open(place)
    counts = {n: 0 for n in range(batches)}
    for name in space.ids:
        if not name.startswith(("public", "legal", "medical", "bees")):
            counts[int(name.partition(":")[0])] += 1
    assert set(counts.values()) <= {0, 7}
    assert all(counts[n] == 7 for n in acknowledged)
    with process(file) as (_, client):
        more = {"documents": [{"id": "after", "text": "honey after"}]}
        assert client.post(ADD, more).json()["added"] == 1
        found = client.post("/v1/search", {"prompt": "honey", "k": 1000}).json()["data"]
        assert "after" in [item["id"] for item in found]
    assert len(DataSpace.open(place)) == len(space) + 1


def test_check_prints_what_is_valid(tmp_path, llama_folder):
    file, _ = config(tmp_path, llama_folder)
    response = CliRunner().invoke(main, ["serve", "--config", str(file), "--check"])
    assert response.exit_code == 0, response.output
    assert "space docs: 41 documents" in response.stdout and "2 steps of lora" in response.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["serve"], "Error: no data space: expected SPACE or --config FILE"),
        (["serve", "missing.whet", "--check"], "missing.whet"),
        (["serve", "missing.whet", "--host", "0.0.0.0"], "whet keys create"),
        (["serve", "missing.whet", "--port", "99999"], "port"),
    ],
)
def test_usage_errors_are_one_line(arguments, message):
    response = CliRunner().invoke(main, arguments)
    assert response.exit_code in (1, 2) and message in response.stderr
    assert isinstance(response.exception, SystemExit) and len(response.stderr.splitlines()) <= 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_examples_of_the_docs_run(tmp_path, llama_folder):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    file, _ = config(tmp_path, llama_folder)
    with process(file) as (_, client):

        def localize(text):
            text = text.replace("http://127.0.0.1:8000", client.url).replace("whet-nano", "tiny")
            text = text.replace('"model": "my"', '"model": "docs"').replace(
                "spaces/my/", "spaces/docs/"
            )
            text = re.sub(r'("max_tokens": )\d+', r"\g<1>4", text)  # fits the tiny context
            return text.replace("my.whet", str(tmp_path / "docs.whet"))

        blocks = re.findall(r"```sh\n(.*?)```", page, re.S)
        # the tiny model has no template for tools, and a context of 32 tokens
        left_out = (
            '"NAME"',
            '"developer"',
            "/v1/responses",
            "origin:",
            "Origin:",
        )  # nor other origins
        shell = [b for b in blocks if "curl" in b and not any(name in b for name in left_out)]
        assert len(shell) >= 2
        for block in shell:
            done = subprocess.run(
                ["bash", "-euc", localize(block)], capture_output=True, text=True, cwd=tmp_path,
                env={**os.environ, "WHET_KEY": "of a server without keys"},
            )  # fmt: skip
            assert done.returncode == 0 and '"error"' not in done.stdout, done.stdout + done.stderr
        python = re.findall(r"```python\n(.*?)```", page, re.S)
        exec("\n".join(map(localize, python)), {"__name__": "docs"})
