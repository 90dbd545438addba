"""SIFT: choose what leaves the least uncertainty about the prompt's response.

Source: arXiv 2410.08020, Eq. (3) and Algorithm 1; λ' of Section 4.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from whet.maths.arrays import as_count
from whet.select.numba_backend.state import cores
from whet.select.selection import Selection
from whet.select.sifting import SIFT


def sift(
    prompt: Any,
    candidates: Any,
    n: int,
    *,
    lam: float = 0.01,
    weights: Any = None,
    exclude: Any = (),
    repeats: bool = True,
    threads: int | None = None,
) -> Selection:
    """Greedily choose the `n` candidates that leave the least variance about the response.

    With unit rows the first pick is the candidate most parallel to the prompt, of either sign.
    Small `lam` favours diversity; as `lam` grows, the nearest candidate is picked again and again.
    O(u k d) for u different picks, each reading the rows at most once, so that a memory-mapped
    float16 file serves as well as an array; of k > 2 d candidates no more than 40 k numbers are
    kept beside them.

    Args:
        prompt: Embedding of the prompt, [d], or of several targets whose summed variance counts,
            [m, d]; NumPy or torch.
        candidates: Embeddings of the candidates, [k, d].
        n: Number of picks, with repetition; may exceed k.
        lam: λ' = λκ of the paper, the variance of the observation noise; λ is about 1 / step size.
        weights: What each target's variance counts, [m]; 1 by default.
        exclude: Rows that are never picked.
        repeats: Whether a row may be picked again.
        threads: Threads that share the rows of a large problem (from 4 million numbers), by
            default all cores; the result is the same for any number.

    Raises:
        ValueError: If an array is empty, not finite or of another shape, `n` < 1, `lam` is not
            positive, or `n` rows cannot be had without repeats.
    """
    sifting = SIFT(
        prompt,
        candidates,
        lam=lam,
        weights=weights,
        exclude=exclude,
        repeats=repeats,
        threads=threads,
    )
    return sifting.advance(n)


def sift_batch(
    prompts: Any,
    candidates: Any,
    n: int,
    *,
    lam: float = 0.01,
    weights: Any = None,
    exclude: Sequence[Any] | None = None,
    repeats: bool = True,
    threads: int | None = None,
) -> list[Selection]:
    """`sift` for many prompts, each with its own candidates; a prompt's result is as if alone.

    Args:
        prompts: [B, d], or [B, m, d] for several targets each; or B arrays.
        candidates: [B, k, d], or B arrays, whose numbers of rows may differ.
        weights: What each of the m targets counts, [m], the same for all prompts.
        exclude: For each prompt the rows that are never picked.
        threads: Prompts that are worked on at a time, by default as many as there are cores.

    Raises:
        ValueError: As `sift`, with the number of the prompt; or if the lengths differ.
    """
    exclude = [()] * len(prompts) if exclude is None else exclude
    if not len(prompts) == len(candidates) == len(exclude):
        raise ValueError(
            f"there are {len(prompts)} prompts, {len(candidates)} sets of candidates and "
            f"{len(exclude)} of rows to exclude: expected as many of each"
        )

    def one(b: int) -> Selection:
        try:
            return sift(
                prompts[b],
                candidates[b],
                n,
                lam=lam,
                weights=weights,
                exclude=exclude[b],
                repeats=repeats,
                threads=1,
            )
        except ValueError as error:
            raise ValueError(f"prompt {b}: {error}") from error

    threads = min(as_count(cores() if threads is None else threads, "threads"), len(prompts))
    if threads <= 1:
        return [one(b) for b in range(len(prompts))]
    left, found = iter(range(len(prompts))), dict[int, Selection | ValueError]()

    def work() -> None:
        for b in left:
            try:
                found[b] = one(b)
            except ValueError as error:
                found[b] = error

    with ThreadPoolExecutor(threads - 1) as pool:  # a future a prompt would cost a tenth
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
    return [_selected(found[b]) for b in range(len(prompts))]


def _selected(found: Selection | ValueError) -> Selection:
    if isinstance(found, ValueError):
        raise found
    return found
