"""What clients send beyond the fields that whet has.

Most of it is harmless, such as a client's own bookkeeping, and is ignored: the response lists the
names in the header `x-whet-ignored`. A field that would change the meaning of the answer is an
error with the reason, and so is one that looks like a misspelled name.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from whet.config import unknown_name
from whet.serve.errors import UNKNOWN_FIELD, APIError
from whet.serve.schemas import MAX_NAME

HEADER = "x-whet-ignored"
MAX_HEADER = 1000
"""Longest value of the header, in characters."""
MISSPELLED = 0.85
"""How similar a name is to that of a field when it is taken for a misspelling of it (difflib)."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "include_obfuscation": (False, True),
    "metadata": ({},),
    "prompt_cache_key": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "user": (),
}
"""Harmless fields of OpenAI's API: accepted on a strict server too, some with these values only."""
_SAMPLERS = "the sampling of whet has temperature, top_p, top_k, min_p and penalties only"
_GRAMMARS = "use response_format with a JSON schema"
UNSUPPORTED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "add_generation_prompt": ("an answer always begins a new message", (True,)),
    "audio": ("the model reads and writes text only", ()),
    "bad_words": ("use logit_bias", ([],)),
    "chat_template": ("the model's own template is used", ("",)),
    "chat_template_kwargs": ("the model's own template is used without options", ({},)),
    "continue_final_message": ("an answer always begins a new message", (False,)),
    "documents": ("add them to a data space", ([],)),
    "dry_multiplier": (_SAMPLERS, (0,)),
    "function_call": ("use tool_choice", ("none", "auto")),
    "functions": ("use tools", ([],)),
    "grammar": (_GRAMMARS, ("",)),
    "guided_choice": (_GRAMMARS, ([],)),
    "guided_grammar": (_GRAMMARS, ("",)),
    "guided_json": (_GRAMMARS, ("",)),
    "guided_regex": (_GRAMMARS, ("",)),
    "ignore_eos": ("an answer ends where the model ends it", (False,)),
    "length_penalty": ("there is no beam search", (1,)),
    "min_tokens": ("an answer ends where the model ends it", (0,)),
    "mirostat": (_SAMPLERS, (0,)),
    "modalities": ("the model writes text only", (["text"], [])),
    "prompt_logprobs": ("use echo and logprobs of /v1/completions", (0,)),
    "stop_token_ids": ("use stop", ([],)),
    "structured_outputs": (_GRAMMARS, ({},)),
    "suffix": ("the model writes what follows a prompt, not what is between two texts", ("",)),
    "tfs": (_SAMPLERS, (1,)),
    "top_a": (_SAMPLERS, (0,)),
    "typical_p": (_SAMPLERS, (1,)),
    "use_beam_search": ("there is no beam search", (False,)),
    "web_search_options": ("the documents of the data space are used", ()),
    "xtc_probability": (_SAMPLERS, (0,)),
}
"""Fields that would change the meaning of the answer, with the reason why they are errors and the
values that ask for nothing."""


class ClientModel(BaseModel):
    """A request, or a part of one, in which fields that whet does not know are ignored.

    Null is the same as leaving a field out.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        for name, value in values.items():
            if name not in fields and value is not None:
                cls._check_unknown(name, value, list(fields))
        return {
            name: value
            for name, value in values.items()
            if value is not None
            or (name in fields and (fields[name].is_required() or fields[name].default is None))
        }

    @classmethod
    def _check_unknown(cls, name: str, value: Any, known: list[str]) -> None:
        name = name[:MAX_NAME].encode("utf-8", "replace").decode()
        reason, neutral = UNSUPPORTED.get(name, ("", ()))
        message = ""
        if reason and value not in neutral:
            message = f"{name} is not supported: {reason}"
        elif not reason and get_close_matches(name, known, 1, MISSPELLED):
            message = unknown_name(name, known)
        if message:
            raise PydanticCustomError(
                UNKNOWN_FIELD, "{message}", {"field": name, "message": message}
            )

    def ignored(self) -> list[str]:
        """Names of the fields that are ignored, without those that ask for nothing."""
        return sorted({path for path, _ in self._unknown_fields()})

    def check_strict(self) -> None:
        """Raises APIError, 400, if a field is ignored that a strict server does not accept."""
        for path, owner in self._unknown_fields():
            *_, name = path.split(".")
            if NEUTRAL.get(name) != ():
                message = unknown_name(name, list(type(owner).model_fields))
                raise APIError(400, message, param=path)

    def _unknown_fields(self) -> Iterator[tuple[str, "ClientModel"]]:
        for name, value in (self.model_extra or {}).items():
            known = (*NEUTRAL.get(name, ()), *UNSUPPORTED.get(name, ("", ()))[1])
            if value is not None and value not in known:
                yield name[:MAX_NAME], self
        for name, value in self.__dict__.items():
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, ClientModel):
                    for path, owner in item._unknown_fields():
                        yield f"{name}.{path}", owner


def ignored_header(body: ClientModel, *, strict: bool) -> dict[str, str]:
    """The header that lists the ignored fields of a request; empty if there are none.

    Raises:
        APIError: 400 if there are any on a strict server.
    """
    if strict:
        body.check_strict()
    names = ", ".join(body.ignored()).encode("ascii", "replace").decode()
    names = "".join(letter if letter.isprintable() else "?" for letter in names)
    return {HEADER: names[:MAX_HEADER]} if names else {}
