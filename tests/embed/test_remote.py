"""Embeddings from a server with OpenAI's interface, which counts letters."""

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from support.manifests import sealed

from whet.embed import remote
from whet.embed.embedder import encode_queries
from whet.embed.registry import get_embedder
from whet.errors import ModelError, SpaceError
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace

TEXTS = ["bees dance", " ", "honey keeps", "trains run late"]


def letters(text):
    return [float(text.count(letter)) for letter in "abdehnrst"]


class Server(ThreadingHTTPServer):
    """A server of embeddings; `failures` are the statuses of its next answers."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failures, self.change = [], [], lambda body: body
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def spec(self):
        return f"openai:http://127.0.0.1:{self.server_port}/v1#letters"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        if self.server.failures:
            status, answer = self.server.failures.pop(0), {"error": {"message": "later"}}
        else:
            entries = [{"index": i, "embedding": letters(t)} for i, t in enumerate(body["input"])]
            status, answer = 200, self.server.change({"data": entries[::-1]})
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Server() as running:
        yield running
        running.shutdown()


def test_vectors_come_in_order_in_batches_with_the_key(server):
    embedder = get_embedder(server.spec)
    texts = TEXTS * 100  # 300 that are not blank: two requests
    expected = np.array([letters(text) for text in texts])
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1)
    np.testing.assert_allclose(embedder.encode(texts), expected, atol=1e-6)
    assert not embedder.encode(TEXTS)[1].any()
    sent = [body["input"] for _, _, body in server.requests[1:3]]
    assert [len(part) for part in sent] == [256, 44]
    assert [*sent[0], *sent[1]] == [text for text in texts if text.strip()]
    path, key, body = server.requests[0]
    assert (path, key, body["model"]) == ("/v1/embeddings", "Bearer secret", "letters")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).encode(TEXTS),
                                  embedder.encode(TEXTS))  # fmt: skip


def test_prompts_and_shorter_vectors(server):
    spec = f"{server.spec}@query_prompt=query: ,passage_prompt=passage: ,truncate_dim=4"
    embedder = get_embedder(spec)
    assert embedder.dimension == 4 and embedder.name == spec
    for encode, prompt in ((embedder.encode, "passage: "), (embedder.encode_queries, "query: ")):
        row = np.array(letters(prompt + "bees")[:4])
        np.testing.assert_allclose(encode(["bees"])[0], row / np.linalg.norm(row), atol=1e-6)
    assert embedder.fingerprint != get_embedder(server.spec).fingerprint
    with pytest.raises(ModelError, match="truncate_dim is 10, but the vectors of .* 9 numbers"):
        get_embedder(f"{server.spec}@truncate_dim=10")


def test_a_data_space_is_built_and_opened_by_its_name(server, tmp_path):
    DataSpace.build([text for text in TEXTS if text.strip()], tmp_path / "s", server.spec)
    space = DataSpace.open(tmp_path / "s")
    [query] = encode_queries(space.embedder, ["honey"])
    retrieval = Retriever(space, SelectionConfig(n=1)).select("honey")
    np.testing.assert_array_equal(retrieval.query, query)


def test_a_busy_server_is_asked_again(server):
    server.failures = [429, 503, 500]
    assert get_embedder(server.spec).dimension == 9
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "status, message",
    [
        (401, r"refused to embed with 'letters' \(status 401: set OPENAI_API_KEY\)"),
        (404, r"\(status 404\)"),
    ],
)
def test_a_refusal_is_one_clear_line(server, status, message):
    server.failures = [status]
    with pytest.raises(ModelError, match=message) as caught:
        get_embedder(server.spec)
    assert "\n" not in str(caught.value)


CHANGES = [
    (lambda body: {"data": []}, "returned 0 vectors for 1 texts|did not answer with embeddings"),
    (lambda body: {"hello": 1}, "did not answer with embeddings"),
    (lambda body: [], "did not answer with embeddings"),
    (lambda body: {"data": [e | {"embedding": [1.0]} for e in body["data"]]}, "vectors of .1. num"),
    (lambda body: {"data": [e | {"embedding": [float("nan")] * 9} for e in body["data"]]},
     "returns non-finite numbers"),
]  # fmt: skip


@pytest.mark.parametrize("change, message", CHANGES)
def test_another_answer_is_one_clear_line(server, change, message):
    embedder = get_embedder(server.spec)
    server.change = change
    with pytest.raises(ModelError, match=message) as caught:
        embedder.encode(["bees"])
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(remote, "RETRIES", 0)  # they take half a minute
    with pytest.raises(ModelError, match="cannot be reached for embeddings .*start the server"):
        get_embedder("openai:http://127.0.0.1:9/v1#m")


@pytest.mark.parametrize(
    "spec", ["openai:m", "openai:http://x/v1", "openai:ftp://x/v1#m", "openai:#m"]
)
def test_an_address_is_needed(spec):
    with pytest.raises(ValueError, match="expected an address and a model|expected lsa"):
        get_embedder(spec)


def test_a_data_space_cannot_name_a_server_of_its_own(tmp_path):
    DataSpace.build(["honey bees", "ants"], tmp_path / "s")
    meta = json.loads((tmp_path / "s/meta.json").read_text())
    name = "openai:https://evil.example/v1#m"
    (tmp_path / "s/meta.json").write_text(json.dumps(sealed(meta | {"embedder": name})))
    with pytest.raises(SpaceError, match="a server that would receive your prompts"):
        DataSpace.open(tmp_path / "s")
