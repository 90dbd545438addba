"""A run on disk and in memory: what was measured, prompt by prompt, and its views as arrays.

A run's folder holds `meta.json`, two Parquet tables (`rows`, `prompts`), and while it is under way
`journal.jsonl`, a line a prompt, written once and synced. Packing moves the journal into the
tables: rows first, then prompts, then the journal goes. A prompt that the prompts table names is
packed; rows of any other prompt, and journal lines of a packed one, are what a crash left behind
and count for nothing.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from whet.errors import RunError
from whet.maths.arrays import Array
from whet.space.meta import sync_folder

FORMAT = 2
META, JOURNAL, ROWS, PROMPTS = "meta.json", "journal.jsonl", "rows.parquet", "prompts.parquet"
NAME = pa.dictionary(pa.int32(), pa.string())
ROW_SCHEMA = pa.schema({
    "prompt": NAME, "method": NAME, "part": pa.int16(), "bytes": pa.int64(),
    "base_bits": pa.float64(), "step": pa.int32(), "bits": pa.float64(), "sigma": pa.float64(),
    "loss": pa.float64(), "document": NAME, "multiplicity": pa.int32(), "tokens": pa.int64(),
    "embed_s": pa.float64(), "search_s": pa.float64(), "select_s": pa.float64(),
    "train_s": pa.float64(), "score_s": pa.float64(),
})  # fmt: skip
PROMPT_SCHEMA = pa.schema({
    "prompt": pa.string(), "set": pa.string(), "error": pa.string(), "parts": pa.int16(),
    "bytes": pa.int64(), "base_bits": pa.float64(), "base_s": pa.float64(),
    "query_bytes": pa.int64(), "query_bits": pa.float64(), "exact": pa.bool_(), "near": pa.bool_(),
    "cosine": pa.float64(), "overlap": pa.float64(), "cosines": pa.list_(pa.float32()),
    "peak_mib": pa.float64(),
})  # fmt: skip
PHASES = ("embed_s", "search_s", "select_s", "train_s", "score_s")


@dataclass(frozen=True, eq=False)
class Run:
    """The prompts of a run that were measured, and those that failed."""

    folder: Path
    meta: dict[str, Any]
    table: pa.Table
    """A row a (prompt, method, part, step): see docs/protocol.md."""
    prompts: pa.Table
    """A row a prompt that was measured, in the order in which they ended."""
    errors: dict[str, str]
    """The error of each prompt that failed."""

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run in `folder`, under way or finished; nothing is written.

        Raises:
            RunError: If there is no run in `folder`, or none of its prompts is finished.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        table, prompts = _tables(folder)
        failed = prompts.filter(pc.is_valid(prompts["error"]))
        errors = dict(zip(_list(failed, "prompt"), _list(failed, "error"), strict=True))
        done = prompts.filter(pc.is_null(prompts["error"]))
        if not len(done):
            why = f"; the first error: {next(iter(errors.values()))}" if errors else ""
            raise RunError(f"{folder} holds no finished prompt{why}")
        return cls(folder, meta, table, done, errors)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.meta["switches"]["methods"])

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The steps that were scored for every method, ascending from 0."""
        switches = self.meta["switches"]
        asked = {0, switches["n"], *switches["score_at"]}
        return tuple(sorted(step for step in asked if 0 <= step <= switches["n"]))

    def column(self, name: str) -> Array:
        """A column of the prompts as an array."""
        column: Array = np.asarray(self.prompts[name].to_numpy())
        return column

    def bits(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """Bits of every prompt's text after `step` steps; after the last if None.

        Raises:
            RunError: If the run has no such method, or did not score that step.
        """
        return self._at(self._bits, method, step)

    def ratio(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """Bits after `step` steps in % of those before."""
        ratio: Float[Array, " n"] = 100 * self.bits(method, step) / self.column("base_bits")
        return ratio

    def sigma(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """σ after `step` picks, the mean over the parts; nan where nothing was selected."""
        return self._at(self._sigma, method, step)

    def tokens(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """Tokens trained up to `step`."""
        return self._at(self._tokens, method, step)

    def seconds(
        self, method: str, step: int | None = None, phases: Iterable[str] = PHASES[:-1]
    ) -> Float[Array, " n"]:
        """Seconds of `phases` up to `step`; of all but scoring unless named."""
        cost: Float[Array, " n"] = np.zeros(len(self))
        for phase in phases:
            cost += self._at(self._seconds[phase], method, step)
        return cost

    def picks(self, prompt: str, method: str) -> list[str]:
        """The documents that a method picked for a prompt, in the order of the steps."""
        own = self.table.filter(
            (pc.field("prompt") == prompt)
            & (pc.field("method") == method)
            & pc.is_valid(pc.field("document"))
        )
        return _list(own, "document")

    def keep(self, mask: Bool[Array, " n"]) -> "Run":
        """The run with those of its prompts alone.

        Raises:
            RunError: If none is kept.
        """
        if not mask.any():
            raise RunError(f"{self.folder} holds no prompt that is kept")
        prompts = self.prompts.filter(pa.array(mask))
        own = pc.is_in(self.table["prompt"].cast(pa.string()), value_set=_column(prompts, "prompt"))
        return replace(self, prompts=prompts, table=self.table.filter(own))

    def without_leaks(self) -> "Run":
        """The run without the prompts that are in the data space, exactly or nearly."""
        return self.keep(~self.column("near").astype(bool))

    def _at(self, cube: Float[Array, "n m s"], method: str, step: int | None) -> Float[Array, " n"]:
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise RunError(
                f"step {step} of {self.folder} was not scored: expected one of {list(self.steps)}"
            )
        if method not in self.methods:
            raise RunError(
                f"{self.folder} has no method {method!r}: expected {', '.join(self.methods)}"
            )
        values: Float[Array, " n"] = cube[:, self.methods.index(method), step]
        return values

    @cached_property
    def _cells(self) -> tuple[Array, tuple[int, int, int]]:
        """The place of each row in a cube of prompts × methods × steps, and its shape."""
        table, prompts = self.table, _column(self.prompts, "prompt")
        prompt = pc.index_in(table["prompt"].cast(pa.string()), value_set=prompts)
        method = pc.index_in(
            table["method"].cast(pa.string()), value_set=pa.array(self.methods, pa.string())
        )
        shape = (len(self), len(self.methods), self.steps[-1] + 1)
        cells = (prompt.to_numpy(), method.to_numpy(), table["step"].to_numpy())
        return np.ravel_multi_index(cells, shape), shape

    def _cube(self, values: Array) -> Float[Array, "n m s"]:
        """The sum of `values`, one a row, over the parts of each prompt."""
        cells, shape = self._cells
        size = int(np.prod(shape))
        cube: Float[Array, "n m s"] = np.bincount(cells, values, size).reshape(shape)
        return cube

    @cached_property
    def _bits(self) -> Float[Array, "n m s"]:
        return self._cube(np.nan_to_num(self.table["bits"].to_numpy()))

    @cached_property
    def _sigma(self) -> Float[Array, "n m s"]:
        sigma = self.table["sigma"].to_numpy()
        known = ~np.isnan(sigma)
        total, count = self._cube(np.where(known, sigma, 0.0)), self._cube(known)
        mean: Float[Array, "n m s"] = np.full(total.shape, np.nan)
        np.divide(total, count, out=mean, where=count > 0)
        return mean

    @cached_property
    def _tokens(self) -> Float[Array, "n m s"]:
        return self._cube(self.table["tokens"].to_numpy()).cumsum(axis=2)

    @cached_property
    def _seconds(self) -> dict[str, Float[Array, "n m s"]]:
        return {p: self._cube(self.table[p].to_numpy()).cumsum(axis=2) for p in PHASES}


def read_meta(folder: Path) -> dict[str, Any]:
    """What a run's folder says of itself.

    Raises:
        RunError: If the folder holds no run, or one of another format.
    """
    path = folder / META
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(
            f"{folder} holds no run: make one with `whet eval --out {folder}`"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is corrupt ({error}): delete {folder} and run again") from error
    if not isinstance(meta, dict) or "switches" not in meta:
        raise RunError(f"{folder} holds no run: make one with `whet eval --out FOLDER`")
    if meta.get("format") != FORMAT:
        raise RunError(
            f"{folder} is a run of format {meta.get('format')}, but this version of whet reads "
            f"format {FORMAT}: run it again with another --out"
        )
    return meta


def append(folder: Path, record: dict[str, Any]) -> None:
    """Keep what `Evaluator.record` says of a prompt; once this returns, nothing loses it."""
    with (folder / JOURNAL).open("ab") as out:
        out.write(json.dumps(record).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def repair(folder: Path) -> set[str]:
    """Remove a journal line that was cut short; the prompts that are done, failed ones included.

    Raises:
        RunError: If any other line is not JSON.
    """
    whole, records = _journal(folder)
    path = folder / JOURNAL
    if path.exists() and whole < path.stat().st_size:
        with path.open("r+b") as out:
            out.truncate(whole)
    return {*_list(_packed(folder)[1], "prompt"), *(record["prompt"] for record in records)}


def pack(folder: Path) -> None:
    """Move the journal into the Parquet tables; a crash on the way loses and doubles nothing."""
    if not (folder / JOURNAL).exists():
        return
    for table, name in zip(_tables(folder), (ROWS, PROMPTS), strict=True):
        aside = folder / f"{name}.tmp"
        pq.write_table(table, aside, compression="zstd")
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(folder / name)
        sync_folder(folder)
    (folder / JOURNAL).unlink()


def _tables(folder: Path) -> tuple[pa.Table, pa.Table]:
    """All rows and all prompts, packed and not."""
    rows, prompts = _packed(folder)
    packed = set(_list(prompts, "prompt"))
    fresh = {r["prompt"]: r for r in _journal(folder)[1] if r["prompt"] not in packed}
    tables = [rows]
    for name, record in fresh.items():
        if columns := record.pop("rows", None):
            columns["prompt"] = [name] * len(columns["step"])
            tables.append(pa.table(columns, schema=ROW_SCHEMA))
    added = pa.Table.from_pylist(list(fresh.values()), schema=PROMPT_SCHEMA)
    return pa.concat_tables(tables).unify_dictionaries(), pa.concat_tables([prompts, added])


def _packed(folder: Path) -> tuple[pa.Table, pa.Table]:
    """The rows and prompts that are in the tables; rows of no prompt there are left out.

    Raises:
        RunError: If a table cannot be read.
    """
    prompts = _read(folder / PROMPTS, PROMPT_SCHEMA)
    rows = _read(folder / ROWS, ROW_SCHEMA)
    known = pc.is_in(rows["prompt"].cast(pa.string()), value_set=_column(prompts, "prompt"))
    return rows.filter(known), prompts


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.exists():
        return schema.empty_table()
    try:
        return pq.read_table(path, schema=schema)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path} cannot be read ({reason}): delete that run") from error


def _journal(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """How many bytes of the journal are whole lines, and their records.

    Raises:
        RunError: If a line that was not cut short is not JSON.
    """
    path = folder / JOURNAL
    if not path.exists():
        return 0, []
    records, whole = [], 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"{path}, line {number}: {error}: delete that line") from error
        whole += len(line)
    return whole, records


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def _list(table: pa.Table, name: str) -> list[str]:
    values: list[str] = table[name].to_pylist()
    return values
