"""Which tokens of a conversation the assistant writes, so that a model learns to answer.

A response and the token that ends it are found by the tokens that change when another text stands in
its place. That needs no template with marks for responses, and works where a template trims a
message, leaves out thoughts or adds a system message.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from whet.adapt.batches import TrainText
from whet.data.messages import ANSWERING

if TYPE_CHECKING:
    from whet.adapt.model import LanguageModel

log = logging.getLogger("whet")

OTHER = "\uf8ff"  # a character for private use, which begins and ends no response
ENDING = 2  # tokens after a response among which the one that ends it is looked for


def response_text(model: "LanguageModel", messages: Sequence[Mapping[str, str]]) -> TrainText:
    """A conversation by the model's chat template, with only the responses in its loss.

    If the template rejects the messages, such as those of a passage that begins with a response, or
    if the model has none, they are written as lines of `role: content`; the former is logged once.
    Takes a rendering of the conversation per response.

    Raises:
        ValueError: If there is no response with tokens.
    """
    try:
        text = _masked(model, messages, plain=False)
    except ValueError as error:
        _log_rejected(model.name, str(error))
        text = _masked(model, messages, plain=True)
    if not text.num_loss_tokens:
        raise ValueError("its responses have no tokens: nothing to train on")
    return text


def _masked(
    model: "LanguageModel", messages: Sequence[Mapping[str, str]], *, plain: bool
) -> TrainText:
    def encode(messages: Sequence[Mapping[str, str]]) -> list[int]:
        return model.encode_chat(messages, add_generation_prompt=False, plain=plain)

    whole = encode(messages)
    mask = torch.zeros(len(whole), dtype=torch.bool)
    for place, message in enumerate(messages):
        if message["role"] == ANSWERING and message["content"].strip():
            replaced = {**message, "content": OTHER}
            other = encode([*messages[:place], replaced, *messages[place + 1 :]])
            start, stop = _difference(whole, other)
            mask[start : _end(whole, stop, model.eos_token_ids)] = True
    return TrainText(torch.tensor(whole, dtype=torch.long), mask)


def _difference(tokens: list[int], other: list[int]) -> tuple[int, int]:
    """Where `tokens` begin and end to differ from `other`."""
    shorter, start, after = min(len(tokens), len(other)), 0, 0
    while start < shorter and tokens[start] == other[start]:
        start += 1
    while after < shorter - start and tokens[-1 - after] == other[-1 - after]:
        after += 1
    return start, len(tokens) - after


def _end(tokens: list[int], stop: int, eos_token_ids: Collection[int]) -> int:
    """The end of a response, after the token that ends it if the template writes one."""
    following = tokens[stop : stop + ENDING]
    ends = [place for place, token in enumerate(following, stop + 1) if token in eos_token_ids]
    return ends[0] if ends else stop


@lru_cache(maxsize=64)
def _log_rejected(name: str, reason: str) -> None:
    log.warning("%s: some messages are trained on as plain text: %s", name, reason)
