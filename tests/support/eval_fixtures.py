"""What an evaluation needs, in small: a model, a data space, prompts of two sets, a short run."""

import json

import numpy as np
from support import tiny_models

from whet.data.documents import Document
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import Data
from whet.evaluate.results import Run
from whet.evaluate.runner import evaluate
from whet.evaluate.worker_pool import WorkerPool
from whet.space.space import DataSpace

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


def text(seed, words=12):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def build(folder, texts=30, extra=()):
    tiny_models.save(folder / "model")
    documents = [*(Document(f"d{i}", text(i), {}) for i in range(texts)), *extra]
    DataSpace.build(documents, folder / "space")
    lines = [{"id": f"p{i}", "text": text(100 + i), "meta": {"set": "ab"[i % 2]}} for i in range(6)]
    write(folder / "prompts.jsonl", lines)
    return folder


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def switches(world, **changes):
    small = {"n": 4, "k": 10, "score_at": (0, 2), "lr": 1e-2}
    return EvalConfig(**{"model": str(world / "model"), **small, **changes})


def run(world, out, *, per_set=0, workers=1, ray=None, prompts=None, **changes):
    prompts = prompts or world / "prompts.jsonl"
    data = Data(space=str(world / "space"), prompts=str(prompts), per_set=per_set)
    with WorkerPool(workers) as processes:
        own = switches(world, **changes)
        evaluate(data, out, own, processes=processes, ray=ray, progress=False)
    return Run.open(out)
