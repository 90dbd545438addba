"""OpenAI's Responses API without state on the server."""

import json
import re

import pytest
from openai import BadRequestError, OpenAI
from support import serving


@pytest.fixture(scope="module")
def openai(server):
    key = serving.token("chief")
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        yield client


ASK = {"model": "tiny@base", "temperature": 0, "max_output_tokens": 2}


def test_response_is_that_of_a_chat(openai):
    response = openai.responses.create(**ASK, instructions="w", input="b", metadata={"a": "b"})
    messages = [{"role": "system", "content": "w"}, {"role": "user", "content": "b"}]
    chat = openai.chat.completions.create(
        model="tiny@base", messages=messages, temperature=0, max_tokens=2
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert response.metadata == {"a": "b"} and response.store is False


def test_streamed_events_build_the_complete_response(openai):
    whole = openai.responses.create(**ASK, input="bee")
    events = list(openai.responses.create(**ASK, input="bee", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type.endswith("delta"))
    assert text == events[-4].text == events[-1].response.output_text == whole.output_text
    assert events[0].response.id == events[-1].response.id
    with openai.responses.stream(**ASK, input="bee") as stream:  # the client's own accumulator
        for _ in stream:
            pass


def test_items_of_a_response_can_be_sent_back(openai):
    part = {"type": "input_text", "text": "b"}
    first = openai.responses.create(**ASK, input=[{"role": "user", "content": [part]}])
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    second = openai.responses.create(**ASK, input=[reasoning, *first.output])
    chat = openai.chat.completions.create(
        model="tiny@base", messages=[{"role": "assistant", "content": first.output_text}],
        temperature=0, max_tokens=2,
    )  # fmt: skip
    assert second.output_text == chat.choices[0].message.content


def test_response_is_adapted_and_shows_it_when_asked(openai):
    ask = {"model": "tiny", "input": "bee honey", "max_output_tokens": 2}
    created = openai.responses.create(**ASK | ask, extra_body={"adapt": {"n": 2}})
    assert created.adapt["steps"] == 2 and created.usage.adapt_tokens > 0
    adapt = {"n": 2, "progress": True, "cache": "off"}
    with openai.responses.with_streaming_response.create(
        **ASK | ask, stream=True, extra_body={"adapt": adapt}
    ) as reply:
        lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    progress = [e["adapt_progress"] for e in events if e["type"] == "response.adapt_progress"]
    assert [step["done"] for step in progress[1:]] == [1, 2]


def test_nothing_is_stored_and_that_is_said(openai):
    reply = openai.responses.with_raw_response.create(
        **ASK, input="bee", store=True, truncation="auto", reasoning={"effort": "low"},
        include=["reasoning.encrypted_content"],
    )  # fmt: skip
    assert reply.parse().store is False
    ignored = reply.headers["x-whet-ignored"].split(", ")
    assert ignored == ["include", "reasoning", "store", "truncation"]
    for values in ({"previous_response_id": "resp_1"}, {"background": True}):
        with pytest.raises(BadRequestError, match="stores no responses: send the earlier messages"):
            openai.responses.create(**ASK, input="bee", **values)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"input": []}, "at least 1 item"),
        ({"input": 3}, "expected a valid string"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "role is missing|'message'"),
        ({"input": [{"role": "robot", "content": "a"}]}, "expected 'system'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "'input_image' is not",
        ),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "expected 'function'"),
        ({"input": "a", "tool_choice": "required"}, "there are no tools"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "a"}}}, "schema"),
        ({"input": "a", "max_output_tokens": 0}, "greater than or equal to 1"),
        ({"input": "a", "max_output_tokens": 10**5}, "limit"),
    ],
)
def test_invalid_requests_name_the_field(server, values, message):
    reply = server.of("chief").post("/v1/responses", ASK | values)
    assert reply.status in (400, 413), reply.body
    assert re.search(message, reply.error["message"]), reply.error


def test_early_error_of_a_stream_has_a_status(openai):
    with pytest.raises(BadRequestError, match="context"):
        openai.responses.create(**ASK | {"max_output_tokens": 900}, input="bee", stream=True)
