"""No page of another site can use the server through its visitors' browsers."""

import json
import socket

import pytest
from support import serving

ADD = "/v1/data_spaces/docs/documents"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return serving.space(tmp_path_factory.mktemp("space") / "docs.whet")


@pytest.fixture(scope="module")
def keyless(llama_folder, place):
    with serving.running(serving.app(llama_folder, place, keys=None)) as client:
        yield client


def raw(client, head, body=b""):
    """The response to a request of exactly these header lines."""
    lines = [*head, "Connection: close", *([f"Content-Length: {len(body)}"] if body else [])]
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split()[1]), answer


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "",
     "localhost@evil.example", "0.0.0.0", "10.0.0.1", "[::2]", "localhost:port", "localhost:1:2",
     "evil.example#localhost", "evil.example/localhost", "ev\xefl"],
)  # fmt: skip
@pytest.mark.parametrize("call", ["GET /", "GET /v1/models", "GET /page.js", "POST /v1/search"])
def test_names_that_an_attacker_controls_are_rejected(keyless, host, call):
    body = json.dumps({"prompt": "bee"}).encode() if call.startswith("POST") else b""
    head = [f"{call} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    status, answer = raw(keyless, head, body)
    assert status in (400, 403) and b"honey" not in answer and b"<html" not in answer


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "localhost.",
                                  "127.0.0.7", "[::1]:{port}", "localhost:9"])  # fmt: skip
def test_loopback_names_are_allowed(keyless, host):
    head = ["GET /v1/models HTTP/1.1", "Host: " + host.format(port=keyless.port)]
    assert raw(keyless, head)[0] == 200


@pytest.mark.parametrize(
    "origin, status",
    [("http://{host}", 200), ("HTTP://{host}", 200), ("http://evil.example", 403), ("null", 403),
     ("http://localhost:1", 403), ("http://{host}.evil.example", 403), ("", 403), ("*", 403),
     ("http://{host}@evil.example", 403), ("file://{host}", 403), ("http://{host}:1", 403)],
)  # fmt: skip
def test_only_the_own_page_may_send_requests(keyless, origin, status):
    host = f"127.0.0.1:{keyless.port}"
    reply = keyless.post("/v1/search", {"prompt": "bee"}, origin=origin.format(host=host))
    assert reply.status == status
    assert status == 200 or reply.error["code"] == "origin_not_allowed"


@pytest.mark.parametrize("key", [None, "chief"])
@pytest.mark.parametrize(
    "types",
    [[], [""], ["text/plain"], ["application/x-www-form-urlencoded"], ["application/json-patch"],
     ["multipart/form-data; boundary=x"], ["text/plain; x=application/json"],
     ["text/plain", "application/json"], ["application/json", "text/plain"],
     ["application/json, text/plain"]],
)  # fmt: skip
def test_bodies_that_a_form_can_send_are_rejected(keyless, server, types, key):
    body = json.dumps({"documents": [{"id": "forged", "text": "owned"}]}).encode()
    client = server if key else keyless
    head = [f"POST {ADD} HTTP/1.1", "Host: localhost"]
    head += [f"Authorization: Bearer {serving.token(key)}"] if key else []
    status, answer = raw(client, head + [f"Content-Type: {value}" for value in types], body)
    assert status == 415 and b'"unsupported_media_type"' in answer
    client = client.of("chief") if key else client
    found = client.post("/v1/search", {"prompt": "owned", "k": 1000}).json()["data"]
    assert "forged" not in [item["id"] for item in found]


@pytest.mark.parametrize("value", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_with_parameters_is_accepted(keyless, value):
    body = json.dumps({"prompt": "bee"})
    assert keyless.send("POST", "/v1/search", body, **{"content-type": value}).status == 200


def test_with_keys_any_name_is_allowed_but_not_any_origin(server):
    chief = server.of("chief")
    assert chief.get("/v1/models", host="whet.example").status == 200
    assert chief.get("/v1/models", host="a.example", origin="https://a.example").status == 200
    assert chief.get("/v1/models", origin="https://evil.example").status == 403


def test_configured_hosts_and_origins(llama_folder, place):
    hosts = {"allowed_hosts": ("whet.local:81", "Other.example")}
    app = serving.app(
        llama_folder, place, keys=serving.KEYS, allowed_origins=("https://app.example",), **hosts
    )
    with serving.running(app) as client:
        for host, status in (("whet.local:81", 200), ("whet.local", 403), ("other.example:5", 200),
                             ("evil.example", 403)):  # fmt: skip
            assert client.of("chief").get("/v1/models", host=host).status == status
        reply = client.of("chief").get("/v1/models", origin="https://app.example")
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        asks = {"access-control-request-method": "POST", "origin": "https://app.example"}
        asks["access-control-request-headers"] = "authorization, content-type, x-stainless-lang"
        assert client.send("OPTIONS", "/v1/search", **asks).status == 200
        assert client.send("OPTIONS", "/v1/search", **asks | {"origin": "null"}).status == 403
        refused = client.get("/v1/models", origin="https://app.example")  # the page can read why
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"


def test_any_origin_is_refused_with_keys(llama_folder, place):
    with pytest.raises(ValueError, match=r"allowed_origins has '\*', but the server has API keys"):
        serving.app(llama_folder, place, keys=serving.KEYS, allowed_origins=("*",))


def test_no_page_gets_permission_to_send_json(keyless):
    asks = {"access-control-request-method": "POST", "origin": "http://evil.example"}
    reply = keyless.send("OPTIONS", "/v1/search", **asks)
    assert reply.status == 403
    assert not any(name.lower().startswith("access-control") for name in reply.headers)
