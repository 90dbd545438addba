"""A study: a folder of runs on one data space and one list of prompts.

Missing runs are evaluated when an artifact needs them. By default the data are the source code of
Python's standard library, as in `whet.evaluate.demo`.
"""

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from studies.run_specs import MAX_EMBEDDED, NEAREST_PRODUCT, RUN_SPECS, RunSpec
from whet.data.documents import Document
from whet.embed.lsa import LSA
from whet.errors import RunFolderError, SourceError
from whet.evaluate.config import DYNAMIC, EvalConfig, MethodConfig
from whet.evaluate.dataset import EvalData, Prompts, fraction
from whet.evaluate.demo import LONGEST, SHORTEST, modules, parts, source
from whet.evaluate.provenance import space_record
from whet.evaluate.results import Run, join
from whet.evaluate.runner import WorkerPool, evaluate
from whet.io import atomic_write
from whet.space.space import DataSpace
from whet.space.store.manifest import EMBEDDER_FOLDER

QUICK_STEPS, QUICK_PROMPTS = 10, 12
PER_SET = 20
PAPER_LAM = 0.01  # λ' of a method called `sift`, as in the paper
LIBRARY_SETS = ("encodings", "packages", "modules")  # the sets of the standard library


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs in `folder`, one for each `RunSpec` that an artifact needs."""

    folder: Path
    data: EvalData
    config: EvalConfig = field(default_factory=EvalConfig)
    """Configuration of every run except for its methods; its model is the main model."""
    small_model: str = "whet-pico"
    """Name of the small model."""
    pool: WorkerPool | None = None
    """Processes that evaluate the prompts; None for this process."""
    progress: bool = True
    """Whether to show progress on stderr."""
    _runs: dict[str, Run] = field(default_factory=dict, init=False, repr=False)

    def run(self, names: str) -> Run:
        """Return the run called `names`, evaluating or resuming it first; `+` joins several runs.

        Raises:
            WhetError: If the data space, the prompts or a model cannot be read, or if the study's
                folder contains a run of another configuration.
        """
        return join([self._run(name) for name in names.split("+")])

    def _run(self, name: str) -> Run:
        if name not in self._runs:
            spec, folder = RUN_SPECS[name], self.folder / name
            if spec.model == "small" and self.small_model == self.config.model:
                raise RunFolderError(
                    f"small model {self.small_model!r} is the main model too: pass another --small"
                )
            data = replace(self.data, space=str(self.space_path(spec)))
            common = (
                self.config.with_settings(adapter=spec.adapter) if spec.adapter else self.config
            )
            if common.selection.lam == "embedder":
                common = common.with_settings(lam=PAPER_LAM)
            model = self.small_model if spec.model == "small" else self.config.model
            whole = self.config.leakage == "whole"  # then the query is the scored text
            methods: tuple[str | MethodConfig, ...] = tuple(
                m for m in spec.methods if not (whole and m == DYNAMIC)
            )
            if NEAREST_PRODUCT in methods:
                all_documents = len(DataSpace.open(data.space))
                product = {"name": NEAREST_PRODUCT, "selector": NEAREST_PRODUCT}
                ranked = common.method(product | {"k": all_documents})
                methods = tuple(ranked if m == NEAREST_PRODUCT else m for m in methods)
            config = replace(common, model=model, methods=methods)
            evaluate(data, folder, config, workers=self.pool, progress=self.progress)
            self._runs[name] = Run.open(folder)
        return self._runs[name]

    @cached_property
    def space(self) -> DataSpace:
        """The study's data space, built first if `data` names a source."""
        return self.data.open_space(self.progress)

    @cached_property
    def prompts(self) -> Prompts:
        """The study's prompts."""
        return self.data.read_prompts()

    def space_path(self, spec: RunSpec) -> Path:
        """Return the data space of `spec`: the study's own, or a part of it, built if missing."""
        if spec.share == 1 and not spec.embedder:
            return Path(self.data.space)
        share = spec.share if not spec.embedder else min(1.0, MAX_EMBEDDED / len(self.space))
        origin = space_record(self.space)["sha256"][:8]
        suffix = f"{spec.embedder or f'{spec.share:g}'}".replace("/", "-").replace(":", "-")
        path = self.folder / f"space-{origin}-{suffix}"
        if not path.exists():
            embedder = spec.embedder or self.space.embedder
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as folder:
                DataSpace.build(
                    sample(self.space, share), folder, embedder, chunks="whole",
                    progress=self.progress,
                )  # fmt: skip
                if isinstance(embedder, LSA):  # a build saves only an embedder that it has fitted
                    embedder.save(folder / EMBEDDER_FOLDER)
        return path


def find_data(
    folder: Path,
    data: EvalData,
    space: Path | None,
    prompts: str | None,
    per_set: int | None,
    quick: bool,
    *,
    progress: bool,
) -> EvalData:
    """Return the data of a study: those of `data`, of `space` and `prompts`, or the library's.

    The standard library's data space and prompts are built in `folder`. Without `per_set`, `quick`
    uses about `QUICK_PROMPTS` prompts in all; otherwise the number in `data` or `PER_SET` applies.

    Raises:
        SourceError: If the prompts cannot be read.
    """
    if not data.space and (space is None or prompts is None):
        count = per_set or (QUICK_PROMPTS // len(LIBRARY_SETS) if quick else PER_SET)
        return standard_library(folder, count, progress)
    if not data.space:
        data = replace(data, space=str(space), per_set=PER_SET)
    data = replace(data, prompts=prompts or data.prompts, per_set=per_set or data.per_set)
    if not data.prompts or Path(data.space).suffix == ".toml":
        raise SourceError("pass SPACE and --prompts, or a FILE.toml whose [data] contains both")
    if quick and per_set is None:
        sets = {prompt.set for prompt in replace(data, per_set=1).read_prompts().prompts}
        data = replace(data, per_set=max(1, QUICK_PROMPTS // len(sets)))
    return data


def sample(space: DataSpace, share: float) -> Iterator[Document]:
    """Yield the documents of a data space whose id hashes to a number below `share`."""
    rows = space.rows[[fraction(name) < share for name in space.ids]]
    for start in range(0, len(rows), 1024):
        yield from space.documents(rows[start : start + 1024])


def standard_library(folder: Path, per_set: int, progress: bool) -> EvalData:
    """Build a data space of Python's standard library, holding out `per_set` modules of each set.

    The sets are text encodings, which resemble each other closely, modules in packages, and
    top-level modules. Modules are cut into documents as in the demo. Existing files are reused.
    """
    library = Path(sysconfig.get_path("stdlib"))
    prompts_of = held_out_modules(library, per_set)
    folder.mkdir(parents=True, exist_ok=True)
    space, prompts = folder / f"stdlib-without-{per_set}.whet", folder / f"stdlib-{per_set}.jsonl"
    if not space.exists():
        documents = (
            Document(part.id, part.text, {"set": _set_of(path.relative_to(library))})
            for path in modules(library)
            if path not in prompts_of
            for part in parts(path, library)
        )
        DataSpace.build(documents, space, chunks="whole", progress=progress)
    with prompts.open("w", encoding="utf-8") as file:
        for path, name in prompts_of.items():
            record = {"id": str(path.relative_to(library)), "text": source(path)[:LONGEST]}
            file.write(json.dumps(record | {"meta": {"set": name}}) + "\n")
    return EvalData(space=str(space), prompts=str(prompts))


def held_out_modules(library: Path, per_set: int) -> dict[Path, str]:
    """Choose `per_set` sufficiently long modules of each set; return the set of each.

    The choice is by a hash of their names: always the same, and a larger `per_set` adds to it.
    """
    by_set: dict[str, list[Path]] = {name: [] for name in LIBRARY_SETS}
    for path in modules(library):
        if len(source(path)) >= SHORTEST:
            by_set[_set_of(path.relative_to(library))].append(path)
    return {
        path: name
        for name, paths in by_set.items()
        for path in sorted(paths, key=lambda p: fraction(str(p.relative_to(library))))[:per_set]
    }


def _set_of(path: Path) -> str:
    """Return which of `LIBRARY_SETS` a module belongs to."""
    if path.parts[0] == LIBRARY_SETS[0]:
        return LIBRARY_SETS[0]
    return LIBRARY_SETS[1] if len(path.parts) > 1 else LIBRARY_SETS[2]
