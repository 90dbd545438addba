"""A hostile, clumsy or vanished client: always an answer of OpenAI's shape, never a 5xx."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import schemathesis
import serving
import tiny
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from whet.serve.keys import Limits

ASK = {"model": "tiny", "prompt": "bee honey", "max_tokens": 2, "adapt": {"n": 2}}
SLOW = {"model": "tiny", "prompt": "bee", "max_tokens": 26, "adapt": {"n": 30, "cache": "off"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return serving.space(tmp_path_factory.mktemp("space") / "docs.whet")


@pytest.fixture(scope="module")
def app(model, place):
    return serving.app(model, place, keys=None, body_kib=64, slots=2, queue=2)


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


def test_huge_body_is_refused_whether_announced_or_not(server):
    body = json.dumps(ASK | {"prompt": "x" * 100_000})
    assert whole(server.send("POST", "/v1/completions", body)) == 413
    pieces = (part.encode() for part in (body[:50_000], body[50_000:]))
    assert whole(server.send("POST", "/v1/completions", pieces)) == 413


def test_client_that_never_sends_its_body_is_let_go(model, place):
    with serving.running(serving.app(model, place, keys=None, body_s=0.2)) as client:
        told = {"content-length": "10", "content-type": "application/json"}
        connection = client.connect("POST", "/v1/completions", **told)
        assert connection.getresponse().status == 408
        connection.close()


@pytest.mark.parametrize("prompt", ["\0", "bee\0honey", "", " \n", "‮bee", "é" * 9])
def test_odd_prompts_are_answered(server, prompt):
    assert server.post("/v1/completions", ASK | {"prompt": prompt}).status == 200


def test_prompt_of_a_hundred_thousand_tokens_is_refused(model, place):
    app = serving.app(model, place, keys=None, body_kib=4096)
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
    few = Limits(n=2, k=5, deadline_ms=1000, max_tokens=3, prompt_chars=20)
    keys = [serving.key("few", "*", limits=few)]
    with serving.running(serving.app(model, place, keys=keys)) as client:
        few = client.of("few")
        assert few.post("/v1/completions", ASK).status == 200
        for more in ({"max_tokens": 4}, {"prompt": "x" * 21}, {"adapt": {"n": 3}},
                     {"adapt": {"k": 6}}, {"adapt": {"deadline_ms": 1001}},
                     {"adapt": {"query": "x" * 21}}):  # fmt: skip
            assert whole(few.post("/v1/completions", ASK | more)) == 413
        assert few.post("/v1/search", {"prompt": "bee", "k": 6}).status == 413


def test_full_queue_says_when_to_come_again(server):
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: server.post("/v1/completions", SLOW), range(12)))
    statuses = {reply.status for reply in replies}
    assert statuses == {200, 429}
    late = next(reply for reply in replies if reply.status == 429)
    assert whole(late) and int(late.headers["retry-after"]) >= 1


def gone(server):
    """Once nothing is in work any longer."""
    while b"\nwhet_asks_open 0.0\n" not in server.get("/metrics").body:
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


def test_adapter_goes_when_a_document_of_it_is_deleted(server):
    path = "/v1/data_spaces/docs/documents"
    server.post(path, {"documents": [{"id": "gone", "text": "sting smoke sting smoke"}]})
    asked = {"model": "tiny", "prompt": "sting smoke", "adapt": {"n": 3, "selector": "nearest"}}
    name = server.post("/v1/adapters", asked).json()["id"]
    assert server.get(f"/v1/adapters/{name}").status == 200
    server.post(f"{path}/delete", {"ids": ["gone"]})
    assert server.get(f"/v1/adapters/{name}").status == 404


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
