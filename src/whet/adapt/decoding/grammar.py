"""Generated text that must match a JSON schema, token by token, with llguidance.

A grammar is compiled once and used by any number of sequences, each with a matcher of its own. The
limits of llguidance bound the time of a compilation and of a token.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from whet.errors import require

DATA = {"const", "default", "enum", "examples"}
"""Fields of a schema that contain values, not schemas."""
OPEN = {"additionalProperties", "anyOf", "oneOf", "patternProperties", "$ref"}
"""Fields of a schema that name further properties."""
WHITESPACE = " ?"
"""Between the parts of JSON: small models would otherwise go on with blanks until the end."""


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """What a generated text must match: see `GrammarCompiler`."""

    source: str = field(repr=False)
    """The grammar in the format of llguidance."""
    tokenizer: Any = field(repr=False)
    """The tokenizer of llguidance."""

    def matcher(self) -> "GrammarMatcher":
        """A matcher at the beginning of a text."""
        return GrammarMatcher(self)


class GrammarCompiler:
    """Compiles grammars for the tokenizer of one model. Thread-safe.

    Reading a large tokenizer takes about a second.

    Raises:
        ValueError: If llguidance does not support the tokenizer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        require("llguidance", "serve")
        from llguidance import hf

        ends = sorted(eos_token_ids) or None
        self._tokenizer = hf.from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=ends)

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """Text that is JSON of this schema.

        An object has only the properties that the schema names, unless it has
        `additionalProperties`, or the schema combines several with `allOf`.

        Raises:
            ValueError: If the schema is invalid, or uses what llguidance does not support.
        """
        from llguidance import LLMatcher

        options: Any = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
        try:
            text = json.dumps(schema)
            if '"allOf"' not in text:
                text = json.dumps(_closed(schema))
        except RecursionError:
            raise ValueError("schema cannot be compiled: it is nested too deeply") from None
        source = LLMatcher.grammar_from_json_schema(text, overrides=options)
        message = LLMatcher.validate_grammar(source, self._tokenizer)
        if message and not message.startswith("WARNING"):
            raise ValueError(f"schema cannot be compiled: {' '.join(message.split())}")
        return Grammar(source, self._tokenizer)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; for a special token, those of its name."""
        return bytes(self._tokenizer.decode_bytes([token_id]))


def _closed(schema: Any) -> Any:
    """A schema whose objects have no other properties than those that it names.

    Small models would otherwise go on with properties of their own until the end.
    """
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {name: value if name in DATA else _closed(value) for name, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and not closed.keys() & OPEN:
        closed["additionalProperties"] = False
    return closed


class GrammarMatcher:
    """The state of one text that must match a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        from llguidance import LLMatcher
        from llguidance.numpy import allocate_token_bitmask

        self._matcher = LLMatcher(grammar.tokenizer, grammar.source, log_level=0)
        self._bits = allocate_token_bitmask(1, grammar.tokenizer.vocab_size)

    def allowed(self, vocab_size: int) -> Bool[Tensor, " v"]:
        """Which tokens may come next.

        Raises:
            ValueError: If a limit of llguidance is exceeded, as by a schema that is too complex.
        """
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits, 0)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little")
        return torch.from_numpy(bits[:vocab_size].astype(bool))

    def append(self, token: int) -> bool:
        """Add a token; whether the text is complete and nothing can follow.

        Raises:
            ValueError: As `allowed`.
        """
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason, _, _ = self._matcher.get_error().partition("<state>")  # of its parser
            raise ValueError(
                f"the text could not be generated by its schema ({' '.join(reason.split())}): "
                "expected a schema that some text matches, and a simpler one if it is large"
            )
