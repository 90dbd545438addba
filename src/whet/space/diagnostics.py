"""Is this data space fit for its prompts, and will sharpening on it pay?

σ_∞, what is left unknown of a prompt after every text was seen (arXiv 2410.08020, Section 3), says
how much of a prompt the space can tell at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whet.maths.arrays import Array, as_positive
from whet.maths.irreducible import irreducible_variance
from whet.select.sift import sift
from whet.space.space import DataSpace
from whet.space.store.id_index import hash_strings

NEAR = 0.95  # |cosine| from which two texts are nearly the same
PAYS = 0.7  # σ up to which a good part of a prompt is told: a rule of thumb, of ours
BATCH = 64  # prompts searched for at a time


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a data space holds of itself and of some prompts."""

    documents: int
    duplicates: int
    """Documents whose text is that of an earlier one."""
    blank: int
    """Documents that the embedder makes the zero vector of: never candidates of worth."""
    prompts: int
    strange: int
    """Prompts that share nothing with the data space, as its embedder sees them."""
    same: int
    """Prompts whose text is a document's: measured on them, a model has seen the answer."""
    near: int
    """Prompts with a document of cosine 0.95 or more."""
    sigma: float | None
    """Mean σ of the prompts after `n` picks by SIFT, as a share of the prior's; none without."""
    limit: float | None
    """Mean σ_∞ of the prompts over their candidates: no number of picks gets below."""
    n: int

    def __str__(self) -> str:
        lines = [
            f"{self.documents:,} documents, {self.duplicates:,} of a text that is there before "
            f"({_share(self.duplicates, self.documents)}), {self.blank:,} that tell nothing"
        ]
        if self.prompts:
            lines.append(
                f"{self.prompts:,} prompts: {self.same:,} are in the data space "
                f"({_share(self.same, self.prompts)}), {self.near:,} nearly "
                f"({_share(self.near, self.prompts)}), {self.strange:,} share nothing with it"
            )
            lines.append(self.verdict())
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether sharpening will pay, in a sentence: a guess, which `whet eval` measures."""
        if not self.prompts:
            return "not asked: give prompts (--prompts FILE), texts that will be asked"
        if self.sigma is None or self.limit is None:
            return "sharpening cannot pay: no prompt shares anything with the data space"
        told = f"σ falls to {self.sigma:.2f} in {self.n} picks, and never below {self.limit:.2f}"
        if self.same:
            told += (
                f"; but {self.same:,} of {self.prompts:,} prompts are in the data space: a model"
            )
            told += " has seen their answers, so leave them out"
        if self.sigma <= PAYS:
            return f"sharpening should pay: {told}"
        if self.limit <= PAYS:
            return f"sharpening may pay with more picks: {told}"
        return f"sharpening will hardly pay, the data space tells little of these prompts: {told}"


def diagnose(
    space: DataSpace,
    prompts: Sequence[str] = (),
    *,
    n: int = 50,
    k: int = 200,
    lam: float = 0.01,
) -> Diagnosis:
    """Look at all texts and at how much they tell of `prompts`.

    Sees what `space` may see. Reads every text, O(N); a search and a selection a prompt.

    Raises:
        ValueError: If a number is not positive.
    """
    as_positive(lam, "lam")
    rows = space.rows
    texts, blank = _texts_and_blank(space)
    order = np.unique(texts)
    told = [prompt for prompt in prompts if prompt.strip()]
    aims = space.embedder.encode(told) if told else np.zeros((0, space.dimension), np.float32)
    known = np.flatnonzero(aims.any(axis=1))
    sigmas, limits, near = [], [], 0
    for start in range(0, len(known), BATCH):
        lines = known[start : start + BATCH]
        found = space.search(aims[lines], min(k, len(rows)))
        for line, candidates in zip(lines, found, strict=True):
            near += bool(candidates.scores.max() >= NEAR)
            sigmas.append(sift(aims[line], candidates.vectors, n, lam=lam).sigma[-1])
            limit = irreducible_variance(aims[line].astype(float), candidates.vectors.astype(float))
            limits.append(np.sqrt(limit) / np.linalg.norm(aims[line]))
    return Diagnosis(
        documents=len(rows),
        duplicates=len(rows) - len(order),
        blank=blank,
        prompts=len(prompts),
        strange=len(prompts) - len(known),
        same=int(np.isin(hash_strings(list(prompts)), order).sum()) if prompts else 0,
        near=near,
        sigma=float(np.mean(sigmas)) if sigmas else None,
        limit=float(np.mean(limits)) if limits else None,
        n=n,
    )


def _texts_and_blank(space: DataSpace, step: int = 4096) -> tuple[Array, int]:
    """Hashes of all texts, and how many have the zero vector."""
    rows, found, blank = space.rows, [np.empty(0, np.uint64)], 0
    for start in range(0, len(rows), step):
        own = rows[start : start + step]
        found.append(hash_strings(space.texts(own)))
        blank += int((~space.vectors(own).any(axis=1)).sum())
    return np.concatenate(found), blank


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
