"""The server's configuration: one TOML file whose keys are the fields of `ServeConfig`.

model = "whet-nano"
api_keys = "keys.toml"

[spaces]
docs = "/srv/docs.whet"

[selection]
n = 16

[limits]
n = 32
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from whet.adapt.config import ADAPTERS, AdapterOptions, OptimizerConfig, TrainingConfig
from whet.config import from_table, parse_fields, read_toml
from whet.maths.arrays import as_count, as_positive
from whet.select.config import SelectionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds for one API key, per request and per minute. 0 allows nothing."""

    n: int = 64
    """Gradient steps per request."""
    k: int = 1000
    """Candidates per request."""
    deadline_s: float = 60.0
    """Longest deadline in seconds, and the deadline of a request that does not set one."""
    max_tokens: int = 1024
    """Generated tokens per request."""
    prompt_chars: int = 200_000
    """Characters per prompt."""
    requests_per_minute: int = 600
    """Requests of any kind per minute."""
    tokens_per_minute: int = 1_000_000
    """Tokens read, trained on and generated per minute."""
    concurrent: int = 32
    """Requests at the same time."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            if (value := getattr(self, limit.name)) < 0:
                raise ValueError(f"limit {limit.name} is {value}: expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a server runs. Requests may override `selection` within `limits`, or their key's own."""

    spaces: Mapping[str, Path]
    """Data spaces by the names that clients use; the first is the default."""
    model: str = "whet-nano"
    """Bundled model, smollm2, folder, .gguf file, ollama:NAME, or Hugging Face id."""
    max_length: int | None = None
    """Tokens that the model reads at once [default: as many as it accepts]; required for models
    without a limit, such as Mamba."""
    name: str = ""
    """Name of the model for clients [default: the last part of `model`]."""
    adapters: tuple[str, ...] = ("lora",)
    """What requests may train: `lora`, `head` or `full`. The first is the default; `full` loads the
    model once more."""
    host: str = "127.0.0.1"
    """Address to listen on; any address other than localhost needs `api_keys`."""
    port: int = 8000
    """Port to listen on; 0 for any free port."""
    api_keys: Path | None = None
    """File of API keys, made by `whet keys create`; without it every client has full access."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names, as `NAME` or `NAME:PORT`, by which clients may address the server in the
    header `Host`; `*` for any. Without API keys only `host` and loopback names are allowed; with
    API keys the header is checked only if this is set."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages of other sites that may use the server (CORS), such as `https://example.org`; `*` for
    all, only without API keys. The server's own page always may."""
    slots: int = 8
    """Requests that are adapted at the same time."""
    max_queue_size: int = 64
    """Requests that may wait; the next one is answered with status 429."""
    cache_mib: int = 256
    """Memory for cached adapters in MiB, of which each API key has an equal share."""
    state_cache_mib: int = 0
    """Disk for hidden states in the folder of the first data space, in MiB, where only the head or
    the last layers are trained: a text that was trained on before, also before a restart, takes less
    time. They are rounded to float16, whether they were stored or not. 0 for in memory only."""
    adapter_folder: Path | None = None
    """Folder in which each cached adapter is also written in PEFT's format, in a folder that is named
    by its id, for engines that look for adapters there: see docs/adapters.md."""
    max_body_kib: int = 1024
    """Largest request body, in KiB."""
    body_timeout_s: float = 10.0
    """How long a request body may take to arrive, in seconds."""
    max_bodies_mib: int = 64
    """Memory for the bodies of all requests together, in MiB; the next one is answered with status
    429."""
    max_connections: int = 512
    """Open connections, at most half of the process's limit of open files. Beyond it, the
    connection that has waited longest without a request is closed."""
    head_timeout_s: float = 10.0
    """How long the head of a request may take to arrive, in seconds."""
    keep_alive_s: float = 30.0
    """How long a connection stays open between two requests, in seconds."""
    stream_comment_s: float = 3.0
    """How often a stream contains a comment such as `: adapting 3/16`, which clients skip, in
    seconds: proxies and clients cut connections that are silent for long."""
    background_niceness: int = 10
    """Unix niceness (0-19) of the threads that train and select, so that the base model and other
    programs go first. Linux only; lower it on a machine that other programs keep busy."""
    reload_interval_s: float = 2.0
    """How often data spaces are checked for a new version, in seconds."""
    shutdown_timeout_s: float = 30.0
    """How long running requests may take to finish at shutdown, in seconds."""
    strict: bool = False
    """Whether a field that whet does not know is an error in every request; by default harmless
    ones of completions and chats are ignored, with their names in the header `x-whet-ignored`."""
    ui: bool = True
    """Whether `/` serves the web page."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """Form of log lines on stderr: `json`, `text` for a reader, or `auto`, which is `text` on a
    terminal and otherwise `json`."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """How documents are selected if a request does not say."""
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    """Options of `adapters`: each adapter takes those that it has."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the selected documents become gradient steps."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How a gradient becomes a step."""
    limits: Limits = field(default_factory=Limits)
    """Limits of every API key that has none of its own."""

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        self._check_adapters()
        self._check_access()
        if self.training.persist_optimizer:
            raise ValueError(
                "training.persist_optimizer is true: a server must not carry one request's "
                "optimizer state into another's; expected false"
            )
        if self.api_keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach, and api_keys is not set: "
                "make a key with `whet keys create keys.toml NAME` and pass `--api-keys keys.toml`"
            )

    def _check_names(self) -> None:
        if not self.spaces:
            raise ValueError("spaces is empty: expected at least one data space")
        for name in self.spaces:
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                raise ValueError(f"space is called {name!r}: expected letters, digits, - and _")
        if "@" in self.served_name:
            raise ValueError(
                f"name is {self.served_name!r}: expected a name without @, which separates the "
                "model from an adapter's id"
            )

    def _check_numbers(self) -> None:
        for name in (
            "slots",
            "max_queue_size",
            "max_body_kib",
            "max_bodies_mib",
            "max_connections",
        ):
            as_count(getattr(self, name), name)
        for name in (
            "body_timeout_s", "head_timeout_s", "keep_alive_s", "reload_interval_s",
            "shutdown_timeout_s", "stream_comment_s",
        ):  # fmt: skip
            as_positive(getattr(self, name), name)
        if self.max_bodies_mib * 1024 < self.max_body_kib:
            raise ValueError(
                f"max_bodies_mib is {self.max_bodies_mib}, less than one body of max_body_kib = "
                f"{self.max_body_kib}: expected at least that"
            )
        for name in ("cache_mib", "state_cache_mib"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 or more")
        if not 0 <= self.background_niceness < 20:
            raise ValueError(f"background_niceness is {self.background_niceness}: expected 0 to 19")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}: expected 0 to 65535")

    def _check_access(self) -> None:
        for host in self.allowed_hosts:
            if not host or "/" in host or "@" in host:
                raise ValueError(f"allowed_hosts has {host!r}: expected NAME or NAME:PORT, or *")
        for origin in self.allowed_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ValueError(
                    f"allowed_origins has {origin!r}: expected a site such as https://example.org"
                )

        self.check_origins(has_keys=self.api_keys is not None)

    def check_origins(self, *, has_keys: bool) -> None:
        """Raises ValueError if any web page could use the server with API keys."""
        if has_keys and "*" in self.allowed_origins:
            raise ValueError(
                "allowed_origins has '*', but the server has API keys, which any web page could "
                "then use: list the sites instead, such as https://example.org"
            )

    def _check_adapters(self) -> None:
        if not self.adapters or set(self.adapters) - ADAPTERS.keys():
            raise ValueError(f"adapters is {self.adapters}: expected some of {', '.join(ADAPTERS)}")
        if self.adapter.name != "auto":
            raise ValueError(
                f"adapter.name is {self.adapter.name!r}: set adapters = [{self.adapter.name!r}]"
            )

    @property
    def served_name(self) -> str:
        """Name of the model for clients."""
        return self.name or Path(self.model).name

    def adapter_options(self, name: str) -> dict[str, Any]:
        """The options of `[adapter]` that the adapter called `name` has."""
        known = {f.name for f in fields(ADAPTERS[name])}
        return {key: value for key, value in self.adapter.options.items() if key in known}

    @classmethod
    def read(cls, path: Path | None, **overrides: Any) -> "ServeConfig":
        """Read a TOML file; `overrides` that are not None replace its values.

        Relative paths in the file are relative to its folder.

        Raises:
            ValueError: If the file is not valid TOML, has an unknown key or an invalid value.
        """
        table: dict[str, Any] = {}
        if path is not None:
            table = read_toml(path)
            spaces = table.get("spaces", {})
            if not isinstance(spaces, dict) or not all(isinstance(v, str) for v in spaces.values()):
                raise ValueError(f"spaces is {spaces!r}: expected lines NAME = PATH")
            table["spaces"] = {name: path.parent / folder for name, folder in spaces.items()}
            for name in ("api_keys", "adapter_folder"):
                if isinstance(table.get(name), str):
                    table[name] = path.parent / table[name]
        source = str(path or "configuration")
        _check_moved(table, source)
        for name, kind in TABLES.items():
            if name in table:
                table[name] = from_table(kind, table[name], f"{source}: [{name}]")
        values = {name: value for name, value in overrides.items() if value is not None}
        return cls(**({"spaces": {}} | parse_fields(cls, table, source) | values))


TABLES: dict[str, type] = {
    "selection": SelectionConfig,
    "adapter": AdapterOptions,
    "training": TrainingConfig,
    "optimizer": OptimizerConfig,
    "limits": Limits,
}


def given_settings(path: Path | None) -> frozenset[str]:
    """Flat names of the settings that a configuration file contains; none without a file."""
    table = {} if path is None else read_toml(path)
    names = {name for part in TABLES for name in table.get(part, {})} - {"name"}
    names |= {"adapter"} if "adapters" in table else set()
    return frozenset(names | ({"optimizer"} if "optimizer" in table else set()))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_moved(table: dict[str, Any], source: str) -> None:
    """Raises ValueError for options that were at the top level before there were tables."""
    moved = {"n": "selection", "k": "selection", "lr": "adapter", "rank": "adapter"}
    for name, where in moved.items():
        if name in table:
            present = "r" if name == "rank" else name
            raise ValueError(f"{source}: {name!r} is now set as {present!r} in the table [{where}]")
