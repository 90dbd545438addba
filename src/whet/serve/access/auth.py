"""API keys: who may call the server, with roles, labels, limits and an expiry date.

A key reads `whet_ID_SECRET`. The key file holds the id and the SHA-256 of the secret; the secret is
256 random bits, so a salt or a slow hash would add nothing. The file:

    [[key]]
    id = "k3v9d2m1"
    name = "search team"
    hash = "9f86d081…"
    roles = ["read", "write"]
    labels = ["public", "legal"]
    expires = 2027-01-31
    limits = { n = 32, requests_per_minute = 60 }
    weight = 2
"""

import datetime
import hashlib
import hmac
import json
import os
import re
import secrets
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whet.config import parse_fields, read_toml
from whet.maths.arrays import as_count
from whet.serve.config import Limits

ROLES = ("read", "write", "metrics")
"""read: generate, score, select, search. write: add and delete documents. metrics: get metrics."""
OLD_ROLES = {"use": "read", "operate": "metrics"}
"""Names of roles in older key files, which stay valid."""
ALL_LABELS = "*"
"""As a label of a key: every label, and documents without a label."""
_TOKEN = re.compile(r"whet_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class APIKey:
    """What the holder of a key may do and read."""

    id: str
    name: str = ""
    hash: str = field(default="", repr=False)
    """SHA-256 of the secret, hexadecimal."""
    roles: tuple[str, ...] = ("read",)
    labels: tuple[str, ...] = ()
    """Labels of the documents that the key may read; `*` for all. Without labels it reads public
    documents only."""
    expires: datetime.date | None = None
    """Last valid day, in UTC."""
    limits: Limits | None = None
    """None for the server's limits."""
    weight: int = 1
    """How many requests of the key are begun in a round, when several keys wait."""

    def __post_init__(self) -> None:
        as_count(self.weight, f"weight of key {self.id}")
        roles = tuple(OLD_ROLES.get(role, role) for role in self.roles)
        object.__setattr__(self, "roles", roles)
        if unknown := set(roles) - set(ROLES):
            raise ValueError(
                f"key {self.id} has role {min(unknown)!r}: expected {', '.join(ROLES)}"
            )
        for label in self.labels:
            if label != ALL_LABELS and not _LABEL.fullmatch(label):
                raise ValueError(
                    f"key {self.id} has label {label!r}: expected letters, digits, '.', '_', '-'"
                )

    @property
    def can_read_all(self) -> bool:
        """Whether the key may read every document."""
        return ALL_LABELS in self.labels

    def expired(self, today: datetime.date) -> bool:
        """Whether `today` is after the last valid day."""
        return self.expires is not None and today > self.expires


ANONYMOUS = APIKey(id="local", name="no key needed", roles=ROLES, labels=(ALL_LABELS,))
"""The key of every client of a server without API keys, which listens on localhost only."""


class APIKeyStore:
    """The API keys of a server."""

    def __init__(self, keys: list[APIKey]) -> None:
        self._by_id = {key.id: key for key in keys}
        if len(self._by_id) < len(keys):
            raise ValueError("two keys have the same id: expected a different id for each key")

    @classmethod
    def read(cls, path: Path, default: Limits) -> "APIKeyStore":
        """Read a key file.

        Args:
            path: TOML file with one `[[key]]` table per key.
            default: Limits that a key's own limits are completed with.

        Raises:
            ValueError: If the file is missing, or not a valid key file.
        """
        try:
            return cls._from_table(read_toml(path), default)
        except FileNotFoundError as error:
            raise ValueError(
                f"key file {path} does not exist: make it with `whet keys create {path} NAME`"
            ) from error
        except (ValueError, TypeError) as error:  # TypeError: a required field is missing
            raise ValueError(f"{path} is not a valid key file: {error}") from error

    @classmethod
    def _from_table(cls, file: dict[str, Any], default: Limits) -> "APIKeyStore":
        if unknown := file.keys() - {"key"}:
            raise ValueError(f"unknown table {min(unknown)!r}: expected only [[key]] tables")
        if not isinstance(tables := file.get("key", []), list):
            raise ValueError(f"key is {tables!r}: expected [[key]] in double brackets")
        return cls([_parse_key(table, default) for table in tables])

    def __len__(self) -> int:
        return len(self._by_id)

    def authenticate(self, token: str, today: datetime.date) -> APIKey | None:
        """The valid key of `token`; None if it does not exist or has expired.

        An unknown id takes as long as a wrong secret.
        """
        match = _TOKEN.fullmatch(token)
        candidate = self._by_id.get(match[1]) if match else None
        expected = candidate.hash if candidate else "0" * 64
        matches = hmac.compare_digest(digest(match[2] if match else ""), expected)
        return candidate if matches and candidate and not candidate.expired(today) else None


def bearer_token(authorization: str) -> str:
    """The token of an `Authorization` header; empty if it has another scheme."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def digest(secret: str) -> str:
    """SHA-256 of a key's secret, hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(path: Path, **entries: Any) -> str:
    """Append a new key to the key file at `path` and return it; the secret is not stored anywhere.

    A new file is readable by its owner only.

    Args:
        path: Key file, which need not exist yet.
        entries: Fields of `APIKey`: name, roles, labels, expires.

    Raises:
        ValueError: If a role or a label is invalid, or the file is not a valid key file.
    """
    key_id = "".join(secrets.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(8))
    secret = secrets.token_urlsafe(32)
    key = replace(APIKey(id=key_id), hash=digest(secret), **entries)
    old = ""
    if path.exists():
        APIKeyStore.read(path, Limits())
        old = path.read_text(encoding="utf-8")
    new = ("" if old.endswith("\n") or not old else "\n") + _to_toml(key)
    try:
        APIKeyStore._from_table(tomllib.loads(old + new), Limits())
    except ValueError as error:
        raise ValueError(f"a key cannot be added to {path}: {error}") from error
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(new)
    return f"whet_{key_id}_{secret}"


def _to_toml(key: APIKey) -> str:
    entries: dict[str, Any] = {"id": key.id, "name": key.name, "hash": key.hash}
    entries |= {"roles": key.roles, "labels": key.labels}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in entries.items()]
    lines += [f"expires = {key.expires.isoformat()}"] if key.expires else []
    return "\n".join(["[[key]]", *lines, "", ""])


def _parse_key(table: Any, default: Limits) -> APIKey:
    values = parse_fields(APIKey, table, "key")
    if "limits" in values:
        limits = values["limits"]
        if isinstance(limits, dict) and isinstance(limits.get("deadline_ms"), int | float):
            limits = dict(limits)  # key files from before deadlines were in seconds
            limits["deadline_s"] = limits.pop("deadline_ms") / 1000
        values["limits"] = replace(default, **parse_fields(Limits, limits, "limits"))
    if type(values.get("expires", datetime.date.max)) is not datetime.date:
        raise ValueError(f"expires is {values['expires']!r}: expected a date such as 2027-01-31")
    return APIKey(**values)
