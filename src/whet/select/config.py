"""How documents are selected for a prompt: one configuration for every surface of whet."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from whet.config import check_choices
from whet.data.filters import Filter, as_filter
from whet.maths.arrays import as_count, as_positive
from whet.select.registry import check_name

Auto = Literal["auto"]
FromEmbedder = Literal["embedder"]
RetrieverName = Literal["dense", "bm25", "hybrid"]
Metric = Literal["auto", "abs_cosine", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """How documents are selected: a retriever proposes candidates, a selector picks among them.

    >>> SelectionConfig(n=10, lam=0.1, where='set == "github"').n
    10
    """

    selector: str = "sift"
    """Algorithm that picks among the candidates: see docs/selectors.md; or, except in requests to
    a server, a Python function of your own as `module:function`."""
    n: int = 50
    """Number of gradient steps, one on each selected text, repeats included; 0 for the base model.
    `generate`, `score` and `serve` take 10 for a model of more than 20 million weights on a CPU if
    none is given."""
    k: int | None = None
    """Number of candidates that the retriever proposes [default: 200, or all documents if fewer]."""
    lam: float | FromEmbedder | Auto = "embedder"
    """λ', the variance of the observation noise: small favors diversity, large favors relevance.
    `embedder` is 0.13 (1 − ā), where ā is the mean cosine of two documents of the data space;
    `auto` chooses it on held-out documents."""
    stop_alpha: float | Auto | None = None
    """Adaptive stopping: stop before step m if σ_m > 1 / (α m); `auto` chooses α
    [default: take all n steps]."""
    retriever: RetrieverName = "dense"
    """Candidate retrieval: `dense` (embeddings), `bm25` (words) or `hybrid` (the union of both)."""
    metric: Metric = "auto"
    """Similarity of candidates to the prompt: `cosine`, `abs_cosine` (opposite embeddings count
    too), or `auto` (`cosine` for the nearest-neighbor selectors, otherwise `abs_cosine`)."""
    copy_overlap: float = 0.5
    """Share of the prompt's 13-grams of words that a document must contain to be a copy of it: the
    model is then trained on the passages of that document alone, and on the one that follows them;
    0 turns this off."""
    where: Filter | str | None = None
    """Filter that a candidate must pass, such as `set == "github" and year >= 2010`."""

    def __post_init__(self) -> None:
        check_name(self.selector)
        if self.n != 0:
            as_count(self.n, "n")
        if self.k is not None:
            as_count(self.k, "k")
        if self.lam not in ("auto", "embedder"):
            as_positive(self.lam, "lam")
        if self.stop_alpha not in (None, "auto"):
            as_positive(self.stop_alpha, "stop_alpha")
        if not 0 <= self.copy_overlap <= 1:
            raise ValueError(f"copy_overlap is {self.copy_overlap}: expected 0 to 1")
        check_choices(self)
        as_filter(self.where)

    @property
    def has_auto(self) -> bool:
        """Whether `lam` or `stop_alpha` has yet to be chosen on held-out documents."""
        return "auto" in (self.lam, self.stop_alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSelection:
    """A `SelectionConfig` in which nothing is left to choose: see `whet.space.tuning.resolve`."""

    selector: str
    n: int
    k: int | None
    lam: float
    stop_alpha: float | None
    retriever: RetrieverName
    metric: Metric
    copy_overlap: float
    where: Filter | None

    @classmethod
    def of(
        cls, config: SelectionConfig, *, embedder_lam: float | None = None, **chosen: Any
    ) -> "ResolvedSelection":
        """`config` with numbers in place of words.

        Args:
            config: The configuration.
            embedder_lam: The default λ' of the data space, in place of `embedder`.
            chosen: Values in place of `auto`.

        Raises:
            ValueError: If a value is still a word.
        """
        values = {field.name: getattr(config, field.name) for field in fields(config)} | chosen
        if values["lam"] == "embedder" and embedder_lam is not None:
            values["lam"] = embedder_lam
        for name in ("lam", "stop_alpha"):
            if isinstance(values[name], str):
                raise ValueError(f"{name} is {values[name]!r}: resolve it on a data space first")
        return cls(**(values | {"where": as_filter(config.where)}))
