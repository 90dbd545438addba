"""What a model answers to a task: the first line that it generates, or the best of several.

Source: choosing among samples by their mean log-probability is that of Codex (arXiv 2107.03374,
Section 3.3), as is the temperature.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from whet.adapt.decoding.batch_decoding import BatchDecoder
from whet.adapt.decoding.sampling import SamplingParams, SequenceGroup, SequenceState
from whet.adapt.model import LanguageModel
from whet.evaluate.tasks import ScoringTask, Tokens

TEMPERATURE = 0.8  # of samples


PromptTokens = Callable[[int], Tokens]
"""Gives what stands before an answer, such as documents and the question; the argument is the number
of tokens to leave room for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer."""

    text: str
    seconds: float
    """Wall time of generating it, reading the prompt included."""


def answer(
    model: LanguageModel,
    prompt: PromptTokens,
    *,
    max_tokens: int,
    samples: int = 1,
    seed: int = 0,
) -> Answer:
    """The first line that the model writes after a prompt, without white space at its ends.

    Args:
        model: The model, with its present weights.
        prompt: What stands before the answer.
        max_tokens: Longest answer.
        samples: With 1, the most likely token is taken each time; with more, so many answers are
            sampled, and of those that are not empty, the one with the highest mean log-probability
            of its tokens counts.
        seed: Random seed of sampling.

    Raises:
        ModelError: If the logits are not finite.
    """
    start = time.perf_counter()
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=TEMPERATURE if samples > 1 else 0.0,
        num_sequences=samples,
        logprobs=0 if samples > 1 else None,
        seed=seed % 2**63,
    )
    group, lm_head = SequenceGroup(model, prompt(max_tokens).tolist(), sampling), model.lm_head()
    decoder = BatchDecoder(model, lambda _: lm_head)
    running = dict(enumerate(group.sequences))
    while running:
        for result in decoder.step(running).values():
            if isinstance(result, Exception):
                raise result
        running = {key: each for key, each in running.items() if not _has_ended(each)}
    best = max(group.sequences, key=_likelihood) if samples > 1 else group.sequences[0]
    return Answer(first_line(best.text), time.perf_counter() - start)


def plain_prompt(model: LanguageModel, task: ScoringTask) -> PromptTokens:
    """The end of the task's context that fits."""

    def tokens(max_tokens: int) -> Tokens:
        context = model.encode(task.context)
        return context[max(0, len(context) - (model.max_length - 1 - max_tokens)) :]

    return tokens


def first_line(text: str) -> str:
    """The first line that is not blank, without white space at its ends.

    >>> first_line("\\n    return x\\n\\ndef")
    'return x'
    """
    return text.strip().partition("\n")[0].strip()


def _has_ended(sequence: SequenceState) -> bool:
    return bool(sequence.finish_reason) or "\n" in sequence.text.lstrip()


def _likelihood(sequence: SequenceState) -> tuple[bool, float]:
    """The mean log-probability of the tokens of an answer; one that is empty comes last."""
    values = [token.logprob for token in sequence.result.logprobs]
    return bool(first_line(sequence.text)), sum(values) / max(len(values), 1)
