"""Log-probabilities of tokens: those that were chosen or given, and the most likely ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    layer = lm_head if lm_head.weight.dim() == 2 else lm_head.for_row(0)
    scored: list[TokenLogprob] = []
    for start in range(0, len(token_ids) - 1, POSITIONS):
        end = min(start + POSITIONS, len(token_ids) - 1)
        following = token_ids[start + 1 : end + 1]
        scored += token_logprobs(layer.logits(states[start:end]), following, count)
    return scored


def _with_token(
    token: int, logprob: float, top: Iterator[tuple[int, float]]
) -> tuple[tuple[int, float], ...]:
    pairs = tuple(top)
    return pairs if any(other == token for other, _ in pairs) else (*pairs, (token, logprob))
