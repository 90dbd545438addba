"""The data of an evaluation: a data space, and prompts from a file, a folder or a data set."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whet.config import parse_fields, parse_override, read_toml
from whet.data.documents import Document, iter_documents, read_documents
from whet.errors import SourceError, SpaceError
from whet.evaluate.answers.kinds import KINDS
from whet.evaluate.config import EvalConfig, TaskKind, flat_settings, with_protocol
from whet.maths.arrays import as_count
from whet.space.indexing.addition import Documents
from whet.space.space import DataSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalData:
    """The data space and the prompts of a run: the table `[data]` of its TOML file."""

    space: str = ""
    """Folder of the data space."""
    source: str = ""
    """Source to build the data space from if it does not exist, as for `whet index`."""
    embedder: str = "lsa"
    """Embedder for that build."""
    chunks: str = "auto"
    """How texts are cut in that build, as for `whet index`."""
    prompts: str = ""
    """Documents to score: a JSONL or Parquet file, a folder, or hf:DATASET:SPLIT."""
    text_field: str = "text"
    """Field of a document that holds its text."""
    set_field: str = "set"
    """Field that names the set of a document, at the top or in `meta`, as in `meta.pile_set_name`."""
    sets: tuple[str, ...] = ()
    """Sets to evaluate; empty for all."""
    share: float = 1.0
    """Share of the prompts to evaluate, chosen by a hash of their text; the paper's is 0.01."""
    per_set: int = 0
    """Number of prompts of each set, the first ones; 0 for all."""
    min_chars: int = 0
    """Leave out prompts of fewer characters."""
    max_chars: int = 0
    """Cut each prompt after this many characters; 0 keeps all of it."""
    held_out: int = 0
    """Number of documents of `source` that are left out of the data space and are the prompts
    instead, chosen by a hash of their id; 0 for those of `prompts`."""
    lines_per_file: int = 1
    """Number of lines of each file to complete, for the task `lines`."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"data.share is {self.share}: expected above 0, at most 1")
        for name in ("per_set", "min_chars", "max_chars", "held_out"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is {getattr(self, name)}: expected 0 or more")
        as_count(self.lines_per_file, "data.lines_per_file")
        if self.held_out and self.prompts:
            raise ValueError(
                f"data.held_out is {self.held_out}, but data.prompts is {self.prompts!r}: expected "
                "one of them"
            )
        if self.held_out and not self.source:
            raise ValueError(f"data.held_out is {self.held_out}: expected data.source, too")

    def open_space(self, progress: bool = False, task: TaskKind = "text") -> DataSpace:
        """The data space, built from `source` without what is held out if it does not exist.

        Raises:
            WhetError: If it neither exists nor can be built, or holds what is to be held out.
        """
        held_out = self._held_out(task) if self.held_out else frozenset[str]()
        if self.source and not Path(self.space).exists():
            documents: Documents = self.source
            if held_out:
                documents = (each for each in self._documents() if each.id not in held_out)
            DataSpace.build(
                documents, self.space, self.embedder, text_field=self.text_field,
                chunks=self.chunks, progress=progress,
            )  # fmt: skip
        space = DataSpace.open(self.space)
        if held_out and (present := held_out & {name.partition("#")[0] for name in space.ids}):
            raise SpaceError(
                f"{self.space} holds {min(present)!r}, which is to be held out of it: delete that "
                "folder, or choose another data.space"
            )
        return space

    def read_prompts(self, task: TaskKind = "text") -> "Prompts":
        """The prompts, one of each set in turn.

        Raises:
            SourceError: If they cannot be read or are none of the task's, two have the same id, or
                one of `sets` is missing.
        """
        digest, by_set = hashlib.sha256(), dict[str, list[Document]]()
        if self.max_chars:
            digest.update(f"{self.max_chars}\0".encode())
        field_name, ids, sets = self.set_field.removeprefix("meta."), set[str](), set[str]()
        for document in self._prompt_documents(task):
            if document.id in ids:
                raise SourceError(f"{self._where} holds two prompts of id {document.id!r}")
            ids.add(document.id)
            digest.update(f"{document.id}\0{document.text}\0".encode())
            set_name = str(document.meta.get(field_name, "all"))
            sets.add(set_name)
            if fraction(document.text) >= self.share or len(document.text) < self.min_chars:
                continue
            text = document.text[: self.max_chars or None]
            documents = by_set.setdefault(set_name, [])
            for prompt in self._prompts_of(replace(document, text=text), task):
                if not self.per_set or len(documents) < self.per_set:
                    documents.append(prompt)
        if missing := [name for name in self.sets if name not in sets]:
            raise SourceError(
                f"{self._where} holds no prompts of set {missing[0]!r}, only of "
                f"{', '.join(sorted(sets))}: correct data.sets or data.set_field"
            )
        by_set = {name: d for name, d in by_set.items() if not self.sets or name in self.sets}
        if task != "text" and not any(by_set.values()):
            raise SourceError(f"{self._where} holds no prompts: expected {KINDS[task].wanted}")
        return Prompts(f"sha256:{digest.hexdigest()[:16]}", tuple(_in_turn(by_set)))

    @property
    def _where(self) -> str:
        """Where the prompts come from, for error messages."""
        return self.source if self.held_out else self.prompts

    def _documents(self) -> Iterator[Document]:
        """The documents of `source` that can be read."""
        items = iter_documents(self.source, text_field=self.text_field)
        return (item for item in items if isinstance(item, Document))

    def _prompt_documents(self, task: TaskKind) -> Iterator[Document]:
        if self.held_out:
            held_out = self._held_out(task)
            return (document for document in self._documents() if document.id in held_out)
        kind = KINDS.get(task)
        text_field = (kind and kind.text_field) or self.text_field
        return read_documents(self.prompts, text_field=text_field)

    def _prompts_of(self, document: Document, task: TaskKind) -> Iterator[Document]:
        """The prompts that a document gives: itself, or what a task makes of it."""
        if task == "text":
            return iter([document])
        return KINDS[task].prompts(document, self.lines_per_file)

    def _held_out(self, task: TaskKind) -> frozenset[str]:
        """The ids of the documents of `source` that are the prompts."""
        if task == "qa":
            raise ValueError("data.held_out is for documents: expected data.prompts for task qa")
        suitable = [each.id for each in self._documents() if any(self._prompts_of(each, task))]
        if not suitable and task != "text":
            raise SourceError(f"{self.source} holds no prompts: expected {KINDS[task].wanted}")
        if len(suitable) <= self.held_out:
            raise SourceError(
                f"{self.source} holds {len(suitable)} suitable documents: expected more than "
                f"data.held_out, which is {self.held_out}"
            )
        return frozenset(sorted(suitable, key=fraction)[: self.held_out])


@dataclass(frozen=True, slots=True)
class Prompt:
    """A document to score and the set it belongs to."""

    document: Document
    set: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run, in the order in which they are evaluated."""

    fingerprint: str
    """Hash of all documents at the source, so that a run may be extended to more of them."""
    prompts: tuple[Prompt, ...]


def _in_turn(by_set: dict[str, list[Document]]) -> Iterator[Prompt]:
    for i in range(max(map(len, by_set.values()), default=0)):
        yield from (Prompt(docs[i], name) for name, docs in by_set.items() if i < len(docs))


def fraction(text: str) -> float:
    """A number in [0, 1) that depends only on the text.

    >>> fraction("a text") == fraction("a text")
    True
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The contents of a TOML file: the data, in the table `[data]`, and the configuration."""

    data: EvalData = field(default_factory=EvalData)
    config: EvalConfig = field(default_factory=EvalConfig)

    @classmethod
    def read(cls, path: Path | None, overrides: Sequence[str] = ()) -> "Experiment":
        """The experiment in a TOML file, with `KEY=VALUE` lines that override its settings.

        Raises:
            ValueError: If a line is not valid TOML, or has an unknown key or a wrong value.
        """
        source = str(path or "--set")
        table = read_toml(path) if path else {}
        data = parse_fields(EvalData, table.pop("data", {}), f"{source} [data]")
        settings, lines = with_protocol(flat_settings(table, source)), dict[str, Any]()
        for line in overrides:
            override = parse_override(line, "--set")
            data |= parse_fields(EvalData, override.pop("data", {}), "--set data")
            lines |= flat_settings(override, "--set")
        settings |= with_protocol(lines)
        return cls(data=EvalData(**data), config=EvalConfig.from_table(settings, source))
