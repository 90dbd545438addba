"""The server as a process: `whet serve`, SIGTERM, kill -9, --check, and the documents' examples."""

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
from support import serving, tiny_models

from whet.cli import main
from whet.data.documents import Document
from whet.space.space import DataSpace

ADD = "/v1/data_spaces/docs/documents"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("tiny"), "llama")


def config(tmp_path, model):
    place = tmp_path / "docs.whet"
    bees = Document("bees", "Bees dance to tell where food is.", {})
    DataSpace.build([*serving.documents(), bees], place)
    file = tmp_path / "whet.toml"
    file.write_text(
        f'model = "{model}"\nname = "tiny"\nport = 0\n[selection]\nn = 16\nk = 8\n[spaces]\ndocs = "docs.whet"\n'
    )
    return file, place


@contextmanager
def process(file):
    """`whet serve` in a process of its own, once it listens."""
    command = [sys.executable, "-m", "whet", "serve", "--config", str(file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            told = json.loads(server.stderr.readline())
            assert told["event"] == "listening", told
            client = serving.Client(int(told["url"].rpartition(":")[2]))
            assert client.get("/ready").status == 200  # it waits until the server is there
            yield server, client
        finally:
            server.kill()


def test_sigterm_answers_what_was_asked_and_ends(tmp_path, model):
    file, _ = config(tmp_path, model)
    asked = {"model": "tiny", "prompt": "bee", "max_tokens": 26, "stream": True}
    asked |= {"adapt": {"n": 40}}
    with process(file) as (server, client):
        connection = client.connect("POST", "/v1/completions", asked)
        answer = connection.getresponse()
        answer.read(1)
        server.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()
        told = [json.loads(line) for line in server.stderr]
        assert server.wait() in (0, -signal.SIGTERM)
    [line] = [one for one in told if one.get("route") == "/v1/completions"]
    assert line["status"] == 200 and line["request"] == answer.headers["x-request-id"]
    assert "bee" not in json.dumps(told)


@pytest.mark.parametrize("round", range(int(os.environ.get("WHET_KILLS", "1"))))
def test_kill_loses_no_document_that_was_acknowledged(tmp_path, model, round):
    file, place = config(tmp_path, model)
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
        assert "after" in [one["id"] for one in found]
    assert len(DataSpace.open(place)) == len(space) + 1


def test_check_tells_what_it_tried(tmp_path, model):
    file, _ = config(tmp_path, model)
    told = CliRunner().invoke(main, ["serve", "--config", str(file), "--check"])
    assert told.exit_code == 0, told.output
    assert "space docs: 41 documents" in told.stdout and "2 steps of lora" in told.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["serve"], "Error: no data space: expected SPACE or --config FILE"),
        (["serve", "missing.whet", "--check"], "missing.whet"),
        (["serve", "missing.whet", "--host", "0.0.0.0"], "whet keys create"),
        (["serve", "missing.whet", "--port", "99999"], "port"),
    ],
)
def test_wrong_calls_are_told_in_one_line(arguments, message):
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code in (1, 2) and message in told.stderr
    assert isinstance(told.exception, SystemExit) and len(told.stderr.splitlines()) <= 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_and_python_of_the_docs_run(tmp_path, model):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    file, _ = config(tmp_path, model)
    with process(file) as (_, client):

        def here(text):
            text = text.replace("http://127.0.0.1:8000", client.url).replace("whet-nano", "tiny")
            return text.replace("my.whet", str(tmp_path / "docs.whet"))

        shell = [block for block in re.findall(r"```sh\n(.*?)```", page, re.S) if "curl" in block]
        assert len(shell) >= 2
        for block in shell:
            done = subprocess.run(
                ["bash", "-euc", here(block)], capture_output=True, text=True, cwd=tmp_path
            )
            assert done.returncode == 0 and '"error"' not in done.stdout, done.stdout + done.stderr
        python = re.findall(r"```python\n(.*?)```", page, re.S)
        exec("\n".join(map(here, python)), {"__name__": "docs"})
