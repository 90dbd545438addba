"""Prompts × methods × steps: one line of `rows.jsonl` a prompt, written when it is done, once.

A run's folder holds `meta.json` (switches, space, prompts, versions, machine) and the rows. A run
that was cut short goes on where it stopped; a folder of another configuration is refused.
"""

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from whet.adapt.model import LanguageModel
from whet.errors import RunError
from whet.evaluate.protocol import Switches
from whet.evaluate.provenance import fingerprint, provenance
from whet.evaluate.trial import Evaluator, Row
from whet.maths.arrays import as_count
from whet.space.documents import Document, read_documents
from whet.space.files import locked
from whet.space.progress import bar
from whet.spaces import open_space

ROWS, META = "rows.jsonl", "meta.json"


def evaluate(
    space: Path,
    prompts: Path,
    folder: Path,
    switches: Switches,
    *,
    per_set: int | None = None,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Evaluate `switches.methods` on the documents of `prompts`; rows land in `folder`.

    A prompt that is done already is not done again, so a larger `per_set` extends a run. With
    `workers`, as many processes evaluate a prompt each, on one thread; their rows land as they end.

    Raises:
        WhetError: If the space, the prompts or the model cannot be read, or `folder` holds another
            run or is being written.
    """
    documents = first_of_each_set(read_documents(prompts), per_set)
    opened = open_space(space)
    evaluator = Evaluator(opened, LanguageModel.load(switches.model), switches)
    begin(
        folder,
        {
            "format": 1,
            "switches": switches.record(),
            "space": {"documents": len(opened), "embedder": opened.embedder.name},
            "adaptation": asdict(evaluator.adaptation),
            "prompts": fingerprint(prompts),
        },
    )
    with locked(folder):
        done = {row["prompt"] for row in read_rows(folder, repair=True)}
        left = [document for document in documents if document.id not in done]
        with (
            bar(f"evaluate {folder.name}", len(left), show=progress) as advance,
            _rows(evaluator, left, space, switches, as_count(workers, "workers")) as rows,
            (folder / ROWS).open("a", encoding="utf-8") as out,
        ):
            for row in rows:
                out.write(json.dumps(row) + "\n")
                out.flush()
                os.fsync(out.fileno())
                advance(1)


@contextmanager
def _rows(
    evaluator: Evaluator, documents: list[Document], space: Path, switches: Switches, workers: int
) -> Iterator[Iterator[Row]]:
    if workers == 1:
        yield map(evaluator.row, documents)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (space, switches)
    )
    try:
        yield pool.map(_row, documents)
    finally:
        pool.shutdown(cancel_futures=True)


_own: list[Evaluator] = []  # a worker process's one evaluator


def _start(space: Path, switches: Switches) -> None:
    torch.set_num_threads(1)
    _own.append(Evaluator(open_space(space), LanguageModel.load(switches.model), switches))


def _row(document: Document) -> Row:
    return _own[0].row(document)


def first_of_each_set(documents: Iterable[Document], per_set: int | None) -> list[Document]:
    """The first `per_set` documents of every `meta.set`, one of each set in turn."""
    by_set: dict[str, list[Document]] = {}
    for document in documents:
        own = by_set.setdefault(str(document.meta.get("set", "all")), [])
        if per_set is None or len(own) < per_set:
            own.append(document)
    longest = max(map(len, by_set.values()), default=0)
    return [own[i] for i in range(longest) for own in by_set.values() if i < len(own)]


def begin(folder: Path, meta: dict[str, Any]) -> None:
    """Make a run's folder of what `meta` says, or check that it holds this very run.

    Raises:
        RunError: If the folder holds another run, or something else.
    """
    path = folder / META
    if path.exists():
        _assert_same(folder, read_meta(folder), meta)
        return
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(meta | provenance(), indent=1))
    aside.replace(path)


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
    if not isinstance(meta, dict) or "switches" not in meta:
        raise RunError(f"{folder} holds no run: make one with `whet eval --out FOLDER`")
    if meta.get("format") != 1:
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
