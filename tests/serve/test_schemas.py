"""Fields that may be null, and errors of fields of two kinds."""

import pytest
from pydantic import ValidationError

from whet.serve.schemas.chat import ChatRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
SILENT = {"role": "assistant", "content": None, "tool_calls": None}


@pytest.mark.parametrize(
    "more",
    [{"stream": None}, {"stream_options": {"include_usage": None}}, {"n": None},
     {"temperature": None}, {"tools": None},
     {"tool_choice": None}, {"logit_bias": None}, {"response_format": None}, {"adapt": {"lam": None}},
     {"adapt": {"include": None}}, {"adapt": {"progress": None}}, {"adapt": {"cache": None}},
     {"top_p": 0}, {"safety_identifier": None}, {"prompt_cache_key": "a"},
     {"messages": [SILENT, *CHAT["messages"]]}],
    ids=str,
)  # fmt: skip
def test_null_asks_for_nothing(more):
    request = ChatRequest.model_validate(CHAT | more)
    assert request.stream is False and request.messages[-1].text == "Hi"


def part(value):
    return {"messages": [{"role": "user", "content": [value]}]}


@pytest.mark.parametrize(
    "more, expected",
    [({"stop": ["a"] * 65}, "at most 64"), ({"stop": ["a", None]}, "not None"),
     (part({"type": "image_url", "image_url": {"url": "x"}}), "'image_url' is not supported"),
     ({"messages": [{"role": "user", "content": None}]}, "content is null"),
     ({"model": None}, "valid string"), ({"stop": 5}, "valid string")],
    ids=str,
)  # fmt: skip
def test_error_is_about_the_kind_that_was_given(more, expected):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(CHAT | more)
    assert expected in caught.value.errors()[0]["msg"]
