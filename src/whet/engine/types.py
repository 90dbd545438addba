"""What an engine is asked and what it returns."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, get_args

from whet.adapt.adapters import Adapter
from whet.adapt.config import UseOption
from whet.adapt.decoding.logprobs import TokenLogprob
from whet.adapt.decoding.sampling import GeneratedText, SamplingParams
from whet.adapt.evidence import Evidence
from whet.adapt.model import Score
from whet.adapt.session import AdaptationTrace
from whet.config import Renamed, check_choice, renamed_keywords
from whet.data.documents import Document
from whet.errors import WhetError
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.space.retrieve import Retrieval, check_space
from whet.space.space import DataSpace

REPR_LENGTH = 40  # characters of an output's text


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and what to do with it: continue it, or score a text after it.

    >>> Request("Bees dance to", text=" tell where food is.", deadline_s=2.0).deadline_s
    2.0

    Raises:
        ValueError: If a value is out of range, or values exclude each other.
    """

    prompt: str
    """The text to continue. By default documents are selected for it, too."""
    _: KW_ONLY
    query: str | None = None
    """The text to select documents for [default: the prompt]."""
    token_ids: tuple[int, ...] | None = None
    """Token ids to continue instead of the prompt's, for special tokens that text cannot spell."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A conversation to answer through the model's chat template, instead of continuing the prompt:
    a `role` and a text as `content` each. The prompt is then what documents are selected for."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the answer to `messages` may call, in OpenAI's format."""
    answer_prefix: str = ""
    """Beginning of the answer to `messages`, in which special tokens of the template are tokens."""
    text: str | None = None
    """A text to score instead of generating one."""
    context: str | None = None
    """Left context of the scored text, which is read but not scored [default: the prompt]."""
    selection: SelectionConfig | ResolvedSelection | None = None
    """How to select for this request [default: the engine's selection]."""
    space: DataSpace | None = None
    """Where to select, such as a filtered data space [default: the engine's data space]."""
    retrieval: Retrieval | None = None
    """What was retrieved already, as by `Engine.retrieve`: nothing is selected again."""
    documents: tuple[Document, ...] | None = None
    """Documents to train on, in this order, instead of selecting any."""
    deadline_s: float | None = None
    """Seconds after submission when training ends: fewer steps are taken, and no error is
    raised."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How text is generated."""
    eval_steps: tuple[int, ...] = ()
    """Updates after which the text is scored, in addition to the first and the last score."""
    use: UseOption = "auto"
    """What the documents are used for: gradient steps (`steps`), to be read by the model
    (`context`), or `both`. With `auto`, a model with a chat template reads them to answer
    `messages`, and any other request takes steps. They are read in front of the prompt or scored
    text, or in the user's last message, as far as they fit the context; the first one stands
    last."""
    adapt: bool = True
    """Whether to use documents at all; otherwise the base model answers."""
    init_adapter: Adapter | None = None
    """LoRA adapter to start from instead of the base model."""
    return_adapter: bool = False
    """Whether to return a copy of the trained LoRA adapter."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt is {self.prompt!r}: expected one text")
        for document in self.documents or ():
            if not isinstance(document, Document):
                raise ValueError(
                    f"documents contains {document!r}: expected a Document, such as "
                    'whet.Document("its id", "its text")'
                )
        if self.selection is not None and not isinstance(
            self.selection, SelectionConfig | ResolvedSelection
        ):
            raise ValueError(f"selection is {self.selection!r}: expected a whet.SelectionConfig")
        if self.space is not None:
            check_space(self.space)
        if self.documents is not None and self.retrieval is not None:
            raise ValueError("request has both documents and a retrieval: expected one of them")
        if self.deadline_s is not None and not self.deadline_s >= 0:
            raise ValueError(f"deadline_s is {self.deadline_s}: expected 0 or more")
        if self.text == "":
            raise ValueError("text to score is empty: bits per byte need at least one byte")
        for name in ("token_ids", "messages"):
            if self.text is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"request has both {name} and a text to score: expected one of them"
                )
        if self.messages is not None and not self.messages:
            raise ValueError("messages is empty: expected at least one")
        check_choice(self.use, get_args(UseOption), "use")
        if self.use in ("context", "both") and self.sampling.prompt_logprobs is not None:
            raise ValueError(
                f"use is {self.use!r}: expected steps with prompt_logprobs, which are those of the "
                "prompt alone"
            )


Request.__init__ = renamed_keywords(  # type: ignore[method-assign]
    n="selection=SelectionConfig(n=…)",
    lam="selection=SelectionConfig(lam=…)",
    alpha="selection=SelectionConfig(stop_alpha=…)",
    tokens="token_ids",
    score_at="eval_steps",
    adapter="init_adapter",
    keep="return_adapter",
)(Request.__init__)


@dataclass(frozen=True, slots=True, repr=False)
class Output:
    """The generated or scored text, and how the model was adapted for it."""

    request: Request
    text: str
    """The generated text; for a request that scores a text, that text."""
    trace: AdaptationTrace
    """The training steps, and why there were no more."""
    retrieval: Retrieval | None = None
    """The selected documents; None if nothing was selected."""
    finish_reason: str = "score"
    """Why the text ends: `stop`, `length`, `cancelled`, or `score` for a scored text."""
    scores: Mapping[int, Score] = field(default_factory=dict)
    """The scores of the text, by the number of updates before: with the use `both` by the model
    that has read the documents of these updates."""
    adapter: Adapter | None = None
    """The trained adapter, if the request has `return_adapter`."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of the stages `queue`, `select`, `train` and `generate`. Documents are selected
    while the request waits in the queue; that time counts as `select` only."""
    evidence: Evidence = field(default_factory=Evidence)
    """What the answer rests on, and whether the steps helped. Print it for one line."""
    answer_score: Score | None = None
    """The score of the text with documents in front of it, for a request that scores a text with
    the use `context` or `both`."""
    num_tokens: int = 0
    """Number of generated tokens, of all texts together."""
    num_prompt_tokens: int = 0
    """Number of tokens that were read before, with documents in the context and the start token; 0
    for a scored text."""
    texts: tuple[GeneratedText, ...] = ()
    """All generated texts; `text` and `finish_reason` are those of the first."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of the prompt's tokens, if the request's `sampling` asks for them."""
    error: WhetError | ValueError | None = None
    """Why the request failed. Only `Engine.generate_many` returns errors; other methods raise
    them."""

    query = Renamed("request")
    finish = Renamed("finish_reason")
    tokens = Renamed("num_tokens")

    @property
    def base(self) -> Score | None:
        """The score of the base model, for a request that scores a text."""
        return self.scores.get(0)

    @property
    def score(self) -> Score | None:
        """The score of the model that answers, for a request that scores a text.

        That is the adapted model, unless the evidence speaks for the base model; with the use
        `context` or `both`, it has read the documents.
        """
        if self.answer_score is not None:
            return self.answer_score
        return self.scores.get(self.evidence.num_steps)

    def __repr__(self) -> str:
        text = self.text
        if len(text) > REPR_LENGTH:
            text = text[:REPR_LENGTH] + "…"
        return f"Output({text!r}, {len(self.trace)} steps, {self.error or self.finish_reason})"
