"""Who may ask: API keys with roles, labels, limits and an end.

A key reads `whet_ID_SECRET`. The file holds the ID and the SHA-256 of the secret, which is 256
random bits, so that neither a salt nor a slow hash would add anything. The file:

    [[key]]
    id = "k3v9d2m1"
    name = "search team"
    hash = "9f86d081…"
    roles = ["use", "write"]
    labels = ["public", "legal"]
    expires = 2027-01-31
    limits = { n = 32, requests_per_minute = 60 }
"""

import datetime
import hashlib
import hmac
import json
import os
import re
import secrets
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from whet.config import parse_fields, read_toml

ROLES = ("use", "write", "operate")
"""use: ask, select and search. write: add and delete documents. operate: read metrics."""
EVERY = "*"
"""In a key's labels: every label, and documents that carry none."""
_SHAPE = re.compile(r"whet_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request, and one minute of requests, may ask for. A count of 0 allows nothing."""

    n: int = 64
    """Gradient steps a request."""
    k: int = 1000
    """Candidates a request."""
    deadline_ms: int = 60_000
    """Longest deadline, which is also that of a request that names none."""
    max_tokens: int = 1024
    """Tokens of an answer."""
    prompt_chars: int = 200_000
    """Characters of a prompt."""
    requests_per_minute: int = 600
    """Requests of any kind."""
    tokens_per_minute: int = 1_000_000
    """Tokens read, trained on and written."""
    concurrent: int = 32
    """Requests at the same time."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            if (value := getattr(self, entry.name)) < 0:
                raise ValueError(f"limit {entry.name} is {value}: expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Whoever holds it: what they may do and read."""

    id: str
    name: str = ""
    hash: str = field(default="", repr=False)
    """SHA-256 of the secret, hexadecimal."""
    roles: tuple[str, ...] = ("use",)
    labels: tuple[str, ...] = ()
    """Labels of the documents it may read; `*` for all documents. None reads what is public."""
    expires: datetime.date | None = None
    """Its last day, in UTC."""
    limits: Limits | None = None
    """None for the server's."""

    def __post_init__(self) -> None:
        if unknown := set(self.roles) - set(ROLES):
            raise ValueError(
                f"key {self.id} has role {min(unknown)!r}: expected {', '.join(ROLES)}"
            )
        for label in self.labels:
            if label != EVERY and not _LABEL.fullmatch(label):
                raise ValueError(f"key {self.id} has label {label!r}: expected letters, digits ._-")

    @property
    def reads_all(self) -> bool:
        return EVERY in self.labels

    def expired(self, today: datetime.date) -> bool:
        return self.expires is not None and today > self.expires


ANYONE = Key(id="local", name="no key needed", roles=ROLES, labels=(EVERY,))
"""Who asks a server without keys, which listens to its own machine alone."""


class Keys:
    """The keys of a server."""

    def __init__(self, keys: list[Key]) -> None:
        self._by_id = {key.id: key for key in keys}
        if len(self._by_id) < len(keys):
            raise ValueError("two keys have the same id: expected one line a key")

    @classmethod
    def read(cls, path: Path, default: Limits) -> "Keys":
        """The keys of a TOML file.

        Raises:
            ValueError: If it is not there, or not as the head of this module says.
        """
        try:
            return cls._of(read_toml(path), default)
        except FileNotFoundError as error:
            raise ValueError(f"{path} is not there: make it with `whet key {path} NAME`") from error
        except (ValueError, TypeError) as error:  # TypeError: a field is missing
            raise ValueError(f"{path} is not a file of keys: {error}") from error

    @classmethod
    def _of(cls, file: dict[str, Any], default: Limits) -> "Keys":
        if unknown := file.keys() - {"key"}:
            raise ValueError(f"it sets {min(unknown)!r}: expected [[key]] tables alone")
        if not isinstance(tables := file.get("key", []), list):
            raise ValueError(f"key is {tables!r}: expected [[key]] in double brackets")
        return cls([_key(table, default) for table in tables])

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, token: str, today: datetime.date) -> Key | None:
        """The key that `token` opens; None if there is none, or it has expired.

        An id that does not exist takes as long as a wrong secret.
        """
        match = _SHAPE.fullmatch(token)
        known = self._by_id.get(match[1]) if match else None
        expected = known.hash if known else "0" * 64
        right = hmac.compare_digest(digest(match[2] if match else ""), expected)
        return known if right and known and not known.expired(today) else None


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def new_key(path: Path, **entries: Any) -> str:
    """Append a new key to the file at `path` and give it: it is stored nowhere else.

    The file is made if it is not there, readable by its owner alone.

    Raises:
        ValueError: If a role, a label, a limit or the file is not as it must be.
    """
    ident = "".join(secrets.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(8))
    secret = secrets.token_urlsafe(32)
    key = replace(Key(id=ident), hash=digest(secret), **entries)
    old = ""
    if path.exists():
        Keys.read(path, Limits())
        old = path.read_text(encoding="utf-8")
    new = ("" if old.endswith("\n") or not old else "\n") + _lines(key)
    try:
        Keys._of(tomllib.loads(old + new), Limits())
    except ValueError as error:
        raise ValueError(f"a key cannot be added to {path}: {error}") from error
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(new)
    return f"whet_{ident}_{secret}"


def _lines(key: Key) -> str:
    entries: dict[str, Any] = {"id": key.id, "name": key.name, "hash": key.hash}
    entries |= {"roles": key.roles, "labels": key.labels}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in entries.items()]
    lines += [f"expires = {key.expires.isoformat()}"] if key.expires else []
    return "\n".join(["[[key]]", *lines, "", ""])


def _key(table: Any, default: Limits) -> Key:
    given = parse_fields(Key, table, "key")
    if "limits" in given:
        given["limits"] = replace(default, **parse_fields(Limits, given["limits"], "limits"))
    if type(given.get("expires", datetime.date.max)) is not datetime.date:
        raise ValueError(f"expires is {given['expires']!r}: expected a day like 2027-01-31")
    return Key(**given)
