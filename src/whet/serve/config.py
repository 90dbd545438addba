"""What a server is told: one TOML file, each key of it a field here.

model = "whet-nano"
keys = "keys.toml"

[spaces]
docs = "/srv/docs.whet"

[limits]
n = 32
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.adapt.config import ADAPTERS
from whet.config import parse_fields, read_toml
from whet.maths.arrays import as_count, as_positive
from whet.serve.auth import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How a server runs. Whatever a client may set is bounded by `limits`, or by its key's own."""

    spaces: Mapping[str, Path]
    """Data spaces by the names that clients call them; the first is the default."""
    model: str = "whet-nano"
    """Bundled model, folder, or Hugging Face id."""
    name: str = ""
    """What clients call the model; unless given, the last part of `model`."""
    methods: tuple[str, ...] = ("lora",)
    """What may be trained, the default first; each further one loads the model once more."""
    lr: float | None = None
    """Learning rate; none for the model's tuned one, or else the method's."""
    rank: int = 16
    """Rank of LoRA."""
    n: int = 16
    """Gradient steps of a request that does not say."""
    k: int = 200
    """Candidates of a request that does not say."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs `keys`."""
    port: int = 8000
    """Port to listen on; 0 for any free one."""
    keys: Path | None = None
    """File of API keys, made by `whet key`; without one whoever reaches the server may do all."""
    slots: int = 8
    """Prompts sharpened at once."""
    queue: int = 64
    """Requests that may wait; one more is answered 429."""
    cache_mib: int = 256
    """Memory for adapters that later requests may use again, in MiB."""
    body_kib: int = 1024
    """Largest body of a request, in KiB."""
    body_s: float = 10.0
    """How long a body may take to arrive, in seconds."""
    niceness: int = 10
    """How far training and choosing give way to the model as it is, 0 to 19; on Linux. They give
    way to other programs too: lower it on a machine that those fill."""
    refresh_s: float = 2.0
    """How often a data space is looked at for a new version, in seconds."""
    drain_s: float = 30.0
    """How long requests may take to finish once the server is told to stop, in seconds."""
    page: bool = True
    """Whether `/` shows the page for people."""
    limits: Limits = field(default_factory=Limits)
    """Limits of a key that names none of its own."""

    def __post_init__(self) -> None:
        if not self.spaces:
            raise ValueError("spaces is empty: expected at least one data space")
        for name in self.spaces:
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                raise ValueError(f"space is called {name!r}: expected letters, digits, - and _")
        if "@" in self.served_name:
            raise ValueError(
                f"name is {self.served_name!r}: expected no @, which an adapter's name follows"
            )
        if not self.methods or set(self.methods) - ADAPTERS.keys():
            raise ValueError(f"methods is {self.methods}: expected some of {', '.join(ADAPTERS)}")
        for name in ("slots", "queue", "body_kib", "rank", "n", "k"):
            as_count(getattr(self, name), name)
        for name in ("body_s", "refresh_s", "drain_s"):
            as_positive(getattr(self, name), name)
        if self.cache_mib < 0:
            raise ValueError(f"cache_mib is {self.cache_mib}: expected 0 or more")
        if not 0 <= self.niceness < 20:
            raise ValueError(f"niceness is {self.niceness}: expected 0 to 19")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}: expected 0 to 65535")
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host!r}, which others can reach, and there are no keys: make some "
                "with `whet key keys.toml NAME` and give `--keys keys.toml`"
            )

    @property
    def served_name(self) -> str:
        return self.name or Path(self.model).name

    @classmethod
    def read(cls, path: Path | None, **given: Any) -> "Config":
        """The configuration of a TOML file; what is `given` and not None takes its place.

        Paths in the file are relative to it.

        Raises:
            ValueError: If it is no TOML, or names an unknown key or a wrong value.
        """
        table: dict[str, Any] = {}
        if path is not None:
            table = read_toml(path)
            spaces = table.get("spaces", {})
            if not isinstance(spaces, dict) or not all(isinstance(v, str) for v in spaces.values()):
                raise ValueError(f"spaces is {spaces!r}: expected NAME = PATH lines")
            table["spaces"] = {name: path.parent / place for name, place in spaces.items()}
            if isinstance(table.get("keys"), str):
                table["keys"] = path.parent / table["keys"]
        source = str(path or "configuration")
        table["limits"] = Limits(**parse_fields(Limits, table.get("limits", {}), "limits"))
        told = {name: value for name, value in given.items() if value is not None}
        return cls(**({"spaces": {}} | parse_fields(cls, table, source) | told))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
