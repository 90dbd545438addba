"""A hostile, clumsy or vanished client: always an answer of OpenAI's shape, never a 5xx."""

import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from support import serving, tiny_models

from whet.data.documents import Document
from whet.serve.config import Limits
from whet.serve.space_registry import SpaceRegistry
from whet.space.space import DataSpace
from whet.space.store.writer import delete_documents

ASK = {"model": "tiny", "prompt": "bee honey", "max_tokens": 2, "adapt": {"n": 2}}
SLOW = {"model": "tiny", "prompt": "bee", "max_tokens": 26, "adapt": {"n": 30, "cache": "off"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return serving.space(tmp_path_factory.mktemp("space") / "docs.whet")


@pytest.fixture(scope="module")
def app(model, place):
    return serving.app(model, place, keys=None, max_body_kib=64, slots=2, max_queue_size=2)


@pytest.fixture(scope="module")
def server(app):
    with serving.running(app) as client:
        yield client


def whole(reply):
    """A refusal as OpenAI's clients expect it."""
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert "Traceback" not in reply.error["message"] and reply.headers["x-request-id"]
    return reply.status


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "\xc3("}', b"[" * 5000,
     b'{"a": ' * 3000, b'{"model": NaN}', b'{"model": "tiny", "prompt": "\\ud800"}',
     b'{"model": "tiny", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
     b'{"model": "tiny", "prompt": "x", "temperature": 1e999}',
     b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
     b'{"model": "tiny", "prompt": ["a", "b"]}', b'{"model": "tiny", "prompt": [1, 2]}',
     b'{"model": "tiny", "prompt": "x", "n": 2}', b'{"model": "tiny", "prompt": "x", "echo": true}',
     b'{"model": "tiny", "prompt": "x", "surprise": 1}'],
    ids=lambda body: body[:24].decode("latin-1"),
)  # fmt: skip
@pytest.mark.parametrize("path", ["completions", "select", "data_spaces/docs/documents"])
def test_malformed_body_is_a_bad_request(server, path, body):
    reply = server.send("POST", f"/v1/{path}", body, **{"content-type": "application/json"})
    assert whole(reply) == 400


FAULTS = {
    b"{": ("body is not valid JSON: Expecting property name", None),
    b"[]": ("body is []: expected an object", None),
    b"": ("body is missing", None),
    b'{"prompt": "x"}': ("model is missing", "model"),
    b'{"model": "tiny", "prompt": "x", "surprise": 1}': (
        "unknown name 'surprise': expected model, stream,",
        "surprise",
    ),
    b'{"model": "tiny", "prompt": "x", "temprature": 1}': (
        "unknown name 'temprature': expected temperature",
        "temprature",
    ),
    b'{"model": "tiny", "prompt": "x", "\\ud800": 1}': ("unknown name '?': expected", "?"),
    b'{"model": "tiny", "prompt": "x", "adapt": {"n": -1}}': (
        "adapt.n is -1: expected greater than or equal to 0",
        "adapt.n",
    ),
    b'{"model": "tiny", "prompt": ["a", "b"]}': (
        "prompt: prompt is a list of 2: expected one",
        "prompt",
    ),
    b'{"model": "tiny", "prompt": "x", "stop": 5}': ("stop is 5: expected a valid string", "stop"),
}


@pytest.mark.parametrize("body", FAULTS, ids=lambda body: body[-24:].decode("latin-1"))
def test_a_fault_of_a_body_is_told_in_plain_words(server, body):
    reply = server.send("POST", "/v1/completions", body, **{"content-type": "application/json"})
    message, param = FAULTS[body]
    assert whole(reply) == 400 and reply.error["message"].startswith(message), reply.error
    assert reply.error["param"] == param and "Input should" not in reply.error["message"]


@pytest.mark.parametrize("method, path, status", [("GET", "/v1/no", 404), ("PUT", "/health", 405)])
def test_a_path_that_is_not_there_is_told(server, method, path, status):
    reply = server.send(method, path)
    assert whole(reply) == status
    assert reply.error["message"] == f"no route {method} {path}: see /openapi.json"


def test_huge_body_is_refused_whether_announced_or_not(server):
    body = json.dumps(ASK | {"prompt": "x" * 100_000})
    assert whole(server.send("POST", "/v1/completions", body)) == 413
    pieces = (part.encode() for part in (body[:50_000], body[50_000:]))
    assert whole(server.send("POST", "/v1/completions", pieces)) == 413


def test_client_that_never_sends_its_body_is_let_go(model, place):
    with serving.running(serving.app(model, place, keys=None, body_timeout_s=0.2)) as client:
        told = {"content-length": "10", "content-type": "application/json"}
        connection = client.connect("POST", "/v1/completions", **told)
        assert connection.getresponse().status == 408
        connection.close()


@pytest.mark.parametrize("prompt", ["\0", "bee\0honey", "", " \n", "‮bee", "é" * 9])
def test_odd_prompts_are_answered(server, prompt):
    assert server.post("/v1/completions", ASK | {"prompt": prompt}).status == 200


def test_prompt_of_a_hundred_thousand_tokens_is_refused(model, place):
    app = serving.app(model, place, keys=None, max_body_kib=4096)
    with serving.running(app) as client:
        for length, status in ((100_000, 400), (300_000, 413)):
            reply = client.post("/v1/completions", ASK | {"prompt": "x" * length})
            assert whole(reply) == status


@pytest.mark.parametrize("path", ["/..%2f..%2fetc%2fpasswd", "/page.js/../../x", "/v1/adapters/..",
                                  "/v1/data_spaces/..%2f..%2ftmp/documents"])  # fmt: skip
def test_no_path_reaches_the_files(server, path):
    assert server.get(path).status in (400, 404, 405)
    body = {"documents": [{"id": "a", "text": "b"}]}
    assert server.post(path, body).status in (400, 404, 405)
    assert server.post("/v1/select", {"prompt": "bee", "data_space": path}).status == 404


def test_limits_of_a_key_bound_every_request(model, place):
    few = Limits(n=2, k=5, deadline_s=1.0, max_tokens=3, prompt_chars=20)
    keys = [serving.key("few", "*", limits=few)]
    with serving.running(serving.app(model, place, keys=keys)) as client:
        few = client.of("few")
        assert few.post("/v1/completions", ASK).status == 200
        for more in ({"max_tokens": 4}, {"prompt": "x" * 21}, {"adapt": {"n": 3}},
                     {"adapt": {"k": 6}}, {"adapt": {"deadline_s": 1.01}},
                     {"adapt": {"query": "x" * 21}}):  # fmt: skip
            assert whole(few.post("/v1/completions", ASK | more)) == 413
        assert few.post("/v1/search", {"prompt": "bee", "k": 6}).status == 413
        long = {"model": "tiny", "prompt": "x" * 21}
        assert few.post("/v1/adapters", long).status == 413
        assert few.post("/v1/score", long | {"prompt": "x", "text": "x" * 21}).status == 413
        plain = few.post("/v1/completions", {"model": "tiny", "prompt": "bee"})
        assert plain.json()["usage"]["completion_tokens"] <= 3


def test_server_that_ends_lets_go_of_what_it_cannot_finish_in_time(model, place):
    app = serving.app(model, place, keys=None, limits=Limits(n=100_000))
    settled = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(settled)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        client = serving.Client(listener.getsockname()[1])
        asked = SLOW | {"adapt": {"n": 20_000, "cache": "off"}}
        connection = client.connect("POST", "/v1/completions", asked)
        while b"\nwhet_requests_in_flight 1.0\n" not in client.get("/metrics").body:
            pass
        start = time.perf_counter()
        server.should_exit = True
        thread.join()
        connection.close()
    assert time.perf_counter() - start < 8  # the steps take longer


def test_space_without_documents_is_answered_as_no_match(model, tmp_path):
    place = serving.space(tmp_path / "docs.whet")
    path = "/v1/data_spaces/docs/documents"
    for _ in range(2):  # the second starts on nothing
        with serving.running(serving.app(model, place)) as client:
            chief = client.of("chief")
            chief.post(f"{path}/delete", {"ids": [one.id for one in serving.documents()]})
            told = chief.post("/v1/completions", ASK)
            assert told.status == 200, told.body
            assert told.json()["adapt"]["stop_reason"] == "no_match"
            for call in ("select", "search"):
                reply = chief.post(f"/v1/{call}", {"prompt": "bee", "where": "label == 'x'"})
                assert reply.status == 200 and reply.json()["data"] == []


class SameVectors:
    """An embedder that is the same for every data space."""

    name, dimension, fingerprint = "hf:same", 4, "same"

    def encode(self, texts):
        vectors = np.stack([np.bincount([*text.encode()], minlength=256) for text in texts])
        vectors = vectors.reshape(len(texts), 4, 64).sum(-1).astype(np.float32) + 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_adapter_outlives_additions_but_not_another_building_of_its_space(
    model, tmp_path, monkeypatch
):
    def build(at, word):
        texts = [Document(str(i), f"{word} {i}", {}) for i in range(9)]
        return DataSpace.build(texts, at, SameVectors()).path

    monkeypatch.setattr("whet.space.opening.get_embedder", lambda name: SameVectors())
    place = build(tmp_path / "docs.whet", "bee")
    with serving.running(serving.app(model, place, keys=None)) as client:
        made = client.post("/v1/adapters", {"model": "tiny", "prompt": "bee"}).json()
        new = {"documents": [{"id": "new", "text": "wax"}]}
        assert client.post("/v1/data_spaces/docs/documents", new).status == 200
        assert client.get(f"/v1/adapters/{made['id']}").status == 200
        other = build(tmp_path / "other.whet", "wasp")
        shutil.rmtree(place)
        other.rename(place)
        while client.get(f"/v1/adapters/{made['id']}").status == 200:
            pass  # it looks twenty times a second
        again = client.post("/v1/adapters", {"model": "tiny", "prompt": "bee"}).json()
        assert (again["version"], made["version"]) == ("1", "1") and again["id"] != made["id"]


def test_full_queue_says_when_to_come_again(server):
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: server.post("/v1/completions", SLOW), range(12)))
    statuses = {reply.status for reply in replies}
    assert statuses == {200, 429}
    late = next(reply for reply in replies if reply.status == 429)
    assert whole(late) and int(late.headers["retry-after"]) >= 1


def gone(server):
    """Once nothing is in work any longer."""
    while b"\nwhet_requests_in_flight 0.0\n" not in server.get("/metrics").body:
        pass
    return True


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_its_slot(server, stream):
    for _ in range(6):  # more than there is room for
        connection = server.connect("POST", "/v1/completions", SLOW | {"stream": stream})
        if stream:
            connection.getresponse().read(1)
        connection.close()
        assert gone(server)
    assert server.post("/v1/completions", ASK).status == 200


def test_documents_may_be_deleted_while_they_are_chosen(server):
    path, done = "/v1/data_spaces/docs/documents", threading.Event()
    new = [{"id": f"new:{i}", "text": f"bee honey sting {i}"} for i in range(5)]

    def asks():
        replies = []
        while not done.is_set():
            replies.append(server.post("/v1/select", {"prompt": "bee honey sting", "n": 4}))
        return replies

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(asks) for _ in range(2)]
        for _ in range(3):
            assert server.post(path, {"documents": new}).json()["added"] == 5
            assert server.post(f"{path}/delete", {"ids": [one["id"] for one in new]}).status == 200
            after = server.post("/v1/search", {"prompt": "bee honey sting", "k": 60}).json()
            assert not any(one["id"].startswith("new") for one in after["data"])
        done.set()
    assert {reply.status for future in asking for reply in future.result()} == {200}


def test_of_two_looks_at_once_the_slower_puts_no_older_version_back(tmp_path, monkeypatch):
    catalogue = SpaceRegistry({"docs": serving.space(tmp_path / "docs.whet")}, lambda name: None)
    read, go, opens = threading.Event(), threading.Event(), DataSpace.open

    def slow(*given):
        opened = opens(*given)
        if threading.current_thread() is first:
            read.set()
            go.wait()
        return opened

    monkeypatch.setattr(DataSpace, "open", slow)
    first, second = (threading.Thread(target=catalogue.refresh) for _ in range(2))
    delete_documents(tmp_path / "docs.whet", ["legal:1"])
    first.start()
    read.wait()
    delete_documents(tmp_path / "docs.whet", ["legal:4"])
    second.start()
    second.join(0.5)
    go.set()
    first.join()
    second.join()
    assert catalogue.version("docs") == "3"


def test_adapter_goes_when_a_document_of_it_is_deleted(server):
    path = "/v1/data_spaces/docs/documents"
    server.post(path, {"documents": [{"id": "gone", "text": "sting smoke sting smoke"}]})
    asked = {"model": "tiny", "prompt": "sting smoke", "adapt": {"n": 3, "selector": "nearest"}}
    name = server.post("/v1/adapters", asked).json()["id"]
    assert server.get(f"/v1/adapters/{name}").status == 200
    server.post(f"{path}/delete", {"ids": ["gone"]})
    assert server.get(f"/v1/adapters/{name}").status == 404


def test_adapter_that_there_is_no_room_for_is_told(model, place):
    with serving.running(serving.app(model, place, keys=None, cache_mib=0)) as client:
        reply = client.post("/v1/adapters", {"model": "tiny", "prompt": "bee"})
        assert whole(reply) == 409 and "0 MiB" in reply.error["message"]


def test_two_servers_share_a_space(model, place, server):
    path = "/v1/data_spaces/docs/documents"
    with serving.running(serving.app(model, place, keys=None)) as other:

        def add(i):
            client = (server, other)[i % 2]
            document = {"id": f"shared:{i}", "text": f"nectar {i}"}
            while (reply := client.post(path, {"documents": [document]})).status == 409:
                pass
            return reply.status

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(add, range(8))) == {200}
        for client in (server, other):
            while len(client.post("/v1/search", {"prompt": "nectar", "k": 60}).json()["data"]) < 48:
                pass  # the other looks for a new version twenty times a second
    server.post(f"{path}/delete", {"ids": [f"shared:{i}" for i in range(8)]})


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
def test_description_is_whole_and_no_request_of_its_kind_is_a_server_error(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    few = settings(
        max_examples=6, phases=[Phase.generate], deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    tried = 0
    for operation in schema.get_all_operations():

        @schema_test(operation.ok(), few)
        def call(case):
            case.call_and_validate(checks=[not_a_server_error])

        call()
        tried += 1
    assert tried >= 16


def schema_test(operation, few):
    from hypothesis import given

    return lambda test: few(given(case=operation.as_strategy())(test))
