"""Grammars and tokens of the served model, by a compiler that is made when it is first needed."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from whet.adapt.decoding.grammar import Grammar, GrammarCompiler
from whet.adapt.model import LanguageModel
from whet.serve.errors import APIError


class Grammars:
    """Compiles schemas for one model. Thread-safe."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._lock = model, threading.Lock()
        self._compiler: GrammarCompiler | None = None

    @property
    def compiler(self) -> GrammarCompiler:
        """The compiler; made at the first use, which takes a second for a large vocabulary.

        Raises:
            ValueError: If the model's tokenizer is not supported.
        """
        with self._lock:
            if self._compiler is None:
                model = self._model
                self._compiler = GrammarCompiler(
                    model.tokenizer, model.vocab_size, model.eos_token_ids
                )
            return self._compiler

    async def compile(self, schema: Mapping[str, Any], param: str) -> Grammar:
        """Compile a JSON schema.

        Raises:
            APIError: 400 if it cannot be compiled; `param` is the field that it came from.
        """
        try:
            return await asyncio.to_thread(lambda: self.compiler.json_schema(schema))
        except ValueError as error:
            raise APIError(400, f"{param}: {error}", param=param) from error
