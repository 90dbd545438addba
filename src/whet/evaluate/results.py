"""A run in memory: what was measured, prompt by prompt, and its views as arrays.

Columns: docs/protocol.md, "A run on disk".
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float

from whet.errors import RunFolderError
from whet.evaluate.config import EvalConfig
from whet.evaluate.run_storage import column, listed, read_meta, tables
from whet.maths.arrays import Array

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
            RunFolderError: If there is no run in `folder`, or none of its prompts is finished.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        table, prompts = tables(folder)
        failed = prompts.filter(pc.is_valid(prompts["error"]))
        errors = dict(zip(listed(failed, "prompt"), listed(failed, "error"), strict=True))
        done = prompts.filter(pc.is_null(prompts["error"]))
        if not len(done):
            why = f"; the first error: {next(iter(errors.values()))}" if errors else ""
            raise RunFolderError(f"{folder} holds no finished prompt{why}")
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
            RunFolderError: If the run has no such method, or did not score that step.
        """
        return self._at(self._bits, method, step)

    def ratio(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """Bits after `step` steps in % of those before."""
        ratio: Float[Array, " n"] = 100 * self.bits(method, step) / self.column("base_bits")
        return ratio

    def sigma(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """σ after `step` picks, the mean over the parts; nan where nothing was selected."""
        return self._at(self._sigma, method, step)

    def trajectories(self, method: str) -> Float[Array, "n steps"]:
        """σ_0 … σ_n of every prompt, as `sigma`; after a stop, the σ where it stopped."""
        sigma: Float[Array, "n steps"] = self._sigma[:, self._place(method)]
        last = np.maximum.accumulate(np.where(np.isnan(sigma), 0, np.arange(sigma.shape[1])), 1)
        return np.take_along_axis(sigma, last, axis=1)

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
        return listed(own, "document")

    def keep(self, mask: Bool[Array, " n"]) -> "Run":
        """The run with those of its prompts alone.

        Raises:
            RunFolderError: If none is kept.
        """
        if not mask.any():
            raise RunFolderError(f"{self.folder} holds no prompt that is kept")
        prompts = self.prompts.filter(pa.array(mask))
        own = pc.is_in(self.table["prompt"].cast(pa.string()), value_set=column(prompts, "prompt"))
        return replace(self, prompts=prompts, table=self.table.filter(own))

    def without_leaks(self) -> "Run":
        """The run without the prompts that are in the data space, exactly or nearly."""
        return self.keep(~self.column("near").astype(bool))

    def _at(self, cube: Float[Array, "n m s"], method: str, step: int | None) -> Float[Array, " n"]:
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise RunFolderError(
                f"step {step} of {self.folder} was not scored: expected one of {list(self.steps)}"
            )
        values: Float[Array, " n"] = cube[:, self._place(method), step]
        return values

    def _place(self, method: str) -> int:
        if method not in self.methods:
            raise RunFolderError(
                f"{self.folder} has no method {method!r}: expected {', '.join(self.methods)}"
            )
        return self.methods.index(method)

    @cached_property
    def _cells(self) -> tuple[Array, tuple[int, int, int]]:
        """The place of each row in a cube of prompts × methods × steps, and its shape."""
        table, prompts = self.table, column(self.prompts, "prompt")
        prompt = pc.index_in(table["prompt"].cast(pa.string()), value_set=prompts)
        method = pc.index_in(
            table["method"].cast(pa.string()), value_set=pa.array(self.methods, pa.string())
        )
        if prompt.null_count or method.null_count:
            raise RunFolderError(
                f"{self.folder} holds rows of no prompt or method: delete that run"
            )
        shape = (len(self), len(self.methods), self.steps[-1] + 1)
        cells = (prompt.to_numpy(), method.to_numpy(), table["step"].to_numpy())
        return np.ravel_multi_index(cells, shape), shape

    def _cube(self, values: Array) -> Float[Array, "n m s"]:
        """The sum of `values`, one a row, over the parts of each prompt."""
        cells, shape = self._cells
        size = int(np.prod(shape))
        sums = np.bincount(cells, values, size).astype(np.float64)  # of no rows, whole numbers
        cube: Float[Array, "n m s"] = sums.reshape(shape)
        return cube

    @cached_property
    def _bits(self) -> Float[Array, "n m s"]:
        scored = self._cube(self.table["bits"].is_valid().to_numpy())[:, :, list(self.steps)]
        if (scored != self.column("parts")[:, None, None]).any():
            raise RunFolderError(f"{self.folder} lacks rows of its prompts: delete that run")
        return self._cube(self.table["bits"].fill_null(0.0).to_numpy())

    @cached_property
    def _sigma(self) -> Float[Array, "n m s"]:
        sigma, part = self.table["sigma"].to_numpy(), self.table["part"].to_numpy()
        total, count = (np.zeros(self._cells[1]) for _ in range(2))
        for each in np.unique(part):  # a part that stopped keeps its σ while the others go on
            known = (part == each) & ~np.isnan(sigma)
            own, there = self._cube(np.where(known, sigma, 0.0)), self._cube(known) > 0
            last = np.maximum.accumulate(np.where(there, np.arange(own.shape[2]), 0), axis=2)
            total += np.take_along_axis(own, last, axis=2)
            count += np.take_along_axis(there, last, axis=2)
        mean: Float[Array, "n m s"] = np.full(total.shape, np.nan)
        np.divide(total, count, out=mean, where=count > 0)
        return mean

    @cached_property
    def _tokens(self) -> Float[Array, "n m s"]:
        return self._cube(self.table["tokens"].to_numpy()).cumsum(axis=2)

    @cached_property
    def _seconds(self) -> dict[str, Float[Array, "n m s"]]:
        return {p: self._cube(self.table[p].to_numpy()).cumsum(axis=2) for p in PHASES}


def join(runs: list[Run]) -> Run:
    """Combine runs of the same data into one run with the methods of all.

    Prompts that are not in every run are left out.

    Raises:
        RunFolderError: If the runs differ in more than their methods, have a method in common, or
            have no prompt in common.
    """
    first, *rest = runs
    if not rest:
        return first
    methods, adaptations = list(first.methods), first.meta["adaptations"]
    for run in rest:
        for key, expected in _shared_settings(first).items():
            value = _shared_settings(run)[key]
            if value != expected:
                raise RunFolderError(
                    f"{first.folder} has {key} {expected!r}, but {run.folder} has {value!r}: only "
                    "runs that differ in nothing but their methods can be joined"
                )
        if repeated := set(methods) & set(run.methods):
            raise RunFolderError(
                f"{run.folder} has method {repeated.pop()!r}, and so has a run before it: join "
                "runs that have no method in common"
            )
        methods += run.methods
        adaptations = adaptations | run.meta["adaptations"]
    runs = align_runs(*runs)
    switches = first.meta["switches"] | {"methods": methods}
    table = pa.concat_tables([run.table for run in runs]).unify_dictionaries()
    peaks = np.max([run.column("peak_mib") for run in runs], axis=0)
    prompts = runs[0].prompts
    position = prompts.column_names.index("peak_mib")
    prompts = prompts.set_column(position, prompts.schema.field(position), pa.array(peaks))
    errors = {name: error for run in runs for name, error in run.errors.items()}
    meta = first.meta | {"switches": switches, "adaptations": adaptations}
    return Run(first.folder, meta, table, prompts, errors)


def align_runs(*runs: Run) -> list[Run]:
    """The runs restricted to their common prompts, in the order of the first run.

    Raises:
        RunFolderError: If they have no prompt in common.
    """
    names = runs[0].prompts["prompt"].to_pylist()
    for run in runs[1:]:
        present = set(run.prompts["prompt"].to_pylist())
        names = [name for name in names if name in present]
    if not names:
        raise RunFolderError(
            f"{', '.join(str(run.folder) for run in runs)} have no prompt in common: finish them"
        )
    return [_reorder(run, names) for run in runs]


def _reorder(run: Run, names: list[str]) -> Run:
    order = pc.index_in(pa.array(names), value_set=run.prompts["prompt"].combine_chunks())
    prompts = run.prompts.take(order)
    selected = pc.is_in(run.table["prompt"].cast(pa.string()), value_set=pa.array(names))
    return replace(run, prompts=prompts, table=run.table.filter(selected))


def _shared_settings(run: Run) -> dict[str, Any]:
    """What joined runs must have in common: everything except the methods."""
    switches = EvalConfig().record() | run.meta["switches"]  # fields added later: their defaults
    del switches["methods"]
    return {**switches, "space": run.meta["space"], "prompts": run.meta["prompts"]}
