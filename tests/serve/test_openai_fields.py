"""Fields of OpenAI's API and of vLLM's, as clients send them."""

import json

import pytest
import torch
from openai import BadRequestError, OpenAI
from support import serving

from whet.adapt.model import LanguageModel
from whet.serve.config import Limits

BASE = {"model": "tiny@base", "max_tokens": 4, "temperature": 0}
CHAT = BASE | {"messages": [{"role": "user", "content": "b"}]}


@pytest.fixture(scope="module")
def app(llama_folder, labeled_space):
    return serving.app(llama_folder, labeled_space, keys=None, slots=3, max_queue_size=2)


@pytest.fixture(scope="module")
def server(app):
    with serving.running(app) as client:
        yield client


@pytest.fixture(scope="module")
def openai(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ids(text):
    from support import tiny_models

    return tiny_models.tokenizer()(text, add_special_tokens=False).input_ids


def test_prompts_of_every_kind_are_answered_in_order(openai):
    alone = [openai.completions.create(**BASE, prompt=p).choices[0].text for p in ("bee", "wax")]
    for prompt in (["bee", "wax"], [ids("bee"), ids("wax")], ["bee", ids("wax")]):
        created = openai.completions.create(**BASE, prompt=prompt)
        assert [choice.text for choice in created.choices] == alone
        assert [choice.index for choice in created.choices] == [0, 1]
        assert created.usage.prompt_tokens == 8
    assert openai.completions.create(**BASE, prompt=ids("bee")).choices[0].text == alone[0]
    assert openai.completions.create(**BASE, prompt=[256, *ids("bee")]).choices[0].text == alone[0]


def test_each_prompt_is_adapted_to_and_counted(openai):
    prompts = ["bee dance", "wax", "hive", "queen", "sting", "smoke"]  # more than slots and queue
    ask = BASE | {"model": "tiny"}
    created = openai.completions.create(
        **ask, prompt=prompts, extra_body={"adapt": {"n": 2, "cache": "off"}}
    )
    assert len(created.choices) == 6 and not hasattr(created, "adapt")
    assert all(choice.adapt["steps"] == 2 for choice in created.choices)
    parts = list(
        openai.completions.create(
            **ask, prompt=prompts[:2], stream=True, extra_body={"adapt": {"n": 2, "cache": "off"}}
        )
    )
    for index in (0, 1):
        text = "".join(p.choices[0].text for p in parts if p.choices[0].index == index)
        assert text == created.choices[index].text
    assert sum(hasattr(part, "adapt") for part in parts) == 2


def test_choices_have_seeds_of_their_own(openai):
    ask = BASE | {"prompt": "bee", "temperature": 1.5, "seed": 3, "top_p": 0.9}
    three = openai.completions.create(**ask, n=3, best_of=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    again = openai.completions.create(**ask, n=3)
    assert [c.text for c in again.choices] == [c.text for c in three.choices]
    assert openai.completions.create(**ask).choices[0].text == three.choices[0].text
    assert len({choice.text for choice in three.choices}) == 3
    parts = list(openai.completions.create(**ask, n=3, stream=True))
    for choice in three.choices:
        own = [p.choices[0] for p in parts if p.choices and p.choices[0].index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason


def test_echo_with_logprobs_scores_the_prompt(openai, llama_folder):
    ask = BASE | {"prompt": ids("bee wax"), "echo": True, "logprobs": 2, "max_tokens": 1}
    choice = openai.completions.create(**ask).choices[0]
    model = LanguageModel.from_pretrained(llama_folder, device="cpu")
    tokens = torch.tensor([256, *ids(choice.text)])
    with torch.no_grad():
        logits = model.hf_model(tokens[None]).logits[0, :, : model.vocab_size]
    expected = logits.float().log_softmax(-1)
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text and choice.text.startswith("bee wax")
    for i, (logprob, top) in enumerate(
        zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    ):
        assert logprob == pytest.approx(float(expected[i, tokens[i + 1]]), abs=1e-4)
        assert top[logprobs.tokens[i]] == logprob and len(top) in (2, 3)
    assert logprobs.text_offset == list(range(len(choice.text)))
    scored = openai.completions.create(**ask | {"max_tokens": 0}).choices[0]
    assert scored.text == "bee wax" and scored.logprobs.tokens == list("bee wax")
    started = openai.completions.create(**ask | {"prompt": [256, *ids("bee wax")]}).choices[0]
    assert started.logprobs.tokens[0] == "<|endoftext|>"
    assert started.logprobs.token_logprobs == [None, *logprobs.token_logprobs]


def test_logprobs_of_a_stream_are_those_of_the_complete_answer(openai):
    ask = BASE | {"prompt": "bee é", "logprobs": 1, "max_tokens": 8}
    whole = openai.completions.create(**ask).choices[0].logprobs
    parts = list(openai.completions.create(**ask, stream=True))
    streamed = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [item for part in streamed for item in getattr(part, name)] == getattr(whole, name)
    chat = CHAT | {"logprobs": True, "top_logprobs": 2}
    content = openai.chat.completions.create(**chat).choices[0].logprobs.content
    parts = list(openai.chat.completions.create(**chat, stream=True))
    streamed = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    assert [item for part in streamed for item in part.content] == content
    assert len(content) <= 4 and all(len(item.top_logprobs) == 2 for item in content)
    assert bytes(content[0].bytes).decode() == content[0].token


def test_sampling_options_reach_the_model(openai):
    [b] = ids("b")
    ask = BASE | {"prompt": "bee"}
    assert openai.completions.create(**ask, logit_bias={str(b): 100}).choices[0].text == "bbbb"
    greedy = openai.completions.create(**ask).choices[0].text
    hot = ask | {"temperature": 2}
    for more in ({"top_k": 1}, {"min_p": 1.0}):
        assert openai.completions.create(**hot, extra_body=more).choices[0].text == greedy
    biased = {str(b): 100, str(ids("c")[0]): 99.5}
    text = openai.completions.create(**ask, logit_bias=biased, presence_penalty=1).choices[0].text
    assert text[:2] == "bc"
    text = (
        openai.completions.create(
            **ask, logit_bias=biased, extra_body={"repetition_penalty": 1.0}, frequency_penalty=2
        )
        .choices[0]
        .text
    )
    assert text == "bcbc"


def test_max_tokens_of_minus_one_fills_the_context(openai):
    created = openai.completions.create(**BASE | {"prompt": "bee", "max_tokens": -1})
    reason, usage = created.choices[0].finish_reason, created.usage
    assert reason == "stop" or usage.total_tokens == 32
    created = openai.chat.completions.create(**CHAT | {"max_tokens": None}, max_completion_tokens=2)
    assert created.usage.completion_tokens <= 2


def test_usage_is_in_every_chunk_when_asked_for(openai):
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = list(
        openai.completions.create(**BASE, prompt="bee", n=2, stream=True, stream_options=options)
    )
    counts = [part.usage.completion_tokens for part in parts]
    assert counts == sorted(counts) and counts[0] == 0 and parts[-1].choices == []
    whole = openai.completions.create(**BASE, prompt="bee", n=2).usage
    assert parts[-1].usage.completion_tokens == counts[-2] == whole.completion_tokens


def test_json_answers_match_their_schema(openai):
    schema = {
        "type": "object",
        "properties": {"k": {"enum": ["a", "b"]}},
        "required": ["k"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ask = CHAT | {"max_tokens": 13, "temperature": 1, "n": 2, "seed": 1}
    created = openai.chat.completions.create(**ask, response_format=format)
    for choice in created.choices:
        assert json.loads(choice.message.content)["k"] in ("a", "b")
        assert choice.finish_reason == "stop"
    text = openai.chat.completions.create(**CHAT, response_format={"type": "json_object"})
    assert text.choices[0].message.content.startswith("{")


def test_ignored_fields_are_listed_in_a_header(openai):
    more = {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "chat_id": "x"}
    more |= {"user": "me", "reasoning_effort": "low", "background_tasks": {"title": True}}
    create = openai.chat.completions.with_raw_response.create
    part = {"type": "text", "text": "b", "cache_control": {}}
    ask = BASE | {"messages": [{"role": "developer", "content": [part]}], "max_tokens": 1}
    ignored = create(**ask, extra_body=more).headers["x-whet-ignored"].split(", ")
    assert ignored == sorted([*more, "messages.content.cache_control"])
    messages = [
        {"role": "assistant", "content": None, "reasoning_content": "hm", "refusal": None},
        {"role": "user", "content": "b", "name": "me"},
    ]
    reply = create(**ask | {"messages": messages})
    assert reply.headers["x-whet-ignored"] == "messages.name, messages.reasoning_content"
    nothing = {"store": False, "metadata": {}, "service_tier": "auto", "modalities": ["text"]}
    nothing |= {"audio": None, "functions": [], "prediction": None, "parallel_tool_calls": True}
    reply = openai.chat.completions.with_raw_response.create(**CHAT, extra_body=nothing)
    assert "x-whet-ignored" not in reply.headers


def test_strict_server_rejects_unknown_fields(llama_folder, labeled_space):
    app = serving.app(llama_folder, labeled_space, keys=None, strict=True)
    with serving.running(app) as client:
        for more in ({"chat_id": "x"}, {"store": True}, {"metadata": {"a": "b"}}):
            reply = client.post("/v1/chat/completions", CHAT | more)
            assert reply.status == 400 and reply.error["param"] == next(iter(more))
            assert reply.error["message"].startswith("unknown name")
        quiet = {"user": "me", "store": False, "prompt_cache_key": "a"}
        assert client.post("/v1/chat/completions", CHAT | quiet).status == 200


FAULTS = {
    "prompt": [[257], ["a"] * 10_000, [[]], [-1], [1.5], [[1], [300]], {"a": 1}, [None]],
    "n": [0, 17, 1.5, "x"],
    "best_of": [2],
    "logprobs": [-1, 21, "many"],
    "logit_bias": [{"x": 1}, {"1": 101}, {"300": 1}, [1]],
    "stop": [["a"] * 65],
    "top_k": [-2],
    "min_p": [1.1, -0.1],
    "presence_penalty": [2.1, "x"],
    "repetition_penalty": [0, -1],
    "max_tokens": [-2, 1.5],
    "stream_options": ["x", {"include_usage": "perhaps"}],
    "suffix": ["x"],
    "guided_json": [{"type": "object"}],
    "use_beam_search": [True],
}


@pytest.mark.parametrize("name", FAULTS)
def test_invalid_value_is_a_bad_request_that_names_the_field(openai, name):
    for value in FAULTS[name]:
        body = {"prompt": "bee", name: value}
        with pytest.raises(BadRequestError) as caught:
            openai.completions.create(**BASE | {"prompt": body.pop("prompt")}, extra_body=body)
        assert name in caught.value.body["message"], value


CHAT_FAULTS = {
    "tools": [[{"type": "x"}], [{"type": "function", "function": {"name": "a b"}}],
              [{"type": "function", "function": {"name": "f"}}] * 2],
    "tool_choice": ["required", "x", {"type": "function", "function": {"name": "f"}}],
    "top_logprobs": [3],
    "response_format": [{"type": "xml"}, {"type": "json_schema"},
                        {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}},
                        {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}],
    "audio": [{}],
    "function_call": [{"name": "f"}],
    "web_search_options": [{}],
    "chat_template_kwargs": [{"enable_thinking": False}],
}  # fmt: skip


@pytest.mark.parametrize("name", CHAT_FAULTS)
def test_invalid_value_of_a_chat_is_a_bad_request(openai, name):
    for value in CHAT_FAULTS[name]:
        with pytest.raises(BadRequestError) as caught:
            openai.chat.completions.create(**CHAT, extra_body={name: value})
        assert name in caught.value.body["message"], value


def test_schema_that_no_text_matches_is_a_bad_request(openai):
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    with pytest.raises(
        BadRequestError, match=r"by its schema \(\w+\): expected a schema that some"
    ):
        openai.chat.completions.create(**CHAT, response_format=format)


def test_tools_need_a_chat_template(openai):
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(BadRequestError, match="tools: the model has no chat template"):
        openai.chat.completions.create(**CHAT, tools=tools)
    openai.chat.completions.create(**CHAT, tools=tools, tool_choice="none")


def test_echo_with_logprobs_cannot_be_streamed(openai):
    with pytest.raises(BadRequestError, match="cannot be streamed"):
        openai.completions.create(**BASE, prompt="b", echo=True, logprobs=1, stream=True)
    parts = list(openai.completions.create(**BASE, prompt="bee", echo=True, stream=True))
    assert parts[0].choices[0].text == "bee"


def test_prompts_and_choices_count_against_the_limits(llama_folder, labeled_space):
    limits = Limits(max_tokens=6, requests_per_minute=3)
    keys = [serving.key("few", "*", limits=limits)]
    with serving.running(serving.app(llama_folder, labeled_space, keys=keys)) as client:
        few = client.of("few")
        ask = BASE | {"prompt": ["b", "c"], "max_tokens": 3}
        assert few.post("/v1/completions", ask | {"n": 3}).status == 413
        assert few.post("/v1/completions", ask | {"n": 2}).status == 200
        assert few.post("/v1/completions", ask).status == 429
