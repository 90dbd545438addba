"""Runs with invented numbers in the files of a real one, written in no time."""

import numpy as np

from whet.evaluate.config import EvalConfig
from whet.evaluate.provenance import provenance
from whet.evaluate.results import Run
from whet.evaluate.run_storage import FORMAT, META, append, pack
from whet.io import write_json

METHODS = ("uncertainty", "nearest", "nearest-repeated", "sift", "sift(stop_alpha=0.3)", "dynamic")
LEVELS = {"uncertainty": 0.9, "nearest": 0.86, "nearest-repeated": 0.97, "sift": 0.83}


def run(folder, *, prompts=24, sets=("arxiv", "github"), n=10, names=None, space=None, seed=0):
    """A run of `prompts` prompts, of each of `sets` in turn, with picks from `names`."""
    names = names or [f"document {i}" for i in range(200)]
    config = EvalConfig.from_table({"n": n, "eval_steps": (0, 1, 2, 5, 10, 20), "methods": METHODS})
    meta = {"format": FORMAT, "config": config.to_table(), "prompts": "sha256:0"}
    meta["space"] = space or {"documents": len(names), "embedder": "lsa", "sha256": "0"}
    folder.mkdir(parents=True)
    write_json(folder / META, meta | provenance())
    rng = np.random.default_rng(seed)
    for i in range(prompts):
        append(folder, record(f"prompt {i}", sets[i % len(sets)], config, names, rng))
    pack(folder)
    return Run.open(folder)


def record(prompt, name, config, names, rng):
    size, near = int(rng.integers(900, 4000)), bool(rng.random() < 0.2)
    base = size * rng.uniform(0.8, 1.6)
    rows = [row for m in config.method_names for row in steps(m, config, size, base, names, rng)]
    return {
        "prompt": prompt, "set": name, "parts": 1, "bytes": size, "base_bits": base, "base_s": 0.1,
        "query_bytes": size, "query_bits": base * 1.1, "exact": False, "near": near,
        "cosine": 0.97 if near else 0.6, "overlap": 0.7 if near else 0.0, "cosines": [0.6, 0.5],
        "peak_mib": 800.0, "rows": {key: [row[key] for row in rows] for key in rows[0]},
    }  # fmt: skip


def steps(method, config, size, base, names, rng):
    """The rows of one method: picks with repeats, σ that falls, bits that do too."""
    level, own = (
        LEVELS.get(method.partition("(")[0], 0.95),
        rng.choice(len(names), config.selection.n),
    )
    pace, noise = rng.uniform(0.3, 0.9), rng.normal(0, 0.03)
    for step in range(config.selection.n + 1):
        gain = (1 - level + noise) * (1 - pace**step)
        picked = names[0 if method == "nearest-repeated" else own[step * 2 // 3]] if step else None
        yield {
            "method": method, "part": 0, "bytes": size, "base_bits": base, "step": step,
            "bits": base * (1 - gain) if step in config.steps else None,
            "sigma": None if method == "dynamic" else 0.3 + 0.7 * 0.8**step,
            "loss": 2.5 if step else None,
            "document": "dynamic" if method == "dynamic" and step else picked,
            "multiplicity": 1 if step else None, "tokens": 400 if step else 0,
            "embed_s": 0.0 if step else 0.02, "search_s": 0.0 if step else 0.05,
            "select_s": 0.0 if step else 0.11, "train_s": 0.04 if step else 0.0,
            "score_s": 0.03 if step in config.steps else 0.0,
        }  # fmt: skip
