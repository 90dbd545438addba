"""Send random requests and check that no response reveals a document that its key may not read.

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
    """A random request, which may name documents that the key may not read."""
    words = [*serving.WORDS, *SECRETS, "public", "legal:1", "medical:2", '"label" == "legal"']
    prompt = " ".join(rng.choice(words, rng.integers(1, 6)))
    options = {
        "n": int(rng.integers(0, 5)),
        "k": int(rng.integers(1, 60)),
        "lam": float(10 ** rng.uniform(-6, 1)),
        "selector": str(rng.choice(["sift", "nearest", "uncertainty", "mmr", "random"])),
    }
    if kind == "search":
        return {"prompt": prompt, "k": options["k"]}
    if kind == "select":
        return {"prompt": prompt, **options, "n": options["n"] + 1}
    adapt = options | {
        "include": ["selection", "trace", "texts"],
        "cache": str(rng.choice(["reuse", "refresh", "off"])),
        "query": str(rng.choice(words)),
    }
    payload = {"model": "tiny", "adapt": adapt}
    if kind == "chat/completions":
        return payload | {"messages": [{"role": "user", "content": prompt[:20]}], "max_tokens": 1}
    if kind == "score":
        return payload | {"prompt": prompt, "text": "honey"}
    return payload | {"prompt": prompt[:20]} | ({"max_tokens": 1} if kind == "completions" else {})


def leaks(client, name, seed, kinds=ASKS):
    """What the response to a random request contains that the key may not read."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(kinds))
    reply = client.of(name).post(f"/v1/{kind}", request(rng, kind))
    assert reply.status in (200, 400, 404), reply.body
    if reply.status != 200:
        return []
    response = reply.json()
    adapt = response.get("adapt") or {}
    shown = [*(response.get("data") or []), *(adapt.get("selection") or [])]
    ids = [item["id"] for item in shown]
    forbidden = [i for i in ids if i.partition(":")[0] not in READS[name]]
    hidden = set(SECRETS) - READS[name]
    texts = [item["text"] for item in shown if hidden & set((item.get("text") or "").split())]
    return forbidden + texts


def main(requests):
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.save(Path(folder) / "tiny", "llama")
        place = serving.space(Path(folder) / "docs.whet")
        found = []
        limits = Limits(requests_per_minute=10**9, tokens_per_minute=10**9)
        with serving.running(serving.app(model, place, limits=limits)) as client:
            client.timeout_s = None  # the machine may be suspended during a long run
            for seed in range(requests):
                found += leaks(client, list(READS)[seed % len(READS)], seed)
    print(json.dumps({"requests": requests, "leaks": len(found)}))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[sys.argv.index("--requests") + 1])))
