"""What is asked of an engine, what it answers, and how it trains in between."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field

from whet.adapt.adapters import Adapter
from whet.adapt.model import Score
from whet.adapt.sampling import SamplingParams
from whet.adapt.session import AdaptationTrace
from whet.data.documents import Document
from whet.errors import WhetError
from whet.maths.arrays import as_count, as_positive
from whet.space.retrieve import Retrieval

SHOWN = 40  # letters of an answer's text


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and what is wanted of it."""

    prompt: str
    """What is selected for, and read before what follows it."""
    _: KW_ONLY
    tokens: tuple[int, ...] | None = None
    """What the model reads in place of `prompt` to continue it: token ids, for what letters cannot
    say."""
    text: str | None = None
    """The text to score after the prompt; none to continue the prompt."""
    n: int | None = None
    """Gradient steps at most, 0 for the base model; none for the engine's. Likewise `lam` and
    `alpha`."""
    lam: float | None = None
    alpha: float | None = None
    deadline_s: float | None = None
    """Seconds from being submitted in which steps are begun; fewer of them, never an error."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    documents: tuple[Document, ...] | None = None
    """Learn from these, in this order, instead of selecting."""
    score_at: tuple[int, ...] = ()
    """Steps after which the text is scored, beside the first and the last."""
    adapt: bool = True
    """Whether to train at all."""
    adapter: Adapter | None = None
    """Begin with this instead of the base model; for LoRA."""
    keep: bool = False
    """Give what was learned with the answer; for LoRA."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt is {self.prompt!r}: expected one text")
        for given in self.documents or ():
            if not isinstance(given, Document):
                raise ValueError(
                    f"documents holds {given!r}: expected a Document, as "
                    'whet.Document("its id", "its text")'
                )
        if self.n not in (None, 0):
            as_count(self.n, "n")
        for name in ("lam", "alpha"):
            if (value := getattr(self, name)) is not None:
                as_positive(value, name)
        if self.deadline_s is not None and not self.deadline_s >= 0:
            raise ValueError(f"deadline_s is {self.deadline_s}: expected 0 or more")
        if self.text == "":
            raise ValueError("text to score is empty: bits per byte need at least one byte")
        if self.text is not None and self.tokens is not None:
            raise ValueError("query has both tokens and a text to score: expected one of them")


@dataclass(frozen=True, slots=True, repr=False)
class Output:
    """What a sharpened model said, or how well it predicted, and how it came to it."""

    query: Request
    text: str
    """The continuation; for a scored text, that text."""
    trace: AdaptationTrace
    retrieval: Retrieval | None = None
    """What was selected; none if nothing was to be."""
    finish: str = "score"
    """Why the text ends: stop or length, cancelled, or score for a scored text."""
    scores: Mapping[int, Score] = field(default_factory=dict)
    """The score after so many steps, for a scored text."""
    adapter: Adapter | None = None
    """What was learned, if the query said to keep it."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of queue, select, train, and answer. Texts are selected while a prompt queues: that
    time counts as `select` alone."""
    tokens: int = 0
    """Length of the continuation."""
    error: WhetError | ValueError | None = None
    """Why the prompt failed, if it did; only `Engine.run` answers so, all else raises it."""

    @property
    def base(self) -> Score | None:
        """The score before the first step, for a scored text."""
        return self.scores.get(0)

    @property
    def score(self) -> Score | None:
        """The score after the last step, for a scored text."""
        return self.scores.get(max(self.scores, default=0))

    def __repr__(self) -> str:
        begin = self.text if len(self.text) <= SHOWN else self.text[:SHOWN] + "…"
        return f"Answer({begin!r}, {len(self.trace)} steps, {self.error or self.finish})"
