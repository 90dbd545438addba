"""Function calls: which formats are known, and how calls are read from text and written."""

import json
import re

import pytest
from openai import BadRequestError, OpenAI
from support import serving, tiny_models
from support.paths import DOCS

from whet.adapt.chat.template import apply_chat_template, template_tokenizer
from whet.serve.generation.tools import FORMATS, FunctionCall, ToolCallParser, tool_format

PLACE = {
    "type": "object",
    "properties": {"place": {"$ref": "#/$defs/Place"}},
    "required": ["place"],
    "$defs": {"Place": {"enum": ["hive", "meadow"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "fly", "parameters": PLACE, "strict": True}},
    {"type": "function", "function": {"name": "sting", "strict": True}},
]
CALL = '<tool_call>\n{"name": "fly", "arguments": {"place": "hive"}}\n</tool_call>'


WEATHER = {"city": {"type": "string"}, "state": {"type": "string"}, "unit": {"enum": ["celsius"]}}
AREA = {
    "shape": {"type": ["string", "null"]},
    "dimensions": {"type": "object"},
    "precision": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "exact": {"type": "boolean"},
    "place": {"$ref": "#/$defs/Place"},
    "any": {},
}
OFFERED = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in [
        ("fly", PLACE),
        ("add", {}),
        ("add_this", {"properties": 5, "$defs": 5}),
        ("get_current_weather", {"properties": WEATHER}),
        ("calculate_area", {"properties": AREA, "$defs": PLACE["$defs"]}),
        (
            "loop",
            {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
        ),
    ]
]


def read(format, pieces, **options):
    """The parts of an answer, with text joined and calls as pairs."""
    parser, parts = ToolCallParser(FORMATS[format], OFFERED, **options), []
    for piece in pieces:
        parts += parser.feed(piece)
    parts += parser.finish()
    texts = "".join(part for part in parts if isinstance(part, str))
    return texts, [
        (part.name, json.loads(part.arguments)) for part in parts if isinstance(part, FunctionCall)
    ]


def tagged(name, **arguments):
    """A call in the words of Qwen3-Coder's chat template."""
    lines = [f"<parameter={field}>\n{value}\n</parameter>\n" for field, value in arguments.items()]
    return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"


FLY = ("fly", {"place": "hive"})
CASES = [
    ("hermes", CALL, ("", [FLY])),
    ("hermes", f"I go. {CALL}\n{CALL}", ("I go. \n", [FLY, FLY])),
    ("hermes", CALL.removesuffix("\n</tool_call>"), ("", [FLY])),
    ("hermes", "<tool_call>{broken</tool_call> a", ("<tool_call>{broken</tool_call> a", [])),
    ("hermes", "a <tool", ("a <tool", [])),
    ("hermes", "1 < 2", ("1 < 2", [])),
    ("llama3", '{"name": "fly", "parameters": {"place": "hive"}}', ("", [FLY])),
    ("llama3", '{"name": "fly"}', ('{"name": "fly"}', [])),
    (
        "llama3",
        'So {"name": "fly", "parameters": {}}',
        ('So {"name": "fly", "parameters": {}}', []),
    ),
    ("mistral", '[TOOL_CALLS] [{"name": "fly", "arguments": {"place": "hive"}}]', ("", [FLY])),
    ("mistral", '[{"name": "fly", "arguments": {"place": "hive"}}]', ("", [FLY])),
    ("mistral", "[1] is a list", ("[1] is a list", [])),
    ("mistral", "Bees", ("Bees", [])),
    ("hermes", CALL.replace('"hive"', "NaN"), (CALL.replace('"hive"', "NaN"), [])),
    ("hermes", CALL.replace("hive", "\\ud800"), ("", [("fly", {"place": "?"})])),
    # the examples of vLLM's tests, for which the models' special tokens are in the text or are not
    ("mistral-v11", '[TOOL_CALLS]add_this{"a": 3.5, "b": 4}', ("", [("add_this", {"a": 3.5, "b": 4})])),
    ("mistral-v11", '[TOOL_CALLS]fly[ARGS]{"place": "hive"}', ("", [FLY])),
    ("mistral-v11", 'fly{"place": "hive"}', ("", [FLY])),
    ("mistral-v11", 'add{"a": 3}[TOOL_CALLS]fly[ARGS]{"place": "hive"}', ("", [("add", {"a": 3}), FLY])),
    ("mistral-v11", 'I go.fly{"place": "hive"}\nadd{}', ("I go.", [FLY, ("add", {})])),
    ("mistral-v11", 'fly {"place": "hive"}', ('fly {"place": "hive"}', [])),
    ("mistral-v11", 'sting{"place": "hive"}', ('sting{"place": "hive"}', [])),
    ("mistral-v11", 'fly{"place": "hive"} now', ('fly{"place": "hive"} now', [])),
    ("mistral-v11", 'Bees fly[ARGS', ("Bees fly[ARGS", [])),
    ("qwen3-coder", f"Sure!{tagged('get_current_weather', city='Dallas', state='007')}",
     ("Sure!", [("get_current_weather", {"city": "Dallas", "state": "007"})])),
    ("qwen3-coder", f"{tagged('fly', place='hive')}\n{tagged('fly', place='hive')}", ("\n", [FLY, FLY])),
    ("qwen3-coder", tagged("calculate_area", shape="a\nb ", dimensions='{"width": 10, \n "height": 20}',
                           precision="2", exact="True", place="12", any="[1]"),
     ("", [("calculate_area", {"shape": "a\nb ", "dimensions": {"width": 10, "height": 20},
                               "precision": 2, "exact": True, "place": "12", "any": [1]})])),
    ("qwen3-coder", tagged("calculate_area", shape="null", precision="two", dimensions="None"),
     ("", [("calculate_area", {"shape": None, "precision": "two", "dimensions": None})])),
    ("qwen3-coder", tagged("unknown") + tagged("add_this", a="1") + tagged("loop", a="x"),
     ("", [("unknown", {}), ("add_this", {"a": 1}), ("loop", {"a": "x"})])),
    ("qwen3-coder", tagged("fly", place="hive").removesuffix("\n</tool_call>"), ("", [FLY])),
    ("qwen3-coder", CALL, (CALL, [])),
    ("qwen3-coder", "<tool_call>\n<function=fly>\nx\n</function>\n</tool_call>",
     ("<tool_call>\n<function=fly>\nx\n</function>\n</tool_call>", [])),
]  # fmt: skip


@pytest.mark.parametrize("format, text, expected", CASES)
def test_calls_are_read_whatever_the_pieces(format, text, expected):
    for size in (1, 3, 1000):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert read(format, pieces) == expected


def test_text_is_returned_as_soon_as_it_cannot_be_a_call():
    for name in FORMATS:
        assert ToolCallParser(FORMATS[name]).feed("Bees ") == ["Bees "]
    parser = ToolCallParser(FORMATS["hermes"])
    assert parser.feed("a <tool_") == ["a "] and parser.feed("x") == ["<tool_x"]


@pytest.mark.parametrize(
    "template, name",
    [("a <tool_call> b", "hermes"), ("'[TOOL_CALLS] ['", "mistral"),
     ('{"name": function name, "parameters": dictionary of', "llama3"),
     ("'[TOOL_CALLS]' + name + '[ARGS]'", "mistral-v11"),
     ("<tool_call> <function=a> <parameter=b>", "qwen3-coder")],
)  # fmt: skip
def test_format_is_known_by_the_template(template, name):
    assert tool_format(template).name == name
    for other in ("nothing", "<tool_call><function=", "[TOOL_CALLS]x[CALL_ID]y[ARGS]"):
        with pytest.raises(ValueError, match="is not known to whet"):
            tool_format(other)


@pytest.fixture(scope="module")
def folder(llama_folder, tmp_path_factory):
    return tiny_models.with_tools(llama_folder, tmp_path_factory.mktemp("tools") / "model")


@pytest.fixture(scope="module")
def server(folder, labeled_space):
    with serving.running(serving.app(folder, labeled_space, keys=None)) as client:
        yield client


@pytest.fixture(scope="module")
def openai(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_requests_of_the_documentation_are_answered(server):
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    asked = r"curl -sN? http://127.0.0.1:8000(/\S+) -H 'content-type: application/json' \\?\s*-d '(.*?)'"
    requests = re.findall(asked, page, re.DOTALL)
    assert len(requests) >= 16
    for path, body in requests:
        body = json.loads(body)
        model = {"my": "docs"}.get(body.get("model"), "tiny")  # a data space, in some of them
        path = path.replace("/my/", "/docs/")
        reply = server.post(path, body | ({"model": model} if "model" in body else {}))
        assert reply.status == 200, (body, reply.body)


def test_what_a_chat_uses_documents_for_by_default(server):
    """A model with a chat template reads them; naming what is trained asks for steps, too."""
    chat = {"messages": [{"role": "user", "content": "honey bee"}]}
    asked = [
        ("chat/completions", chat, {}),
        ("chat/completions", chat, {"adapter": "lora"}),
        ("chat/completions", chat, {"use": "steps"}),
        ("chat/completions", chat, {"n": 0}),
        ("completions", {"prompt": "honey bee"}, {}),
    ]
    infos = []
    for path, body, adapt in asked:
        body = {"model": "tiny", "max_tokens": 4, "adapt": {"cache": "off", **adapt}, **body}
        infos.append(server.post(f"/v1/{path}", body).json()["adapt"])
    assert [info["use"] for info in infos] == ["context", "both", "steps", "steps", "steps"]
    assert [info["steps"] > 0 for info in infos] == [False, True, True, False, True]
    assert [bool(info["evidence"]["in_context"]) for info in infos] == [True, True] + [False] * 3
    assert "use: context, chosen by default" in infos[0]["evidence"]["line"]
    wrong = server.post(
        "/v1/completions", {"model": "tiny", "prompt": "a", "adapt": {"use": "all"}}
    )
    assert wrong.status == 400 and b"context" in wrong.body


ASK = {"model": "tiny@base", "messages": [{"role": "user", "content": "go"}], "tools": TOOLS}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "fly"}}])
def test_required_call_matches_the_tool(openai, choice):
    ask = ASK | {"tool_choice": choice, "temperature": 1.0, "max_tokens": 100}
    names = set()
    for seed in range(3):
        chosen = openai.chat.completions.create(**ask, seed=seed).choices[0]
        assert chosen.finish_reason == "tool_calls" and chosen.message.content is None
        [call] = chosen.message.tool_calls
        names.add(call.function.name)
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "sting" or arguments["place"] in ("hive", "meadow")
    assert names <= ({"fly"} if choice != "required" else {"fly", "sting"})
    messages = [
        *ASK["messages"], chosen.message,
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]  # fmt: skip
    openai.chat.completions.create(**ASK | {"messages": messages}, max_tokens=1)


def test_streamed_call_is_that_of_the_complete_answer(openai):
    ask = ASK | {"tool_choice": "required", "temperature": 1.0, "max_tokens": 100, "seed": 1}
    [call] = openai.chat.completions.create(**ask).choices[0].message.tool_calls
    with openai.chat.completions.stream(**ask) as stream:
        for _ in stream:
            pass
        streamed = stream.current_completion_snapshot.choices[0]
    [again] = streamed.message.tool_calls
    assert streamed.finish_reason == "tool_calls"
    assert (again.function.name, again.function.arguments) == (
        call.function.name,
        call.function.arguments,
    )


def test_call_that_is_cut_off_is_text(openai):
    ask = ASK | {"tool_choice": "required", "max_tokens": 5}
    chosen = openai.chat.completions.create(**ask).choices[0]
    assert chosen.finish_reason == "length" and chosen.message.tool_calls is None
    assert chosen.message.content.startswith("{")


def test_schema_of_a_tool_that_cannot_be_compiled_is_rejected(openai):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "no"}}}]
    with pytest.raises(BadRequestError, match="tools: schema cannot be compiled"):
        openai.chat.completions.create(**ASK | {"tools": tools}, tool_choice="required")


def test_schema_or_arguments_that_are_nested_too_deeply_are_rejected(server):
    deep = {}
    for _ in range(400):
        deep = {"properties": {"a": deep}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": deep}}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps(deep)}}
    for more in (
        {"tools": tools, "tool_choice": "required"},
        {"tools": tools},
        {"messages": [{"role": "assistant", "tool_calls": [call]}, *ASK["messages"]]},
    ):
        reply = server.post("/v1/chat/completions", ASK | {"max_tokens": 1} | more)
        assert reply.status == 400 and "deeply" in reply.error["message"], reply.body


def test_tools_in_the_prompt_are_those_of_the_template(folder):
    from whet.adapt.model import LanguageModel

    tokenizer = LanguageModel.from_pretrained(folder).tokenizer
    templates = template_tokenizer(tokenizer)
    call = {"type": "function", "function": {"name": "fly", "arguments": {"a": "<|endoftext|>"}}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<|endoftext|>"},
    ]
    tokens = apply_chat_template(tokenizer, templates, messages, TOOLS)
    assert tokens.count(256) == 4  # the template's own
    assert tokenizer.decode(tokens) == (
        'Tools:fly sting <|endoftext|>user go<|endoftext|>assistant fly{"a": "<|endoftext|>"}'
        "<|endoftext|>tool <|endoftext|><|endoftext|>"
    )
    templates.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="does not support tools"):
        apply_chat_template(tokenizer, templates, messages[:1], TOOLS)
