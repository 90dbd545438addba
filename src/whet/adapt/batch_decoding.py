"""The continuations of many prompts, each with weights of its own: a token of each in one pass.

Whatever the weights are when a step is taken, they make that token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from whet.adapt.kv_cache import chosen, joined, kept
from whet.adapt.loss import OutputProjection
from whet.adapt.sampling import SequenceState
from whet.errors import ModelError

if TYPE_CHECKING:
    from whet.adapt.model import LanguageModel


@dataclass(slots=True, eq=False)
class _Rows:
    """BatchDecoder whose keys and values stand side by side."""

    slots: list[int]
    decoders: list[SequenceState]
    unread: Int[Tensor, "b t"]
    cache: Any
    pads: list[int] = field(default_factory=lambda: [0])
    """Columns at the left of each row that hold nothing."""
    length: int = 0
    """Columns in all."""

    def stay(self, decoders: Mapping[int, SequenceState]) -> None:
        """Keep those that are still continued."""
        pairs = list(zip(self.slots, self.decoders, strict=True))
        rows = [row for row, (slot, own) in enumerate(pairs) if decoders.get(slot) is own]
        if len(rows) == len(pairs):
            return
        self.slots = [self.slots[row] for row in rows]
        self.decoders = [self.decoders[row] for row in rows]
        pads = [self.pads[row] for row in rows]
        spare = min(pads, default=0)
        self.pads, self.length = [pad - spare for pad in pads], self.length - spare
        self.unread = self.unread[rows]
        self.cache = chosen(self.cache, rows, self.length) if rows else None

    def places(self) -> dict[str, Tensor]:
        """Where the next tokens stand and what they may look at, if that is not plain."""
        if not any(self.pads):
            return {}
        pads = torch.tensor(self.pads, device=self.unread.device)[:, None]
        columns = torch.arange(self.length + 1, device=pads.device)
        return {"attention_mask": (columns >= pads).long(), "position_ids": self.length - pads}


class BatchDecoder:
    """BatchDecoder in the making.

    A prompt is read by itself, then joins the others. A network that cannot read rows of several
    lengths reads each by itself all along. `use` makes the network compute with the weights of
    slots, row by row of the batch, and gives its last layer.
    """

    def __init__(
        self, model: "LanguageModel", use: Callable[[Sequence[int]], OutputProjection]
    ) -> None:
        self._model, self._use = model, use
        self._joins = kept(model.hf_model) is not None
        self._groups: list[_Rows] = []

    @torch.no_grad()
    def step(self, decoders: Mapping[int, SequenceState]) -> dict[int, str | Exception]:
        """One token more of each slot's; what it makes certain of the text, or why there is none.

        A continuation that is not named is forgotten.
        """
        for rows in self._groups:
            rows.stay(decoders)
        begun = {slot for rows in self._groups for slot in rows.slots}
        self._groups = [rows for rows in self._groups if rows.slots] + [
            _Rows([slot], [decoder], decoder.prompt[None], kept(self._model.hf_model))
            for slot, decoder in decoders.items()
            if slot not in begun
        ]
        told: dict[int, str | Exception] = {}
        groups, self._groups = self._groups, []
        for rows in groups:
            try:
                told |= self._read(rows)
            except Exception as error:  # theirs, as a prompt for which there is no memory
                told |= dict.fromkeys(rows.slots, error)
            else:
                self._groups.append(rows)
        if len(self._groups) > 1 and self._joins:
            self._groups = [_joined(self._groups)]
        return told

    def _read(self, rows: _Rows) -> dict[int, str | Exception]:
        if (
            rows.length and rows.length == self._model.longrope_switch
        ):  # what was read turns otherwise now
            [own] = rows.decoders
            said = own.prompt.new_tensor(own.tokens)
            rows.cache, rows.length, rows.unread = None, 0, torch.cat([own.prompt, said])[None]
        output = self._use(rows.slots)
        read = self._model.hf_model.base_model(
            input_ids=rows.unread, past_key_values=rows.cache, use_cache=True, **rows.places()
        )
        if not hasattr(read, "past_key_values"):
            raise ModelError(
                f"model {self._model.name} keeps nothing of what it has read, so that it cannot "
                "continue a prompt here: load another"
            )
        rows.cache, rows.length = read.past_key_values, rows.length + rows.unread.shape[1]
        logits = output.of_rows(read.last_hidden_state[:, -1])
        finite = logits.isfinite().all(1).tolist()
        known = zip(rows.decoders, logits, finite, strict=True)
        drawn = torch.stack([own.draw(row) if ok else row.argmax() for own, row, ok in known])
        rows.unread = drawn[:, None]
        taken = zip(rows.slots, rows.decoders, finite, drawn.tolist(), strict=True)
        return {
            slot: own.take(token) if ok else self._unsaid(own) for slot, own, ok, token in taken
        }

    def _unsaid(self, decoder: SequenceState) -> ModelError:
        return ModelError(
            f"logits of {self._model.name} are not finite at token {len(decoder.tokens) + 1} of "
            "its answer: lower the learning rate, or load the model as float32"
        )


def _joined(groups: Sequence[_Rows]) -> _Rows:
    length = max(rows.length for rows in groups)
    slots = [slot for rows in groups for slot in rows.slots]
    decoders = [own for rows in groups for own in rows.decoders]
    pads = [pad + length - rows.length for rows in groups for pad in rows.pads]
    order = sorted(range(len(slots)), key=slots.__getitem__)  # neighbours' weights are not copied
    return _Rows(
        [slots[row] for row in order],
        [decoders[row] for row in order],
        torch.cat([rows.unread for rows in groups])[order],
        joined([rows.cache for rows in groups], order, length),
        [pads[row] for row in order],
        length,
    )
