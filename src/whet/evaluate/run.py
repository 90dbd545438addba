"""Prompts × methods × steps: one line of `rows.jsonl` a prompt, written when it is done, once.

A run's folder holds `meta.json` (switches, space, prompts, versions, machine) and the rows. A run
that was cut short goes on where it stopped; a folder of another configuration is refused.
"""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whet.adapt.model import LanguageModel
from whet.adapt.slot import adapting
from whet.engine import open_space
from whet.errors import ModelError, RunError
from whet.evaluate.protocol import Switches, Task
from whet.select.table import selector
from whet.space.documents import Document, read_documents
from whet.space.progress import bar
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace

ROWS, META = "rows.jsonl", "meta.json"
Row = dict[str, Any]


def evaluate(
    space: Path,
    prompts: Path,
    folder: Path,
    switches: Switches,
    *,
    per_set: int | None = None,
    progress: bool = True,
) -> None:
    """Evaluate `switches.methods` on the documents of `prompts`; rows land in `folder`.

    A prompt that is done already is not done again, so a larger `per_set` extends a run.

    Raises:
        WhetError: If the space, the prompts or the model cannot be read, or `folder` holds another
            run.
    """
    documents = first_of_each_set(read_documents(prompts), per_set)
    model = LanguageModel.load(switches.model)
    run = Run(folder, open_space(space), model, switches)
    done = run.open(fingerprint(prompts))
    left = [document for document in documents if document.id not in done]
    with bar(f"evaluate {folder.name}", len(left), show=progress) as advance:
        for document in left:
            run.add(document)
            advance(1)


class Run:
    """The evaluation of one space and one model under one set of switches, in one folder."""

    def __init__(
        self, folder: Path, space: DataSpace, model: LanguageModel, switches: Switches
    ) -> None:
        self._folder = folder
        self._space = space
        self._model = model
        self._switches = switches
        self._adaptation = model.adaptation(switches.mode, lr=switches.lr, rank=switches.rank)
        methods = {spelled: switches.method(spelled) for spelled in switches.methods}
        self._retrievers = {
            spelled: Retriever(space, selector=selector(name), k=switches.k, lam=lam)
            for spelled, (name, lam) in methods.items()
        }

    def open(self, prompts: str) -> set[str]:
        """Make the folder, or check that it holds this very run; returns the prompts already done.

        Raises:
            RunError: If the folder holds another run, or something else.
        """
        meta = {
            "format": 1,
            "switches": self._switches.record(),
            "space": {"documents": len(self._space), "embedder": self._space.embedder.name},
            "adaptation": asdict(self._adaptation),
            "prompts": prompts,
        }
        path = self._folder / META
        if path.exists():
            _assert_same(self._folder, read_meta(self._folder), meta)
            return {row["prompt"] for row in read_rows(self._folder, repair=True)}
        if self._folder.exists() and any(self._folder.iterdir()):
            raise RunError(f"{self._folder} is not empty and holds no run: choose another --out")
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(meta | provenance(), indent=1))
        aside.replace(path)
        return set()

    def add(self, document: Document) -> Row:
        """Evaluate every method on one prompt and write its row, or its error."""
        row: Row = {"prompt": document.id, "set": str(document.meta.get("set", "all"))}
        try:
            row |= self._evaluate(document)
        except (ValueError, ModelError) as error:
            row["error"] = str(error)
        with (self._folder / ROWS).open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())
        return row

    def _evaluate(self, document: Document) -> Row:
        task = Task.of(document.text, self._switches)
        start = time.perf_counter()
        base = self._model.score(task.text, context=task.context)
        seconds = time.perf_counter() - start
        return {
            "bytes": base.bytes,
            "base_bits": base.bits,
            "base_seconds": seconds,
            "steps": list(self._switches.steps),
            "methods": {
                spelled: self._try(task, retriever, base.bits)
                for spelled, retriever in self._retrievers.items()
            },
        }

    def _try(self, task: Task, retriever: Retriever, base_bits: float) -> Row:
        """Select, step, score at the steps asked for, put the weights back."""
        switches = self._switches
        retrieval = retriever.select(task.query, switches.n)
        seconds = dict(retrieval.seconds) | {"train": 0.0, "score": 0.0}
        documents = retrieval.documents
        if switches.order == "reversed":
            documents = documents[::-1]
        bits, losses = [base_bits], []
        with adapting(self._model, self._adaptation, switches.optimiser_options) as slot:
            for step, document in enumerate(documents, start=1):
                start = time.perf_counter()
                losses.append(slot.step(document.text))
                trained = time.perf_counter()
                seconds["train"] += trained - start
                if step in switches.steps:
                    bits.append(slot.score(task.text, context=task.context).bits)
                    seconds["score"] += time.perf_counter() - trained
        return {
            "bits": bits,
            "sigma": retrieval.selection.sigma.tolist(),
            "picks": [document.id for document in retrieval.documents],
            "losses": losses,
            "seconds": seconds,
        }


def first_of_each_set(documents: Iterable[Document], per_set: int | None) -> list[Document]:
    """The first `per_set` documents of every `meta.set`, one of each set in turn."""
    by_set: dict[str, list[Document]] = {}
    for document in documents:
        own = by_set.setdefault(str(document.meta.get("set", "all")), [])
        if per_set is None or len(own) < per_set:
            own.append(document)
    longest = max(map(len, by_set.values()), default=0)
    return [own[i] for i in range(longest) for own in by_set.values() if i < len(own)]


def read_meta(folder: Path) -> dict[str, Any]:
    """What a run's folder says of itself.

    Raises:
        RunError: If the folder holds no run, or one of another format.
    """
    path = folder / META
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} holds no run: make one with `whet eval --out {folder}`"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is corrupt ({error}): delete {folder} and run again") from error
    if not isinstance(meta, dict) or meta.get("format") != 1:
        raise RunError(f"{path} is not a run of format 1: it was made by another version of whet")
    return meta


def read_rows(folder: Path, *, repair: bool = False) -> list[Row]:
    """The rows of a run; a last line that was cut short is left out, and with `repair` removed.

    Raises:
        RunError: If any other line is not JSON.
    """
    path = folder / ROWS
    if not path.exists():
        return []
    rows, whole = [], 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("cut short")
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise RunError(f"{path}, line {number}: {error}: delete that line") from error
            break
        whole += len(line)
    if repair and whole < path.stat().st_size:
        with path.open("r+b") as out:
            out.truncate(whole)
    return rows


def finished(folder: Path) -> list[Row]:
    """The rows of the prompts that did not fail.

    Raises:
        RunError: If there is no run in `folder`, or none of its prompts is finished.
    """
    read_meta(folder)
    rows = read_rows(folder)
    done = [row for row in rows if "error" not in row]
    if not done:
        why = f"; the first error: {rows[0]['error']}" if rows else ""
        raise RunError(f"{folder} holds no finished prompt{why}")
    return done


def fingerprint(path: Path) -> str:
    """Name and SHA-256 of a file of prompts."""
    with path.open("rb") as file:
        return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def provenance() -> dict[str, Any]:
    """What a number depends on beside its switches: versions, machine, commit."""
    packages = ("whet", "numpy", "scikit-learn", "torch", "transformers")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": {name: version(name) for name in packages},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "commit": commit.stdout.strip() or None,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")


def _assert_same(folder: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    for key, value in asked.items():
        old = stored.get(key)
        if old == value:
            continue
        if key == "switches":
            name = next(n for n in value if old is None or old.get(n) != value[n])
            old, value, key = (old or {}).get(name), value[name], name
        raise RunError(
            f"{folder} holds a run with {key} {old!r}, but {value!r} is asked: "
            "choose another --out, or delete that folder"
        )
