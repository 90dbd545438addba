"""Runs of a fictitious study: real files with numbers chosen by a test."""

import json

import numpy as np
from support.hashing_embedder import HashingEmbedder

from studies.retrieval_figures import QuerySet
from studies.run_specs import RUN_SPECS
from whet.data.documents import Document
from whet.evaluate.config import EvalConfig
from whet.evaluate.results import Run
from whet.evaluate.run_storage import FORMAT, META, append, pack
from whet.space.space import DataSpace

STEPS = (0, 1, 2, 4)
SETS = ("github", "arxiv", "wikipedia")
BYTES, BASE_BITS = 100, 200.0  # of every prompt


def percent_of(name, method, prompt, step):
    """Percent of base: arbitrary, but equal for equal arguments."""
    seed = sum(map(ord, f"{name} {method} {prompt} {step}"))
    return 100.0 if step == 0 else 60 + 50 * np.random.default_rng(seed).random()


def run(folder, name, *, methods, prompts=9, model="whet-nano", percent=percent_of, picks=None):
    """A run of `methods` with bits of `percent(name, method, prompt, step)` of the base."""
    config = EvalConfig.from_table(
        {"model": model, "methods": methods, "n": STEPS[-1], "eval_steps": STEPS}
    )
    folder = folder / name
    folder.mkdir(parents=True)
    space = {"documents": 40, "embedder": "hashing", "sha256": "0"}
    meta = {
        "format": FORMAT, "config": config.to_table(), "space": space, "adapters": {},
        "prompts": "sha256:0",
    }  # fmt: skip
    (folder / META).write_text(json.dumps(meta))
    for i in range(prompts):
        rows = [
            row(name, method, i, step, percent, picks)
            for method in methods
            for step in range(STEPS[-1] + 1)
        ]
        record = {
            "prompt": f"p{i}", "set": SETS[i % len(SETS)], "parts": 1, "bytes": BYTES,
            "base_bits": BASE_BITS, "base_s": 0.5,
            "query_bytes": BYTES, "query_bits": BASE_BITS + i,
            "exact": False, "near": False, "cosine": 0.5, "overlap": 0.0,
            "cosines": [0.9, -0.5, 0.4, 0.1], "peak_mib": 100.0,
            "rows": {key: [r[key] for r in rows] for key in rows[0]},
        }  # fmt: skip
        append(folder, record)
    pack(folder)
    return Run.open(folder)


def row(name, method, prompt, step, percent, picks):
    choose = picks or (lambda method, prompt, step: f"d{prompt * step % 5}")
    return {
        "method": method, "part": 0, "bytes": BYTES, "base_bits": BASE_BITS, "step": step,
        "bits": percent(name, method, prompt, step) * BASE_BITS / 100 if step in STEPS else None,
        "sigma": (1 + prompt) ** (-step / 20), "loss": 1.0,
        "document": choose(method, prompt, step) if step else None,
        "multiplicity": 1, "tokens": 10 if step else 0, "embed_s": 0.01, "search_s": 0.02,
        "select_s": 0.03, "train_s": 0.1, "score_s": 0.2,
    }  # fmt: skip


def all_runs(folder, **options):
    """A run for every entry of `RUN_SPECS`."""
    return {
        name: run(folder, name, methods=spec.methods, model=f"{spec.model}-model", **options)
        for name, spec in RUN_SPECS.items()
    }


def query_set(folder, texts=60):
    """Queries and a data space of random words in two sets."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    documents = [
        Document(f"d{i}", " ".join(rng.choice(words, 12)), {"set": SETS[i % 2]})
        for i in range(texts)
    ]
    space = DataSpace.build(documents, folder / "space", HashingEmbedder(24))
    queries = space.embedder.encode([" ".join(rng.choice(words, 12)) for _ in range(5)])
    return QuerySet(space, queries, 20)
