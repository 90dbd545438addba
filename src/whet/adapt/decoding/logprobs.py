"""Log-probabilities of tokens: those that were chosen or given, and the most likely ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from whet.adapt.loss import OutputProjection

POSITIONS = 64
"""Positions of a prompt whose logits are held at once."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one token given those before it, in nats."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """Ids and log-probabilities of the most likely tokens, the likeliest first, and of this token
    if it is not one of them."""


def token_logprobs(
    logits: Float[Tensor, "t v"], token_ids: Int[Tensor, " t"], count: int
) -> list[TokenLogprob]:
    """The log-probability of each token, and of the `count` most likely ones at its position."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, token_ids[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(count, logits.shape[1]))
    rows = zip(token_ids.tolist(), chosen, ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, _with_token(token, logprob, zip(top, tops, strict=True)))
        for token, logprob, top, tops in rows
    ]


@torch.no_grad()
def prompt_logprobs(
    states: Float[Tensor, "t d"],
    lm_head: OutputProjection,
    token_ids: Int[Tensor, " t"],
    count: int,
) -> list[TokenLogprob]:
    """`token_logprobs` of a prompt's tokens after the first, from the hidden states of all."""
    scored: list[TokenLogprob] = []
    for logits, following in _predictions(states, lm_head, token_ids, len(token_ids) - 1):
        scored += token_logprobs(logits, following, count)
    return scored


@torch.no_grad()
def prompt_nats(
    states: Float[Tensor, "t d"],
    lm_head: OutputProjection,
    token_ids: Int[Tensor, " t"],
    num_scored: int,
) -> float:
    """Information content of the last tokens of a prompt, from the hidden states of all."""
    parts = _predictions(states, lm_head, token_ids, num_scored)
    return sum(
        functional.cross_entropy(logits, following, reduction="sum").item()
        for logits, following in parts
    )


def _predictions(
    states: Float[Tensor, "t d"],
    lm_head: OutputProjection,
    token_ids: Int[Tensor, " t"],
    num_scored: int,
) -> Iterator[tuple[Float[Tensor, "n v"], Int[Tensor, " n"]]]:
    """The logits of the last `num_scored` tokens of a prompt, some at a time, and these tokens."""
    layer = lm_head if lm_head.weight.dim() == 2 else lm_head.for_row(0)
    last = len(token_ids) - 1
    for start in range(last - num_scored, last, POSITIONS):
        end = min(start + POSITIONS, last)
        yield layer.logits(states[start:end]), token_ids[start + 1 : end + 1]


def _with_token(
    token: int, logprob: float, top: Iterator[tuple[int, float]]
) -> tuple[tuple[int, float], ...]:
    pairs = tuple(top)
    return pairs if any(other == token for other, _ in pairs) else (*pairs, (token, logprob))
