"""Clients without a key can hold neither connections nor memory."""

import json
import re
import resource
import socket
import time
from contextlib import ExitStack

import pytest
from support import serving

JSON = "Content-Type: application/json\r\n"
SEARCH = {"prompt": "bee", "k": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return serving.space(tmp_path_factory.mktemp("space") / "docs.whet")


@pytest.fixture(scope="module")
def bounded(llama_folder, place):
    """A server with few connections and short times."""
    app = serving.app(
        llama_folder, place, max_connections=8, head_timeout_s=0.6, keep_alive_s=1.5,
        max_body_kib=1024, max_bodies_mib=2, body_timeout_s=8,
    )  # fmt: skip
    with serving.running(app) as client:
        yield client


def connect(client, stack, data=b""):
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", client.port), 20))
    connection.sendall(data)
    return connection


def is_open(connection):
    connection.settimeout(0.05)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def closes(connection):
    """Whether the server closes the connection soon, without sending anything."""
    connection.settimeout(5)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def read_to_end(connection):
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


def read_one(connection):
    """One response, of a head and a body."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1)
    length = int(re.search(rb"content-length: (\d+)", answer)[1])
    while length > 0:
        piece = connection.recv(length)
        answer, length = answer + piece, length - len(piece)
    return answer


HEADS = {"nothing": b"", "half a head": b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "}


@pytest.mark.parametrize("kind", HEADS)
def test_silent_connections_shut_nobody_out(bounded, kind):
    with ExitStack() as stack:
        held = [connect(bounded, stack, HEADS[kind]) for _ in range(40)]
        assert bounded.get("/health").status == 200  # at once: the longest wait makes room
        assert sum(map(is_open, held)) <= 8
        assert all(map(closes, held))


def test_slow_head_is_cut_off_however_slowly_it_goes_on(bounded):
    with ExitStack() as stack:
        connection = connect(bounded, stack, b"GET /health HTTP/1.1\r\n")
        start = time.perf_counter()
        with pytest.raises(OSError):
            while time.perf_counter() - start < 10:
                connection.sendall(b"X-A: b\r\n")
                time.sleep(0.1)
        assert time.perf_counter() - start < 3


def test_idle_connection_stays_open_between_requests(bounded):
    ask = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        connection = connect(bounded, stack, ask)
        assert read_one(connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.9)  # longer than a head may take
        connection.sendall(ask)
        assert read_one(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(ask + ask)  # two at once
        for _ in range(2):
            assert read_one(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /he")  # the next head is slow
        assert closes(connection)
        idle = connect(bounded, stack, ask)
        assert read_one(idle)
        assert closes(idle)


def test_running_request_is_not_cut_off(bounded):
    body = json.dumps(SEARCH).encode()
    head = f"POST /v1/search HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {len(body)}\r\n"
    head += f"Authorization: Bearer {serving.token('chief')}\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        connection = connect(bounded, stack, head.encode() + body[:5])
        time.sleep(1.2)  # longer than a head may take: the body has a time of its own
        others = [connect(bounded, stack) for _ in range(20)]
        connection.sendall(body[5:])
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")
        assert len(others) == 20


def test_head_is_bounded(bounded):
    with ExitStack() as stack:
        connection = connect(bounded, stack, b"GET / HTTP/1.1\r\nX: " + b"x" * 60_000)
        assert b"HTTP/1.1 400" in read_to_end(connection)[:40]


@pytest.mark.parametrize("length", ["Content-Length: 900000", "Transfer-Encoding: chunked"])
def test_key_is_checked_before_the_body(bounded, length):
    with ExitStack() as stack:
        connections = []
        for path in ("/v1/search", "/v1/nothing", "/health", "/", "/metrics"):
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{JSON}{length}\r\n\r\n"
            connections.append(connect(bounded, stack, head.encode()))
            start = time.perf_counter()
            answer = read_one(connections[-1])  # although no byte of the body was sent
            assert answer.startswith(b"HTTP/1.1 401") and b"invalid_api_key" in answer, path
            assert time.perf_counter() - start < 4
        assert all(map(closes, connections))  # the rest of the body is not waited for


def test_memory_of_all_bodies_is_bounded(bounded):
    head = f"POST /v1/search HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 1000000\r\n"
    head += f"Authorization: Bearer {serving.token('chief')}\r\n\r\n"
    with ExitStack() as stack:
        held = [connect(bounded, stack, head.encode() + b" " * 990_000) for _ in range(4)]
        time.sleep(0.5)
        refused = [c for c in held if not is_waiting(c)]
        assert len(refused) == 2
        reply = read_one(refused[0])
        assert reply.startswith(b"HTTP/1.1 429") and b"bodies_full" in reply
        assert re.search(rb"retry-after: 1", reply)
    deadline = time.monotonic() + 20
    while bounded.of("chief").post("/v1/search", SEARCH | {"prompt": "x" * 150_000}).status == 429:
        assert time.monotonic() < deadline  # the memory is free again


def is_waiting(connection):
    connection.settimeout(0.1)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    return False


def test_connections_leave_half_of_the_open_files(llama_folder, place):
    from whet.serve.http.connections import build_server

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    app = serving.app(llama_folder, place, max_connections=10**6)
    server = build_server(app, app.state.server.config)
    assert server.config.http.max_connections == (soft // 2 if soft > 0 else 10**6)
    for engine in app.state.server.engines.values():
        engine.close()
