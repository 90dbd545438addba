"""Hostile, broken and disconnecting clients: every response is an OpenAI object, never a 5xx."""

import gzip
import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from support import serving

from whet.data.documents import Document
from whet.serve.config import Limits
from whet.serve.spaces.registry import SpaceRegistry
from whet.space.space import DataSpace
from whet.space.store.writer import delete_documents

ASK = {"model": "tiny", "prompt": "bee honey", "max_tokens": 2, "adapt": {"n": 2}}
SLOW = {"model": "tiny", "prompt": "bee", "max_tokens": 26, "adapt": {"n": 30, "cache": "off"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return serving.space(tmp_path_factory.mktemp("space") / "docs.whet")


@pytest.fixture(scope="module")
def app(llama_folder, place):
    return serving.app(llama_folder, place, keys=None, max_body_kib=64, slots=2, max_queue_size=2)


@pytest.fixture(scope="module")
def server(app):
    with serving.running(app) as client:
        yield client


def status_of(reply):
    """The status of an error in OpenAI's format."""
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
     b'{"model": "tiny", "prompt": ["a", 1]}', b'{"model": "tiny", "prompt": [1, 257]}',
     b'{"model": "tiny", "prompt": "x", "n": 17}', b'{"model": "tiny", "prompt": "x", "suffix": "y"}',
     b'{"model": "tiny", "prompt": "x", "temprature": 1}'],
    ids=lambda body: body[:24].decode("latin-1"),
)  # fmt: skip
@pytest.mark.parametrize("path", ["completions", "select", "data_spaces/docs/documents"])
def test_malformed_body_is_a_bad_request(server, path, body):
    reply = server.send("POST", f"/v1/{path}", body, **{"content-type": "application/json"})
    assert status_of(reply) == 400


FAULTS = {
    b"{": ("body is not valid JSON: Expecting property name", None),
    b"[]": ("body is []: expected an object", None),
    b'{"prompt": "\xff"}': ("the body cannot be read: expected JSON in UTF-8", None),
    b"": ("body is missing", None),
    b'{"prompt": "x"}': ("model is missing", "model"),
    b'{"model": "tiny", "prompt": "x", "temprature": 1}': (
        "unknown name 'temprature': expected temperature",
        "temprature",
    ),
    b'{"model": "tiny", "prompt": "x", "adapt": {"\\ud800": 1}}': (
        "unknown name '?': expected",
        "adapt.?",
    ),
    b'{"model": "tiny", "prompt": "x", "adapt": {"n": -1}}': (
        "adapt.n is -1: expected greater than or equal to 0",
        "adapt.n",
    ),
    b'{"model": "tiny", "prompt": []}': ("prompt: a list of 0 prompts: expected 1 to", "prompt"),
    b'{"model": "tiny", "prompt": 5}': ("prompt is 5: expected a text, a list of", "prompt"),
    b'{"model": "tiny", "prompt": "x", "suffix": "y"}': ("suffix is not supported: the", "suffix"),
    b'{"model": "tiny", "prompt": "x", "stop": 5}': ("stop is 5: expected a valid string", "stop"),
    b'{"model": "tiny", "prompt": "x", "stop": "' + b"y" * 300 + b'"}': (
        f"stop is '{'y' * 39}…: expected at most 256 characters",
        "stop",
    ),
    b'{"model": "tiny", "prompt": [[]]}': ("prompt.0 is []: expected at least 1 item", "prompt.0"),
    b'{"model": "tiny", "prompt": "x", "adapt": {"lam": [1]}}': (
        "adapt.lam is [1]: expected a valid number or a valid string",
        "adapt.lam",
    ),
}


@pytest.mark.parametrize("body", FAULTS, ids=lambda body: body[-24:].decode("latin-1"))
def test_error_names_the_invalid_field_and_what_was_expected(server, body):
    reply = server.send("POST", "/v1/completions", body, **{"content-type": "application/json"})
    message, param = FAULTS[body]
    assert status_of(reply) == 400 and reply.error["message"].startswith(message), reply.error
    assert reply.error["param"] == param and "Input should" not in reply.error["message"]


@pytest.mark.parametrize(
    "method, path, status, advice",
    [
        ("GET", "/v1/no", 404, "see /openapi.json"),
        ("PUT", "/health", 405, "expected GET"),
        ("POST", "/chat/completions", 404, "expected /v1/chat/completions, for which"),
        ("GET", "/v1/v1/models", 404, "expected /v1/models, for which"),
    ],
)
def test_unknown_path_is_an_openai_error(server, method, path, status, advice):
    reply = server.send(method, path)
    assert status_of(reply) == status
    assert reply.error["message"].startswith(f"no route {method} {path}: {advice}")


def test_large_body_is_rejected_with_and_without_content_length(server):
    body = json.dumps(ASK | {"prompt": "x" * 100_000})
    json_type = {"content-type": "application/json"}
    assert status_of(server.send("POST", "/v1/completions", body, **json_type)) == 413
    pieces = (part.encode() for part in (body[:50_000], body[50_000:]))
    assert status_of(server.send("POST", "/v1/completions", pieces, **json_type)) == 413


def test_gzip_body_is_read_within_the_same_limit(server):
    def post(data, encoding="gzip"):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        return server.send("POST", "/v1/search", data, **headers)

    packed = gzip.compress(b'{"prompt": "bee"}')
    assert post(packed).status == 200
    assert status_of(post(packed[:-4])) == 400 and status_of(post(b'{"prompt": "bee"}')) == 400
    assert status_of(post(packed + b"more")) == 400 and status_of(post(packed, "br")) == 415
    assert status_of(post(gzip.compress(b" " * 10**6))) == 413


def test_head_is_answered_as_get_without_a_body(server):
    for path, status in (("/health", 200), ("/v1/models", 200), ("/no", 404), ("/v1/search", 405)):
        reply = server.send("HEAD", path)
        assert (reply.status, reply.body) == (status, b"")
        assert int(reply.headers["content-length"]) > 0


def test_body_that_never_arrives_times_out(llama_folder, place):
    with serving.running(serving.app(llama_folder, place, keys=None, body_timeout_s=0.2)) as client:
        response = {"content-length": "10", "content-type": "application/json"}
        connection = client.connect("POST", "/v1/completions", **response)
        assert connection.getresponse().status == 408
        connection.close()


@pytest.mark.parametrize("prompt", ["\0", "bee\0honey", "", " \n", "‮bee", "é" * 9])
def test_unusual_prompts_are_answered(server, prompt):
    assert server.post("/v1/completions", ASK | {"prompt": prompt}).status == 200


def test_prompt_beyond_the_context_or_the_limit_is_rejected(llama_folder, place):
    app = serving.app(llama_folder, place, keys=None, max_body_kib=4096)
    with serving.running(app) as client:
        for length, status in ((100_000, 400), (300_000, 413)):
            reply = client.post("/v1/completions", ASK | {"prompt": "x" * length})
            assert status_of(reply) == status


@pytest.mark.parametrize("path", ["/..%2f..%2fetc%2fpasswd", "/page.js/../../x", "/v1/adapters/..",
                                  "/v1/data_spaces/..%2f..%2ftmp/documents"])  # fmt: skip
def test_no_path_reaches_the_files_of_the_machine(server, path):
    assert server.get(path).status in (400, 404, 405)
    body = {"documents": [{"id": "a", "text": "b"}]}
    assert server.post(path, body).status in (400, 404, 405)
    assert server.post("/v1/select", {"prompt": "bee", "data_space": path}).status == 404


def test_limits_of_a_key_apply_to_every_request(llama_folder, place):
    limited = Limits(n=2, k=5, deadline_s=1.0, max_tokens=3, prompt_chars=20)
    keys = [serving.key("few", "*", limits=limited)]
    with serving.running(serving.app(llama_folder, place, keys=keys)) as client:
        limited = client.of("few")
        assert limited.post("/v1/completions", ASK).status == 200
        for more in ({"max_tokens": 4}, {"prompt": "x" * 21}, {"adapt": {"n": 3}},
                     {"adapt": {"k": 6}}, {"adapt": {"deadline_s": 1.01}},
                     {"adapt": {"query": "x" * 21}}):  # fmt: skip
            assert status_of(limited.post("/v1/completions", ASK | more)) == 413
        assert limited.post("/v1/search", {"prompt": "bee", "k": 6}).status == 413
        long = {"model": "tiny", "prompt": "x" * 21}
        assert limited.post("/v1/adapters", long).status == 413
        assert limited.post("/v1/score", long | {"prompt": "x", "text": "x" * 21}).status == 413
        plain = limited.post("/v1/completions", {"model": "tiny", "prompt": "bee"})
        assert plain.json()["usage"]["completion_tokens"] <= 3


def test_shutdown_cancels_requests_after_its_timeout(llama_folder, place):
    app = serving.app(llama_folder, place, keys=None, limits=Limits(n=100_000))
    wait_until_loaded = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(wait_until_loaded)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        client = serving.Client(listener.getsockname()[1])
        payload = SLOW | {"adapt": {"n": 3_000, "cache": "off"}}
        connection = client.connect("POST", "/v1/completions", payload)
        while b"\nwhet_requests_in_flight 1.0\n" not in client.get("/metrics").body:
            pass
        start = time.perf_counter()
        server.should_exit = True
        thread.join()
        connection.close()
    assert time.perf_counter() - start < 8  # the steps take longer


def test_empty_data_space_matches_no_prompt(llama_folder, tmp_path):
    place = serving.space(tmp_path / "docs.whet")
    path = "/v1/data_spaces/docs/documents"
    for _ in range(2):  # the second starts with an empty data space
        with serving.running(serving.app(llama_folder, place)) as client:
            chief = client.of("chief")
            chief.post(f"{path}/delete", {"ids": [item.id for item in serving.documents()]})
            response = chief.post("/v1/completions", ASK)
            assert response.status == 200, response.body
            assert response.json()["adapt"]["stop_reason"] == "no_match"
            for call in ("select", "search"):
                reply = chief.post(f"/v1/{call}", {"prompt": "bee", "where": "label == 'x'"})
                assert reply.status == 200 and reply.json()["data"] == []


def test_adapter_survives_additions_but_not_a_rebuild_of_its_space(llama_folder, tmp_path):
    def build(at, word):  # with one embedder, so that only the rows differ
        texts = [Document(str(i), f"{word} {i}", {}) for i in range(9)]
        return DataSpace.build(texts, at, f"hf:{llama_folder}").path

    place = build(tmp_path / "docs.whet", "bee")
    with serving.running(serving.app(llama_folder, place, keys=None)) as client:
        created = client.post("/v1/adapters", {"model": "tiny", "prompt": "bee"}).json()
        new = {"documents": [{"id": "new", "text": "wax"}]}
        assert client.post("/v1/data_spaces/docs/documents", new).status == 200
        assert client.get(f"/v1/adapters/{created['id']}").status == 200
        other = build(tmp_path / "other.whet", "wasp")
        shutil.rmtree(place)
        other.rename(place)
        while client.get(f"/v1/adapters/{created['id']}").status == 200:
            pass  # reloaded twenty times per second
        again = client.post("/v1/adapters", {"model": "tiny", "prompt": "bee"}).json()
        assert (again["version"], created["version"]) == ("1", "1") and again["id"] != created["id"]


def test_full_queue_sets_retry_after(server):
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: server.post("/v1/completions", SLOW), range(12)))
    statuses = {reply.status for reply in replies}
    assert statuses == {200, 429}
    rejected = next(reply for reply in replies if reply.status == 429)
    assert status_of(rejected) and int(rejected.headers["retry-after"]) >= 1


def test_a_key_that_fills_the_queue_leaves_room_for_others(llama_folder, place):
    app = serving.app(llama_folder, place, slots=1, max_queue_size=3)
    with serving.running(app) as client, ThreadPoolExecutor(8) as pool:
        chief = client.of("chief")
        flood = [pool.submit(chief.post, "/v1/completions", SLOW) for _ in range(8)]
        assert pool.submit(wait_until_full, client).result(60)
        start = time.perf_counter()
        assert client.of("legal").post("/v1/completions", ASK).status == 200
        waited = time.perf_counter() - start
        statuses = [future.result().status for future in flood]
        assert set(statuses) == {200, 429}
        assert waited < time.perf_counter() - start  # not behind all that waited before


def wait_until_full(server):
    """Wait until the queue is full."""
    while server.get("/ready").status == 200:
        pass
    return True


def wait_until_idle(server):
    """Wait until no request is in flight."""
    while b"\nwhet_requests_in_flight 0.0\n" not in server.get("/metrics").body:
        pass
    return True


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_slot(server, stream):
    for _ in range(6):  # more than slots and queue
        connection = server.connect("POST", "/v1/completions", SLOW | {"stream": stream})
        if stream:
            connection.getresponse().read(1)
        connection.close()
        assert wait_until_idle(server)
    assert server.post("/v1/completions", ASK).status == 200


def test_documents_can_be_deleted_while_they_are_selected(server):
    path, done = "/v1/data_spaces/docs/documents", threading.Event()
    new = [{"id": f"new:{i}", "text": f"bee honey sting {i}"} for i in range(5)]

    def send_requests():
        replies = []
        while not done.is_set():
            replies.append(server.post("/v1/select", {"prompt": "bee honey sting", "n": 4}))
        return replies

    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(send_requests) for _ in range(2)]
        for _ in range(3):
            assert server.post(path, {"documents": new}).json()["added"] == 5
            assert (
                server.post(f"{path}/delete", {"ids": [item["id"] for item in new]}).status == 200
            )
            after = server.post("/v1/search", {"prompt": "bee honey sting", "k": 60}).json()
            assert not any(item["id"].startswith("new") for item in after["data"])
        done.set()
    assert {reply.status for future in pending for reply in future.result()} == {200}


def test_concurrent_refresh_never_restores_an_older_version(tmp_path, monkeypatch):
    catalogue = SpaceRegistry({"docs": serving.space(tmp_path / "docs.whet")}, lambda name: None)
    read, go, opens = threading.Event(), threading.Event(), DataSpace.open

    def slow(*given):
        opened = opens(*given)
        if threading.current_thread() is first:
            read.set()
            go.wait()
        return opened

    monkeypatch.setattr(DataSpace, "open", slow)  # the one point at which the order can be forced
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


def test_adapter_is_deleted_with_a_document_of_it(server):
    path = "/v1/data_spaces/docs/documents"
    server.post(path, {"documents": [{"id": "gone", "text": "sting smoke sting smoke"}]})
    payload = {"model": "tiny", "prompt": "sting smoke", "adapt": {"n": 3, "selector": "nearest"}}
    name = server.post("/v1/adapters", payload).json()["id"]
    assert server.get(f"/v1/adapters/{name}").status == 200
    server.post(f"{path}/delete", {"ids": ["gone"]})
    assert server.get(f"/v1/adapters/{name}").status == 404


def test_adapter_larger_than_the_cache_is_a_conflict(llama_folder, place):
    with serving.running(serving.app(llama_folder, place, keys=None, cache_mib=0)) as client:
        reply = client.post("/v1/adapters", {"model": "tiny", "prompt": "bee"})
        assert status_of(reply) == 409 and "0 MiB" in reply.error["message"]


def test_two_servers_can_share_a_data_space(llama_folder, place, server):
    path = "/v1/data_spaces/docs/documents"
    with serving.running(serving.app(llama_folder, place, keys=None)) as other:

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
                pass  # the other server reloads twenty times per second
    server.post(f"{path}/delete", {"ids": [f"shared:{i}" for i in range(8)]})


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
def test_generated_requests_are_never_server_errors(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    limited = settings(
        max_examples=4, phases=[Phase.generate], deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    tried = 0
    for operation in schema.get_all_operations():

        @schema_test(operation.ok(), limited)
        def call(case):
            case.call_and_validate(checks=[not_a_server_error])

        call()
        tried += 1
    assert tried >= 16


def schema_test(operation, limited):
    from hypothesis import given

    return lambda test: limited(given(case=operation.as_strategy())(test))
