"""SIFT: choose what leaves the least uncertainty about the prompt's response.

Source: arXiv 2410.08020, Eq. (3) and Algorithm 1; λ' of Section 4.
"""

from typing import Any

from whet.select.selection import Selection, Trial


def sift(prompt: Any, candidates: Any, n: int, *, lam: float = 0.01) -> Selection:
    """Greedily choose the `n` candidates that leave the least variance about the response.

    With unit rows the first pick is the candidate most parallel to the prompt, of either sign.
    Small `lam` favours diversity; as `lam` grows, the nearest candidate is picked again and again.
    O(n k (d + n)).

    Args:
        prompt: Embedding of the prompt, [d]; NumPy or torch.
        candidates: Embeddings of the candidates, [k, d].
        n: Number of picks, with repetition; may exceed k.
        lam: λ' = λκ of the paper, the variance of the observation noise; λ is about 1 / step size.

    Raises:
        ValueError: If an array is empty, not finite or of another shape, `n` < 1, or `lam` is not
            positive.
    """
    trial = Trial(prompt, candidates, n, lam)
    for _ in range(trial.n):
        trial.pick_best(trial.posterior.gains())
    return trial.selection()
