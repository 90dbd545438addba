"""Batched decoding: one token for each of many sequences in one pass, each with its own weights.

The weights of the moment when a step is taken decide its tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from whet.adapt.decoding.kv_cache import concat, new_cache, select_rows
from whet.adapt.decoding.sampling import SequenceState
from whet.adapt.loss import OutputProjection
from whet.errors import ModelError


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

    slots: list[int]
    sequences: list[SequenceState]
    unread: Int[Tensor, "b t"]
    """Tokens that the network has not read yet."""
    cache: Any
    padding: list[int] = field(default_factory=lambda: [0])
    """Unused columns at the left of each row."""
    length: int = 0
    """Columns of the cache."""

    def keep_only(self, sequences: Mapping[int, SequenceState]) -> None:
        """Drop the rows of sequences that are not continued."""
        pairs = list(zip(self.slots, self.sequences, strict=True))
        rows = [i for i, (slot, sequence) in enumerate(pairs) if sequences.get(slot) is sequence]
        if len(rows) == len(pairs):
            return
        self.slots = [self.slots[row] for row in rows]
        self.sequences = [self.sequences[row] for row in rows]
        padding = [self.padding[row] for row in rows]
        unused = min(padding, default=0)
        self.padding, self.length = [pad - unused for pad in padding], self.length - unused
        self.unread = self.unread[rows]
        self.cache = select_rows(self.cache, rows, self.length) if rows else None

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

    A prompt is read by itself, then its row joins those of the other sequences. A network that
    cannot read rows of several lengths continues each sequence by itself. `bind` makes the network
    compute with the weights of the given slots, row by row of the batch, and returns its output
    layer.
    """

    def __init__(
        self, model: DecoderModel, bind: Callable[[Sequence[int]], OutputProjection]
    ) -> None:
        self._model, self._bind = model, bind
        self._can_join = new_cache(model.hf_model) is not None
        self._groups: list[_DecodeGroup] = []

    @torch.no_grad()
    def step(self, sequences: Mapping[int, SequenceState]) -> dict[int, str | Exception]:
        """Add one token to the sequence of each slot.

        Returns the text that became final, or why there is no token. The keys and values of
        sequences that are not in `sequences` are dropped.
        """
        for group in self._groups:
            group.keep_only(sequences)
        started = {slot for group in self._groups for slot in group.slots}
        groups = [group for group in self._groups if group.slots] + [
            _DecodeGroup([slot], [sequence], sequence.prompt[None], new_cache(self._model.hf_model))
            for slot, sequence in sequences.items()
            if slot not in started
        ]
        results: dict[int, str | Exception] = {}
        self._groups = []
        for group in groups:
            try:
                results |= self._decode(group)
            except Exception as error:  # of this group alone, such as memory for its prompt
                results |= dict.fromkeys(group.slots, error)
            else:
                self._groups.append(group)
        if len(self._groups) > 1 and self._can_join:
            self._groups = [_join(self._groups)]
        return results

    def _decode(self, group: _DecodeGroup) -> dict[int, str | Exception]:
        if group.length and group.length == self._model.longrope_switch:
            [sequence] = group.sequences  # positions are rotated differently from here: read again
            generated = sequence.prompt.new_tensor(sequence.token_ids)
            group.cache, group.length = None, 0
            group.unread = torch.cat([sequence.prompt, generated])[None]
        lm_head = self._bind(group.slots)
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
        group.cache, group.length = output.past_key_values, group.length + group.unread.shape[1]
        logits = lm_head.logits_per_row(output.last_hidden_state[:, -1])
        finite = logits.isfinite().all(1).tolist()
        tokens = torch.stack(
            [
                sequence.sample(row) if ok else row.argmax()
                for sequence, row, ok in zip(group.sequences, logits, finite, strict=True)
            ]
        )
        group.unread = tokens[:, None]
        rows = zip(group.slots, group.sequences, finite, tokens.tolist(), strict=True)
        return {
            slot: sequence.append(token) if ok else self._non_finite_error(sequence)
            for slot, sequence, ok, token in rows
        }

    def _non_finite_error(self, sequence: SequenceState) -> ModelError:
        return ModelError(
            f"logits of {self._model.name} are not finite at generated token "
            f"{len(sequence.token_ids) + 1}: lower the learning rate, or load the model as float32"
        )


def _join(groups: Sequence[_DecodeGroup]) -> _DecodeGroup:
    length = max(group.length for group in groups)
    slots = [slot for group in groups for slot in group.slots]
    sequences = [sequence for group in groups for sequence in group.sequences]
    padding = [pad + length - group.length for group in groups for pad in group.padding]
    order = sorted(range(len(slots)), key=slots.__getitem__)  # contiguous weights are not copied
    return _DecodeGroup(
        [slots[row] for row in order],
        [sequences[row] for row in order],
        torch.cat([group.unread for group in groups])[order],
        concat([group.cache for group in groups], order, length),
        [padding[row] for row in order],
        length,
    )
