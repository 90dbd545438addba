"""Runs an evaluation: every method on every prompt, in one or more processes or on a Ray cluster.

Each prompt is written once, when it is finished. An interrupted run resumes; a folder with a run of
another configuration is refused.
"""

import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from whet.errors import require

require("torch", "adapt")

import torch

from whet.adapt.checkpoints.loading import DTYPES
from whet.adapt.config import ADAPTERS, AdapterConfig
from whet.adapt.model import LanguageModel
from whet.errors import RunFolderError
from whet.evaluate.config import EvalConfig, MethodConfig, flat_values
from whet.evaluate.dataset import EvalData, Prompt
from whet.evaluate.evaluator import Evaluator
from whet.evaluate.provenance import provenance, same_space, space_record
from whet.evaluate.run_storage import FORMAT, META, append, pack, read_meta, repair, translated_meta
from whet.io import count_of, progress_bar, write_json
from whet.locks import exclusive_lock
from whet.maths.arrays import as_count
from whet.select.config import SelectionConfig
from whet.select.own import is_own, source_digest
from whet.select.registry import WITHOUT_REPEATS, selector
from whet.space.long_texts import count_long_texts
from whet.space.ray.client import connect, map_unordered
from whet.space.space import DataSpace
from whet.space.tuning import resolve

LOGGER = logging.getLogger(__name__)
C = TypeVar("C")
T = TypeVar("T")
R = TypeVar("R")
AutoValues = dict[str, dict[str, float]]


def evaluate(
    data: EvalData, folder: Path, config: EvalConfig, *, workers: "WorkerPool | None" = None,
    ray: str | None = None, progress: bool = True,
) -> None:  # fmt: skip
    """Evaluate the methods of `config` on the prompts of `data`; `Run.open(folder)` reads the run.

    Prompts that are finished are skipped, so a run can be resumed, or extended to more prompts.
    `auto` settings are chosen once, on the data space, and stored with the run.

    Args:
        data: The data space and the prompts.
        folder: Where the run is stored.
        config: The methods and their settings.
        workers: Processes that evaluate one prompt each, on one thread.
        ray: Address of a Ray cluster whose processors evaluate the prompts instead; a prompt whose
            worker dies is evaluated again. Every machine must see the data space and the model at
            the same paths.
        progress: Whether to draw a bar on stderr.

    Raises:
        WhetError: If the data space, the prompts or the model cannot be read, `folder` holds
            another run or is being written, or a worker process dies.
        ValueError: If both several workers and `ray` are given, or either of them for a method
            that keeps the optimizer's state; or if a method would pick more documents than there
            are, each once.
    """
    pool = workers if workers and workers.count > 1 else None
    if pool and ray is not None:
        raise ValueError(f"workers is {pool.count}, but ray is given too: leave one out")
    if config.persists_optimizer and (pool or ray is not None):
        raise ValueError(
            "a method keeps the optimizer's state from prompt to prompt (persist_optimizer): "
            "expected one worker and no Ray cluster"
        )
    space, prompts = data.open_space(progress, config.task), data.read_prompts(config.task)
    _check_selectors(space, config)
    chosen = _stored_auto_values(folder, config) or auto_values(space, config, progress=progress)
    resolved = with_auto_values(config, chosen)
    model = load_model(config)
    if progress and (line := str(count_long_texts(space, model))):
        LOGGER.warning(line)
    evaluator = Evaluator(space, model, resolved)
    begin(
        folder,
        {
            "format": FORMAT,
            "config": config.to_table(),
            "space": space_record(space),
            "adapters": {m: _adapter_record(a) for m, a in evaluator.adapters.items()},
            **({"auto": chosen} if chosen else {}),
            **({"selectors": sources} if (sources := _own_sources(config)) else {}),
            "prompts": prompts.fingerprint,
        },
    )
    with exclusive_lock(folder):
        finished = repair(folder)
        remaining = [prompt for prompt in prompts.prompts if prompt.document.id not in finished]
        scored = count_of(len(prompts.prompts), "prompt")
        if config.persists_optimizer and finished and remaining:
            raise RunFolderError(
                f"{folder} holds {len(finished)} prompts, but the optimizer's state after them is "
                "lost: choose another --out, or delete that folder"
            )
        if progress and not remaining:
            LOGGER.warning("%s is complete: all %s were scored before", folder, scored)
        show = progress and bool(remaining)
        with progress_bar(f"evaluate {folder.name}", len(remaining), show=show) as advance:
            common = data.space, resolved
            records: Iterator[dict[str, Any]] = map(evaluator.record, remaining)
            if ray is not None:
                items = ((prompt,) for prompt in remaining)
                records = map_unordered(connect(ray), _record, common, items)
            elif pool and remaining:
                records = pool.map_unordered(_record, common, remaining)
            for record in records:
                append(folder, record)
                advance(1)
        pack(folder)


def _check_selectors(space: DataSpace, config: EvalConfig) -> None:
    """Check before the first prompt what each prompt's selection would refuse."""
    for method in config.method_configs:
        selection = method.selection
        if method.train_on != "documents":
            continue
        selector(selection.selector)
        if selection.selector not in WITHOUT_REPEATS:
            continue
        if selection.n > (k := space.resolve_k(selection.k, selection.where)):
            raise ValueError(
                f"n is {selection.n}, but method {method.name!r} picks each of the {k} candidates at "
                f"most once: lower n, as by --set n={k}, or leave it out of `methods`"
            )


def _own_sources(config: EvalConfig) -> dict[str, str | None]:
    """A hash of the module of each selector that is a Python function, as a run must keep to it."""
    names = (method.selection.selector for method in config.method_configs)
    return {name: source_digest(name) for name in names if is_own(name)}


def auto_values(space: DataSpace, config: EvalConfig, *, progress: bool = False) -> AutoValues:
    """`lam` and `stop_alpha` of every method whose value is a word, chosen on the data space.

    A method that takes `auto` from the run's defaults gets the values chosen for the default
    selector, so that methods are compared at the same ones.
    """
    results: dict[SelectionConfig, dict[str, float]] = {}
    values: AutoValues = {}
    for method in config.method_configs:
        selection, common = method.selection, config.selection
        if method.train_on in ("query", "nothing") or not (
            selection.has_auto or selection.lam == "embedder"
        ):
            continue
        if (selection.lam, selection.stop_alpha) == (common.lam, common.stop_alpha):
            selection = replace(selection, selector=common.selector)
        if selection not in results:
            resolved = resolve(space, selection, progress=progress)
            results[selection] = {
                name: getattr(resolved, name)
                for name in ("lam", "stop_alpha")
                if isinstance(getattr(selection, name), str)
            }
        values[method.name] = results[selection]
    return values


def with_auto_values(config: EvalConfig, values: AutoValues) -> EvalConfig:
    """The configuration with numbers for `auto` and for λ' from the embedder."""
    methods = tuple(
        _with_numbers(config.method(m), values[n]) if n in values else m
        for m, n in zip(config.methods, config.method_names, strict=True)
    )
    return replace(config, methods=methods)


def _with_numbers(method: MethodConfig, values: dict[str, Any]) -> MethodConfig:
    return replace(method, selection=replace(method.selection, **values))


def _stored_auto_values(folder: Path, config: EvalConfig) -> AutoValues:
    """The values that the run in `folder` has already chosen, if it is of this configuration."""
    if not (folder / META).exists():
        return {}
    meta = translated_meta(read_meta(folder))
    return meta.get("auto", {}) if meta["config"] == config.to_table() else {}


def _record(common: tuple[str, EvalConfig], prompt: Prompt) -> dict[str, Any]:
    return _worker_evaluator(*common).record(prompt)


@lru_cache(maxsize=1)
def _worker_evaluator(space: str, config: EvalConfig) -> Evaluator:
    """The one evaluator of a worker process."""
    torch.set_num_threads(1)
    return Evaluator(DataSpace.open(space), load_model(config), config)


def load_model(config: EvalConfig) -> LanguageModel:
    """The model of an evaluation."""
    dtype = DTYPES[config.dtype]
    return LanguageModel.from_pretrained(
        config.model, device=config.device, dtype=dtype, max_length=config.max_length
    )


def _adapter_record(adapter: AdapterConfig) -> dict[str, Any]:
    [name] = [name for name, kind in ADAPTERS.items() if isinstance(adapter, kind)]
    return {"name": name} | asdict(adapter)


def begin(folder: Path, meta: dict[str, Any]) -> None:
    """Make the folder of a run with this metadata, or check that it already holds that run.

    Raises:
        RunFolderError: If the folder holds another run, or something else.
    """
    path = folder / META
    if path.exists():
        stored = read_meta(folder)
        _check_same(folder, stored, json.loads(json.dumps(meta)))
        if "fingerprint" not in stored["space"] and "notes" not in stored:
            note = (
                "Continued by a version that records the embedder's fingerprint, which is "
                f"{meta['space']['fingerprint']!r} now; that of the first prompts is not known."
            )
            write_json(path, stored | {"notes": [note]})
        return
    if folder.exists() and any(not file.name.startswith(META) for file in folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty and holds no run: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, meta | provenance())


def _check_same(folder: Path, stored: dict[str, Any], meta: dict[str, Any]) -> None:
    try:
        stored = translated_meta(stored)
        config = EvalConfig.from_table(stored["config"], str(folder))
    except ValueError as error:
        raise RunFolderError(
            f"{folder} holds a run of another version of whet ({error}): choose another --out"
        ) from error
    pairs = {key: (stored.get(key), value) for key, value in meta.items() if key != "config"}
    old, new = _compared(config), _compared(EvalConfig.from_table(meta["config"]))
    pairs |= {name: (old[name], value) for name, value in new.items()}
    for name, (before, value) in pairs.items():
        if not (same_space(before, value) if name == "space" else before == value):
            raise RunFolderError(
                f"{folder} holds a run with {name} {before!r}, not {value!r}: "
                "choose another --out, or delete that folder"
            )


def _compared(config: EvalConfig) -> dict[str, Any]:
    """The settings in which a run and its continuation must agree.

    Adapters are compared as they were made for the model, not by their options.
    """
    common = {"adapter", "lr", "r", "lora_alpha", "target_modules"}
    values = {name: value for name, value in flat_values(config).items() if name not in common}
    return {"methods": list(config.method_names)} | values | {
        f"settings of {method.name}": {
            name: value for name, value in flat_values(method).items() if name not in common
        }
        for method in config.method_configs
    }  # fmt: skip


class WorkerPool:
    """`count` worker processes, started when they are first needed: starting one takes seconds."""

    def __init__(self, count: int) -> None:
        self.count = as_count(count, "workers")
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def map_unordered(
        self, function: Callable[[C, T], R], common: C, items: Iterable[T]
    ) -> Iterator[R]:
        """`function(common, item)` of every item, as they finish, in any order.

        Raises:
            RunFolderError: If a process dies, after the results of the others; the next call
                starts new processes.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"))
        futures, broken = list[Future[R]](), None
        try:
            try:
                for item in items:
                    futures.append(self._pool.submit(function, common, item))
            except BrokenProcessPool as error:  # a process has died since the last call
                broken = error
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool as error:  # raised for every unfinished item
                    broken = error
        finally:
            for future in futures:
                future.cancel()
        if broken:
            self._close()
            raise RunFolderError(
                "a worker process died, possibly for lack of memory: finished prompts are kept; "
                "run the same command again, with fewer --workers"
            ) from broken

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
