"""What an evaluation needs, in small: a model, a data space, prompts of two sets, a short run."""

import json

import numpy as np
from support import tiny_models

from whet.data.documents import Document
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import EvalData
from whet.evaluate.results import Run
from whet.evaluate.runner import WorkerPool, evaluate
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


def config(world, **settings):
    """A small configuration; `settings` by their flat names."""
    small = {"model": str(world / "model"), "n": 4, "k": 10, "eval_steps": (0, 2)}
    small |= {"adapter": "full", "lr": 1e-2, "long_texts": "first"}
    return EvalConfig.from_table(small | settings)


def run(world, out, *, per_set=0, workers=1, ray=None, prompts=None, **changes):
    prompts = prompts or world / "prompts.jsonl"
    data = EvalData(space=str(world / "space"), prompts=str(prompts), per_set=per_set)
    with WorkerPool(workers) as pool:
        evaluate(data, out, config(world, **changes), workers=pool, ray=ray, progress=False)
    return Run.open(out)
