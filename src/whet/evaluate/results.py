"""The results of a run in memory: tables of its rows and prompts, and arrays by method and step.

Columns: docs/protocol.md, "A run on disk".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from whet.errors import require

require("pyarrow", "space")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float

from whet.errors import RunFolderError
from whet.evaluate.config import EvalConfig, flat_values
from whet.evaluate.provenance import same_space
from whet.evaluate.run_storage import (
    column,
    is_old,
    read_meta,
    strings,
    tables,
    translated_meta,
    translated_rows,
)
from whet.maths.arrays import Array

PHASES = ("embed_s", "search_s", "select_s", "train_s", "score_s")
REQUEST = ("embed_s", "search_s", "select_s", "train_s", "generate_s")  # until the answer is there


@dataclass(frozen=True, eq=False)
class Run:
    """The results of a run: the prompts that were evaluated, and those that failed."""

    folder: Path
    meta: dict[str, Any]
    table: pa.Table
    """One row per prompt, method, part and step: see docs/protocol.md."""
    prompts: pa.Table
    """One row per evaluated prompt, in the order in which they were finished."""
    errors: dict[str, str]
    """The error of each prompt that failed."""

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run in `folder`, finished or in progress; nothing is written.

        Raises:
            RunFolderError: If there is no run in `folder`, it was made by a newer version of whet,
                or none of its prompts is finished.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        table, prompts = tables(folder)
        failed = prompts.filter(pc.is_valid(prompts["error"]))
        errors = dict(zip(strings(failed, "prompt"), strings(failed, "error"), strict=True))
        evaluated = prompts.filter(pc.is_null(prompts["error"]))
        if not len(evaluated):
            reason = f"; the first error: {next(iter(errors.values()))}" if errors else ""
            raise RunFolderError(f"{folder} holds no finished prompt{reason}")
        if is_old(meta):
            table = translated_rows(table)
        try:
            meta = translated_meta(meta)
            config = EvalConfig.from_table(meta["config"], str(folder / "meta.json"))
        except ValueError as error:
            raise RunFolderError(
                f"{folder} cannot be read ({error}): use the version of whet that made it"
            ) from error
        return cls(folder, meta, table, _with_near(evaluated, config.near_overlap), errors)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def config(self) -> EvalConfig:
        """The configuration of the run."""
        return EvalConfig.from_table(self.meta["config"], str(self.folder / "meta.json"))

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods, in the order of the configuration."""
        return self.config.method_names

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that were scored for every method, ascending from 0."""
        return self.config.steps

    def column(self, name: str) -> Array:
        """A column of `prompts` as an array."""
        values: Array = np.asarray(self.prompts[name].to_numpy())
        return values

    def bits(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """Bits of every prompt's scored text after `step` steps, by default after the last.

        Raises:
            RunFolderError: If the run has no such method, or did not score that step.
        """
        return self._at(self._bits, method, step)

    def ratio(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """Bits after `step` steps as % of the bits before any step."""
        ratio: Float[Array, " n"] = 100 * self.bits(method, step) / self.column("base_bits")
        return ratio

    def sigma(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """σ after `step` picks, averaged over the parts; NaN where nothing was selected."""
        return self._at(self._sigma, method, step)

    def trajectories(self, method: str) -> Float[Array, "n steps"]:
        """σ_0 … σ_n of every prompt; after an early stop, the last σ is repeated."""
        sigma: Float[Array, "n steps"] = self._sigma[:, self._method_index(method)]
        last = np.maximum.accumulate(np.where(np.isnan(sigma), 0, np.arange(sigma.shape[1])), 1)
        return np.take_along_axis(sigma, last, axis=1)

    def tokens(self, method: str, step: int | None = None) -> Float[Array, " n"]:
        """Number of tokens trained on up to `step`."""
        return self._at(self._tokens, method, step)

    def seconds(
        self, method: str, step: int | None = None, phases: Iterable[str] = PHASES[:-1]
    ) -> Float[Array, " n"]:
        """Seconds of `phases` up to `step`; by default of all phases except scoring."""
        seconds: Float[Array, " n"] = np.zeros(len(self))
        for phase in phases:
            seconds += self._at(self._seconds[phase], method, step)
        return seconds

    def metric(self, name: str, method: str) -> Float[Array, " n"]:
        """A metric of every prompt's answer, such as `exact_match`; NaN where there is no answer."""
        values = self._cube(self.table[name].to_numpy())
        return self._at(values, method, None)

    def picks(self, prompt: str, method: str) -> list[str]:
        """The ids of the documents that a method trained on for a prompt, in the order of steps."""
        rows = self.table.filter(
            (pc.field("prompt") == prompt)
            & (pc.field("method") == method)
            & pc.is_valid(pc.field("document"))
        )
        return strings(rows, "document")

    def filter(self, mask: Bool[Array, " n"]) -> "Run":
        """The run restricted to the prompts where `mask` is true.

        Raises:
            RunFolderError: If no prompt is left.
        """
        if not mask.any():
            raise RunFolderError(f"no prompt of {self.folder} is left")
        prompts = self.prompts.filter(pa.array(mask))
        selected = pc.is_in(
            self.table["prompt"].cast(pa.string()), value_set=column(prompts, "prompt")
        )
        return replace(self, prompts=prompts, table=self.table.filter(selected))

    def without_contaminated(self) -> "Run":
        """The run without the prompts that have a near-duplicate in the data space."""
        return self.filter(~self.column("near").astype(bool))

    def _at(self, cube: Float[Array, "n m s"], method: str, step: int | None) -> Float[Array, " n"]:
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise RunFolderError(
                f"step {step} of {self.folder} was not scored: expected one of {list(self.steps)}"
            )
        values: Float[Array, " n"] = cube[:, self._method_index(method), step]
        return values

    def _method_index(self, method: str) -> int:
        if method not in self.methods:
            raise RunFolderError(
                f"{self.folder} has no method {method!r}: expected {', '.join(self.methods)}"
            )
        return self.methods.index(method)

    @cached_property
    def _cells(self) -> tuple[Array, tuple[int, int, int]]:
        """The index of each row in a flat prompts × methods × steps array, and that shape."""
        table, prompts = self.table, column(self.prompts, "prompt")
        prompt = pc.index_in(table["prompt"].cast(pa.string()), value_set=prompts)
        method = pc.index_in(
            table["method"].cast(pa.string()), value_set=pa.array(self.methods, pa.string())
        )
        if prompt.null_count or method.null_count:
            raise RunFolderError(
                f"{self.folder} holds rows without a prompt or method of the run: delete that folder"
            )
        shape = (len(self), len(self.methods), self.steps[-1] + 1)
        cells = (prompt.to_numpy(), method.to_numpy(), table["step"].to_numpy())
        return np.ravel_multi_index(cells, shape), shape

    def _cube(self, values: Array) -> Float[Array, "n m s"]:
        """`values`, one per row, summed over the parts of each prompt."""
        cells, shape = self._cells
        size = int(np.prod(shape))
        sums = np.bincount(cells, values, size).astype(np.float64)  # integers if there are no rows
        cube: Float[Array, "n m s"] = sums.reshape(shape)
        return cube

    @cached_property
    def _bits(self) -> Float[Array, "n m s"]:
        scored = self._cube(self.table["bits"].is_valid().to_numpy())[:, :, list(self.steps)]
        if (scored != self.column("parts")[:, None, None]).any():
            raise RunFolderError(f"{self.folder} lacks rows of its prompts: delete that folder")
        return self._cube(self.table["bits"].fill_null(0.0).to_numpy())

    @cached_property
    def _sigma(self) -> Float[Array, "n m s"]:
        sigma, part = self.table["sigma"].to_numpy(), self.table["part"].to_numpy()
        total, count = (np.zeros(self._cells[1]) for _ in range(2))
        for number in np.unique(part):  # a part that stopped keeps its σ while others continue
            valid = (part == number) & ~np.isnan(sigma)
            values, present = self._cube(np.where(valid, sigma, 0.0)), self._cube(valid) > 0
            steps = np.where(present, np.arange(values.shape[2]), 0)
            last = np.maximum.accumulate(steps, axis=2)
            total += np.take_along_axis(values, last, axis=2)
            count += np.take_along_axis(present, last, axis=2)
        mean: Float[Array, "n m s"] = np.full(total.shape, np.nan)
        np.divide(total, count, out=mean, where=count > 0)
        return mean

    @cached_property
    def _tokens(self) -> Float[Array, "n m s"]:
        return self._cube(self.table["tokens"].to_numpy()).cumsum(axis=2)

    @cached_property
    def _seconds(self) -> dict[str, Float[Array, "n m s"]]:
        phases = dict.fromkeys((*PHASES, *REQUEST))
        columns = {phase: self.table[phase].fill_null(0.0).to_numpy() for phase in phases}
        return {phase: self._cube(values).cumsum(axis=2) for phase, values in columns.items()}


def _with_near(prompts: pa.Table, near_overlap: float) -> pa.Table:
    """The prompts with `near` from `exact` and `overlap`: earlier versions counted cosines too."""
    near = pc.or_(prompts["exact"], pc.greater_equal(prompts["overlap"], near_overlap))
    return prompts.set_column(prompts.column_names.index("near"), "near", near)


def join(runs: Sequence[Run]) -> Run:
    """Runs on the same prompts as one run with the methods of all of them.

    Prompts that are not in every run are left out.

    Raises:
        RunFolderError: If the runs differ in more than their methods, have a method in common, or
            have no prompt in common.
    """
    first, *others = runs
    if not others:
        return first
    methods, names = list(first.config.methods), list(first.methods)
    adapters = first.meta.get("adapters", {})
    for run in others:
        for name, value in _common(first).items():
            other = _common(run)[name]
            if not (same_space(value, other) if name == "space" else value == other):
                raise RunFolderError(
                    f"{first.folder} has {name} {value!r}, but {run.folder} has {other!r}: only "
                    "runs that differ in nothing but their methods can be joined"
                )
        if twice := set(run.methods) & set(names):
            raise RunFolderError(
                f"{run.folder} has method {twice.pop()!r}, and so has a run before it: join runs "
                "that have no method in common"
            )
        methods, names = [*methods, *run.config.methods], [*names, *run.methods]
        adapters = adapters | run.meta.get("adapters", {})
    runs = align_runs(*runs)
    config = replace(first.config, methods=tuple(methods)).to_table()
    table = pa.concat_tables([run.table for run in runs]).unify_dictionaries()
    peaks = np.max([run.column("peak_mib") for run in runs], axis=0)
    prompts = runs[0].prompts
    index = prompts.column_names.index("peak_mib")
    prompts = prompts.set_column(index, prompts.schema.field(index), pa.array(peaks))
    errors = {name: error for run in runs for name, error in run.errors.items()}
    meta = first.meta | {"config": config, "adapters": adapters}
    if notes := unverified(runs):
        meta["notes"] = notes
    return Run(first.folder, meta, table, prompts, errors)


def unverified(runs: Sequence[Run]) -> list[str]:
    """A note about each run without the fingerprint of its embedder, if there are several runs."""
    folders = [str(run.folder) for run in runs if "fingerprint" not in run.meta["space"]]
    if len(runs) < 2 or not folders:
        return []
    return [
        f"{', '.join(folders)}: made by a version that did not record the embedder's fingerprint, "
        "so these runs may be of different embeddings."
    ]


def align_runs(*runs: Run) -> list[Run]:
    """The runs restricted to the prompts that all of them have, in the order of the first.

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


def _common(run: Run) -> dict[str, Any]:
    """What joined runs have in common: everything except their methods."""
    settings = flat_values(run.config)
    return settings | {"space": run.meta["space"], "prompts": run.meta["prompts"]}
