"""Does a key ever learn of a document that it may not read? Random requests, every answer checked.

PYTHONPATH=tests python -m support.label_escape --requests 10000
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from support import serving, tiny_models

from whet.serve.config import Limits

READS = {"legal": {"public", "legal"}, "medical": {"public", "medical"}, "nobody": {"public"}}
ASKS = ("select", "search", "completions", "chat/completions", "adapters", "score")
SECRETS = ("legal", "medical")


def request(rng, kind):
    """A request with whatever a client may vary, the names of others' documents included."""
    words = [*serving.WORDS, *SECRETS, "public", "legal:1", "medical:2", '"label" == "legal"']
    prompt = " ".join(rng.choice(words, rng.integers(1, 6)))
    how = {
        "n": int(rng.integers(0, 5)),
        "k": int(rng.integers(1, 60)),
        "lam": float(10 ** rng.uniform(-6, 1)),
        "selector": str(rng.choice(["sift", "nearest", "uncertainty", "mmr", "random"])),
    }
    if kind == "search":
        return {"prompt": prompt, "k": how["k"]}
    if kind == "select":
        return {"prompt": prompt, **how, "n": how["n"] + 1}
    adapt = how | {
        "include": ["selection", "trace", "texts"],
        "cache": str(rng.choice(["reuse", "refresh", "off"])),
        "query": str(rng.choice(words)),
    }
    asked = {"model": "tiny", "adapt": adapt}
    if kind == "chat/completions":
        return asked | {"messages": [{"role": "user", "content": prompt[:20]}], "max_tokens": 1}
    if kind == "score":
        return asked | {"prompt": prompt, "text": "honey"}
    return asked | {"prompt": prompt[:20]} | ({"max_tokens": 1} if kind == "completions" else {})


def leaks(client, name, seed, kinds=ASKS):
    """What an answer to one random request holds that the key may not read."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(kinds))
    reply = client.of(name).post(f"/v1/{kind}", request(rng, kind))
    assert reply.status in (200, 400, 404), reply.body
    if reply.status != 200:
        return []
    told = reply.json()
    adapt = told.get("adapt") or {}
    shown = [*(told.get("data") or []), *(adapt.get("selection") or [])]
    ids = [one["id"] for one in shown]
    forbidden = [i for i in ids if i.partition(":")[0] not in READS[name]]
    hidden = set(SECRETS) - READS[name]
    texts = [one["text"] for one in shown if hidden & set((one.get("text") or "").split())]
    return forbidden + texts


def main(requests):
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.save(Path(folder) / "tiny", "llama")
        place = serving.space(Path(folder) / "docs.whet")
        found = []
        limits = Limits(requests_per_minute=10**9, tokens_per_minute=10**9)
        with serving.running(serving.app(model, place, limits=limits)) as client:
            client.timeout_s = None  # whoever runs this for long may also halt the machine
            for seed in range(requests):
                found += leaks(client, list(READS)[seed % len(READS)], seed)
    print(json.dumps({"requests": requests, "leaks": len(found)}))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[sys.argv.index("--requests") + 1])))
