"""Slow references for whet's fast code, in a few obvious float64 lines (arXiv 2410.08020)."""

import numpy as np

TIE = 1e-9


def variance(query, observed, lam):
    """Eq. (2): σ²_X(x*), by solving against the kernel matrix of all observations."""
    query, observed = np.float64(query), np.float64(observed).reshape(-1, len(query))
    if len(observed) == 0:
        return query @ query
    kernel = observed @ observed.T + lam * np.eye(len(observed))
    cross = observed @ query
    return query @ query - cross @ np.linalg.solve(kernel, cross)


def sift(query, candidates, n, lam):
    """SIFT(λ') of Section 4: at every step, keep the candidate that leaves the least variance."""
    chosen = []
    for _ in range(n):
        after = [variance(query, candidates[[*chosen, j]], lam) for j in range(len(candidates))]
        before = variance(query, candidates[chosen], lam)
        chosen.append(argmax_first([before - a for a in after]))
    return chosen


def uncertainty(query, candidates, n, lam):
    """US: the candidate of largest variance after the picks so far, the nearest among equals."""
    chosen = []
    for _ in range(n):
        variances = np.array([variance(x, candidates[chosen], lam) for x in candidates])
        tied = variances >= variances.max() * (1 - TIE)
        chosen.append(argmax_first(np.where(tied, np.abs(cosines(query, candidates)), -1)))
    return chosen


def nearest(query, candidates, n):
    """NN: by signed cosine, the lowest index among equals."""
    score = cosines(query, candidates)
    chosen = []
    for _ in range(n):
        chosen.append(argmax_first(score))
        score[chosen[-1]] = -np.inf
    return chosen


def cosines(query, candidates):
    return np.array([x @ query / np.linalg.norm(x) / np.linalg.norm(query) for x in candidates])


def argmax_first(values):
    best = max(values)
    return next(i for i, v in enumerate(values) if v >= best - TIE * abs(best))


def covariance(a, b, observed, lam):
    """Eq. (2) for two points, through the variance of their sum and difference."""
    return (variance(a + b, observed, lam) - variance(a - b, observed, lam)) / 4


def information(query, row, observed, lam):
    """I(f(x*); y_x | observed) in nats, from the determinants of a joint Gaussian."""
    a = variance(query, observed, lam)
    b = variance(row, observed, lam) + lam
    c = covariance(query, row, observed, lam)
    return np.log(a * b / (a * b - c * c)) / 2


def bits(model, text, left):
    """Bits of every token of `text` by itself, each predicted from what its window lets it see."""
    import torch

    context, start = model.max_length, model.bos_token_id
    skip = len(model.encode(left))
    sequence = [start, *model.encode(left).tolist(), *model.encode(text).tolist()]
    total = 0.0
    for target in range(skip + 1, len(sequence)):
        first = (target - 1) // context * context  # the window's first input
        if first + context > len(sequence) - 1:  # the last window reaches back
            first = max(0, len(sequence) - 1 - context)
        inputs = torch.tensor([sequence[first:target]], device=model.device)
        with torch.no_grad():
            logits = model.hf_model(input_ids=inputs).logits[0, -1, : model.vocab_size].double()
        total -= torch.log_softmax(logits, -1)[sequence[target]].item() / np.log(2)
    return total
