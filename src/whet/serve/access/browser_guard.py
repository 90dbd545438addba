"""Protection from web pages: which `Host`, `Origin` and `Content-Type` a request may have.

A web page can make a visitor's browser send requests to a server on the visitor's own machine.
Three checks keep foreign pages out:

- `Host`: a page whose domain resolves to 127.0.0.1 (DNS rebinding) is the server's own page for the
  browser, but its requests still name its domain. Without API keys only loopback names are allowed.
- `Origin`: browsers name the page that sends a request; clients that are not browsers send none.
- `Content-Type`: a body of JSON that says so needs the permission of a preflight request, which
  foreign pages do not get; bodies that a form can send are rejected.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import Scope

from whet.serve.config import ServeConfig, is_loopback
from whet.serve.errors import APIError

MEDIA_TYPE = b"application/json"


class BrowserGuard:
    """Checks the headers of a request before anything else is done with it."""

    def __init__(self, config: ServeConfig, *, has_keys: bool) -> None:
        self._hosts = {_host_and_port(host) for host in config.allowed_hosts}
        self._any_host = "*" in config.allowed_hosts
        self._configured = _host_and_port(config.host)[0]
        self._checks_host = not has_keys or bool(config.allowed_hosts)
        self._origins = {origin.lower().rstrip("/") for origin in config.allowed_origins}

    def check(self, scope: Scope) -> None:
        """Check the headers of a request.

        Raises:
            APIError: 403 for a `Host` or an `Origin` that is not allowed, 415 for a body that is
                not declared as JSON.
        """
        hosts = _values(scope, b"host")
        host = hosts[0] if len(hosts) == 1 else ""
        if self._checks_host and not self._allows_host(host):
            raise APIError(
                403, f"host {host!r} is not allowed: use localhost, or add it to allowed_hosts in "
                "the server's configuration", code="host_not_allowed",
            )  # fmt: skip
        for origin in _values(scope, b"origin"):
            if not self._allows_origin(origin, host):
                raise APIError(
                    403, f"origin {origin!r} is not allowed: web pages of other sites can use this "
                    "server only if its allowed_origins names them", code="origin_not_allowed",
                )  # fmt: skip
        if has_body(scope) and not _is_json(scope):
            raise APIError(
                415, "the body has no content type of JSON: send the header `Content-Type: "
                "application/json`", code="unsupported_media_type",
            )  # fmt: skip

    def _allows_host(self, host: str) -> bool:
        try:
            name, port = _host_and_port(host)
        except ValueError:
            return False
        if not name:
            return False
        known = is_loopback(name) or name == self._configured
        return known or self._any_host or bool({(name, None), (name, port)} & self._hosts)

    def _allows_origin(self, origin: str, host: str) -> bool:
        origin = origin.lower()
        if origin in self._origins or "*" in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            own = _host_and_port(host, parts.scheme)
            return parts.scheme in ("http", "https") and own == _host_and_port(
                parts.netloc, parts.scheme
            )
        except ValueError:
            return False


def has_body(scope: Scope) -> bool:
    """Whether the headers of a request declare a body that is not empty."""
    lengths = _values(scope, b"content-length")
    return bool(_values(scope, b"transfer-encoding")) or any(n.strip() != "0" for n in lengths)


def _is_json(scope: Scope) -> bool:
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(types) == 1 and types[0].partition(b";")[0].strip().lower() == MEDIA_TYPE


def _values(scope: Scope, name: bytes) -> Sequence[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _host_and_port(text: str, scheme: str = "") -> tuple[str, int | None]:
    """The two parts of `NAME[:PORT]`, in lower case; the default port of `scheme` is None.

    Raises:
        ValueError: If it has another form.
    """
    if text.count(":") > 1 and not text.startswith("["):
        return str(ipaddress.IPv6Address(text)), None  # an address as the configuration has it
    parts = urlsplit(f"//{text}")
    if parts.netloc != text or "@" in text:
        raise ValueError(f"{text!r} is not a host: expected NAME or NAME:PORT")
    default = {"http": 80, "https": 443}.get(scheme)
    return (parts.hostname or "").rstrip("."), None if parts.port == default else parts.port
