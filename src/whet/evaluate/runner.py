"""Prompts × methods × steps: who evaluates what, in how many processes, and what is kept.

A prompt is kept when it is done, once. A run that was cut short goes on where it stopped; a folder
of another configuration is refused.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from whet.adapt.loading import DTYPES
from whet.adapt.model import LanguageModel
from whet.errors import RunFolderError
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Data, Prompt
from whet.evaluate.evaluator import Evaluator
from whet.evaluate.provenance import provenance, space_record
from whet.evaluate.run_storage import FORMAT, META, append, pack, read_meta, repair
from whet.evaluate.worker_pool import WorkerPool
from whet.io import exclusive_lock, progress_bar, write_json
from whet.space.ray.client import connect, map_unordered
from whet.space.space import DataSpace


def evaluate(
    data: Data, folder: Path, switches: EvalConfig, *, processes: WorkerPool | None = None,
    ray: str | None = None, progress: bool = True,
) -> None:  # fmt: skip
    """Evaluate `switches.methods` on the prompts of `data`; `Run.open(folder)` reads the outcome.

    A prompt that is done already is not done again, so more prompts extend a run. Several
    `processes` evaluate a prompt each, on one thread; what they find is kept as they end. With
    `ray`, the address of a cluster, its processors do, and a prompt whose worker dies is
    evaluated again; every machine must see the space and the model at the same place.

    Raises:
        WhetError: If the space, the prompts or the model cannot be read, `folder` holds another
            run or is being written, or a worker process dies.
        ValueError: If both several `processes` and `ray` are given, or either and a method carries
            its optimiser's state.
    """
    several = processes if processes and processes.count > 1 else None
    if several and ray is not None:
        raise ValueError(
            f"workers is {several.count}, but Ray's cluster has its own: leave one out"
        )
    if switches.carries and (several or ray is not None):
        raise ValueError(
            "a method carries its optimiser's state from prompt to prompt: expected one worker, "
            "and no cluster"
        )
    space, prompts = data.opened(progress), data.read()
    evaluator = Evaluator(space, _model(switches), switches)
    begin(
        folder,
        {
            "format": FORMAT,
            "switches": switches.record(),
            "space": space_record(space),
            "adaptations": {m: asdict(a) for m, a in evaluator.adaptations.items()},
            "prompts": prompts.fingerprint,
        },
    )
    with exclusive_lock(folder):
        done = repair(folder)
        left = [prompt for prompt in prompts.prompts if prompt.document.id not in done]
        if switches.carries and done and left:
            raise RunFolderError(
                f"{folder} holds {len(done)} prompts, and what their optimiser carried on is gone: "
                "choose another --out, or delete that folder"
            )
        with progress_bar(f"evaluate {folder.name}", len(left), show=progress) as advance:
            of = data.space, switches
            records: Iterator[dict[str, Any]] = map(evaluator.record, left)
            if ray is not None:
                records = map_unordered(connect(ray), _record, of, ((prompt,) for prompt in left))
            elif several and left:
                records = several.each(_record, of, left)
            for record in records:
                append(folder, record)
                advance(1)
        pack(folder)


def _record(of: tuple[str, EvalConfig], prompt: Prompt) -> dict[str, Any]:
    return _own(*of).record(prompt)


@lru_cache(maxsize=1)
def _own(space: str, switches: EvalConfig) -> Evaluator:
    """A worker process's one evaluator."""
    torch.set_num_threads(1)
    return Evaluator(DataSpace.open(space), _model(switches), switches)


def _model(switches: EvalConfig) -> LanguageModel:
    dtype = DTYPES[switches.dtype]
    return LanguageModel.from_pretrained(switches.model, device=switches.device, dtype=dtype)


def begin(folder: Path, meta: dict[str, Any]) -> None:
    """Make a run's folder of what `meta` says, or check that it holds this very run.

    Raises:
        RunFolderError: If the folder holds another run, or something else.
    """
    path = folder / META
    if path.exists():
        _assert_same(folder, read_meta(folder), json.loads(json.dumps(meta)))
        return
    if folder.exists() and any(not there.name.startswith(META) for there in folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty and holds no run: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, meta | provenance())


def _assert_same(folder: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    known = EvalConfig().record() | stored["switches"]  # a newer switch was at its default
    for key, value in asked.items():
        old = known if key == "switches" else stored.get(key)
        if old == value:
            continue
        if key == "switches":
            name = next(n for n in known | value if known.get(n) != value.get(n))
            old, value, key = known.get(name), value.get(name), name
        raise RunFolderError(
            f"{folder} holds a run with {key} {old!r}, but {value!r} is asked: "
            "choose another --out, or delete that folder"
        )
