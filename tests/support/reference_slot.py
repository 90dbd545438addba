"""One prompt at a time, adapted and put back: the oracle that faster forms are held against.

Source: test-time fine-tuning as SIFT has it, arXiv 2410.08020, Section 2: one gradient step on each
    selected text.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from support.reference_trainable import Parameters, trainable
from torch.nn import functional

from whet.adapt.config import AdapterConfig, FullFineTuning, OptimizerConfig
from whet.adapt.model import LanguageModel, Score
from whet.errors import ModelError


class AdaptationSession:
    """A model while one prompt uses it exclusively. Made by `adapted`."""

    def __init__(
        self, model: LanguageModel, parameters: Parameters, lr: float, optimizer: OptimizerConfig
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._clip = optimizer.max_grad_norm
        self._optimizer = _torch_optimizer(parameters, lr, optimizer)
        self.steps = 0

    def step(self, text: str, counts: list[bool] | None = None) -> float:
        """One gradient step on the first `context` tokens of `text`, or on those that `counts` has.

        Returns the loss before the step, nats per token.

        Raises:
            ValueError: If the text has no tokens.
            ModelError: If the loss is not finite; the weights have not moved.
        """
        loss = mean_loss(self._model, text, counts)
        if not math.isfinite(value := loss.item()):
            raise ModelError(
                f"loss is {value} at step {self.steps + 1} on text {text[:40]!r}: "
                "lower the learning rate"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if self._clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return value

    def score(self, text: str, *, context: str = "") -> Score:
        """`LanguageModel.score` with the weights as they are now."""
        return self._model.score(text, context=context)

    def generate(
        self, prompt: str, *, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """`LanguageModel.generate` with the weights as they are now."""
        return self._model.generate(
            prompt, max_tokens=max_tokens, temperature=temperature, seed=seed
        )


@contextmanager
def adapted(
    model: LanguageModel,
    adaptation: AdapterConfig | None = None,
    optimizer: OptimizerConfig | None = None,
) -> Iterator[AdaptationSession]:
    """Adapt `model` to one prompt; on leaving, even by an error, it is as before, bit for bit.

    Costs a copy of what is trained, and the optimizer's state, which starts anew each time.

    Raises:
        ModelError: If the model is being adapted already.
    """
    adaptation = adaptation or FullFineTuning()
    with model.exclusive(), trainable(model.hf_model, adaptation) as parameters:
        yield AdaptationSession(model, parameters, adaptation.lr, optimizer or OptimizerConfig())


def mean_loss(model: LanguageModel, text: str, counts: list[bool] | None = None) -> torch.Tensor:
    """Mean loss of the first `context` tokens of `text`, nats per token; differentiable."""
    tokens = model.training_tokens(text)[: model.max_length].to(model.device)
    ids = functional.pad(tokens, (1, 0), value=model.bos_token_id)[:-1]
    logits = model.hf_model(input_ids=ids[None], use_cache=False).logits[0, :, : model.vocab_size]
    if counts is None:
        return functional.cross_entropy(logits, tokens)
    places = [place for place, is_counted in enumerate(counts) if is_counted]
    return sum(functional.cross_entropy(logits[i], tokens[i]) for i in places) / len(places)


def _torch_optimizer(
    parameters: Parameters, lr: float, options: OptimizerConfig
) -> torch.optim.Optimizer:
    if options.name == "sgd":
        return torch.optim.SGD(parameters, lr, weight_decay=options.weight_decay)
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    betas = (options.beta1, options.beta2)
    return kind(
        parameters, lr, betas=betas, eps=options.eps, weight_decay=options.weight_decay, fused=True
    )
