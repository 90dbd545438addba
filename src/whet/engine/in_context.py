"""Retrieved documents in the model's context: in front of a text, or in a question of a conversation.

Models use the middle of a long context least (arXiv 2307.03172), so the first document stands
nearest to the text or question.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.batches import windows
from whet.adapt.config import Use, UseOption
from whet.adapt.model import LanguageModel, Score
from whet.space.context import context

CHAT_USE: Use = "context"
"""What `auto` is for a question: no answer is shown to be better, and it is fast (docs/tasks.md)."""
READ_LR_FACTOR = 0.25
"""Factor of the learning rate of steps on documents that the model also reads: it need not remember
them, and the whole rate makes it copy them too surely (benchmarks/LOG.md)."""
SEPARATOR = "\n\n"
WITH_PASSAGES = "Answer with the help of these passages.\n\n{passages}\n\nQuestion: {question}"

Tokens = Int[Tensor, " t"]
ContextOrder = Literal["nearest-last", "selected"]


def resolve_use(use: UseOption, model: LanguageModel, *, is_chat: bool) -> Use:
    """What the documents of a request are used for.

    Args:
        use: What the request asks for. `auto` is `context` for a chat with a model that has a chat
            template, which answers questions, and `steps` for texts to continue or to score.
        model: The model that answers.
        is_chat: Whether the request is a conversation.
    """
    if use != "auto":
        return use
    return CHAT_USE if is_chat and model.has_chat_template else "steps"


def lr_factor(use: Use) -> float:
    """Factor of the learning rate of the steps of a request.

    >>> lr_factor("steps"), lr_factor("both")
    (1.0, 0.25)
    """
    return READ_LR_FACTOR if use == "both" else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class ContextTokens:
    """What the model reads, and which of the texts are a part of it."""

    ids: Tokens
    used: tuple[int, ...]
    """Indices of the texts that are in the context, at least in part, the nearest one first."""


def join_texts(
    model: LanguageModel, texts: Sequence[str], budget: int, order: ContextOrder = "nearest-last"
) -> ContextTokens:
    """The distinct `texts`, the first of them last, or first with the order "selected".

    The one that exceeds the budget is cut, and those after it in `texts` are left out. A separator
    stands between two texts and after the last one.
    """
    selected = order == "selected"
    separator = model.encode_after("a", SEPARATOR)
    parts: list[Tokens] = []
    first, free = "", budget
    used = list[int]()
    for text in dict.fromkeys(texts):
        if free <= len(separator):
            break
        used.append(texts.index(text))
        free -= len(separator)
        first = first if selected and parts else text
        tokens = model.encode_after(SEPARATOR, text, plain=True)[:free]
        parts = [*parts, tokens, separator] if selected else [tokens, separator, *parts]
        free -= len(tokens)
    if parts:  # nothing precedes this one
        parts[0] = model.encode(first, plain=True)[: len(parts[0]) + free]
    return ContextTokens(torch.cat(parts) if parts else separator[:0], tuple(used))


class InContext:
    """Scores a text with documents in front of every window: in-context learning.

    The budget is what the text leaves free of the window, or half the window if that is more, so
    that every window of a long text has the documents in front of it. The first document stands
    nearest the text, or with `order` "selected" farthest from it, as in SIFT (arXiv 2410.08020,
    Section 5); Hardt & Sun (arXiv 2305.18466) give long documents no context.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: str,
        *,
        left: str = "",
        order: ContextOrder = "nearest-last",
        answer_tokens: int = 0,
    ) -> None:
        """Encode the text.

        Args:
            model: The model.
            text: The text to score.
            left: What is read, unscored, between the documents and the text.
            order: Where the first document stands.
            answer_tokens: Length of an answer that is generated instead of the text, too.
        """
        self._model, self._order = model, order
        self._bytes = len(text.encode())
        self._strings = left, text
        self._left = model.encode_after(SEPARATOR, left)
        self._text = model.encode_after(left or SEPARATOR, text)
        longest = max(len(self._text), answer_tokens)
        free = model.max_length - 1 - len(self._left) - longest
        self.budget = max(free, model.max_length // 2)
        """Tokens of documents that fit; the start token takes one more of the window."""

    def examples(self, texts: Sequence[str]) -> ContextTokens:
        """The `texts` that fit the budget: see `join_texts`."""
        return join_texts(self._model, texts, self.budget, self._order)

    def prompt(self, texts: Sequence[str], max_tokens: int) -> Tokens:
        """`texts` and the end of what is left that fits, to generate `max_tokens` tokens after."""
        model, examples = self._model, self.examples(texts).ids
        left = self._left if len(examples) else model.encode(self._strings[0])
        free = model.max_length - 1 - max_tokens - len(examples)
        return torch.cat([examples, left[max(0, len(left) - free) :]])

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Score:
        """Score of the text with `texts` in front of it, with the model's present weights."""
        model, examples = self._model, self.examples(texts).ids
        front = functional.pad(examples, (1, 0), value=model.bos_token_id)
        left, text = self._left, self._text
        if not len(examples):  # they begin the sequence
            before, scored = self._strings
            left, text = model.encode(before), model.encode_after(before, scored)
        body = torch.cat([left, text])
        nats, greedy = 0.0, True
        for window in windows(len(body), model.max_length - len(front), skip=len(left)):
            seen = body[max(window.start - 1, 0) : window.stop - 1]
            logits = model.hf_model(
                input_ids=torch.cat([front, seen])[None], use_cache=False
            ).logits
            predicted = logits[0, -window.targets :, : model.vocab_size].float()
            targets = body[window.stop - window.targets : window.stop]
            nats += functional.cross_entropy(predicted, targets, reduction="sum").item()
            greedy = greedy and bool((predicted.argmax(-1) == targets).all())
        return Score(nats / math.log(2), self._bytes, len(text), greedy)


def prompt_with_texts(
    model: LanguageModel, texts: Sequence[str], prompt: str | Sequence[int], max_tokens: int
) -> ContextTokens:
    """The texts that fit in front of a prompt that is to be continued, and the prompt.

    They are as `InContext` puts them. The budget is what the prompt and `max_tokens` leave free.
    """
    read = model.encode_prompt(prompt, max_tokens)[1:]
    after = read
    if isinstance(prompt, str) and model.adds_space:
        after = model.encode_after(SEPARATOR, prompt)
    examples = join_texts(model, texts, model.max_length - 1 - len(after) - max_tokens)
    ids = torch.cat([examples.ids, after]) if len(examples.ids) else read
    return ContextTokens(ids, examples.used)


def chat_with_texts(
    model: LanguageModel,
    texts: Sequence[str],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    max_tokens: int,
) -> ContextTokens:
    """A conversation with the texts that fit in the user's last message, by the chat template.

    A text that does not fit is left out, not cut. The budget is what the conversation and
    `max_tokens` leave free.

    Raises:
        ValueError: If the template rejects the messages.
    """
    limit = model.max_length - 1 - max_tokens
    ids, place = model.encode_chat(messages, tools), last_of_user(messages)
    budget = limit - len(ids)
    while place is not None and budget > 0:
        passages = context(
            texts,
            range(len(texts)),
            budget=budget,
            count_tokens=lambda text: len(model.encode(text, plain=True)),
        )
        if not passages.text:
            break
        message = messages[place]
        content = WITH_PASSAGES.format(passages=passages.text, question=message["content"])
        asked = {**message, "content": content}
        with_texts = model.encode_chat([*messages[:place], asked, *messages[place + 1 :]], tools)
        if len(with_texts) <= limit:
            used = dict.fromkeys(texts.index(texts[row]) for row in passages.rows_used)
            return ContextTokens(torch.tensor(with_texts), tuple(reversed(used)))
        budget -= max(1, len(with_texts) - limit)
    return ContextTokens(torch.tensor(ids), ())


def last_of_user(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """The index of the user's last message; None without one."""
    places = (place for place, message in enumerate(messages) if message["role"] == "user")
    return max(places, default=None)
