"""Whether the Hugging Face hub can be reached, with servers on this machine."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from whet.hub import is_cut_off

UNKNOWN = "somebody/no-such-model"


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_hub_that_does_not_respond_is_named(monkeypatch, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nothing listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert is_cut_off(UNKNOWN)
    assert endpoint in caplog.text and UNKNOWN in caplog.text


def test_a_hub_that_responds_is_used(monkeypatch, caplog):
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert not is_cut_off(UNKNOWN)
        server.shutdown()
    assert not caplog.text


@pytest.mark.parametrize("source", [".", "/"])
def test_a_folder_needs_no_hub(source, caplog):
    assert not is_cut_off(source)
    assert not caplog.text


def test_nothing_is_sent_where_that_is_forbidden(monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not is_cut_off(UNKNOWN)
    assert not caplog.text
