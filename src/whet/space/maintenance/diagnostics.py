"""Diagnostics: is a data space suited to its prompts, and will adaptation pay?

σ_∞, the uncertainty about a prompt that remains after training on every document (arXiv 2410.08020,
Section 3), bounds how much the data space can contribute to the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whet.embed.embedder import encode_queries
from whet.io import count_of
from whet.maths.arrays import Array, as_positive
from whet.maths.posterior import irreducible_variance
from whet.select.sift import sift
from whet.space.space import DEFAULT_K, DataSpace
from whet.space.store.segments.records import hash_strings

NEAR = 0.95  # |cosine| from which two texts count as near duplicates
PAYS = 0.7  # σ up to which adaptation usually pays: a rule of thumb, of ours
BATCH = 64  # prompts searched for at a time


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a data space contains, and how informative it is about some prompts."""

    documents: int
    duplicates: int
    """Documents with the text of an earlier document."""
    blank: int
    """Documents whose vector is zero: never useful candidates."""
    prompts: int
    unmatched: int
    """Prompts that have nothing in common with the data space, according to its embedder."""
    exact_matches: int
    """Prompts that are a document's text: the model has seen the answer."""
    near_matches: int
    """Prompts with a document of cosine 0.95 or more."""
    sigma: float | None
    """Mean σ of the prompts after `n` picks by SIFT, relative to the prior; None if none match."""
    sigma_limit: float | None
    """Mean σ_∞ of the prompts over their candidates, which no number of picks falls below."""
    n: int
    """Picks per prompt."""

    def __str__(self) -> str:
        lines = [
            f"{count_of(self.documents, 'document')}: {count_of(self.duplicates, 'duplicate')} "
            f"({_percent(self.duplicates, self.documents)}), {self.blank:,} without content"
        ]
        if self.prompts:
            lines.append(
                f"{count_of(self.prompts, 'prompt')}: {self.exact_matches:,} are in the data space "
                f"({_percent(self.exact_matches, self.prompts)}), {self.near_matches:,} nearly "
                f"({_percent(self.near_matches, self.prompts)}), {self.unmatched:,} have nothing "
                "in common with it"
            )
        lines.append(self.verdict())
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether adaptation should pay, in one sentence: an estimate, which `whet eval` tests."""
        if not self.prompts:
            return "no verdict: give prompts (--prompts FILE), or measure a model with `whet tune`"
        if self.sigma is None or self.sigma_limit is None:
            return "adaptation cannot pay: no prompt has anything in common with the data space"
        reason = (
            f"σ falls to {self.sigma:.2f} in {self.n} picks, and never below {self.sigma_limit:.2f}"
        )
        if self.exact_matches:
            reason += (
                f"; but {self.exact_matches:,} of {self.prompts:,} prompts are in the data space, "
                "so a model has seen their answers: remove them"
            )
        if self.sigma <= PAYS:
            return f"adaptation should pay: {reason}"
        if self.sigma_limit <= PAYS:
            return f"adaptation may pay with more picks: {reason}"
        return f"adaptation will hardly pay, these prompts have little in the data space: {reason}"


def diagnose(
    space: DataSpace,
    prompts: Sequence[str] = (),
    *,
    n: int = 50,
    k: int = DEFAULT_K,
    lam: float | None = None,
) -> Diagnosis:
    """Examine all documents of `space`, and how informative they are about `prompts`.

    Reads every text, O(N); one search and one selection per prompt.

    >>> space = DataSpace.build(["bees dance", "bees dance", "ants walk"], "doctor.whet")
    >>> diagnose(space, ["where do bees dance?"]).duplicates
    1

    Args:
        space: The data space; documents that its filter hides are not counted.
        prompts: Texts like those that will be asked; blank ones count as unmatched.
        n: Picks per prompt.
        k: Candidates per prompt; all documents if there are fewer.
        lam: λ' of SIFT; by default that of the data space, `space.kernel`.

    Raises:
        ValueError: If a number is not positive.
    """
    lam = space.kernel.lam if lam is None else as_positive(lam, "lam")
    rows = space.rows
    texts, blank = _text_hashes_and_blank(space)
    distinct = np.unique(texts)
    not_blank = [prompt for prompt in prompts if prompt.strip()]
    empty = np.zeros((0, space.dimension), np.float32)
    queries = encode_queries(space.embedder, not_blank) if not_blank else empty
    matched = np.flatnonzero(queries.any(axis=1))
    sigmas, limits, near_matches = [], [], 0
    for start in range(0, len(matched), BATCH):
        batch = matched[start : start + BATCH]
        results = space.search(queries[batch], min(k, len(rows)))
        for i, candidates in zip(batch, results, strict=True):
            near_matches += bool(candidates.scores.max() >= NEAR)
            sigmas.append(sift(queries[i], candidates.vectors, n, lam=lam).sigma[-1])
            variance = irreducible_variance(
                queries[i].astype(float), candidates.vectors.astype(float)
            )
            limits.append(np.sqrt(variance) / np.linalg.norm(queries[i]))
    return Diagnosis(
        documents=len(rows),
        duplicates=len(rows) - len(distinct),
        blank=blank,
        prompts=len(prompts),
        unmatched=len(prompts) - len(matched),
        exact_matches=int(np.isin(hash_strings(list(prompts)), distinct).sum()) if prompts else 0,
        near_matches=near_matches,
        sigma=float(np.mean(sigmas)) if sigmas else None,
        sigma_limit=float(np.mean(limits)) if limits else None,
        n=n,
    )


def _text_hashes_and_blank(space: DataSpace, step: int = 4096) -> tuple[Array, int]:
    """The hashes of all texts, and the number of zero vectors."""
    rows, texts, blank = space.rows, [np.empty(0, np.uint64)], 0
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        texts.append(hash_strings(space.texts(part)))
        blank += int((~space.vectors(part).any(axis=1)).sum())
    return np.concatenate(texts), blank


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
