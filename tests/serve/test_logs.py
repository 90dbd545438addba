"""Log lines of the server: JSON for programs, text for a reader."""

import json
import logging
import sys

import pytest

from whet.serve.config import ServeConfig
from whet.serve.metrics import log_to_stderr


@pytest.fixture
def line(capsys):
    """The line that one record is logged as."""
    loggers = [logging.getLogger(name) for name in ("whet", "uvicorn")]
    before = [(each.handlers, each.propagate, each.level) for each in loggers]

    def logged(form):
        log_to_stderr(form)
        extra = {"seconds": 0.123456, "reason": "two words\x1b[2J", "spaces": ["a", "b"], "_ray": 1}
        logging.getLogger("whet.serve").warning("request failed", extra=extra)
        return capsys.readouterr().err

    yield logged
    for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def test_lines_are_for_a_reader_on_a_terminal_only(line, monkeypatch):
    assert json.loads(line("auto"))["event"] == "request failed"
    text = line("text")
    assert text[9:] == (
        ' warning: request failed seconds=0.123 reason="two words\\u001b[2J" spaces=a,b\n'
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert line("auto")[8:] == text[8:]
    assert json.loads(line("json"))["spaces"] == ["a", "b"]


def test_the_form_is_one_of_three(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text('log_format = "xml"\n[spaces]\ndocs = "docs.whet"')
    with pytest.raises(ValueError, match="log_format is 'xml': expected"):
        ServeConfig.read(path)
