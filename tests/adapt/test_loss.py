"""The loss in chunks has the values and gradients of torch's, for every kind of output layer."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from whet.adapt.batches import Batch, TrainText
from whet.adapt.loss import OutputProjection, chunked_cross_entropy

TEXTS = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6, 0])]
KINDS = list(itertools.product([None, 3.0], [False, True], [0.1, 100.0]))


def numbers(*shape, scale=1.0):
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (scale * made).requires_grad_()


@pytest.mark.parametrize(("cap", "biased", "scale"), KINDS)
def test_losses_and_gradients_are_those_of_cross_entropy(cap, biased, scale, monkeypatch):
    monkeypatch.setattr("whet.adapt.loss.CHUNK", 7 * 3)  # pieces of three rows, not of a million
    monkeypatch.setattr("whet.adapt.loss.MIN_ROWS", 1)
    batch, states, weight = (
        Batch.from_texts(TEXTS, 5, 0),
        numbers(2, 5, 4, scale=scale),
        numbers(7, 4),
    )
    bias = numbers(7) if biased else None
    trained = [states, weight, *([bias] if biased else [])]
    losses = []
    for row, text in zip(states, TEXTS, strict=True):
        logits = functional.linear(row[: len(text)], weight, bias)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        losses.append(functional.cross_entropy(logits, text))
    goal = torch.autograd.grad(sum(losses), trained)
    grads = [torch.zeros_like(tensor) for tensor in trained[1:]]
    output = OutputProjection(
        weight.detach(), None if bias is None else bias.detach(), 1.0, cap, *grads
    )
    found = chunked_cross_entropy(states, output, batch, output.workspace())
    torch.testing.assert_close(found, torch.stack(losses).detach())
    for mine, theirs in zip([states.grad, *grads], goal, strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=5, max_size=5).filter(any), st.sampled_from([None, 3.0]))
def test_a_masked_loss_is_the_mean_over_the_tokens_that_count(mask, cap):
    mask, states, weight = torch.tensor(mask), numbers(2, 5, 4), numbers(7, 4)
    batch = Batch.from_texts([TrainText(TEXTS[0], mask), TEXTS[1]], 5, 0)
    logits = functional.linear(states, weight)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    each = functional.cross_entropy(logits[0], TEXTS[0], reduction="none")
    losses = [sum(each[i] for i in range(5) if mask[i]) / mask.sum(), None]
    losses[1] = functional.cross_entropy(logits[1, : len(TEXTS[1])], TEXTS[1])
    goal = torch.autograd.grad(sum(losses), [states, weight])
    output = OutputProjection(weight.detach(), None, 1.0, cap, torch.zeros_like(weight))
    found = chunked_cross_entropy(states, output, batch, output.workspace())
    torch.testing.assert_close(found, torch.stack(losses).detach())
    torch.testing.assert_close(states.grad, goal[0])
    torch.testing.assert_close(output.weight_grad, goal[1])
