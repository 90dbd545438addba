"""Metrics in Prometheus's format, and log lines in JSON or for a terminal."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from whet.io import printable

BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
"""Upper bounds of the histograms, in seconds."""
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}
"""Attributes that every log record has."""


class Metrics:
    """Metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "whet_requests", "HTTP requests finished", ["route", "status"], registry=registry
        )
        self.request_duration = Histogram(
            "whet_request_duration_seconds", "Duration of an HTTP request", ["route"],
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.http_in_progress = Gauge(
            "whet_http_requests_in_progress", "HTTP requests in progress", registry=registry
        )
        self.rejected = Counter(
            "whet_requests_rejected", "Requests rejected before any work", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.steps = Counter("whet_training_steps", "Gradient steps taken", registry=registry)
        self.stop_reasons = Counter(
            "whet_stop_reasons", "Requests by why their training ended", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.stage_duration = Histogram(
            "whet_stage_duration_seconds", "Duration of a stage of a request", ["stage"],
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.cache_lookups = Counter(
            "whet_adapter_cache_lookups", "Lookups in the adapter cache", ["result"],
            registry=registry,
        )  # fmt: skip
        self.space_reloads = Counter(
            "whet_space_reloads", "New versions of a data space opened", ["space"],
            registry=registry,
        )  # fmt: skip

    def add_gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value `read` computes at each scrape."""
        Gauge(name, description, registry=self.registry).set_function(read)

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """Count a finished HTTP request."""
        self.requests.labels(route, str(status)).inc()
        self.request_duration.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class JSONFormatter(logging.Formatter):
    """Formats a log record and its `extra` values as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        line |= {"event": record.getMessage()}
        line |= _values(record)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TerminalFormatter(logging.Formatter):
    """Formats a log record for a reader: time, level if it is not `info`, event, and its values."""

    def format(self, record: logging.LogRecord) -> str:
        values = _values(record)
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        words = [time.strftime("%H:%M:%S", time.localtime(record.created))]
        words.append(level + record.getMessage())
        words += [f"{name}={_word(value)}" for name, value in values.items() if value is not None]
        line = printable("  ".join([words[0], " ".join(words[1:])]))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _values(record: logging.LogRecord) -> dict[str, object]:
    """The `extra` values of a record; names with `_` are those of other libraries, such as Ray."""
    values = vars(record).items()
    return {name: value for name, value in values if name not in STANDARD and name[0] != "_"}


def _word(value: object) -> str:
    """A value of a log record: lists without brackets, texts with blanks in quotes."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "-"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"\s|^$", text) else text


def log_to_stderr(form: str = "auto", *, level: str = "INFO") -> None:
    """Log whet's and uvicorn's records to stderr.

    Args:
        form: `json` for one JSON object per line, `text` for lines to read, `auto` for `text` on a
            terminal and otherwise `json`.
        level: The lowest level that is logged.
    """
    handler = logging.StreamHandler(sys.stderr)
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(TerminalFormatter() if as_text else JSONFormatter())
    for name in ("whet", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True  # the middleware logs more
