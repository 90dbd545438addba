"""A folder of runs on one data space and one list of prompts; what is missing is made when asked.

Without a data space of the user's own, the source of Python's standard library is one: see
`whet.evaluate.demo`.
"""

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from whet.data.documents import Document
from whet.embed.lsa import LSA
from whet.errors import RunFolderError, SourceError
from whet.evaluate.config import DYNAMIC, EvalConfig
from whet.evaluate.dataset import Data, Prompts, fraction
from whet.evaluate.demo import LONGEST, SHORTEST, modules, parts, source
from whet.evaluate.provenance import space_record
from whet.evaluate.reproduce.measures import aligned
from whet.evaluate.reproduce.plans import EMBEDDED, PLANS, Plan
from whet.evaluate.results import Run
from whet.evaluate.runner import evaluate
from whet.evaluate.worker_pool import WorkerPool
from whet.io import atomic_write
from whet.space.space import DataSpace
from whet.space.store.staging import EMBEDDER_FOLDER

QUICK_STEPS, QUICK_PROMPTS = 10, 12
PER_SET = 20
KINDS = ("encodings", "packages", "modules")  # the sets of the standard library


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs in `folder`, each made of a `Plan`."""

    folder: Path
    data: Data
    switches: EvalConfig = field(default_factory=EvalConfig)
    """Of every run, but for its methods; the model is the main one."""
    small: str = "whet-pico"
    """The small model."""
    processes: WorkerPool | None = None
    progress: bool = True
    _runs: dict[str, Run] = field(default_factory=dict, init=False, repr=False)

    def run(self, spec: str) -> Run:
        """The run called `spec`, made or gone on with first; joined by `+`, several as one.

        Raises:
            WhetError: If the data space, the prompts or a model cannot be read, or the study's
                folder holds a run of another configuration.
        """
        return join([self._made(name) for name in spec.split("+")])

    def _made(self, name: str) -> Run:
        if name not in self._runs:
            plan, folder = PLANS[name], self.folder / name
            if plan.model == "small" and self.small == self.switches.model:
                raise RunFolderError(
                    f"small is {self.small!r}, and so is the main model: name another (--small)"
                )
            data = replace(self.data, space=str(self._part(plan)))
            model = self.small if plan.model == "small" else self.switches.model
            whole = self.switches.leakage == "whole"  # the query is the scored text
            methods = tuple(m for m in plan.methods if not (whole and m == DYNAMIC))
            switches = replace(self.switches, model=model, methods=methods)
            evaluate(data, folder, switches, processes=self.processes, progress=self.progress)
            self._runs[name] = Run.open(folder)
        return self._runs[name]

    @cached_property
    def space(self) -> DataSpace:
        """The data space of the study, built first if its data say of what."""
        return self.data.opened(self.progress)

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts of the study."""
        return self.data.read()

    def _part(self, plan: Plan) -> Path:
        """The data space of a plan: the study's own, or a part of it, made if it is not there."""
        if plan.share == 1 and not plan.embedder:
            return Path(self.data.space)
        share = plan.share if not plan.embedder else min(1.0, EMBEDDED / len(self.space))
        origin = space_record(self.space)["sha256"][:8]
        part = f"{plan.embedder or f'{plan.share:g}'}".replace("/", "-").replace(":", "-")
        path = self.folder / f"space-{origin}-{part}"
        if not path.exists():
            embedder = plan.embedder or self.space.embedder
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as new:
                DataSpace.build(drawn(self.space, share), new, embedder, progress=self.progress)
                if isinstance(embedder, LSA):  # one that was given does not come along by itself
                    embedder.save(new / EMBEDDER_FOLDER)
        return path


def data_of(
    folder: Path,
    config: Data,
    space: Path | None,
    prompts: str | None,
    per_set: int | None,
    quick: bool,
    *,
    progress: bool,
) -> Data:
    """The data of a study: what `config` names, or the user's own, or the standard library's.

    The last is made in `folder`. Where nobody says how many prompts of a set, `quick` takes about
    `QUICK_PROMPTS` in all, and else it is what `config` says or `PER_SET`.

    Raises:
        SourceError: If the prompts cannot be read.
    """
    if not config.space and (space is None or prompts is None):
        count = per_set or (QUICK_PROMPTS // len(KINDS) if quick else PER_SET)
        return standard_library(folder, count, progress)
    data = config if config.space else replace(config, space=str(space), per_set=PER_SET)
    data = replace(data, prompts=prompts or data.prompts, per_set=per_set or data.per_set)
    if not data.prompts or Path(data.space).suffix == ".toml":
        raise SourceError("name SPACE and --prompts, or a FILE.toml whose [data] has both")
    if quick and per_set is None:
        sets = {prompt.set for prompt in replace(data, per_set=1).read().prompts}
        data = replace(data, per_set=max(1, QUICK_PROMPTS // len(sets)))
    return data


def drawn(space: DataSpace, share: float) -> Iterator[Document]:
    """The documents of a data space whose id hashes below `share`."""
    rows = space.rows[[fraction(name) < share for name in space.ids]]
    for start in range(0, len(rows), 1024):
        yield from space.documents(rows[start : start + 1024])


def join(runs: list[Run]) -> Run:
    """Runs of the same prompts as one, with the methods of all; prompts that not all have are out.

    Raises:
        RunFolderError: If the runs differ in more than their methods, share one, or share no prompt.
    """
    first, *rest = runs
    if not rest:
        return first
    methods, adaptations = list(first.methods), first.meta["adaptations"]
    for run in rest:
        for key, mine in _common(first).items():
            other = _common(run)[key]
            if mine != other:
                raise RunFolderError(
                    f"{first.folder} has {key} {mine!r}, but {run.folder} {other!r}: runs are "
                    "joined where they differ in their methods alone"
                )
        if again := set(methods) & set(run.methods):
            raise RunFolderError(
                f"{run.folder} has {again.pop()!r}, which is there already: runs are joined where "
                "no method is in two of them"
            )
        methods += run.methods
        adaptations = adaptations | run.meta["adaptations"]
    runs = aligned(*runs)
    switches = first.meta["switches"] | {"methods": methods}
    table = pa.concat_tables([run.table for run in runs]).unify_dictionaries()
    peaks = np.max([run.column("peak_mib") for run in runs], axis=0)
    prompts = runs[0].prompts
    at = prompts.column_names.index("peak_mib")
    prompts = prompts.set_column(at, prompts.schema.field(at), pa.array(peaks))
    errors = {name: why for run in runs for name, why in run.errors.items()}
    meta = first.meta | {"switches": switches, "adaptations": adaptations}
    return Run(first.folder, meta, table, prompts, errors)


def _common(run: Run) -> dict[str, Any]:
    """What runs that are joined have in common: all but their methods."""
    switches = EvalConfig().record() | run.meta["switches"]  # a newer switch was at its default
    del switches["methods"]
    return {**switches, "space": run.meta["space"], "prompts": run.meta["prompts"]}


def standard_library(folder: Path, per_set: int, progress: bool) -> Data:
    """A data space of Python's standard library in three sets, without `per_set` modules of each.

    Modules of which there is a family of likes (`encodings`), those of packages, and the others.
    Cut into documents and held out as in the demo; made once.
    """
    library = Path(sysconfig.get_path("stdlib"))
    kept_out = held_out(library, per_set)
    folder.mkdir(parents=True, exist_ok=True)
    space, prompts = folder / f"stdlib-without-{per_set}.whet", folder / f"stdlib-{per_set}.jsonl"
    if not space.exists():
        documents = (
            Document(part.id, part.text, {"set": _kind(path.relative_to(library))})
            for path in modules(library)
            if path not in kept_out
            for part in parts(path, library)
        )
        DataSpace.build(documents, space, progress=progress)
    with prompts.open("w", encoding="utf-8") as file:
        for path, name in kept_out.items():
            line = {"id": str(path.relative_to(library)), "text": source(path)[:LONGEST]}
            file.write(json.dumps(line | {"meta": {"set": name}}) + "\n")
    return Data(space=str(space), prompts=str(prompts))


def held_out(library: Path, per_set: int) -> dict[Path, str]:
    """`per_set` modules of each of `KINDS` that are long enough, and which it is; always the same.

    Chosen by a hash of their names, so that more contain fewer.
    """
    by_set: dict[str, list[Path]] = {name: [] for name in KINDS}
    for path in modules(library):
        if len(source(path)) >= SHORTEST:
            by_set[_kind(path.relative_to(library))].append(path)
    return {
        path: name
        for name, own in by_set.items()
        for path in sorted(own, key=lambda p: fraction(str(p.relative_to(library))))[:per_set]
    }


def _kind(path: Path) -> str:
    """Which of `KINDS` a module is of."""
    if path.parts[0] == KINDS[0]:
        return KINDS[0]
    return KINDS[1] if len(path.parts) > 1 else KINDS[2]
