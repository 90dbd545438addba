"""A selector of your own: the candidate nearest to the prompt, then the one farthest from all picks.

    whet select my.whet "a prompt" --selector own_selector:farthest
    whet eval my.whet --prompts prompts.jsonl --out runs/own \
        --set 'methods=["nearest", "sift", "own_selector:farthest"]'

in the folder of this file, or with that folder in PYTHONPATH. The contract: docs/selectors.md.
"""

import numpy as np


def farthest(query, candidates, n, *, lam):
    """Return the rows of `n` candidates, in the order of the gradient steps."""
    units = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    picks = [int(np.argmax(units @ query))]
    while len(picks) < n:
        largest_cosine = (units @ units[picks].T).max(axis=1)
        picks.append(int(np.argmin(largest_cosine)))
    return picks
