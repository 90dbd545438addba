"""Batched decoding: one token for each of many sequences in one pass, each with its own weights.

The weights of the moment when a step is taken decide its tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.adapt.decoding.kv_cache import concat, new_cache, select_rows
from whet.adapt.decoding.logprobs import prompt_logprobs, prompt_nats
from whet.adapt.decoding.sampling import SequenceState, TextPiece
from whet.adapt.loss import OutputProjection
from whet.errors import ModelError

Key = int | tuple[int, int]
"""What identifies a sequence: the slot of its weights, or that and its number in the slot."""
Results = dict[Any, TextPiece | Exception]
"""What each sequence was given, by its key."""


@runtime_checkable
class DecoderModel(Protocol):
    """What decoding needs of a language model."""

    @property
    def hf_model(self) -> Any: ...

    @property
    def longrope_switch(self) -> int | None: ...

    @property
    def name(self) -> str: ...


@dataclass(slots=True, eq=False)
class _DecodeGroup:
    """Sequences that share a pass: their keys and values are the rows of one cache."""

    keys: list[Key]
    sequences: list[SequenceState]
    unread: Int[Tensor, "b t"]
    """Tokens that the network has not read yet; one row for all sequences of a new prompt."""
    cache: Any
    padding: list[int] = field(default_factory=lambda: [0])
    """Unused columns at the left of each row."""
    length: int = 0
    """Columns of the cache."""

    def keep_only(self, sequences: Mapping[Any, SequenceState]) -> None:
        """Drop the rows of sequences that are not continued."""
        pairs = list(zip(self.keys, self.sequences, strict=True))
        rows = [i for i, (key, sequence) in enumerate(pairs) if sequences.get(key) is sequence]
        if len(rows) == len(pairs):
            return
        padding = [self.padding[row] for row in rows]
        unused = min(padding, default=0)
        length = self.length - unused
        self._select(rows, length)
        self.padding, self.length = [pad - unused for pad in padding], length

    def repeat(self) -> None:
        """Give each sequence of a prompt that was read once a row of its own."""
        rows = [0] * len(self.sequences)
        self.cache = select_rows(self.cache, rows, self.length)
        self.padding = [self.padding[0]] * len(rows)

    def _select(self, rows: Sequence[int], length: int) -> None:
        self.keys = [self.keys[row] for row in rows]
        self.sequences = [self.sequences[row] for row in rows]
        self.unread = self.unread[rows]
        self.cache = select_rows(self.cache, rows, length) if rows else None

    def attention_inputs(self) -> dict[str, Tensor]:
        """Mask and positions of the next tokens; empty where the defaults are right."""
        if not any(self.padding):
            return {}
        padding = torch.tensor(self.padding, device=self.unread.device)[:, None]
        columns = torch.arange(self.length + 1, device=padding.device)
        return {
            "attention_mask": (columns >= padding).long(),
            "position_ids": self.length - padding,
        }


class BatchDecoder:
    """Continues the sequences of many slots, one token per step.

    A prompt is read by itself, once for all of its sequences; then their rows join those of the
    others. A network that cannot read rows of several lengths continues each sequence by itself.
    `bind` makes the network compute with the weights of the given keys, row by row of the batch,
    and returns its output layer.
    """

    def __init__(
        self, model: DecoderModel, bind: Callable[[Sequence[Any]], OutputProjection]
    ) -> None:
        self._model, self._bind = model, bind
        self._can_join = new_cache(model.hf_model) is not None
        self._groups: list[_DecodeGroup] = []

    @torch.no_grad()
    def step(self, sequences: Mapping[Any, SequenceState]) -> Results:
        """Add one token to each sequence.

        Returns the text that became final, or why there is no token. The keys and values of
        sequences that are not in `sequences` are dropped.
        """
        for group in self._groups:
            group.keep_only(sequences)
        groups = [group for group in self._groups if group.keys] + self._new_groups(sequences)
        results: Results = {}
        self._groups = []
        for group in groups:
            try:
                results |= self._decode(group)
            except Exception as error:  # of this group alone, such as memory for its prompt
                results |= dict.fromkeys(group.keys, error)
            else:
                self._groups.append(group)
        if len(self._groups) > 1 and self._can_join:
            self._groups = [_join(self._groups)]
        return results

    def _new_groups(self, sequences: Mapping[Any, SequenceState]) -> list[_DecodeGroup]:
        """A group for each prompt that was not read yet."""
        started = {key for group in self._groups for key in group.keys}
        groups: dict[Any, _DecodeGroup] = {}
        for key, sequence in sequences.items():
            if key in started:
                continue
            shared = id(sequence.prompt) if self._can_join else key
            if shared not in groups:
                cache = new_cache(self._model.hf_model)
                groups[shared] = _DecodeGroup([], [], sequence.prompt[None], cache)
            groups[shared].keys.append(key)
            groups[shared].sequences.append(sequence)
        return list(groups.values())

    def _decode(self, group: _DecodeGroup) -> Results:
        if group.length and group.length == self._model.longrope_switch:
            [sequence] = group.sequences  # positions are rotated differently from here: read again
            generated = sequence.prompt.new_tensor(sequence.token_ids)
            group.cache, group.length = None, 0
            group.unread = torch.cat([sequence.prompt, generated])[None]
        lm_head = self._bind(group.keys[: len(group.unread)])
        output = self._model.hf_model.base_model(
            input_ids=group.unread,
            past_key_values=group.cache,
            use_cache=True,
            **group.attention_inputs(),
        )
        if not hasattr(output, "past_key_values"):
            raise ModelError(
                f"model {self._model.name} has no key-value cache, so it cannot generate text "
                "here: use another model"
            )
        if not group.length:
            _score_prompt(group.sequences[0], output.last_hidden_state[0], lm_head)
        group.cache, group.length = output.past_key_values, group.length + group.unread.shape[1]
        logits = lm_head.logits_per_row(output.last_hidden_state[:, -1])
        if len(logits) < len(group.sequences):
            group.repeat()
            logits = logits.expand(len(group.sequences), -1)
        return self._sample(group, logits)

    def _sample(self, group: _DecodeGroup, logits: Float[Tensor, "b v"]) -> Results:
        """Sample the next token of each sequence; an error is that of its sequence alone."""
        finite = logits.isfinite().all(1).tolist()
        errors: dict[int, Exception] = {}
        tokens: list[Tensor] = []
        for i, (sequence, row) in enumerate(zip(group.sequences, logits, strict=True)):
            try:
                if not finite[i]:
                    raise self._non_finite_error(sequence)
                tokens.append(sequence.sample(row))
            except (ModelError, ValueError) as error:
                errors[i] = error
                tokens.append(row.argmax())
        group.unread = torch.stack(tokens)[:, None]
        results: Results = {}
        for i, token in enumerate(group.unread[:, 0].tolist()):
            try:
                results[group.keys[i]] = errors.get(i) or group.sequences[i].append(token)
            except ValueError as error:
                results[group.keys[i]] = error
        return results

    def _non_finite_error(self, sequence: SequenceState) -> ModelError:
        return ModelError(
            f"logits of {self._model.name} are not finite at generated token "
            f"{len(sequence.token_ids) + 1}: lower the learning rate, or load the model as float32"
        )


def _score_prompt(
    first: SequenceState, states: Float[Tensor, "t d"], lm_head: OutputProjection
) -> None:
    """Give the first sequence of a prompt, when it was read, what is wanted of its tokens."""
    if (count := first.wanted_prompt_logprobs) is not None:
        first.prompt_logprobs = tuple(prompt_logprobs(states, lm_head, first.prompt, count))
    if first.num_scored and first.prompt_nats is None:
        first.prompt_nats = prompt_nats(states, lm_head, first.prompt, first.num_scored)


def _join(groups: Sequence[_DecodeGroup]) -> _DecodeGroup:
    length = max(group.length for group in groups)
    keys = [key for group in groups for key in group.keys]
    sequences = [sequence for group in groups for sequence in group.sequences]
    padding = [pad + length - group.length for group in groups for pad in group.padding]
    order = sorted(range(len(keys)), key=keys.__getitem__)  # contiguous weights are not copied
    return _DecodeGroup(
        [keys[row] for row in order],
        [sequences[row] for row in order],
        torch.cat([group.unread for group in groups])[order],
        concat([group.cache for group in groups], order, length),
        [padding[row] for row in order],
        length,
    )
