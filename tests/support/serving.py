"""A small real server with a tiny model, a data space with access labels, and API keys."""

import http.client
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass

from whet.adapt.config import AdapterOptions
from whet.data.documents import Document
from whet.select.config import SelectionConfig
from whet.serve.access.auth import APIKey, APIKeyStore, digest
from whet.serve.app import create_app
from whet.serve.config import ServeConfig
from whet.serve.http.connections import build_server
from whet.serve.main import build_engines
from whet.space.space import DataSpace
from whet.space.store.manifest import Labels

WORDS = "bee honey dance flower wax queen hive nectar pollen sting smoke".split()
SECRET = "s" * 43


def documents(count=40, labels=("public", "legal", "medical")):
    """Documents of a few words, with the labels in turn; each text contains its label."""
    for i in range(count):
        label = labels[i % len(labels)]
        words = [WORDS[(i * step) % len(WORDS)] for step in (1, 5, 7)]
        yield Document(f"{label}:{i}", f"{label} {' '.join(words)}", {"label": label})


def token(name):
    return f"whet_{name:a<8}_{SECRET}"


def key(name, *labels, **more):
    return APIKey(id=f"{name:a<8}", name=name, hash=digest(SECRET), labels=labels, **more)


KEYS = (
    key("legal", "legal", roles=("read", "write")),
    key("medical", "medical"),
    key("chief", "*", roles=("read", "write", "metrics")),
    key("nobody"),
)


def space(folder):
    """A data space with access labels, whose lsa embedder is fitted on the public documents."""
    labels = Labels(field="label", public="public")
    DataSpace.build(documents(), folder, labels=labels)
    return folder


def config(model, place, **more):
    options = {
        "slots": 4, "max_queue_size": 16, "reload_interval_s": 0.05, "background_niceness": 0,
        "selection": SelectionConfig(n=3, k=8), "adapter": AdapterOptions(r=2),
    }  # fmt: skip
    options |= more
    options.setdefault("spaces", {"docs": place})
    return ServeConfig(model=str(model), name="tiny", **options)


def app(model, place, *, keys=KEYS, **options):
    configured = config(model, place, **options)
    store = APIKeyStore(list(keys)) if keys else None
    return create_app(build_engines(configured), configured, store)


def app_of(configured):
    """An app for a complete configuration, without API keys."""
    return create_app(build_engines(configured), configured, None)


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]


class Client:
    """An HTTP client that can send any bytes and close the connection at any time."""

    def __init__(self, port, key=None, timeout_s=60):
        self.port, self.key, self.timeout_s = port, key, timeout_s

    def of(self, name):
        return Client(self.port, token(name), self.timeout_s)

    def connect(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        if isinstance(body, dict | list):
            body = json.dumps(body)
            headers["content-type"] = "application/json"
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        connection.request(method, path, body, headers)
        return connection

    def send(self, method, path, body=None, **headers):
        connection = self.connect(method, path, body, **headers)
        try:
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.send("GET", path, **headers)

    def post(self, path, body, **headers):
        return self.send("POST", path, body, **headers)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(app):
    """Run `app` on a free local port while the block runs; gives a client without a key."""
    server = build_server(app, app.state.server.config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            client = Client(listener.getsockname()[1])
            assert client.get("/health").status == 200  # waits until the server accepts requests
            yield client
        finally:
            server.should_exit = True
            thread.join()
