"""What a run is evaluated on: a data space, and prompts from a file, a folder or a data set."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from whet.config import parse_fields, parse_override, read_toml
from whet.data.documents import Document, read_documents
from whet.errors import SourceError
from whet.evaluate.config import EvalConfig
from whet.space.space import DataSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The data space and the prompts of a run; the table `[data]` of its TOML."""

    space: str = ""
    """Folder of the data space."""
    source: str = ""
    """Where its texts come from, as for `whet index`, if it is not there yet."""
    embedder: str = "lsa"
    """What it is then embedded with."""
    prompts: str = ""
    """Documents to score: JSONL, Parquet, a folder, or hf:DATASET:SPLIT."""
    text_field: str = "text"
    """Field of a document that holds its text."""
    set_field: str = "set"
    """Field that names its set, in the document or in its `meta`, as in `meta.pile_set_name`."""
    sets: tuple[str, ...] = ()
    """Only these sets; empty for all."""
    share: float = 1.0
    """Share of the prompts, chosen by a hash of their text; the paper's is 0.01."""
    per_set: int = 0
    """The first prompts of each set; 0 for all."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"data.share is {self.share}: expected above 0, at most 1")
        if self.per_set < 0:
            raise ValueError(f"data.per_set is {self.per_set}: expected 0 or more")

    def opened(self, progress: bool) -> DataSpace:
        """The data space, built of `source` first if it is not there.

        Raises:
            WhetError: If it is neither there nor can be built.
        """
        if self.source and not Path(self.space).exists():
            DataSpace.build(
                self.source, self.space, self.embedder, text_field=self.text_field,
                progress=progress,
            )  # fmt: skip
        return DataSpace.open(self.space)

    def read(self) -> "Prompts":
        """The prompts: one of each set in turn.

        Raises:
            SourceError: If they cannot be read, an id is given twice, or a set of `sets` is not
                among them.
        """
        digest, by_set = hashlib.sha256(), dict[str, list[Document]]()
        name, seen, sets = self.set_field.removeprefix("meta."), set[str](), set[str]()
        for document in read_documents(self.prompts, text_field=self.text_field):
            if document.id in seen:
                raise SourceError(f"{self.prompts} holds two prompts of id {document.id!r}")
            seen.add(document.id)
            digest.update(f"{document.id}\0{document.text}\0".encode())
            own_set = str(document.meta.get(name, "all"))
            sets.add(own_set)
            if fraction(document.text) >= self.share:
                continue
            own = by_set.setdefault(own_set, [])
            if not self.per_set or len(own) < self.per_set:
                own.append(document)
        if missing := [name for name in self.sets if name not in sets]:
            raise SourceError(
                f"{self.prompts} holds no prompts of set {missing[0]!r}, only of "
                f"{', '.join(sorted(sets))}: correct data.sets or data.set_field"
            )
        kept = {s: own for s, own in by_set.items() if not self.sets or s in self.sets}
        return Prompts(f"sha256:{digest.hexdigest()[:16]}", tuple(_in_turn(kept)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A document to score and the set it belongs to."""

    document: Document
    set: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run, in the order they are evaluated."""

    fingerprint: str
    """Of all documents at their source, so that a run may be extended to more of them."""
    prompts: tuple[Prompt, ...]


def _in_turn(by_set: dict[str, list[Document]]) -> Iterator[Prompt]:
    for i in range(max(map(len, by_set.values()), default=0)):
        yield from (Prompt(own[i], name) for name, own in by_set.items() if i < len(own))


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a TOML file says of a run: its data, in the table `[data]`, and its switches."""

    data: Data = field(default_factory=Data)
    switches: EvalConfig = field(default_factory=EvalConfig)

    @classmethod
    def read(cls, path: Path | None, overrides: tuple[str, ...] | list[str] = ()) -> "Config":
        """The configuration of a TOML file, with `key=value` lines put over it.

        Raises:
            ValueError: If a line is no TOML, or names an unknown key or a wrong value.
        """
        source = str(path or "--set")
        given = read_toml(path) if path else {}
        data = parse_fields(Data, given.pop("data", {}), f"{source}, [data],")
        for line in overrides:
            new = parse_override(line, "--set")
            data |= parse_fields(Data, new.pop("data", {}), "--set data")
            given |= new
        return cls(
            data=Data(**data), switches=EvalConfig(**parse_fields(EvalConfig, given, source))
        )
